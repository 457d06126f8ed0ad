"""What a layer is: one class in one file, from which shapes, forward, ONNX and documentation follow.

A layer file states Caffe's rule and its source in the class docstring and fills in what differs from the
defaults below. Nothing here or in a layer file imports torch at module level: shapes and ONNX export work without it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from caffe_compat.dialects import BVLC, dialects, forks_with_type
from caffe_compat.errors import LayerError, UnknownLayerError, Where
from caffe_compat.schema import pb

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Run = Callable[[list["Tensor"], list["Tensor"]], list["Tensor"]]
"""From bottoms and parameter blobs to tops."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """What a net is built for.

    Attributes:
        phase: "TRAIN" or "TEST".
        profile: "bvlc" (the last BVLC commit) or "dec2013".
        dialect: the short name of the fork whose layers take precedence, "" for none, "bvlc" to refuse those of forks.
        folder: paths inside the net (HDF5 lists, infogain matrices) are relative to it.
        state: a free slot for layers that share something across the net (weights in "python_layers", ...).
    """

    phase: str = "TEST"
    profile: str = "bvlc"
    dialect: str = ""
    folder: str = "."
    state: dict[str, Any] = field(default_factory=dict)


class OnnxWriter(Protocol):
    """What a layer may do while it is written to ONNX; implemented in converters.onnx."""

    opset: int
    dynamic_batch: bool
    open_size: bool
    """Heights and widths are left open: what is written must not depend on those of `bottom_shapes`."""

    def op(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str] | int = 1, **attributes: Any) -> list[str]:
        """Add a node; `outputs` names its outputs, or counts those to be named here. Returns their names."""

    def constant(self, value: np.ndarray) -> str:
        """Add an initializer that is not one of the net's weights. Returns its name."""

    def array(self, blob: str) -> np.ndarray:
        """The values of the weight named `blob`, for layers that must combine weights."""


class PythonWriter(Protocol):
    """What a layer may do while it is written as Python source; implemented in converters.python_source.

    Attributes:
        joined: the module of the next layer, which `fused` computes together with this one; "" when there is none.
    """

    joined: str

    def module(self, constructor: str) -> str:
        """Let the net have a submodule, which holds the layer's blobs under their names. Returns its expression."""

    def part(self, name: str) -> str:
        """Let the file have a function or class of converters.python_parts. Returns its name."""


class Layer:
    """Base of all layers. An instance belongs to one place in one net.

    Life: `__init__` (parameters) -> `setup` (checks that need the bottoms' shapes) -> `blob_shapes`, `top_shapes`
    -> any number of `forward`. `bottom_shapes` and `top_shapes_built` keep the shapes the net was built with,
    `phase` is the net's unless the layer states one, `tops` counts the tops including those that Caffe adds.

    Raises:
        LayerError: from `setup` or the shape rules, with the line of the offending field.
    """

    TYPE: ClassVar[str]
    """The V2 type string."""
    V1: ClassVar[tuple[str, ...]] = ()
    """Names in V1LayerParameter.LayerType."""
    V0: ClassVar[tuple[str, ...]] = ()
    """Type strings of generation V0."""
    PARAM: ClassVar[str] = ""
    """The field of LayerParameter with this layer's parameters; `self.p` is that message."""
    PROFILES: ClassVar[tuple[str, ...]] = ("bvlc",)
    """Profiles in which this class defines TYPE."""
    DIALECTS: ClassVar[tuple[str, ...]] = ()
    """Forks that define this layer so; () = BVLC Caffe itself."""
    FORK_FIELDS: ClassVar[tuple[str, ...]] = ()
    """Paths of forks' fields outside PARAM, or in a message of BVLC's, that this class follows; others are refused."""
    BOTTOMS: ClassVar[tuple[int, int | None]] = (1, 1)
    """Fewest and most bottoms (None: any number)."""
    TOPS: ClassVar[tuple[int, int | None]] = (1, 1)
    """Fewest and most tops (None: any number)."""
    AUTO_TOPS: ClassVar[bool] = False
    """Caffe adds unnamed tops when the net gives fewer than TOPS asks for (loss layers)."""
    BLOBS: ClassVar[tuple[str, ...]] = ()
    """Names of the parameter blobs in exported weights; further blobs are called by their index."""
    FROM_ONNX: ClassVar[bool] = False
    """Nets read from ONNX may have this layer; said of this class alone, not of those derived from it."""
    INPLACE: ClassVar[bool] = False
    """Caffe allows a top to be the bottom of the same position."""
    LOSS: ClassVar[bool] = False
    """The first top has loss_weight 1 unless the net says otherwise."""
    OUTPUT_FREE: ClassVar[bool] = False
    """Its top is new memory that its own gradient does not need, so the next layer may overwrite it."""
    LEARNS_WHOLE: ClassVar[bool] = False
    """Its backward pass computes the gradients of all its blobs, also of those with lr_mult 0."""
    HEEDLESS: ClassVar[bool] = False
    """Its backward pass does not ask whether the gradient of its bottom is wanted."""
    BACKWARD: ClassVar[bool] = True
    """Caffe has a backward pass for it."""
    VARIES: ClassVar[bool] = False
    """The sizes of its tops depend on what the bottoms hold, not on their sizes alone."""
    TRACES: ClassVar[bool] = False
    """Its rule asks where its bottoms come from: `ways` tells before `setup`."""

    def __init__(
        self, param: pb.LayerParameter, context: Context, locate: Callable[[str], Where] | None = None
    ) -> None:
        self.param = param
        self.name: str = param.name
        self.context = context
        self.p: Any = getattr(param, self.PARAM) if self.PARAM else None
        self._locate = locate or (lambda _field: Where())
        self.phase = pb.Phase.Name(param.phase) if param.HasField("phase") else context.phase
        self.bottom_shapes: list[Shape] = []
        self.top_shapes_built: list[Shape] = []
        self.tops = len(param.top)
        self.ways: list[list[tuple[str, Layer]]] = []
        """With TRACES, for each bottom: it and the blobs before it by first bottoms, with the layers that made them."""
        self._met: tuple[list[Shape] | None, list[Shape]] = (None, [])

    @classmethod
    def takes(cls, bottoms: int, tops: int) -> bool:
        """Whether it may have so many bottoms and tops; forks that share a layer type are told apart by this."""
        tops = max(tops, cls.TOPS[0]) if cls.AUTO_TOPS else tops
        pairs = ((bottoms, cls.BOTTOMS), (tops, cls.TOPS))
        return all(least <= count and (most is None or count <= most) for count, (least, most) in pairs)

    # -- rules ---------------------------------------------------------------------------------------------

    def setup(self, bottoms: Sequence[Shape]) -> None:
        """Check parameters against the bottoms' shapes, once (Caffe's LayerSetUp)."""

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """Shapes of the parameter blobs, in Caffe's order."""
        return []

    def fillers(self) -> list[pb.FillerParameter]:
        """How each parameter blob is initialised, as many as `blob_shapes` gives."""
        return []

    def initial(self, index: int) -> np.ndarray | None:
        """Initial values of a parameter blob where no filler gives them, float32; None: those of its filler."""
        return None

    def param_specs(self, given: Sequence[pb.ParamSpec], blobs: int) -> list[pb.ParamSpec]:
        """Multipliers and name of each parameter blob: those the net gives, and Caffe's defaults for the others."""
        return [*given, *(pb.ParamSpec() for _ in range(blobs - len(given)))]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """Shapes of the tops (Caffe's Reshape); by default those of the first bottom."""
        return [bottoms[0]] * self.tops

    def reshape(self, bottoms: Sequence[Tensor]) -> list[Shape]:
        """Shapes of the tops for these tensors; `top_shapes` is asked only when sizes have changed.

        For `forward`, where torch would broadcast sizes that Caffe refuses, or needs the top's sizes.
        """
        shapes: list[Shape] = [bottom.shape for bottom in bottoms]
        if shapes != self._met[0]:
            self._met = (shapes, self.top_shapes([tuple(shape) for shape in shapes]))
        return self._met[1]

    def macs(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        """Multiply-accumulates of one forward pass; 0 where they do not matter."""
        return 0

    def notes(self) -> list[str]:
        """What a user should know of this layer in this net: parts of it that do nothing here."""
        return []

    def propagates(self, bottom: int) -> bool:
        """Whether a gradient may flow to that bottom (loss layers: not to labels)."""
        return True

    # -- work ----------------------------------------------------------------------------------------------

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        """The tops. Shapes may differ from those of `setup` where the rule allows."""
        raise NotImplementedError(self.TYPE)

    overwrite: Run | None = None
    """As `forward`, but may leave the top in the memory of bottom 0; None where there is nothing to gain."""
    symmetric = False
    """Its bottoms may change places, with the same bits."""

    def fused(self, follower: Layer) -> tuple[Run, Run | None] | None:
        """One `forward` and one `overwrite` for this layer and the only reader of its top, or None.

        They take this layer's bottoms and the parameter blobs of both, and give the follower's tops.
        """
        return None

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        """Add nodes that compute `tops` exactly, or refuse.

        Raises:
            ConversionError: ONNX has no exact form.
        """
        from caffe_compat.errors import ConversionError

        raise ConversionError(
            f"{self.TYPE} has no exact form in ONNX",
            where=self.where(),
            remedy="convert to PyTorch (.safetensors) or cut the net before this layer",
        )

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        """An expression for the top, or for a sequence of all tops, that gives the same bits as `forward`.

        Args:
            w: keeps modules, functions and classes that the expression needs.
            bottoms: the variables that hold the bottoms; `torch`, `F` (torch.nn.functional) and `nn` are at hand.

        Raises:
            ConversionError: the layer is not written as source.
        """
        from caffe_compat.errors import ConversionError

        raise ConversionError(
            f"{self.TYPE} is not written as Python source",
            where=self.where(),
            remedy="convert to .safetensors, and run it with caffe_compat.load",
        )

    # -- going on where a run was cut off ------------------------------------------------------------------

    def saved(self) -> dict[str, Any]:
        """What forward passes have changed in the layer itself, its blobs apart: JSON values and numpy arrays, in
        dicts; {} for nothing. A place in the data is that of the next forward pass, whatever was read ahead."""
        return {}

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Be as the layer was that gave this.

        Raises:
            LookupError, TypeError, ValueError: it is that of another kind of layer.
            VggcError: it is that of other data.
        """

    # -- saying what is wrong ------------------------------------------------------------------------------

    def where(self, field: str = "") -> Where:
        """The place of this layer, or of one of its fields (`pooling_param.pad`)."""
        return self._locate(field).in_layer(self.name)

    def error(self, what: str, *, field: str = "", remedy: str = "") -> LayerError:
        """An error at this layer; `field` is the dotted path inside the layer."""
        return LayerError(what, where=self.where(field), remedy=remedy)

    def check(self, ok: bool, what: str, *, field: str = "", remedy: str = "") -> None:
        """Raise LayerError unless `ok`."""
        if not ok:
            raise self.error(what, field=field, remedy=remedy)

    def axis(self, axis: int, rank: int, field: str = "") -> int:
        """A possibly negative axis as 0..rank-1 (Blob::CanonicalAxisIndex, blob.hpp)."""
        self.check(
            -rank <= axis < rank,
            f"axis {axis} is out of range for a bottom with {rank} axes",
            field=field,
            remedy=f"use {-rank} to {rank - 1}",
        )
        return axis % rank if rank else 0

    def has(self, field: str) -> bool:
        """Whether the net states `field` of this layer's parameters (repeated: has entries)."""
        descriptor = self.p.DESCRIPTOR.fields_by_name[field]
        return bool(len(getattr(self.p, field))) if not descriptor.has_presence else self.p.HasField(field)


L = TypeVar("L", bound=type[Layer])

REGISTER = "register it with caffe_compat.register_layer"

_REGISTRY: dict[tuple[str, str], type[Layer]] = {}
"""(type, profile or dialect) -> layer."""


def register(cls: L) -> L:
    """Class decorator: make the layer known under its TYPE for its profiles and dialects.

    Raises:
        ValueError: another class already has that type in that profile or dialect.
    """
    for scope in cls.DIALECTS or cls.PROFILES:
        other = _REGISTRY.setdefault((cls.TYPE, scope), cls)
        if other is not cls and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{cls.TYPE} is already registered for {scope} by {other.__module__}")
    return cls


def load_all() -> None:
    """Import every layer file once."""
    if _REGISTRY.get(("", "loaded")) is None:
        package = importlib.import_module("caffe_compat.layers")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"caffe_compat.layers.{module.name}")
        _REGISTRY["", "loaded"] = Layer


def registered() -> list[tuple[str, str, type[Layer]]]:
    """(type, profile or dialect, class) of every layer, sorted."""
    load_all()
    return sorted((kind, scope, cls) for (kind, scope), cls in _REGISTRY.items() if kind)


def implementation(kind: str, dialect: str) -> type[Layer] | None:
    """The class for a layer type that a dialect has, also when it is registered under a fork that defines it alike."""
    load_all()
    if (kind, dialect) in _REGISTRY:
        return _REGISTRY[kind, dialect]
    own = dialects().get(dialect)
    origin = own.types.get(kind) if own else None
    alike = (name for name, other in dialects().items() if origin and other.types.get(kind) == origin)
    return next((_REGISTRY[kind, name] for name in alike if (kind, name) in _REGISTRY), None)


def find_layer(kind: str, context: Context, where: Where | None = None) -> type[Layer]:
    """The class for a type string in a profile and dialect.

    A dialect comes first, then the profile, then, unless the dialect is "bvlc", any fork that alone has a type that
    BVLC Caffe never had.

    Raises:
        UnknownLayerError: nothing has that type, or several forks disagree about it.
    """
    found = implementation(kind, context.dialect) if context.dialect else None
    if found is not None:
        return found
    own = dialects().get(context.dialect)
    forks: dict[type[Layer], str] = {}
    if own is None or kind not in own.types:
        load_all()
        if (kind, context.profile) in _REGISTRY:
            return _REGISTRY[kind, context.profile]
        own_type = context.dialect == BVLC or (kind, BVLC) in _REGISTRY  # then it is of another profile
        known = [] if own_type else sorted(_REGISTRY.items(), key=lambda item: item[0])
        forks = {cls: scope for (k, scope), cls in reversed(known) if k == kind and cls.DIALECTS}
    if len(forks) == 1:
        return next(iter(forks))
    raise _unknown(kind, context, sorted(forks.values()), where or Where())


def _unknown(kind: str, context: Context, forks: list[str], where: Where) -> UnknownLayerError:
    own = dialects().get(context.dialect)
    if forks:
        what = f'layer type "{kind}" means different things in {", ".join(forks)}'
        return UnknownLayerError(what, where=where, remedy=f"name the fork with --dialect: {', '.join(forks)}")
    if own is not None and kind in own.types:
        what = f'layer type "{kind}" of {own.name} is not supported'
        return UnknownLayerError(what, where=where, remedy=REGISTER)
    what, having = f'unknown layer type "{kind}" under profile {context.profile}', forks_with_type(kind)
    supported = [name for name in having if implementation(kind, name)]
    if having:
        what += f"; it exists in {', '.join(having)}"
    newer = _newer_spelling(kind)
    remedy = f'if it is {newer}, write the net with `layer {{ }}` and type: "{newer}"' if newer else REGISTER
    return UnknownLayerError(what, where=where, remedy=f"use --dialect {supported[0]}" if supported else remedy)


def _newer_spelling(kind: str) -> str:
    """The known type that a name in capitals may stand for: ROI_POOLING for ROIPooling; "" for none."""
    if kind != kind.upper():
        return ""
    load_all()
    return next((known for known, _ in sorted(_REGISTRY) if known.upper() == kind.replace("_", "")), "")
