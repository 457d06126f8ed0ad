"""A net as it was trained, made into one that can be run: from train_val.prototxt to deploy.prototxt.

Rules: net.cpp (FilterNet), insert_splits.cpp (names of automatic Split layers), the loss layers' Forward, and what
deploy files have in place of data, loss and accuracy layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from caffe_compat.errors import UnknownLayerError
from caffe_compat.graph import meets_rule
from caffe_compat.input_shapes import DataInput, fill_shapes
from caffe_compat.layers.base import Context, Layer, find_layer
from caffe_compat.schema import pb
from caffe_compat.upgrade import copy_fields
from caffe_compat.weights import Weights

ACTIVATIONS = {
    "SoftmaxWithLoss": "Softmax",
    "InfogainLoss": "Softmax",
    "SigmoidCrossEntropyLoss": "Sigmoid",
}
"""Loss type -> the layer that gives the probabilities which it compares with the labels."""

TAKES_PROBABILITIES = {("dec2013", "InfogainLoss")}
"""(profile, type) of losses that hold no activation there."""

MEASURES = ("Accuracy", "Evaluate", "Evaluation", "HDF5Output")
"""Endings of the types of layers that only measure or record."""

NOT_DATA = ("ContinuationIndicator", "Input", "Parameter")
"""Types without bottoms that do not read examples."""


@dataclass(frozen=True)
class Deployed:
    """A net that can be run.

    Attributes:
        net: a new message.
        origins: for each layer of `net` the index of the layer that it was, -1 for one that replaces another.
        notes: what was dropped or replaced, one sentence each; empty when nothing was.
    """

    net: pb.NetParameter
    origins: tuple[int, ...]
    notes: tuple[str, ...]


def deploy(
    net: pb.NetParameter,
    *,
    weights: Weights | None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    stages: Sequence[str] = (),
    level: int = 0,
    profile: str = "bvlc",
    dialect: str = "",
) -> Deployed:
    """The runnable form of a net of the newest generation; a net that is one already comes back as it is.

    Layers of the TRAIN phase, data, loss and measuring layers go, and what only they need; data layers become Input
    layers, losses that contain an activation become that activation.

    Args:
        net: the net; it is not changed.
        weights: its blobs, which tell the channels and possibly the size of the input.
        input_shapes: data blob -> shape, where the net does not tell.
        stages, level: the state that include and exclude rules are matched against; a net with rules for the stage
            "deploy" is taken in that stage by default.
        profile, dialect: which layers the types stand for.

    Raises:
        GraphError: the shape of an input cannot be told.
    """
    context = Context(profile=profile, dialect=dialect)
    work = _Work(net, weights, context)
    work.merge_splits()
    work.select(_state(net, stages, level))
    labels = work.labels()
    work.join_batches(labels)
    work.strip(labels)
    work.prune()
    work.add_inputs()
    work.name_activations()
    built = work.build(pb.NetState(phase=pb.TEST, level=level, stage=stages))
    notes = work.notes + fill_shapes(built, work.data_inputs(), weights, dict(input_shapes or {}), context)
    origins = tuple(item.origin if item.kind == item.layer.type else -1 for item in work.items)
    return Deployed(built, origins, tuple(notes))


def _state(net: pb.NetParameter, stages: Sequence[str], level: int) -> pb.NetState:
    rules = [rule for layer in net.layer for rule in (*layer.include, *layer.exclude)]
    if not stages and any("deploy" in (*rule.stage, *rule.not_stage) for rule in rules):
        stages = ("deploy",)
    return pb.NetState(phase=pb.TEST, level=level, stage=stages)


# -- layers ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Item:
    """A layer of the net, and what becomes of it.

    Attributes:
        origin: its index.
        layer: what the net says of it.
        cls: the class of its type, None when there is none.
        bottoms, tops: what it reads and makes from now on.
        kind: its type from now on.
        data: for an Input in place of data layers: those.
    """

    origin: int
    layer: pb.LayerParameter
    cls: type[Layer] | None
    bottoms: list[str]
    tops: list[str]
    kind: str
    data: list[pb.LayerParameter] = field(default_factory=list)

    @classmethod
    def of(cls, origin: int, layer: pb.LayerParameter, context: Context) -> _Item:
        try:
            found = find_layer(layer.type, context)
        except UnknownLayerError:
            found = None
        return cls(origin, layer, found, list(layer.bottom), list(layer.top), layer.type)

    def __str__(self) -> str:
        return f'layer "{self.layer.name}" ({self.layer.type})'

    @property
    def in_place(self) -> bool:
        return bool(self.tops) and set(self.tops) <= set(self.bottoms)

    @cached_property
    def is_loss(self) -> bool:
        known = self.cls is not None and self.cls.LOSS
        return known or self.layer.type.endswith("Loss") or any(self.layer.loss_weight)

    @cached_property
    def judges(self) -> bool:
        """Whether it is a loss, or only measures."""
        return bool(self.layer.bottom) and (self.layer.type.endswith(MEASURES) or self.is_loss)


def _is_automatic_split(item: _Item) -> bool:
    """Named as insert_splits.cpp names them: <blob>_<layer>_<index>_split."""
    bottom, name = item.layer.bottom[:1], item.layer.name
    return item.kind == "Split" and bool(bottom) and name.startswith(f"{bottom[0]}_") and name.endswith("_split")


def _included(layer: pb.LayerParameter, state: pb.NetState) -> bool:
    rules = layer.include or layer.exclude
    return not rules or any(meets_rule(state, rule) for rule in rules) == bool(layer.include)


def _joins_batches(layer: pb.LayerParameter) -> bool:
    param = layer.concat_param
    return layer.type == "Concat" and (param.concat_dim if param.HasField("concat_dim") else param.axis) == 0


# -- the work ----------------------------------------------------------------------------------------------


class _Work:
    """The layers that are still in, in order; blobs are known by name."""

    def __init__(self, net: pb.NetParameter, weights: Weights | None, context: Context) -> None:
        self.net = net
        self.items = [_Item.of(index, layer, context) for index, layer in enumerate(net.layer)]
        self.activations = {k: a for k, a in ACTIVATIONS.items() if (context.profile, k) not in TAKES_PROBABILITIES}
        self.notes: list[str] = []
        self.gone: dict[str, str | None] = {}  # blob that is no longer made -> the one to read instead
        self.orphans: set[str] = set()  # blobs that a dropped layer read
        self.judged: set[str] = set()  # blobs that a dropped loss or measure read
        self.learned = {layer.name for layer in weights or () if layer.blobs} & {layer.name for layer in net.layer}

    def drop(self, item: _Item, why: str) -> None:
        self.notes.append(f"dropped {item}: {why}")
        self.orphans.update(item.bottoms)
        if item.judges:
            self.judged.update(item.bottoms)

    # what a layer is

    def learns(self, item: _Item) -> bool:
        """Whether it has parameter blobs: by the weights, or by its type when none are its own."""
        if self.learned:
            return item.layer.name in self.learned
        return item.cls is not None and item.cls.blob_shapes is not Layer.blob_shapes

    def is_data(self, item: _Item) -> bool:
        """Whether it reads examples; DummyData of fixed values beside other sources is a constant."""
        if item.bottoms or not item.tops or item.kind in NOT_DATA:
            return False
        if item.kind != "DummyData":
            return True
        sources = [i for i in self.items if not i.bottoms and i.tops and i.kind not in ("DummyData", "Parameter")]
        return not sources or any(filler.type != "constant" for filler in item.layer.dummy_data_param.data_filler)

    def readers(self, blob: str) -> list[_Item]:
        return [item for item in self.items if blob in item.bottoms]

    def reached(self, blob: str) -> list[_Item]:
        """The layers that depend on a blob; losses and measures are ends."""
        blobs, found = {blob}, []
        for item in self.items:
            if blobs & set(item.bottoms):
                found.append(item)
                if not item.judges:
                    blobs.update(item.tops)
        return found

    # steps

    def merge_splits(self) -> None:
        """Take out the Split layers that Caffe itself put into a saved net."""
        names: dict[str, str] = {}
        kept = []
        for item in self.items:
            item.bottoms = [names.get(blob, blob) for blob in item.bottoms]
            if _is_automatic_split(item):
                names.update(dict.fromkeys(item.tops, item.bottoms[0]))
            else:
                kept.append(item)
        if len(kept) < len(self.items):
            self.notes.append(f"dropped {len(self.items) - len(kept)} Split layer(s) that Caffe had added")
        self.items = kept

    def select(self, state: pb.NetState) -> None:
        """Keep the layers of the TEST phase, and of the others those that nothing stands in for."""
        inside = [item for item in self.items if _included(item.layer, state)]
        if not any(map(self.learns, inside)) and any(map(self.learns, self.items)):
            state.phase = pb.TRAIN
            inside = [item for item in self.items if _included(item.layer, state)]
        outside = [item for item in self.items if item not in inside]
        chosen = inside + self.missing(inside, outside)
        for item in outside:
            if item not in chosen:
                self.drop(item, f"it is not part of the {pb.Phase.Name(state.phase)} phase")
        self.items = sorted(chosen, key=lambda item: item.origin)

    def missing(self, inside: list[_Item], outside: list[_Item]) -> list[_Item]:
        """Of the layers outside, those without which the ones inside lack a blob or their weights."""
        made = {top for item in inside for top in item.tops}
        read = {bottom for item in inside for bottom in item.bottoms}
        names = {item.layer.name for item in inside}
        found: list[_Item] = []
        for item in reversed(outside):
            if item.judges:
                needed = self.is_only_activation(item, inside) and item.bottoms[0] in made
            elif item.in_place:
                needed = self.learns(item) and item.layer.name not in names and bool(read & set(item.tops))
            else:
                needed = bool(read.intersection(item.tops) - made)
            if needed:
                found.append(item)
                item.tops = item.tops if item.bottoms else [top for top in item.tops if top not in made]
                made.update(item.tops)
                read.update(item.bottoms if not item.judges else ())
        return found

    def is_only_activation(self, loss: _Item, among: list[_Item]) -> bool:
        """Whether a loss holds an activation that no layer gives otherwise."""
        kind = self.activations.get(loss.layer.type)
        return kind is not None and not any(i.kind == kind and loss.bottoms[0] in i.bottoms for i in among)

    def labels(self) -> set[str]:
        """Tops of data, Input and DummyData layers that serve losses and measures alone."""
        any_learns = any(map(self.learns, self.items))
        sources = [item for item in self.items if not item.bottoms and item.kind != "Parameter"]
        return {top for item in sources for top in item.tops if self.is_label(item, top, any_learns)}

    def is_label(self, item: _Item, top: str, any_learns: bool) -> bool:
        reached = self.reached(top)
        made = {top, *(blob for reader in reached if not reader.judges for blob in reader.tops)}
        judged = any(reader.judges for reader in reached) or bool(made & self.judged)
        if not any_learns:
            return judged and all(reader.judges and reader.bottoms[0] != top for reader in self.readers(top))
        if any(self.learns(reader) for reader in reached if not reader.judges):
            return False
        useful = any(not self.readers(blob) for blob in made - {top})
        return judged or (self.is_data(item) and not useful)

    def join_batches(self, labels: set[str]) -> None:
        """Data layers whose tops are only joined along the batch axis become one Input."""
        sources = {top: item for item in self.items if self.is_data(item) for top in item.tops if top not in labels}
        for item in self.items:
            blobs = list(item.bottoms)
            if _joins_batches(item.layer) and all(b in sources and len(self.readers(b)) == 1 for b in blobs):
                item.data = [sources[blob].layer for blob in blobs]
                for blob in blobs:
                    sources[blob].tops.remove(blob)
                    self.gone[blob] = None
                item.bottoms, item.kind = [], "Input"

    def strip(self, labels: set[str]) -> None:
        """Take out labels, losses, measures and what needs them."""
        kept = []
        for item in self.items:
            before = item.bottoms
            item.bottoms = [blob for blob in (self.gone.get(b, b) for b in before) if blob is not None]
            if not before:
                keep = self.strip_source(item, labels)
            elif item.judges:
                keep = self.strip_judge(item, before)
            else:
                keep = len(item.bottoms) == len(before) or self.strip_reader(item, before)
            if keep:
                kept.append(item)
                for top in item.tops:
                    self.gone.pop(top, None)
        self.items = kept

    def strip_source(self, item: _Item, labels: set[str]) -> bool:
        mine = [top for top in item.tops if top in labels]
        for top in mine:
            self.gone[top] = None
            self.notes.append(f'dropped blob "{top}" of {item}: only losses and measures need it')
        item.tops = [top for top in item.tops if top not in labels]
        if self.is_data(item) and item.kind != "Input":
            item.kind, item.data = "Input", [item.layer]
        return bool(item.tops) or not item.layer.top

    def strip_judge(self, item: _Item, before: list[str]) -> bool:
        """Losses that hold an activation become that; the others go, with their tops."""
        probabilities = item.tops[1:2] if item.layer.type == "SoftmaxWithLoss" else []
        self.gone.update(dict.fromkeys(item.tops))
        prediction = self.gone.get(before[0], before[0])
        if prediction is None or not self.is_only_activation(item, self.items):
            self.drop(item, "it is a loss" if item.is_loss else "it only measures or records")
            return False
        item.kind, item.bottoms, item.tops = self.activations[item.layer.type], [prediction], probabilities
        return True

    def strip_reader(self, item: _Item, before: list[str]) -> bool:
        """A layer that has lost bottoms goes; what reads its tops reads its bottoms instead."""
        if item.kind == "Silence" and item.bottoms:
            return True
        if not item.bottoms:
            self.gone.update(dict.fromkeys(item.tops))
            self.drop(item, "nothing that it reads is left")
            return False
        single = len(item.bottoms) == len(item.tops) == 1
        twins = item.bottoms if single else before if len(before) == len(item.tops) else [""] * len(item.tops)
        stand_ins = {top: self.gone.get(twin, twin) or None for top, twin in zip(item.tops, twins, strict=True)}
        self.gone.update(stand_ins)
        told = "".join(f'; "{twin}" is read in place of "{top}"' for top, twin in stand_ins.items() if twin)
        self.drop(item, f"it needs labels{told}")
        return False

    def prune(self) -> None:
        """Take out layers without learned inputs that only dropped layers needed, and data that nothing reads."""
        learned: set[str] = set()
        for item in self.items:
            if self.learns(item) or learned.intersection(item.bottoms):
                learned.update(item.tops)
        for item in reversed(self.items if learned else []):
            if item.data:
                item.tops = [top for top in item.tops if self.readers(top)]
            elif self.is_spare(item, learned):
                self.drop(item, "only dropped layers need it")
                item.tops = []
            else:
                continue
            self.items = [other for other in self.items if other is not item or item.tops]

    def is_spare(self, item: _Item, learned: set[str]) -> bool:
        later = {bottom for other in self.items if other.origin > item.origin for bottom in other.bottoms}
        tops = set(item.tops)
        return bool(item.bottoms and tops) and not tops & (later | learned) and tops <= self.orphans

    def name_activations(self) -> None:
        """The activation of the heaviest loss, the last of several, gives "prob"."""
        taken = {top for item in self.items for top in item.tops} | {item.layer.name for item in self.items}
        unnamed = [item for item in self.items if item.kind != item.layer.type and item.bottoms and not item.tops]
        for item in sorted(unnamed, key=lambda i: (max(i.layer.loss_weight, default=1), i.origin), reverse=True):
            wishes = ("prob", f"{item.bottoms[0]}_prob", f"{item.layer.name}_prob", f"{item.layer.name}_{item.origin}")
            item.tops = [next(name for name in wishes if name not in taken)]
            taken.update(item.tops)
        for item in self.items:
            if item.kind != item.layer.type and item.bottoms:
                self.notes.append(f'replaced {item} by {item.kind} "{item.bottoms[0]}" -> "{item.tops[0]}"')

    def add_inputs(self) -> None:
        """An Input for what a net without any source reads: old saved nets have the names of their inputs alone."""
        if any(not item.bottoms for item in self.items):
            return
        made: set[str] = set()
        lacking: dict[str, None] = {}
        for item in self.items:
            lacking.update(dict.fromkeys(blob for blob in item.bottoms if blob not in made))
            made.update(item.tops)
        if lacking:
            self.items.insert(0, _Item(-1, pb.LayerParameter(), None, [], list(lacking), "Input"))

    # the result

    def data_inputs(self) -> list[DataInput]:
        """The Input layers that have no shapes yet."""
        new = enumerate(self.items)
        return [DataInput(i, tuple(item.data)) for i, item in new if item.kind == "Input" != item.layer.type]

    def build(self, state: pb.NetState) -> pb.NetParameter:
        """The net; `state` is the one in which it will be built."""
        built = pb.NetParameter()
        built.CopyFrom(self.net)
        kept = {item.origin: item for item in self.items}
        for index in reversed(range(len(built.layer))):
            if index in kept:
                _write(kept[index], built.layer[index])
            else:
                del built.layer[index]
        if -1 in kept:
            built.layer.insert(0, pb.LayerParameter(name="input", type="Input", top=kept[-1].tops))
        self.notes += _clear_phase(self.net, built)
        if self.notes or not all(_included(layer, state) for layer in built.layer):
            self.notes += _clear_rules(built) + _use_global_stats(built)
        return built


def _write(item: _Item, layer: pb.LayerParameter) -> None:
    """Make a copy of `item.layer` what `item` says."""
    if item.kind == item.layer.type:
        if item.kind == "Input" and item.tops != list(layer.top) and len(layer.input_param.shape) > 1:
            for index in reversed(range(len(layer.top))):
                if layer.top[index] not in item.tops:
                    del layer.input_param.shape[index]
        layer.bottom[:], layer.top[:] = item.bottoms, item.tops
        return
    new = pb.LayerParameter(type=item.kind, bottom=item.bottoms, top=item.tops)
    new.name = item.tops[0] if item.bottoms else item.layer.name or item.tops[0]
    if item.kind == "Softmax" and item.layer.HasField("softmax_param"):
        copy_fields(item.layer.softmax_param, new.softmax_param, set())  # without a fork's fields for its loss
    if item.layer.infogain_loss_param.HasField("axis"):
        new.softmax_param.axis = item.layer.infogain_loss_param.axis
    layer.CopyFrom(new)


def _clear_phase(net: pb.NetParameter, built: pb.NetParameter) -> list[str]:
    """Caffe writes the phase of the running net into every layer that it saves."""
    trained = [layer for layer in built.layer if layer.HasField("phase") and layer.phase == pb.TRAIN]
    if not trained or not all(layer.HasField("phase") for layer in net.layer):
        return []
    for layer in trained:
        layer.ClearField("phase")
    return [f"removed phase: TRAIN, in which the net was saved, from {len(trained)} layer(s)"]


def _clear_rules(built: pb.NetParameter) -> list[str]:
    ruled = [layer for layer in built.layer if layer.include or layer.exclude]
    for layer in ruled:
        layer.ClearField("include")
        layer.ClearField("exclude")
    return [f"removed the include and exclude rules of {len(ruled)} layer(s)"] if ruled else []


def _use_global_stats(built: pb.NetParameter) -> list[str]:
    """Let BatchNorm layers use what they have learned."""
    local = [
        layer
        for layer in built.layer
        if layer.batch_norm_param.HasField("use_global_stats") and not layer.batch_norm_param.use_global_stats
    ]
    for layer in local:
        layer.batch_norm_param.ClearField("use_global_stats")
    return [f"removed use_global_stats: false from {len(local)} BatchNorm layer(s)"] if local else []
