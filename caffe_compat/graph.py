"""A net as a graph: filtered by phase, stage and level, in-place layers resolved, every shape known.

Rules: net.cpp (Init, FilterNet, StateMeetsRule, AppendTop, AppendBottom, AppendParam), insert_splits.cpp,
layer.hpp (CheckBlobCounts, SetLossWeights), blob.cpp (Reshape) of BVLC Caffe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import NamedTuple

from caffe_compat import dec2013
from caffe_compat.backward import Backward, backward_pass
from caffe_compat.dec2013 import PROFILE as DEC2013
from caffe_compat.dialects import dialects
from caffe_compat.errors import GraphError, LayerError, Problems, VggcError, Where, raise_all
from caffe_compat.fork_fields import judge_unknown, refused_fields
from caffe_compat.guessing import guess_net, told
from caffe_compat.layers.base import Context, Layer, Shape, find_layer
from caffe_compat.schema import pb
from caffe_compat.source import SourceMap
from caffe_compat.splits import TopLoss, reads, stated_losses
from caffe_compat.upgrade import Upgraded, copy_fields, upgrade_net

MAX_AXES = 32
MAX_COUNT = 2**31 - 1

PROFILES: dict[str, Callable[[pb.NetParameter, SourceMap | None, str], Upgraded]] = {
    "bvlc": upgrade_net,
    DEC2013: dec2013.read,
}
"""Whose semantics -> how a net of any generation, of a dialect, is brought to the newest one."""


class Value(NamedTuple):
    """A blob at one moment: in-place layers make the next version of the same blob."""

    blob: str
    version: int = 0


class ParamKey(NamedTuple):
    """A parameter blob by the index of the node that owns it."""

    node: int
    blob: int


@dataclass(frozen=True)
class Node:
    """A layer in its place.

    Attributes:
        layer: rules and computation; `layer.name`, `layer.TYPE`.
        bottoms, tops: values read and written; unnamed automatic tops are called "".
        blob_shapes: shapes of the parameter blobs.
        params: for each parameter blob its owner: this node, or the one it shares with.
        specs: lr_mult, decay_mult and name of each parameter blob.
        losses: loss weights of each top.
        propagate_down: per bottom True or False where the net says so, else None.
    """

    layer: Layer
    bottoms: tuple[Value, ...]
    tops: tuple[Value, ...]
    blob_shapes: tuple[Shape, ...]
    params: tuple[ParamKey, ...]
    specs: tuple[pb.ParamSpec, ...]
    losses: tuple[TopLoss, ...]
    propagate_down: tuple[bool | None, ...]

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """How often each top counts in the net's loss."""
        return tuple(loss.own + loss.split for loss in self.losses)


@dataclass(frozen=True)
class Graph:
    """A net that can be run, written or looked at.

    Attributes:
        name: the net's name.
        net: the upgraded net message (generation V2), unfiltered.
        nodes: the layers of this phase in file order.
        shapes: blob name -> shape after a forward pass, in Caffe's blob order.
        values: value -> shape, all versions.
        inputs: shapes of the net's inputs (tops of Input layers).
        outputs: blobs that nothing consumes, sorted by name as Caffe does.
        problems: what keeps it from running; empty unless built with `collect=True`.
        notes: what a user should know (replaced or ignored parts).
    """

    name: str
    net: pb.NetParameter
    context: Context
    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    values: Mapping[Value, Shape]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    source: SourceMap = field(default_factory=SourceMap)
    problems: tuple[VggcError, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_net(
        cls,
        net: pb.NetParameter,
        *,
        phase: str = "TEST",
        stages: Sequence[str] = (),
        level: int = 0,
        profile: str = "bvlc",
        dialect: str = "",
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        source: SourceMap | None = None,
        folder: str = ".",
        collect: bool = False,
    ) -> Graph:
        """Build the graph of a net of any generation.

        Args:
            net: the net; it is not changed.
            phase, stages, level: the state that include and exclude rules are matched against.
            profile: whose semantics, "bvlc" or "dec2013".
            dialect: the fork whose layers take precedence, "" to judge by the net, "bvlc" to refuse those of forks.
            input_shapes: replaces the declared shapes of inputs.
            source: positions for messages.
            folder: what paths inside the net are relative to.
            collect: keep problems in the result instead of raising them.

        Raises:
            GraphError: the net breaks one of Caffe's rules; `Problems` when there are several.
        """
        upgraded = newest(net, profile, source, dialect)
        context = Context(phase, profile, dialect, folder)
        return cls.from_upgraded(
            upgraded, context, stages=stages, level=level, input_shapes=input_shapes, source=source, collect=collect
        )

    @classmethod
    def from_upgraded(
        cls,
        upgraded: Upgraded,
        context: Context,
        *,
        stages: Sequence[str] = (),
        level: int = 0,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        source: SourceMap | None = None,
        collect: bool = False,
    ) -> Graph:
        """Build the graph of a net that is already of the newest generation; see `from_net`."""
        guess = told(context.dialect) or guess_net(upgraded.net, source, upgraded.origins)
        context = replace(context, dialect=guess.dialect)
        builder = _Builder(upgraded.net, context, source or SourceMap(), upgraded.origins, dict(input_shapes or {}))
        builder.problems += guess.problems()
        builder.notes.extend(map(str, upgraded.problems))  # Caffe goes on without these fields
        builder.build(_included(upgraded.net, context.phase, stages, level, builder))
        if not collect:
            raise_all(builder.problems)
        graph = builder.finish()
        learns = context.profile == DEC2013 and context.phase == "TRAIN"
        return replace(graph, notes=(*graph.notes, *dec2013.training_notes(graph))) if learns else graph

    @property
    def params(self) -> dict[str, tuple[Shape, ...]]:
        """Layer name -> shapes of its parameter blobs, for layers that have any."""
        return {node.layer.name: node.blob_shapes for node in self.nodes if node.blob_shapes}

    def layer(self, name: str) -> Node:
        """The first layer of that name.

        Raises:
            KeyError: there is none.
        """
        for node in self.nodes:
            if node.layer.name == name:
                return node
        raise KeyError(name)

    def last(self, blob: str) -> Value:
        """The final version of a blob."""
        return Value(blob, max(v.version for v in self.values if v.blob == blob))

    @cached_property
    def read(self) -> frozenset[Value]:
        """The values that a layer reads."""
        return frozenset(value for node in self.nodes for value in node.bottoms)

    @cached_property
    def backward(self) -> Backward:
        """Where Caffe's backward pass goes."""
        return backward_pass(self)


def rebuild(net: pb.NetParameter, context: Context, input_shapes: Mapping[str, Sequence[int]]) -> Graph:
    """The graph of a net that is already of the newest generation at other input shapes, with its problems.

    `net` is not changed; its blobs are left out. Rules for stages and levels are matched against none.
    """
    copy = pb.NetParameter(name=net.name, force_backward=net.force_backward)
    for layer in net.layer:
        copy_fields(layer, copy.layer.add(), leave={"blobs"})
    return Graph.from_upgraded(
        Upgraded(copy, (), (), (), "V2", False), context, input_shapes=input_shapes, collect=True
    )


def newest(net: pb.NetParameter, profile: str, source: SourceMap | None = None, dialect: str = "") -> Upgraded:
    """A net of any generation in the newest one, as the profile reads it.

    Raises:
        GraphError: there is no such profile, or it refuses the net.
        UpgradeError: the net cannot be upgraded.
    """
    if profile not in PROFILES:
        raise GraphError(f'no profile called "{profile}"', remedy=f"profiles: {', '.join(PROFILES)}")
    return PROFILES[profile](net, source, dialect)


def _included(
    net: pb.NetParameter, phase: str, stages: Sequence[str], level: int, builder: _Builder
) -> list[tuple[int, pb.LayerParameter]]:
    """(index, layer) of the layers that the state includes (Net::FilterNet)."""
    state = pb.NetState(phase=phase, level=level, stage=[*net.state.stage, *stages])  # type: ignore[arg-type]
    kept = []
    for index, layer in enumerate(net.layer):
        if layer.include and layer.exclude:
            builder.fail(index, "has both include and exclude rules", "keep one kind", "exclude")
        rules = layer.include or layer.exclude
        meets = any(meets_rule(state, rule) for rule in rules)
        if not rules or meets == bool(layer.include):
            kept.append((index, layer))
    return kept


def meets_rule(state: pb.NetState, rule: pb.NetStateRule) -> bool:
    """Whether every condition of a rule holds (Net::StateMeetsRule)."""
    return not (
        (rule.HasField("phase") and rule.phase != state.phase)
        or (rule.HasField("min_level") and state.level < rule.min_level)
        or (rule.HasField("max_level") and state.level > rule.max_level)
        or set(rule.stage) - set(state.stage)
        or set(rule.not_stage) & set(state.stage)
    )


class _Builder:
    """Collects nodes, shapes and problems; a blob of unknown shape has the shape None."""

    def __init__(
        self,
        net: pb.NetParameter,
        context: Context,
        source: SourceMap,
        origins: Sequence[str],
        input_shapes: dict[str, Sequence[int]],
    ) -> None:
        self.net, self.context, self.source, self.origins = net, context, source, origins
        self.input_shapes = input_shapes
        self.problems: list[VggcError] = []
        self.notes: list[str] = []
        self.nodes: list[Node] = []
        self.version: dict[str, int] = {}
        self.shapes: dict[Value, Shape | None] = {}
        self.uses: Counter[Value] = Counter()
        self.owners: dict[str, tuple[ParamKey, Shape, pb.ParamSpec]] = {}
        self.inputs: dict[str, Shape] = {}
        self.index = 0
        self.layer_name = ""
        self.read: Sequence[int] = ()

    # -- places and problems -------------------------------------------------------------------------------

    def locate(self, index: int) -> Callable[[str], Where]:
        path = self.origins[index] if index < len(self.origins) else ""
        if not path:  # the Input layer for the input fields
            return lambda name: self.source.at(name.replace("top", "input") if name.startswith("top[") else "input[0]")
        return lambda name: self.source.at(path, name)

    def fail(self, index: int, what: str, remedy: str = "", name: str = "") -> None:
        where = self.locate(index)(name).in_layer(self.net.layer[index].name)
        self.problems.append(LayerError(what, where=where, remedy=remedy))

    # -- building ------------------------------------------------------------------------------------------

    def build(self, layers: list[tuple[int, pb.LayerParameter]]) -> None:
        self.judge_unknown({self.origins[index]: own.type for index, own in layers if index < len(self.origins)})
        read = reads([param for _, param in layers])
        for (self.index, param), self.read in zip(layers, read, strict=True):
            self.layer_name = param.name
            bottoms = self.read_bottoms(param)
            tops, layer = self.make_layer(param, bottoms)
            if layer is None or bottoms is None:
                self.write_tops(param, tops)
                continue
            self.add(param, layer, bottoms)
        unknown = set(self.input_shapes) - set(self.inputs)
        if unknown and not self.problems:
            known = ", ".join(self.inputs) or "none"
            self.problems.append(GraphError(f"no input blob called {', '.join(sorted(unknown))}; inputs: {known}"))

    def judge_unknown(self, types: Mapping[str, str]) -> None:
        """Fields that the schema does not have: an error, or a note where they change nothing."""
        for unknown in self.source.unknown:
            inside = unknown.path.split(".", 1)[0]
            if inside in types or not inside.startswith(("layer[", "layers[")):
                verdict = judge_unknown(unknown, self.context.dialect, types.get(inside, ""))
                if isinstance(verdict, str):
                    self.notes.append(verdict)
                else:
                    self.problems.append(verdict)

    def read_bottoms(self, param: pb.LayerParameter) -> list[Value] | None:
        """The values read; None when one does not exist (Net::AppendBottom)."""
        values = []
        for position, name in enumerate(param.bottom):
            if name not in self.version:
                near = "it is produced later in the file" if self.produced(name) else "check the spelling"
                self.fail(self.index, f'bottom {position} "{name}" is not a blob so far', near, f"bottom[{position}]")
                return None
            value = Value(name, self.version[name])
            if self.context.profile == DEC2013 and self.uses[value]:
                what = f'bottom {position} "{name}" has a reader already; profile {DEC2013} feeds a blob to one layer'
                self.fail(self.index, what, "use profile bvlc, which splits it", f"bottom[{position}]")
                return None
            values.append(value)
            self.uses[value] += 1
        return values

    def produced(self, blob: str) -> bool:
        return any(blob in layer.top for layer in self.net.layer)

    def make_layer(
        self, param: pb.LayerParameter, bottoms: list[Value] | None
    ) -> tuple[list[Shape | None], Layer | None]:
        """The shapes of the tops, and the layer when it can be built."""
        nothing: list[Shape | None] = [None] * len(param.top)
        try:
            layer = self.new_layer(param)
            self.problems += refused_fields(layer)
            _check_counts(layer)
            shapes = [self.shapes[b] for b in bottoms or ()]
            if bottoms is None or None in shapes:
                return nothing, None
            known = [shape for shape in shapes if shape is not None]
            layer.bottom_shapes = known
            if param.type == "Input":
                self.override_inputs(param)
            if layer.TRACES:
                layer.ways = [self.way(name) for name in param.bottom]
            layer.setup(known)
            layer.top_shapes_built = [self.legal(shape) for shape in layer.top_shapes(known)]
        except VggcError as error:
            self.problems.extend(error.errors if isinstance(error, Problems) else [error])
            return nothing, None
        return list(layer.top_shapes_built), layer

    def new_layer(self, param: pb.LayerParameter) -> Layer:
        """The layer, of the net's dialect or else of the one that its own fields show."""
        locate, context = self.locate(self.index), self.context
        own = dialects().get(context.dialect)
        if own is not None and param.type not in own.types:
            alone = guess_net(pb.NetParameter(layer=[param]))
            context = context if alone.rivals or not alone.dialect else replace(context, dialect=alone.dialect)
        return find_layer(param.type, context, locate("type").in_layer(param.name))(param, context, locate)

    def way(self, blob: str) -> list[tuple[str, Layer]]:
        """A blob and those before it, by first bottoms, each with the layer that made it: not those in place."""
        made = {value.blob: node for node in self.nodes for value in node.tops if not value.version}
        found = []
        node = made.get(blob)
        while node is not None:
            found.append((blob, node.layer))
            blob = node.bottoms[0].blob if node.bottoms else ""
            node = made.get(blob) if blob else None
        return found

    def override_inputs(self, param: pb.LayerParameter) -> None:
        """Put the caller's input shapes into an Input layer."""
        wanted = [self.input_shapes.get(top) for top in param.top]
        if any(shape is not None for shape in wanted):
            declared = list(param.input_param.shape) or [pb.BlobShape()]
            declared = declared * len(wanted) if len(declared) == 1 else declared
            dims = [shape if shape is not None else d.dim for shape, d in zip(wanted, declared, strict=True)]
            del param.input_param.shape[:]
            for dim in dims:
                param.input_param.shape.add(dim=[int(d) for d in dim])

    def legal(self, shape: Shape) -> Shape:
        """A shape within Blob::Reshape's limits."""
        where = self.locate(self.index)("").in_layer(self.layer_name)
        if len(shape) > MAX_AXES:
            what = f"a blob with {len(shape)} axes; Caffe allows {MAX_AXES}"
            raise LayerError(what, where=where, remedy="merge axes")
        if any(dim < 0 for dim in shape) or prod(shape) > MAX_COUNT:
            what = f"a blob of shape {' x '.join(map(str, shape))}; each size must be >= 0, the product < 2^31"
            raise LayerError(what, where=where, remedy="check the sizes of this layer and of its bottoms")
        return shape

    def write_tops(self, param: pb.LayerParameter, shapes: Sequence[Shape | None]) -> list[Value]:
        """Make the tops' values (Net::AppendTop)."""
        values = []
        for position, shape in enumerate(shapes):
            name = param.top[position] if position < len(param.top) else ""
            bottom = param.bottom[position] if position < len(param.bottom) else None
            if name and name in self.version and (name != bottom or self.shared(name)):
                self.fail(
                    self.index,
                    f'top "{name}" is produced by more than one layer'
                    + (", or is changed in place while another layer reads it" if name == bottom else ""),
                    "give this top another name",
                    f"top[{position}]",
                )
            version = self.version.get(name, -1) + 1
            value = Value(name, version) if name else Value("", len(self.shapes))
            if name:
                self.version[name] = version
            self.shapes[value] = shape
            if self.context.profile != DEC2013 and any(param.loss_weight[position : position + 1]):
                self.uses[value] += 1
            values.append(value)
        return values

    def shared(self, blob: str) -> bool:
        """More than one layer reads the present version, so Caffe has put a split before this one."""
        return self.readers(blob, self.version[blob]) > 1

    def readers(self, blob: str, version: int) -> int:
        return self.uses[Value(blob, version)]

    def add(self, param: pb.LayerParameter, layer: Layer, bottoms: list[Value]) -> None:
        """Put a checked layer into the graph."""
        tops = self.write_tops(param, layer.top_shapes_built)
        if param.type == "Input":
            self.inputs.update({v.blob: s for v, s in zip(tops, layer.top_shapes_built, strict=True)})
        try:
            blob_shapes = [self.legal(shape) for shape in layer.blob_shapes(layer.bottom_shapes)]
            specs = _specs(layer, len(blob_shapes))
            losses = _losses(layer, self.read)
            params = self.own_params(layer, blob_shapes, specs)
            down = _propagate_down(layer)
        except VggcError as error:
            self.problems.append(error)
            return
        self.notes += [f"{layer.where()}: {note}" for note in layer.notes()]
        self.nodes.append(
            Node(
                layer,
                tuple(bottoms),
                tuple(tops),
                tuple(blob_shapes),
                tuple(params),
                tuple(specs),
                losses,
                down,
            )
        )

    def own_params(self, layer: Layer, shapes: list[Shape], specs: list[pb.ParamSpec]) -> list[ParamKey]:
        """Who owns each blob: a name seen before shares with the first layer that used it (Net::AppendParam)."""
        keys = []
        for index, (shape, spec) in enumerate(zip(shapes, specs, strict=True)):
            mine = ParamKey(len(self.nodes), index)
            if spec.name and spec.name in self.owners:
                owner, owner_shape, owner_spec = self.owners[spec.name]
                _check_sharing(layer, index, (shape, spec), (owner_shape, owner_spec))
                keys.append(owner)
            else:
                keys.append(mine)
                if spec.name:
                    merged = pb.ParamSpec()
                    merged.CopyFrom(spec)
                    self.owners[spec.name] = (mine, shape, merged)
        return keys

    def finish(self) -> Graph:
        consumed = {value for node in self.nodes for value in node.bottoms}
        values = {v: s for v, s in self.shapes.items() if s is not None}
        shapes = {v.blob: s for v, s in values.items() if v.blob}
        last = {Value(blob, version) for blob, version in self.version.items()}
        outputs = sorted((v.blob for v in last - consumed if v in values), key=lambda blob: blob.encode())
        return Graph(
            self.net.name,
            self.net,
            self.context,
            tuple(self.nodes),
            shapes,
            values,
            self.inputs,
            tuple(outputs),
            self.source,
            tuple(self.problems),
            tuple(self.notes),
        )


def _check_counts(layer: Layer) -> None:
    """Number of bottoms and tops (Layer::CheckBlobCounts)."""
    if layer.AUTO_TOPS:
        layer.tops = max(layer.tops, layer.TOPS[0])
    for what, got, (least, most) in (
        ("bottom", len(layer.param.bottom), layer.BOTTOMS),
        ("top", layer.tops, layer.TOPS),
    ):
        if got < least or (most is not None and got > most):
            wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            found = f"{layer.TYPE} takes {wanted} {what} blob(s), got {got}"
            layer.check(False, found, field=what, remedy=f"list {wanted}")
    inplace = set(layer.param.bottom) & set(layer.param.top)
    if inplace and not layer.INPLACE:
        name = min(inplace)
        layer.check(False, f'{layer.TYPE} cannot work in place on "{name}"', field="top", remedy="rename the top")


def _specs(layer: Layer, blobs: int) -> list[pb.ParamSpec]:
    given = list(layer.param.param)
    if layer.context.profile == DEC2013:
        dec2013.check_multipliers(layer, blobs)
    what = f"{len(given)} param entries for {blobs} parameter blob(s)"
    layer.check(len(given) <= blobs, what, field=f"param[{blobs}]", remedy="remove the surplus")
    return layer.param_specs(given, blobs)


def _losses(layer: Layer, read: Sequence[int]) -> tuple[TopLoss, ...]:
    """One per top; a loss layer's first top counts 1 when nothing is stated, also when what was stated has moved.

    Source: Layer::SetLossWeights, LossLayer::LayerSetUp, InsertSplits.
    """
    own, moved = stated_losses(layer.param, read)
    own = own or ([1.0] if layer.LOSS else [])
    what = f"{len(own)} loss_weight value(s) for {layer.tops} top(s)"
    fits = len(own) in (0, layer.tops)
    layer.check(fits, what, field="loss_weight[0]", remedy="state none, or one per top")
    return tuple(TopLoss(own[top] if own else 0.0, moved.get(top, 0.0)) for top in range(layer.tops))


def _propagate_down(layer: Layer) -> tuple[bool | None, ...]:
    stated, bottoms = list(layer.param.propagate_down), len(layer.param.bottom)
    what = f"{len(stated)} propagate_down value(s) for {bottoms} bottom(s)"
    layer.check(not stated or len(stated) == bottoms, what, field="propagate_down[0]", remedy="state none, or one each")
    return tuple(stated) if stated else (None,) * bottoms


def _check_sharing(
    layer: Layer, index: int, mine: tuple[Shape, pb.ParamSpec], owner: tuple[Shape, pb.ParamSpec]
) -> None:
    """Shared parameters agree in shape and multipliers; the owner learns multipliers it did not state."""
    (shape, spec), (owner_shape, owner_spec) = mine, owner
    field_name = f"param[{index}]"
    permissive = spec.share_mode == pb.ParamSpec.PERMISSIVE and spec.HasField("share_mode")
    same = prod(shape) == prod(owner_shape) if permissive else shape == owner_shape
    what = f'param "{spec.name}" has shape {shape} here and {owner_shape} at its owner'
    layer.check(same, what, field=field_name, remedy="share blobs of one shape, or set share_mode: PERMISSIVE")
    for multiplier in ("lr_mult", "decay_mult"):
        if not spec.HasField(multiplier):  # type: ignore[arg-type]
            continue
        value = getattr(spec, multiplier)
        if owner_spec.HasField(multiplier):  # type: ignore[arg-type]
            what = f'param "{spec.name}" has {multiplier} {value} here and {getattr(owner_spec, multiplier)} before'
            layer.check(value == getattr(owner_spec, multiplier), what, field=field_name, remedy="make them equal")
        else:
            setattr(owner_spec, multiplier, value)
