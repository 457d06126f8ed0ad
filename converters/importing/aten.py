"""A torch module as a program: exported with torch.export, its ATen operators written as ONNX's.

Every operator that has an entry in `aten_ops` is kept as it is; torch decomposes the others into smaller ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.errors import ConversionError
from converters.importing.program import Array, Op, Program, Shape

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import Node

SOURCE = "torch"
LRN = "LocalResponseNorm"
"""A module that torch computes in a dozen steps and Caffe in one."""


class Ref(str):
    """A tensor of the program, by name."""

    __slots__ = ()


def read_module(module: nn.Module, example: Sequence[Tensor], name: str) -> Program:
    """Export a module in evaluation mode; it is left as it was.

    Raises:
        ConversionError: torch cannot export it, or it keeps changing its own buffers.
    """
    from converters.importing.aten_ops import TABLE

    with _evaluating(module):
        exported = _exported(module, tuple(example), TABLE)
    return _Tracer(module, exported, name).program()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = {each: each.training for each in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for each, state in training.items():
            each.training = state


def _exported(module: nn.Module, example: tuple[Any, ...], kept: Iterable[str]) -> Any:
    import torch

    try:
        with torch.no_grad():
            exported = torch.export.export(module, example)
            table: Any = torch.export.default_decompositions()
            for op in [op for op in table if _packet(op) in kept]:
                table.pop(op)
            return exported.run_decompositions(table)
    except Exception as error:  # torch raises whatever the module's own code makes it raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"torch.export refuses the module: {reason}"
        raise ConversionError(what, where=SOURCE, remedy="make it exportable (torch.export.export)") from error


def _packet(target: Any) -> str:
    """`conv2d` of aten.conv2d.default; "" for what is not ATen's."""
    schema = getattr(target, "_schema", None)
    namespace, _, name = schema.name.partition("::") if schema is not None else ("", "", "")
    return name if namespace == "aten" else ""


class _Tracer:
    """Walks the exported graph; what mapping functions see as Tracer."""

    def __init__(self, module: nn.Module, exported: Any, name: str) -> None:
        self.module, self.exported, self.name = module, exported, name
        self.constants: dict[str, Array] = {}
        self.ops: list[Op] = []
        self.refs: dict[Node, Any] = {}
        self.shapes: dict[str, Shape] = {}
        self.integers: set[str] = set()
        self._taken: set[str] = set()
        self._node: Node | None = None

    def program(self) -> Program:
        inputs = self._placeholders()
        nodes = [node for node in self.exported.graph.nodes if node.op == "call_function"]
        for group in self._groups(nodes):
            self._node = group[-1]
            if len(group) > 1 or _packet(group[0].target) == "":
                self._special(group)
            else:
                self._plain(group[0])
        outputs = self._outputs()
        source = f"{SOURCE}: {type(self.module).__name__}"
        ops = tuple(replace(op, source=source) for op in self.ops)
        return Program(self.name, source, inputs, outputs, ops, self.constants, frozenset(self.integers))

    # -- what goes in and out ------------------------------------------------------------------------------

    def _placeholders(self) -> dict[str, Shape]:
        """Parameters and buffers become constants, the others inputs."""
        kinds = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        inputs: dict[str, Shape] = {}
        for node in self.exported.graph.nodes:
            if node.op != "placeholder":
                continue
            target = kinds[node.name].target
            if target is None:
                self.refs[node] = self._fresh(node.name)
                inputs[self.refs[node]] = tuple(int(size) for size in node.meta["val"].shape)
                if not node.meta["val"].dtype.is_floating_point:
                    self.integers.add(self.refs[node])
            else:
                self.refs[node] = self._fresh(target)
                found = self.exported.state_dict.get(target, self.exported.constants.get(target))
                self.constants[self.refs[node]] = _array(found, target)
                self.shapes[self.refs[node]] = tuple(found.shape)
        self.shapes |= inputs
        return inputs

    def _outputs(self) -> tuple[str, ...]:
        specs = self.exported.graph_signature.output_specs
        changed = [spec.target for spec in specs if spec.target is not None]
        if changed:
            what = f"the module changes its own {', '.join(changed)}"
            raise ConversionError(what, where=SOURCE, remedy="let it compute its outputs only")
        (node,) = (node for node in self.exported.graph.nodes if node.op == "output")
        return tuple(str(self.refs[each]) for each in node.args[0])

    # -- nodes ---------------------------------------------------------------------------------------------

    def _groups(self, nodes: Sequence[Node]) -> Iterator[list[Node]]:
        """Nodes one by one, but those of an LRN module together."""
        group: list[Node] = []
        for node in nodes:
            path, kind = innermost(node)
            if group and (kind != LRN or innermost(group[0])[0] != path):
                yield group
                group = []
            if kind == LRN:
                group.append(node)
            else:
                yield [node]
        if group:
            yield group

    def _special(self, group: Sequence[Node]) -> None:
        """An LRN module, or a part of a tuple."""
        node = group[-1]
        path, kind = innermost(node)
        if kind == LRN:
            lrn: Any = self.module.get_submodule(path)
            values: dict[str, Any] = {
                "size": int(lrn.size),
                "alpha": float(lrn.alpha),
                "beta": float(lrn.beta),
                "bias": float(lrn.k),
            }
            self.refs[node] = self.op("LRN", [self.refs[_node_of(group[0].args[0])]], **values)
        elif getattr(node.target, "__name__", "") == "getitem":
            self.refs[node] = self._part(self.refs[_node_of(node.args[0])], node)
        else:
            self.refs[node] = self.op(str(node.target), [], shape=None)

    def _plain(self, node: Node) -> None:
        from converters.importing.aten_ops import TABLE

        arguments = self._arguments(node)
        packet = _packet(node.target)
        if packet in TABLE:
            self.refs[node] = TABLE[packet](self, arguments)
        else:
            given = [each for each in arguments.values() if isinstance(each, Ref)]
            self.refs[node] = self.op(f"aten.{packet}", given, outputs=len(self._node_shapes()))

    def _part(self, parts: Any, node: Node) -> Any:
        index: Any = node.args[1]
        part = parts[index] if isinstance(parts, list) else parts
        if part is None:
            what = f'the module "{self.layer()}" uses places of maxima, or the like, which Caffe does not give'
            raise ConversionError(what, where=SOURCE, remedy="use the first result only")
        return part

    def _arguments(self, node: Node) -> dict[str, Any]:
        """Arguments by their names in the schema, with its defaults; tensors as Ref."""
        schema: Any = getattr(node.target, "_schema")  # noqa: B009
        made: dict[str, Any] = {}
        for position, argument in enumerate(schema.arguments):
            if position < len(node.args):
                value: Any = node.args[position]
            else:
                value = node.kwargs.get(argument.name, argument.default_value)
            made[argument.name] = self._value(value)
        return made

    def _value(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._value(each) for each in value]
        return self.refs[value] if type(value).__name__ == "Node" else value

    # -- for mapping functions -----------------------------------------------------------------------------

    def op(
        self,
        kind: str,
        inputs: Sequence[str | None],
        *,
        outputs: int = 1,
        shape: Shape | None = None,
        **attributes: Any,
    ) -> Any:
        """Add an operator; the name of its output, or a list of names."""
        layer = self.layer()
        names = [self._fresh(layer) for _ in range(outputs)]
        given = {key: value for key, value in attributes.items() if value is not None}
        made = tuple(str(name or "") for name in inputs)
        shapes = self._node_shapes() if outputs > 1 else [shape if shape is not None else self.result()]
        self.ops.append(Op(kind, layer, made, tuple(map(str, names)), given, shapes=tuple(shapes), layer=layer))
        self.shapes |= {name: each for name, each in zip(names, shapes, strict=False) if each is not None}
        return names if outputs > 1 else names[0]

    def constant(self, values: Any, kind: Any = np.float32) -> Ref:
        """A constant that no parameter is."""
        name = self._fresh("constant")
        self.constants[name] = np.asarray(values, kind)
        self.shapes[name] = self.constants[name].shape
        return name

    def result(self) -> Shape | None:
        """The shape that torch says the node's result has."""
        shapes = self._node_shapes()
        return shapes[0] if shapes else None

    def layer(self) -> str:
        """What the node's layer is called: as torch's own module, or as the operator inside another."""
        if self._node is None:
            return ""
        path, _ = innermost(self._node)
        return path if is_own(self._node) and path else "/".join(part for part in (path, self._node.name) if part)

    def _node_shapes(self) -> list[Shape | None]:
        value: Any = self._node.meta.get("val") if self._node is not None else None
        values: Any = value if isinstance(value, (list, tuple)) else [value]
        return [tuple(int(n) for n in each.shape) if hasattr(each, "shape") else None for each in values]

    def _fresh(self, name: str) -> Ref:
        candidate, number = name, 1
        while candidate in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._taken.add(candidate)
        return Ref(candidate)


Tracer = _Tracer


def innermost(node: Node) -> tuple[str, str]:
    """Path and class of the module that a node is in."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    return str(path), (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]


def is_own(node: Node) -> bool:
    """Whether the module that a node is in is one of torch's layers."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    kind = list(stack.values())[-1][1] if stack else ""
    full = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return full.startswith("torch.nn.modules.") and not full.endswith((".Sequential", ".ModuleList"))


def _node_of(value: Any) -> Node:
    return value  # type: ignore[no-any-return]


def _array(tensor: Tensor | None, name: str) -> Array:
    """A parameter's values; other precisions than float32 stay for the rules to judge."""
    import torch

    if tensor is None or tensor.device.type == "meta":
        what = f'the module has no values for "{name}"'
        raise ConversionError(what, where=SOURCE, remedy="load its weights first")
    values = tensor.detach().cpu()
    if values.dtype in (torch.float16, torch.bfloat16, torch.float64):
        values = values.float()
    return values.numpy()
