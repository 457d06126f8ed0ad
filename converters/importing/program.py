"""What both sources become before the rules see it: ONNX operators over named tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from caffe_compat.errors import ConversionError, Where

if TYPE_CHECKING:
    from converters.onnx_reading import Stored

Shape = tuple[int, ...]
Array = NDArray[Any]
NEWEST = 21
"""Version of the operator set that programs of torch are written in."""


@dataclass(frozen=True)
class Op:
    """One operator.

    Attributes:
        kind: its name in ONNX, e.g. "Conv".
        name: of the node in the source.
        inputs: tensors read; "" where an optional one is left out.
        outputs: tensors made; "" where an optional one is left out.
        attributes: as ONNX has them, numbers, texts, lists or arrays.
        version: of the operator set.
        shapes: what the source says about the outputs' shapes, None where it does not.
        layer: what the layer is to be called; "" leaves it to the weights' and the node's name.
        source: the file, for messages.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    version: int = NEWEST
    shapes: tuple[Shape | None, ...] = ()
    layer: str = ""
    source: str = ""

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(attribute, default)

    def has(self, index: int) -> bool:
        """Whether there is an input at that place."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def used(self) -> tuple[str, ...]:
        """Inputs that are there."""
        return tuple(name for name in self.inputs if name)

    def refuse(self, what: str, remedy: str) -> ConversionError:
        """The error that no layer of Caffe computes this."""
        name = self.name or next((output for output in self.outputs if output), "")
        place = f'{self.source}: node "{name}"' if self.source else f'node "{name}"'
        return ConversionError(f"{self.kind}: {what}", where=Where(place), remedy=remedy)


@dataclass(frozen=True)
class Program:
    """Operators in an order in which they can run.

    Attributes:
        name: of the net.
        source: the file, for messages.
        inputs: tensors given from outside and their shapes.
        outputs: tensors that are the result.
        constants: weights and the like.
        integers: inputs that hold whole numbers.
        notes: what was cast when the program was read.
        stored: the mapped file in which large constants lie.
    """

    name: str
    source: str
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]
    constants: Mapping[str, Array]
    integers: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    stored: Stored | None = None

    def reads(self) -> Counter[str]:
        """How often each tensor is read, being an output included."""
        counted = Counter(self.outputs)
        for op in self.ops:
            counted.update(op.used())
        return counted

    def needed(self) -> tuple[Op, ...]:
        """The operators that outputs depend on."""
        wanted, kept = set(self.outputs), []
        for op in reversed(self.ops):
            if wanted.intersection(op.outputs):
                wanted.update(op.used())
                kept.append(op)
        return tuple(reversed(kept))
