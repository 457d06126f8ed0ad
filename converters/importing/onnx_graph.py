"""An ONNX file as a program; nothing in it is believed before it is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

from caffe_compat.errors import BinaryError, ConversionError, VggcError, Where, raise_all
from converters.importing.options import ImportOptions
from converters.importing.program import Op, Program, Shape
from converters.importing.tensors import Tensors
from converters.onnx_reading import Stored, check_text

MAX_NODES = 100_000
MAX_SIZE = 2**31 - 1
HINT_VALUES = 1024
"""Most values of a constant that shape inference is told."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
INTEGERS = (TensorProto.INT32, TensorProto.INT64)
OWN_DOMAINS = ("", "ai.onnx")


def read_program(model: onnx.ModelProto, source: str, options: ImportOptions, stored: Stored | None = None) -> Program:
    """Check a model and bring it into the form that rules take.

    Raises:
        BinaryError: the graph or one of its tensors breaks ONNX's rules.
        ConversionError: an input has sizes that are left open; `Problems` when there are several.
    """
    return _Reader(model, source, options, stored).read()


class _Reader:
    def __init__(
        self, model: onnx.ModelProto, source: str, options: ImportOptions, stored: Stored | None = None
    ) -> None:
        self.model, self.graph, self.source, self.options = model, model.graph, source, options
        self.tensors = Tensors(source, stored)
        self.versions = {each.domain: each.version for each in model.opset_import}

    def read(self) -> Program:
        try:
            check_text(self.model)
        except ValueError as error:
            raise self.broken(f"a name is no text: {error}") from error
        if not self.graph.node:
            raise self.broken("it has no nodes", "check where it came from")
        if self.graph.sparse_initializer:
            raise self.broken("it has sparse initializers", "save it with dense ones")
        if len(self.graph.node) > MAX_NODES:
            raise self.broken(f"it has {len(self.graph.node)} nodes, more than {MAX_NODES}", "cut it into parts")
        given = {tensor.name: tensor for tensor in self.graph.initializer}
        inputs, integers = self.inputs(set(given))
        self.check_order({*inputs, *given})
        ops = self.ops(self.expected(inputs, given))
        wanted = {name for op in ops for name in op.inputs} | {info.name for info in self.graph.output}
        constants = {name: self.tensors.read(tensor) for name, tensor in given.items() if name in wanted}
        notes = []
        if self.tensors.widened:
            count = len(self.tensors.widened)
            notes.append(f"{count} tensor(s) of other precision are float32 now: {', '.join(self.tensors.widened[:5])}")
        outputs = tuple(info.name for info in self.graph.output)
        name = self.graph.name
        return Program(
            name, self.source, inputs, outputs, tuple(ops), constants, integers, tuple(notes), self.tensors.stored
        )

    def broken(self, what: str, remedy: str = "save the model again with the program that wrote it") -> BinaryError:
        return BinaryError(what, where=Where(self.source), remedy=remedy)

    # -- inputs --------------------------------------------------------------------------------------------

    def inputs(self, given: set[str]) -> tuple[dict[str, Shape], frozenset[str]]:
        """Shapes of what is fed, with the batch and what the options say put in."""
        shapes: dict[str, Shape] = {}
        integers, problems = set(), []
        for info in self.graph.input:
            if info.name in given:
                continue
            kind = info.type.tensor_type.elem_type
            try:
                shapes[info.name] = self.shape(info)
                if kind not in (*FLOATS, *INTEGERS):
                    raise self.refused(info, "is no tensor of numbers", "feed float32")
            except VggcError as error:
                problems.append(error)
            if kind in INTEGERS:
                integers.add(info.name)
        unknown = set(self.options.input_shapes) - set(shapes)
        if unknown and not problems:
            what = f"no input called {', '.join(sorted(unknown))}"
            problems.append(ConversionError(what, where=self.source, remedy=f"there are {', '.join(shapes)}"))
        raise_all(problems)
        return shapes, frozenset(integers)

    def shape(self, info: onnx.ValueInfoProto) -> Shape:
        if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
            dims: list[Any] = []
            declared: list[int] = []
        else:
            dims = list(info.type.tensor_type.shape.dim)
            declared = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in dims]
        if info.name in self.options.input_shapes:
            return self.stated(info, declared)
        if declared and not declared[0]:
            declared[0] = self.options.batch
        if min(declared, default=0) < 1 or prod(declared) > MAX_SIZE:
            text = ", ".join(
                str(size) if size > 0 else dim.dim_param or "?" for size, dim in zip(declared, dims, strict=True)
            )
            raise self.refused(
                info, f"has the shape ({text})", f"give its shape: --input-shape {info.name}=1,3,224,224"
            )
        return tuple(declared)

    def stated(self, info: onnx.ValueInfoProto, declared: list[int]) -> Shape:
        shape = tuple(int(size) for size in self.options.input_shapes[info.name])
        agrees = not declared or len(shape) == len(declared)
        agrees = agrees and all(
            size in (own, size if not own or not i else own)
            for i, (size, own) in enumerate(zip(shape, declared, strict=False))
        )
        if not agrees or min(shape, default=0) < 1 or prod(shape) > MAX_SIZE:
            what = f"has the shape {declared}, which {list(shape)} is not"
            raise self.refused(info, what, "give a shape that agrees where the model states sizes")
        return shape

    def refused(self, info: onnx.ValueInfoProto, what: str, remedy: str) -> ConversionError:
        return ConversionError(f'input "{info.name}" {what}', where=self.source, remedy=remedy)

    # -- nodes ---------------------------------------------------------------------------------------------

    def check_order(self, known: set[str]) -> None:
        """Every tensor is made once, before it is read."""
        made = {name for node in self.graph.node for name in node.output}
        for node in self.graph.node:
            for name in node.input:
                if name and name not in known:
                    label = f'node "{node.name or node.op_type}" reads "{name}"'
                    if name in made:
                        raise self.broken(f"{label}, which a later node makes: nodes are unsorted, or go in a circle")
                    raise self.broken(f"{label}, which nothing makes: an initializer or input is missing")
            twice = [name for name in node.output if name and name in known]
            if twice:
                raise self.broken(f'tensor "{twice[0]}" is made twice')
            known.update(node.output)
        missing = [info.name for info in self.graph.output if info.name not in known]
        if missing or not self.graph.output:
            raise self.broken(f'nothing makes the output "{missing[0]}"' if missing else "the graph has no output")

    def ops(self, shapes: Mapping[str, Shape]) -> list[Op]:
        ops, problems = [], []
        for node in self.graph.node:
            op = self.op(node, shapes)
            if node.domain not in OWN_DOMAINS:
                functions = {(each.domain, each.name) for each in self.model.functions}
                local = (node.domain, node.op_type) in functions
                remedy = (
                    "inline the model's functions (onnx.inliner)" if local else "export it with ONNX's own operators"
                )
                problems.append(op.refuse(f'an operator of the domain "{node.domain}"', remedy))
            ops.append(op)
        raise_all(problems)
        return ops

    def op(self, node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> Op:
        version = self.versions.get("", self.versions.get("ai.onnx", 1))
        found = tuple(shapes.get(name) for name in node.output)
        op = Op(node.op_type, node.name, tuple(node.input), tuple(node.output), {}, version, found, "", self.source)
        return replace(op, attributes=dict(self.attributes(node)))

    def attributes(self, node: onnx.NodeProto) -> Iterator[tuple[str, Any]]:
        """Attributes as plain values; graphs are left out, as no operator that has one is taken."""
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.name, self.tensors.read(attribute.t)
            elif attribute.type in (AttributeProto.STRING, AttributeProto.STRINGS):
                value = helper.get_attribute_value(attribute)
                yield attribute.name, _text(value) if isinstance(value, bytes) else [_text(each) for each in value]
            elif attribute.type in (AttributeProto.FLOAT, AttributeProto.INT):
                yield attribute.name, helper.get_attribute_value(attribute)
            elif attribute.type in (AttributeProto.FLOATS, AttributeProto.INTS):
                yield attribute.name, list(helper.get_attribute_value(attribute))

    # -- what shapes the source expects --------------------------------------------------------------------

    def expected(self, inputs: Mapping[str, Shape], given: Mapping[str, onnx.TensorProto]) -> dict[str, Shape]:
        """Shapes that ONNX's own inference finds, without the weights' values.

        It is not asked to compute constants: a Range of 2^62 values would never end.
        """
        try:
            inferred = onnx.shape_inference.infer_shapes(self.skeleton(inputs, given))
        except Exception:  # a broken attribute; the rule that reads it says so
            return {}
        infos = [*inferred.graph.value_info, *inferred.graph.output]
        return {info.name: shape for info in infos if (shape := _concrete(info)) is not None}

    def skeleton(self, inputs: Mapping[str, Shape], given: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
        """The model with large weights as inputs, and with the inputs' sizes known."""
        small = [tensor for tensor in given.values() if _is_hint(tensor)]
        large = [tensor for tensor in given.values() if not _is_hint(tensor)]
        kinds = {info.name: info.type.tensor_type.elem_type for info in self.graph.input}
        infos = [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in inputs.items()]
        infos += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
        outputs = [onnx.ValueInfoProto(name=info.name) for info in self.graph.output]
        for output, info in zip(outputs, self.graph.output, strict=True):
            output.type.tensor_type.elem_type = info.type.tensor_type.elem_type
        made = helper.make_graph(self.graph.node, "hints", infos, outputs, small)
        return helper.make_model(made, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)


def _is_hint(tensor: onnx.TensorProto) -> bool:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return 0 <= count <= HINT_VALUES and tensor.data_location != TensorProto.EXTERNAL


def _concrete(info: onnx.ValueInfoProto) -> Shape | None:
    kind = info.type.tensor_type
    if not kind.HasField("shape") or not all(
        dim.HasField("dim_value") and dim.dim_value >= 0 for dim in kind.shape.dim
    ):
        return None
    shape = tuple(dim.dim_value for dim in kind.shape.dim)
    return shape if prod(shape) <= MAX_SIZE else None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
