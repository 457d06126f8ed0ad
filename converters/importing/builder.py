"""A Caffe net in the making: layers with their weights, checked one by one by the layers' own rules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from caffe_compat.errors import ConversionError, Where
from caffe_compat.graph import MAX_COUNT
from caffe_compat.layers.base import Context, Layer, find_layer
from caffe_compat.schema import pb
from converters.importing.folding import Folder
from converters.importing.options import ImportOptions
from converters.importing.program import Array, Op, Program, Shape


@dataclass(frozen=True)
class Value:
    """What a tensor of the source is in the net.

    Attributes:
        shape: its shape in the source, `pads` included.
        blob: the blob that holds it; "" for constants and after a refusal.
        array: the values of a constant.
        pads: zeros (before, after) along each axis that are not in the blob yet; () for none.
        positive: no value is below 0.
        integer: the source takes the values as whole numbers.
        cut: fractions are dropped in the source, but still there in the blob.
        tensor: the constant's name in the source.
        origin: the weight that the constant was made of, alone.
    """

    shape: Shape
    blob: str = ""
    array: Array | None = None
    pads: tuple[tuple[int, int], ...] = ()
    positive: bool = False
    integer: bool = False
    cut: bool = False
    tensor: str = ""
    origin: str = ""

    @property
    def sizes(self) -> Shape:
        """The shape of the blob, without `pads`."""
        if not self.pads:
            return self.shape
        return tuple(size - before - after for size, (before, after) in zip(self.shape, self.pads, strict=True))


@dataclass
class Made:
    """A layer that was made.

    Attributes:
        param: as it will stand in the net.
        bottoms: what it reads.
        blobs: its weights.
    """

    param: pb.LayerParameter
    bottoms: list[Value]
    blobs: list[Array] = field(default_factory=list)


BLOBS = ("weight", "bias", "mean", "variance")
"""What weights are called after their layer's name and a dot."""
WEIGHTED = ("Add", "BatchNormalization", "Conv", "ConvTranspose", "Gather", "Gemm", "MatMul", "Mul", "PRelu", "Sub")
"""Operators whose constants are weights."""
NUMBERED = re.compile(r"(.+)_[0-9]+")
_ALWAYS_POSITIVE = ("Sigmoid", "Softmax", "AbsVal", "Exp", "BNLL")
_KEEP_SIGN = ("Pooling", "Concat", "Slice", "Reshape", "Flatten", "Permute", "Tile", "Split", "Eltwise")


class Builder:
    """Makes layers; rules see the program through it.

    Attributes:
        options: see ImportOptions.
        values: tensor of the source -> what became of it.
        notes: sentences for the user.
        losses: what was left out or cast, in sentences.
    """

    def __init__(self, program: Program, options: ImportOptions) -> None:
        self.program, self.options = program, options
        self.values = {
            name: Value(array.shape, array=array, tensor=name, origin=name) for name, array in program.constants.items()
        }
        self.notes: list[str] = []
        self.losses: list[str] = list(program.notes)
        self.folder = Folder()
        self.layers: list[Made] = []
        self.readers: Counter[str] = Counter()
        """Blob -> how often operators read it, or will."""
        self.context = Context()
        self._reads = program.reads()
        self._names: set[str] = set()
        self._nodes = frozenset(op.name for op in program.ops)
        self._constants: dict[str, Made] = {}
        self._blobs: set[str] = set(program.inputs) | {name for op in program.ops for name in op.outputs}
        self._op = Op("", "", (), ())
        self._first = 0
        for name, shape in program.inputs.items():
            if self._reads[name]:
                self._input(name, shape)
            else:
                self.losses.append(f'input "{name}" is not used and left out')

    def _input(self, name: str, shape: Shape) -> None:
        param = pb.LayerParameter(name=self.unique(name), type="Input", top=[name])
        param.input_param.shape.add(dim=shape)
        self.layers.append(Made(param, []))
        self.values[name] = Value(shape, name, integer=name in self.program.integers)
        self.readers[name] = self._reads[name]

    # -- reading -------------------------------------------------------------------------------------------

    def raw(self, op: Op, index: int) -> Value:
        """An input as it is: it may be a constant, or have zeros around it that are not there yet."""
        if not op.has(index):
            raise op.refuse(f"input {index} is missing", "check the model with onnx.checker")
        return self.values[op.inputs[index]]

    def read(self, op: Op, index: int) -> Value:
        """An input as a blob."""
        return self.blob(op, self.raw(op, index))

    def blob(self, op: Op, value: Value) -> Value:
        """A value as a blob, with all that was put off; constants become the blob of a Parameter layer."""
        if value.integer:
            raise op.refuse("it works on whole numbers, which Caffe's blobs are not", "cut the model before this node")
        if value.array is not None:
            return self._parameter(op, value, value.array)
        if value.pads:
            from converters.importing.padding import put_pads

            return put_pads(self, op, value)
        return value

    def _parameter(self, op: Op, value: Value, array: Array) -> Value:
        """A constant as the blob of a Parameter layer, which is made once."""
        if value.tensor not in self._constants:
            self.layer(op, "Parameter", [], [floats(op, array)], name=value.tensor, shape={"dim": value.shape})
            made = self.layers[-1]
            if value.tensor and value.tensor not in self.tops():
                self._rename(made.param.top[0], value.tensor)
            self._constants[value.tensor or made.param.name] = made
        made = self._constants[value.tensor] if value.tensor else self.layers[-1]
        return Value(value.shape, made.param.top[0], positive=bool((array >= 0).all()))

    def constant(self, op: Op, index: int, what: str) -> Array:
        """An input that has to be a constant.

        Raises:
            ConversionError: it is computed.
        """
        found = self.raw(op, index).array
        if found is None:
            raise op.refuse(
                f"its {what} is computed by the net", f"Caffe needs a constant {what}: fold it before export"
            )
        return found

    def optional(self, op: Op, index: int, what: str) -> Array | None:
        """An input that may be left out, but otherwise has to be a constant."""
        return self.constant(op, index, what) if op.has(index) else None

    def weights(self, op: Op, index: int, what: str) -> Array:
        """A constant of floating-point numbers."""
        return floats(op, self.constant(op, index, what))

    # -- making --------------------------------------------------------------------------------------------

    def layer(
        self,
        op: Op,
        kind: str,
        bottoms: Sequence[Value],
        blobs: Sequence[Array] = (),
        suffix: str = "",
        *,
        tops: int = 1,
        name: str = "",
        **fields: Any,
    ) -> list[Value]:
        """Add a layer; `fields` are those of its parameter message that are not None.

        Raises:
            LayerError: Caffe would refuse it.
        """
        base = name or self.base_name(op)
        param = pb.LayerParameter(name=self.unique(f"{base}/{suffix}" if suffix else base), type=kind)
        param.top.extend(self.fresh_blob(f"{param.name}{f'/{i}' if i else ''}") for i in range(tops))
        given = {key: value for key, value in fields.items() if value is not None}
        if given:
            try:
                state(getattr(param, self._class(param).PARAM), given)
            except ValueError as error:
                raise op.refuse(f"a number that Caffe cannot hold ({error})", "check the model") from error
        return self._add(param, bottoms, blobs)

    def again(self, made: Made) -> Value:
        """Add a layer that was taken back, as it is now."""
        made.param.name = self.unique(made.param.name)
        self._blobs.update(made.param.top)
        return self._add(made.param, made.bottoms, made.blobs)[0]

    def _add(self, param: pb.LayerParameter, bottoms: Sequence[Value], blobs: Sequence[Array]) -> list[Value]:
        param.bottom[:] = [value.blob for value in bottoms]
        made = Made(param, list(bottoms), [np.asarray(blob, np.float32, order="C") for blob in blobs])
        shapes = self._shapes(made, self._class(param))
        self.layers.append(made)
        for top in param.top:
            self.readers[top] = 1  # for now its own rule is the only reader
        positive = _is_positive(made)
        return [Value(tuple(shape), top, positive=positive) for shape, top in zip(shapes, param.top, strict=True)]

    def _class(self, param: pb.LayerParameter) -> type[Layer]:
        return find_layer(param.type, self.context, Where(self.program.source, layer=param.name))

    def _shapes(self, made: Made, cls: type[Layer]) -> list[Shape]:
        """The shapes of the tops, by the layer's own rules; weights are checked on the way."""
        source = self.program.source
        layer = cls(made.param, self.context, lambda _field: Where(source))
        shapes = [value.sizes for value in made.bottoms]
        if not all(value.blob for value in made.bottoms):
            raise Unmade
        layer.setup(shapes)
        wanted = [tuple(shape) for shape in layer.blob_shapes(shapes)]
        got = [blob.shape for blob in made.blobs]
        layer.check(wanted == got, f"its weights are {got}, it takes {wanted}", remedy="check the model's weights")
        tops = layer.top_shapes(shapes)
        large = next((top for top in tops if prod(top) > MAX_COUNT), ())
        layer.check(not large, f"a top of {list(large)}; a blob has {MAX_COUNT} values at most", remedy="feed less")
        return tops

    def in_place(self, made: Made) -> bool:
        """Whether a layer may overwrite its first bottom."""
        return self._class(made.param).INPLACE

    def one(self, *args: Any, **fields: Any) -> Value:
        """The top of a layer that has one."""
        return self.layer(*args, **fields)[0]

    def retract(self, value: Value, *kinds: str) -> Made | None:
        """Take a layer back, so that it can be made anew together with what reads it.

        None when the value is not the only top of a layer of these types, or is read by others as well.
        """
        if self.readers[value.blob] != 1 or value.pads:
            return None
        for position in range(len(self.layers) - 1, -1, -1):
            made = self.layers[position]
            if value.blob in made.param.top:
                if made.param.type not in kinds or len(made.param.top) != 1:
                    return None
                del self.layers[position]
                self._first -= position < self._first
                self._names.discard(made.param.name)
                self._blobs.discard(value.blob)
                return made
        return None

    # -- names ---------------------------------------------------------------------------------------------

    def base_name(self, op: Op) -> str:
        """What the layers of an operator are called: as the weights or the node are, else as the tensor."""
        if op.layer:
            return op.layer
        given = [self.values[name] for name in op.used() if name in self.values] if op.kind in WEIGHTED else []
        origins = [value.origin.rpartition(".") for value in given]
        stems = [stem for stem, _, last in origins if stem and last in BLOBS]
        name, numbered = op.name, NUMBERED.fullmatch(op.name)
        while numbered and numbered[1] in self._nodes:  # one of several nodes of a layer
            name, numbered = numbered[1], NUMBERED.fullmatch(numbered[1])
        own = name.removesuffix(f"/{op.kind}")
        candidates = (*stems, own if own.strip("/") or not name else op.kind.lower(), *op.outputs)
        return next((found for each in candidates if (found := each.strip("/"))), op.kind)

    def unique(self, name: str) -> str:
        """A layer name that no other has."""
        return _unique(name, self._names)

    def fresh_blob(self, name: str) -> str:
        """A blob name that no other has."""
        return _unique(name, self._blobs)

    # -- one operator --------------------------------------------------------------------------------------

    def enter(self, op: Op) -> None:
        """What follows belongs to this operator."""
        self._op, self._first = op, len(self.layers)

    def leave(self, op: Op, values: Sequence[Value]) -> None:
        """Give an operator's results the names of its tensors."""
        for name, value in zip(op.outputs, values, strict=False):
            if not name:
                continue
            if value.blob and self._rename(value.blob, name):
                self.values[name] = replace(value, blob=name)
                self.readers[name] = self._reads[name]
                continue
            self._blobs.discard(name)
            if value.array is not None:
                self.values[name] = replace(value, tensor=name)
            else:
                self.values[name] = value
                self.readers[value.blob] += self._reads[name] - 1  # the same blob under another name

    def _rename(self, old: str, new: str) -> bool:
        """Rename a blob made in this operator; whether it was."""
        own = self.layers[self._first :]
        if not any(old in made.param.top for made in own):
            return False
        self.rename(old, new)
        return True

    def rename(self, old: str, new: str) -> None:
        """Rename a blob in all layers."""
        for made in self.layers:
            for names in (made.param.bottom, made.param.top):
                if old in names:
                    names[:] = [new if name == old else name for name in names]
            made.bottoms = [replace(value, blob=new) if value.blob == old else value for value in made.bottoms]
        self._blobs.discard(old)
        self._blobs.add(new)

    def forget(self, value: Value) -> None:
        """One reader less: it needed the shape only."""
        if value.blob:
            self.readers[value.blob] -= 1

    def tops(self) -> set[str]:
        """All blobs so far."""
        return {top for made in self.layers for top in made.param.top}


class Unmade(ConversionError):
    """A layer that reads what could not be made; that was said already."""

    def __init__(self) -> None:
        super().__init__("reads what could not be made")


def state(message: Any, fields: Mapping[str, Any]) -> None:
    """Set fields of a message: lists are appended, tables go inside."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            getattr(message, name).SetInParent()
            state(getattr(message, name), value)
        elif isinstance(value, (list, tuple)):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)


def _is_positive(made: Made) -> bool:
    kind, param = made.param.type, made.param
    if kind == "ReLU":
        return not param.relu_param.negative_slope
    if kind == "Clip":
        return param.clip_param.min >= 0
    if kind == "Eltwise" and min(param.eltwise_param.coeff, default=0) < 0:
        return False
    return kind in _ALWAYS_POSITIVE or (kind in _KEEP_SIGN and all(value.positive for value in made.bottoms))


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def floats(op: Op, array: Array) -> Array:
    """A constant as float32.

    Raises:
        ConversionError: float32 cannot hold its values.
    """
    if array.dtype == np.float32:
        return array
    made = array.astype(np.float32)
    if array.dtype.kind not in "iub" or (made.astype(array.dtype) != array).any():
        raise op.refuse(f"a constant of {array.dtype}, which float32 cannot hold", "export it with float32 constants")
    return made
