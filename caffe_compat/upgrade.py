"""Nets and solvers of older generations brought to the newest one, as Caffe does on reading.

Rules: util/upgrade_proto.cpp of BVLC Caffe. The steps run in its order; each is (needs, apply) and idempotent:
V0 -> V1 (padding layers folded in), data transformation parameters, V1 -> V2, input fields -> Input layer,
BatchNorm's three param entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from caffe_compat.dialects import dialects, forks_with_v1_type
from caffe_compat.errors import UpgradeError, VggcError, Where
from caffe_compat.generations import (
    DATA_PARAMS,
    SOLVER_TYPES,
    TRANSFORM_FIELDS,
    V0_FIELDS,
    V0_PARAMS,
    V0_TRANSFORM,
    V0_TYPES,
    V1_SPECS,
    V1_TYPES,
)
from caffe_compat.schema import pb
from caffe_compat.source import SourceMap


@dataclass(frozen=True)
class Upgraded:
    """A net in the newest generation.

    Attributes:
        net: the new message; it shares nothing with the input.
        origins: for each layer of `net` the path of the layer that it came from (`layers[3]`), "" for new ones.
        problems: fields that have no place in `net` and are lost; Caffe goes on, and its tool exits with 1.
        notes: what was changed, what Caffe always drops or ignores, one sentence each.
        generation: "V0", "V1" or "V2", of the input.
        changed: whether `net` differs from the input.
    """

    net: pb.NetParameter
    origins: tuple[str, ...]
    problems: tuple[VggcError, ...]
    notes: tuple[str, ...]
    generation: str
    changed: bool


@dataclass(frozen=True)
class UpgradedSolver:
    """A solver in the newest generation, with the attributes of `Upgraded`."""

    solver: pb.SolverParameter
    notes: tuple[str, ...]
    changed: bool


@dataclass
class Work:
    """A net on its way: `net` is changed in place, `origins` follows its layers."""

    net: pb.NetParameter
    dialect: str = ""
    source: SourceMap = field(default_factory=SourceMap)
    origins: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[VggcError] = field(default_factory=list)

    def where(self, index: int, name: str = "", layer: str = "") -> Where:
        return self.source.at(self.origins[index], name).in_layer(layer)


@dataclass(frozen=True)
class Step:
    """One step; `apply` changes a net for which `needs` is true so that it becomes false."""

    name: str
    needs: Callable[[pb.NetParameter], bool]
    apply: Callable[[Work], None]


def upgrade(net: pb.NetParameter) -> pb.NetParameter:
    """A copy of `net` in the newest generation; like Caffe it goes on where a legacy field has no place.

    Raises:
        UpgradeError: Caffe would refuse the net.
    """
    return upgrade_net(net).net


def upgrade_net(net: pb.NetParameter, source: SourceMap | None = None, dialect: str = "") -> Upgraded:
    """Bring a net to the newest generation (UpgradeNetAsNeeded). Blobs inside layers go along.

    Args:
        net: the net; it is not changed.
        source: positions for messages.
        dialect: the fork whose layer types V1 layers may have as well.

    Raises:
        UpgradeError: Caffe would refuse the net, or would drop whole layers.
    """
    work = Work(_without_blobs(net), dialect, source or SourceMap())
    generation = generation_of(net)
    kind = "layers" if net.layers else "layer"
    work.origins = [f"{kind}[{i}]" for i in range(len(net.layers) or len(net.layer))]
    work.problems = list(_lost(net, work))
    changed = False
    for step in STEPS:
        if step.needs(work.net):
            step.apply(work)
            changed = True
    work.notes += _ignored(work.net)
    _attach_blobs(work, net)
    problems, notes = tuple(work.problems), tuple(work.notes)
    return Upgraded(work.net, tuple(work.origins), problems, notes, generation, changed)


def generation_of(net: pb.NetParameter) -> str:
    """`V0`, `V1` or `V2`, by the layers of a net."""
    if any(layer.HasField("layer") for layer in net.layers):
        return "V0"
    return "V1" if net.layers else "V2"


def _without_blobs(net: pb.NetParameter) -> pb.NetParameter:
    """A copy; that of a V0 or V1 net lacks the blobs of its layers, which would be copied twice."""
    copy = pb.NetParameter()
    if generation_of(net) == "V2" or len(UnknownFieldSet(net)):
        copy.CopyFrom(net)
        for layer in copy.layers:
            _blob_owner(layer).ClearField("blobs")
        return copy
    copy_fields(net, copy, {"layers"})
    for layer in net.layers:
        owner, twin = _blob_owner(layer), copy.layers.add()
        copy_fields(layer, twin, {"blobs"} if owner is layer else {"layer"})
        if owner is not layer:
            copy_fields(owner, twin.layer, {"blobs"})
    return copy


def _blob_owner(layer: pb.V1LayerParameter) -> pb.V1LayerParameter | pb.V0LayerParameter:
    """The message with the blobs of a legacy layer."""
    return layer.layer if layer.HasField("layer") else layer


def copy_fields(message: Message, copy: Message, leave: set[str]) -> None:
    """Copy the fields of a message, but for some; unknown fields stay behind."""
    copy.SetInParent()
    for descriptor, value in message.ListFields():
        if descriptor.name not in leave:
            put_field(copy, descriptor.name, value)


def _attach_blobs(work: Work, net: pb.NetParameter) -> None:
    """Copy the blobs of a V0 or V1 net into the upgraded layers."""
    for layer, origin in zip(work.net.layer, work.origins, strict=True):
        if origin.startswith("layers["):
            old = net.layers[int(origin[len("layers[") : -1])]
            layer.blobs.MergeFrom(_blob_owner(old).blobs)


def _lost(net: pb.NetParameter, work: Work) -> Iterator[VggcError]:
    """Fields and types of forks in V0 and V1 layers: their numbers mean something else in V2."""
    yield from strange_types(net, work.source, work.dialect)
    for index, layer in enumerate(net.layers):
        numbers = sorted({*_unknown(layer), *_unknown(layer.layer)})
        if numbers:
            name = layer.layer.name if layer.HasField("layer") else layer.name
            what = f"unknown field(s) {', '.join(map(str, numbers))} have no place in V2; dropped"
            yield UpgradeError(what, where=work.where(index, layer=name), remedy="upgrade with the fork that wrote it")


def strange_types(net: pb.NetParameter, source: SourceMap, dialect: str) -> list[UpgradeError]:
    """Layer types of forks in a V1 net, which Caffe's parser refuses, but for those of the net's own dialect."""
    found = []
    for index, layer in enumerate(net.layers):
        if layer.fork_type and not v2_type(layer, dialect):
            what = f"V1 layer type {layer.fork_type} is not one of Caffe's; it stays as it is"
            where = source.at(f"layers[{index}]", "type").in_layer(layer.name)
            found.append(UpgradeError(what, where=where, remedy=_fork_remedy(layer.fork_type)))
    return found


def _unknown(message: Message) -> list[int]:
    """Numbers of the fields that the schema does not have, and of enums with values that it does not have."""
    fields = UnknownFieldSet(message)
    return [fields[i].field_number for i in range(len(fields))]


def _ignored(net: pb.NetParameter) -> Iterator[str]:
    """Transformation parameters where Caffe no longer reads them."""
    for layer in net.layer:
        for message in DATA_PARAMS.values():
            names = _legacy_transform(getattr(layer, message))
            if names:
                yield f'{message} {", ".join(names)} of layer "{layer.name}" have no effect; use transform_param'


# -- V0 -> V1 ----------------------------------------------------------------------------------------------


def _needs_v0(net: pb.NetParameter) -> bool:
    return generation_of(net) == "V0"


def _apply_v0(work: Work) -> None:
    """UpgradeV0Net: carries over name, layers, input, input_dim and force_backward alone."""
    refuse_mixture(work)
    _fold_padding(work)
    for name in [f.name for f, _ in work.net.ListFields() if f.name in ("state", "debug_info", "input_shape")]:
        work.net.ClearField(name)  # type: ignore[arg-type]
        work.notes.append(f"dropped {name}: Caffe does not carry it over from a V0 net")
    new = [_v0_layer(work, index, layer) for index, layer in enumerate(work.net.layers)]
    work.net.ClearField("layers")
    work.net.layers.extend(new)
    work.notes.append(f"upgraded {len(new)} V0 layer(s) to V1")


def refuse_mixture(work: Work) -> None:
    """Refuse layers of other generations in a V0 net; Caffe drops them, or all they say."""
    if work.net.layer:
        _refuse_both(work)
    for index, layer in enumerate(work.net.layers):
        beside = [f.name for f, _ in layer.ListFields() if f.name not in ("layer", "bottom", "top")]
        if beside:
            what = f"layers[{index}] states {beside[0]} outside `layer {{ }}` in a V0 net"
            remedy = "write the whole net in one generation; Caffe would drop this field"
            raise UpgradeError(what, where=work.where(index, beside[0], layer.name or layer.layer.name), remedy=remedy)


def _fold_padding(work: Work) -> None:
    """UpgradeV0PaddingLayers: the reader of a padding layer takes over its pad and its bottom."""
    layers = list(work.net.layers)
    maker = dict.fromkeys(work.net.input, -1)
    read = set()
    for index, layer in enumerate(layers):
        for position, blob in enumerate(layer.bottom):
            if blob not in maker:
                where = work.where(index, f"bottom[{position}]", layer.layer.name)
                raise UpgradeError(f'bottom "{blob}" is not a blob so far', where=where, remedy="check the spelling")
            read.add(maker[blob])
            padding = layers[maker[blob]] if maker[blob] >= 0 else None
            if padding is not None and padding.layer.type == "padding":
                _fold(work, index, layer, padding)
        maker.update(dict.fromkeys(layer.top, index))
    for index in reversed(range(len(layers))):
        if layers[index].layer.type == "padding":
            if index not in read:
                work.notes.append(f'dropped padding layer "{layers[index].layer.name}": nothing reads it')
            del work.net.layers[index], work.origins[index]


def _fold(work: Work, index: int, layer: pb.V1LayerParameter, padding: pb.V1LayerParameter) -> None:
    where = work.where(index, "bottom", layer.layer.name)
    name = padding.layer.name
    if layer.layer.type not in ("conv", "pool"):
        what = f'padding layer "{name}" feeds a layer of type "{layer.layer.type}"'
        raise UpgradeError(what, where=where, remedy="only conv and pool can take over its pad")
    for what, count in (
        ("the reader of a padding layer has", len(layer.bottom)),
        (f'padding layer "{name}" has', len(padding.bottom)),
    ):
        if count != 1:
            raise UpgradeError(f"{what} {count} bottoms", where=where, remedy="give it one")
    if len(padding.top) != 1:
        what = f'padding layer "{name}" has {len(padding.top)} tops'
        raise UpgradeError(what, where=where, remedy="give it one")
    layer.layer.pad = padding.layer.pad
    layer.bottom[0] = padding.bottom[0]
    work.notes.append(f'folded padding layer "{name}" (pad {padding.layer.pad}) into "{layer.layer.name}"')


def _v0_layer(work: Work, index: int, old: pb.V1LayerParameter) -> pb.V1LayerParameter:
    """UpgradeV0LayerParameter."""
    v0, new = old.layer, pb.V1LayerParameter(bottom=old.bottom, top=old.top)
    for name, value in _fields(v0):
        if name == "type":
            new.type = _v0_type(work, index, v0)
        elif name == "name":
            new.name = v0.name
        elif name in ("blobs", "blobs_lr", "weight_decay"):
            put_field(new, name, value)
        elif name in V0_TRANSFORM:
            put_field(new.transform_param, V0_TRANSFORM[name], value)
        elif name == "hdf5_output_param" and v0.type == "hdf5_output":
            new.hdf5_output_param.CopyFrom(value)
        elif v0.type in V0_FIELDS.get(name, ("", ()))[1]:
            put_field(getattr(new, V0_PARAMS[v0.type]), V0_FIELDS[name][0], value)
        else:
            _misplaced(work, index, v0, name)
    return new


def _v0_type(work: Work, index: int, v0: pb.V0LayerParameter) -> Any:
    if v0.type not in V0_TYPES:
        known = ", ".join([*V0_TYPES, "padding"])
        where = work.where(index, "type", v0.name)
        raise UpgradeError(f'unknown V0 layer type "{v0.type}"', where=where, remedy=f"known are {known}")
    return V0_TYPES[v0.type]


def _misplaced(work: Work, index: int, v0: pb.V0LayerParameter, name: str) -> None:
    """A V0 field that the layer's type does not take; new_num and new_channels Caffe never reads."""
    if name in ("new_num", "new_channels"):
        work.notes.append(f'dropped {name} of layer "{v0.name}": Caffe never reads it')
        return
    what = f'V0 layers of type "{v0.type}" have no {name}'
    where = work.where(index, name, v0.name)
    work.problems.append(UpgradeError(what, where=where, remedy="it is dropped; remove it"))


def _fields(message: Message) -> Iterator[tuple[str, Any]]:
    for descriptor, value in message.ListFields():
        yield descriptor.name, value


def put_field(message: Any, name: str, value: Any) -> None:
    """Set a field, or extend it if it is repeated; a single value becomes the next entry."""
    if message.DESCRIPTOR.fields_by_name[name].has_presence:
        if isinstance(value, Message):
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)
    elif isinstance(value, int | float):
        getattr(message, name).append(value)
    else:
        getattr(message, name).extend(value)


# -- data transformation parameters ------------------------------------------------------------------------


def _data_param(layer: pb.V1LayerParameter) -> str:
    return DATA_PARAMS.get(pb.V1LayerParameter.LayerType.Name(layer.type), "")


def _legacy_transform(message: Any) -> list[str]:
    return [name for name in TRANSFORM_FIELDS if message.HasField(name)]


def _needs_data(net: pb.NetParameter) -> bool:
    return any(_legacy_transform(getattr(layer, _data_param(layer))) for layer in net.layers if _data_param(layer))


def _apply_data(work: Work) -> None:
    """UpgradeNetDataTransformation; as there, all data layers gain a transform_param."""
    for layer in work.net.layers:
        if not _data_param(layer):
            continue
        message = getattr(layer, _data_param(layer))
        message.SetInParent()
        layer.transform_param.SetInParent()
        moved = _legacy_transform(message)
        for name in moved:
            setattr(layer.transform_param, name, getattr(message, name))
            message.ClearField(name)
        if moved:
            work.notes.append(f'moved {", ".join(moved)} of layer "{layer.name}" to transform_param')


# -- V1 -> V2 ----------------------------------------------------------------------------------------------


def _needs_v1(net: pb.NetParameter) -> bool:
    return bool(net.layers)


def _apply_v1(work: Work) -> None:
    """UpgradeV1Net."""
    if work.net.layer:
        _refuse_both(work)
    for old in work.net.layers:
        _v1_layer(old, work.net.layer.add(), work.dialect)
    work.notes.append(f"upgraded {len(work.net.layers)} V1 layer(s) to V2")
    work.net.ClearField("layers")


def _refuse_both(work: Work) -> None:
    what = f"the net has both `layer` ({len(work.net.layer)}) and `layers` ({len(work.net.layers)}) entries"
    where = work.source.at("layer[0]")
    raise UpgradeError(what, where=where, remedy="write all of them as `layer` with a quoted type")


def v2_type(layer: pb.V1LayerParameter, dialect: str) -> str:
    """The type string of a V1 layer; "" when its type is neither Caffe's nor the dialect's."""
    if not layer.fork_type:
        return V1_TYPES[pb.V1LayerParameter.LayerType.Name(layer.type)]
    own = dialects().get(dialect)
    return own.v1_types.get(layer.fork_type, "") if own else ""


def _fork_remedy(fork_type: str) -> str:
    forks = forks_with_v1_type(fork_type)
    return f"use --dialect {' or '.join(forks)}" if forks else "write what the fork calls it in V2"


def _v1_layer(old: pb.V1LayerParameter, new: pb.LayerParameter, dialect: str) -> None:
    """UpgradeV1LayerParameter."""
    for name, value in _fields(old):
        if name in ("type", "fork_type"):
            new.type = v2_type(old, dialect) or old.fork_type
        elif name in V1_SPECS:
            for index, entry in enumerate(value):
                while len(new.param) <= index:
                    new.param.add()
                setattr(new.param[index], V1_SPECS[name], entry)
        else:
            put_field(new, name, value)


# -- input fields ------------------------------------------------------------------------------------------


def _needs_input(net: pb.NetParameter) -> bool:
    return bool(net.input)


def _apply_input(work: Work) -> None:
    """UpgradeNetInput: four input_dim or one input_shape each; without either the names are dropped."""
    net = work.net
    if net.input_shape or net.input_dim:
        shapes = _input_shapes(work)
        layer = pb.LayerParameter(name="input", type="Input", top=net.input)
        for shape in shapes:
            layer.input_param.shape.add(dim=shape)
        net.layer.insert(0, layer)
        work.origins.insert(0, "")
        stated = ", ".join(f"{n} {' x '.join(map(str, s))}" for n, s in zip(net.input, shapes, strict=True))
        work.notes.append(f"replaced the input fields by an Input layer ({stated})")
    else:
        work.notes.append(f"dropped input {', '.join(net.input)}: no shape is stated")
    for name in ("input", "input_shape", "input_dim"):
        net.ClearField(name)


def _input_shapes(work: Work) -> list[list[int]]:
    net, count = work.net, len(work.net.input)
    if net.input_shape and net.input_dim:
        work.notes.append("ignored input_dim, which stands beside input_shape")
    if net.input_shape:
        name, shapes = "input_shape", [list(shape.dim) for shape in net.input_shape]
        wanted = count
    else:
        name, wanted = "input_dim", 4 * count
        shapes = [list(net.input_dim[i : i + 4]) for i in range(0, len(net.input_dim), 4)]
    stated = len(getattr(net, name))
    if stated < wanted:
        what = f"{stated} {name} entries for {count} input(s); Caffe needs {wanted}"
        raise UpgradeError(what, where=work.source.at(f"{name}[0]"), remedy=f"state {wanted}")
    if stated > wanted:
        work.notes.append(f"dropped {stated - wanted} surplus {name} entries")
    return shapes[:count]


# -- BatchNorm ---------------------------------------------------------------------------------------------


def _batch_norms(net: pb.NetParameter) -> Iterator[pb.LayerParameter]:
    """BatchNorm layers with three param entries, of which some may learn."""
    for layer in net.layer:
        fixed = all(p.HasField("lr_mult") and p.HasField("decay_mult") and not p.lr_mult for p in layer.param)
        fixed = fixed and not any(p.decay_mult for p in layer.param)
        if layer.type == "BatchNorm" and len(layer.param) == 3 and not fixed:
            yield layer


def _needs_batch_norm(net: pb.NetParameter) -> bool:
    return any(True for _ in _batch_norms(net))


def _apply_batch_norm(work: Work) -> None:
    """UpgradeNetBatchNorm: the statistics are not learned."""
    for layer in _batch_norms(work.net):
        for spec in layer.param:
            spec.lr_mult = spec.decay_mult = 0
        work.notes.append(f'set lr_mult and decay_mult of BatchNorm layer "{layer.name}" to 0')


STEPS = (
    Step("V0 -> V1", _needs_v0, _apply_v0),
    Step("data transformation", _needs_data, _apply_data),
    Step("V1 -> V2", _needs_v1, _apply_v1),
    Step("input fields", _needs_input, _apply_input),
    Step("BatchNorm params", _needs_batch_norm, _apply_batch_norm),
)


# -- solvers -----------------------------------------------------------------------------------------------


def upgrade_solver(solver: pb.SolverParameter, source: SourceMap | None = None) -> UpgradedSolver:
    """A copy of a solver with its type as a string (UpgradeSolverType). Inline nets stay as they are, as in Caffe.

    Raises:
        UpgradeError: both `type` and `solver_type` are stated.
    """
    source = source or SourceMap()
    new = pb.SolverParameter()
    new.CopyFrom(solver)
    notes = [f"{name} is a {kind} net; Caffe leaves it so" for name, kind in _legacy_nets(solver)]
    if not solver.HasField("solver_type"):
        return UpgradedSolver(new, tuple(notes), False)
    if solver.HasField("type"):
        where = source.at("solver_type")
        raise UpgradeError("both type and solver_type are stated", where=where, remedy="remove solver_type")
    old = pb.SolverParameter.SolverType.Name(solver.solver_type)
    new.type = SOLVER_TYPES[old]
    new.ClearField("solver_type")
    notes.insert(0, f'replaced solver_type: {old} by type: "{new.type}"')
    return UpgradedSolver(new, tuple(notes), True)


def _legacy_nets(solver: pb.SolverParameter) -> Iterator[tuple[str, str]]:
    named = [("net_param", solver.net_param), ("train_net_param", solver.train_net_param)]
    named += [(f"test_net_param[{i}]", net) for i, net in enumerate(solver.test_net_param)]
    for name, net in named:
        if net.layers:
            yield name, generation_of(net)


def snapshot_prefix(solver: pb.SolverParameter, path: str, is_directory: Callable[[str], bool]) -> str:
    """The prefix that Caffe uses for the solver file at `path` (UpgradeSnapshotPrefixProperty)."""
    file = PurePath(path)
    if not solver.HasField("snapshot_prefix"):
        return str(file.with_suffix(""))
    if is_directory(solver.snapshot_prefix):
        return str(PurePath(solver.snapshot_prefix) / file.stem)
    return solver.snapshot_prefix
