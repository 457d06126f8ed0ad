"""Nets as the tree of December 2013 (BVLC Caffe at 3213bd87e) reads them.

Only generation V0 existed. Where the later upgrade folds padding layers into their readers, drops fields that have
moved and renames, here every layer keeps its place; only the spelling is that of the newest generation, which the
layer classes of profile "dec2013" take. Rules: caffe.proto, layer_factory.cpp, net.cpp (Init,
GetLearningRateAndWeightDecay) and the layers' SetUp of that commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from caffe_compat.errors import GraphError, LayerError, UnknownLayerError, VggcError, raise_all
from caffe_compat.generations import V0_FIELDS, V0_PARAMS, V0_TRANSFORM, V0_TYPES, V1_TYPES
from caffe_compat.layers.base import Layer
from caffe_compat.schema import pb
from caffe_compat.source import SourceMap
from caffe_compat.upgrade import Upgraded, Work, generation_of, put_field, refuse_mixture

PROFILE = "dec2013"
REMEDY = "use profile bvlc (--profile bvlc)"

FIELDS: dict[str, tuple[str, ...]] = {
    "accuracy": (),
    "bnll": (),
    "conv": ("num_output", "biasterm", "weight_filler", "bias_filler", "kernelsize", "group", "stride"),
    "data": ("source", "batchsize", "rand_skip", "scale", "meanfile", "cropsize", "mirror"),
    "dropout": ("dropout_ratio",),
    "euclidean_loss": (),
    "flatten": (),
    "im2col": ("kernelsize", "stride"),
    "infogain_loss": ("source",),
    "innerproduct": ("num_output", "biasterm", "weight_filler", "bias_filler"),
    "lrn": ("local_size", "alpha", "beta"),
    "multinomial_logistic_loss": (),
    "padding": ("pad",),
    "pool": ("kernelsize", "stride", "pool"),
    "relu": (),
    "softmax": (),
    "softmax_loss": (),
}
"""Layer type (layer_factory.cpp) -> the fields that it reads, besides those in EVERYWHERE."""

EVERYWHERE = ("name", "type", "blobs", "blobs_lr", "weight_decay")
KNOWN = {name for names in FIELDS.values() for name in names} | set(EVERYWHERE)
"""The fields of a layer (caffe.proto)."""
NET_FIELDS = {"name", "layers", "input", "input_dim", "force_backward"}
"""The fields of a net (caffe.proto)."""
TYPES = {kind: V1_TYPES[V0_TYPES[kind]] if kind in V0_TYPES else "Padding" for kind in FIELDS}
"""Layer type -> type string of generation V2."""
PARAMS = {**V0_PARAMS, "im2col": "convolution_param", "padding": "convolution_param"}
"""Layer type -> the message of generation V2 that takes its fields."""
SPECS = {"blobs_lr": "lr_mult", "weight_decay": "decay_mult"}
"""V0 list of multipliers -> its name in ParamSpec."""


def translate(net: pb.NetParameter, source: SourceMap | None = None) -> Upgraded:
    """A V0 net in the messages of the newest generation, for profile "dec2013"; `net` is not changed.

    Fields that a layer's type does not read are left out and noted: that Caffe ignores them.

    Raises:
        GraphError: the net is of a later generation, or has fields, layer types or a number of input_dim that did
            not exist then; `Problems` when there are several.
        UpgradeError: generations are mixed.
    """
    work = Work(net, source or SourceMap(), [f"layers[{i}]" for i in range(len(net.layers))])
    refuse_later(work)
    refuse_mixture(work)
    new = pb.NetParameter(name=net.name, force_backward=net.force_backward)
    work.problems.extend(_newer_fields(work))
    work.problems.extend(_add_inputs(work, new))
    for index, old in enumerate(net.layers):
        _add_layer(work, index, old, new.layer.add(bottom=old.bottom, top=old.top))
    raise_all(work.problems)
    origins = ([""] if net.input else []) + work.origins
    return Upgraded(new, tuple(origins), (), tuple(work.notes), "V0", True)


def refuse_later(work: Work) -> None:
    """Refuse nets with layers of generation V1 or V2."""
    generation = generation_of(work.net)
    if generation == "V0" or not (work.net.layers or work.net.layer):
        return
    kind = "layers" if generation == "V1" else "layer"
    what = f"a net of generation {generation}; profile {PROFILE} knows V0 alone (`layers {{ layer {{ }} }}`)"
    raise GraphError(what, where=work.source.at(f"{kind}[0]"), remedy=REMEDY)


def _newer_fields(work: Work) -> Iterator[VggcError]:
    """Fields of the net and of its layers that the schema of that commit does not have."""
    for field, _ in work.net.ListFields():
        if field.name not in NET_FIELDS:
            index = "[0]" if field.is_repeated else ""
            where = work.source.at(f"{field.name}{index}")
            yield GraphError(f"{field.name} did not exist in December 2013", where=where, remedy=f"remove it, or {REMEDY}")
    for index, layer in enumerate(work.net.layers):
        for field, _ in layer.layer.ListFields():
            if field.name not in KNOWN:
                where = work.where(index, field.name, layer.layer.name)
                what = f"{field.name} did not exist in December 2013"
                yield LayerError(what, where=where, remedy=f"remove it, or {REMEDY}")


def _add_inputs(work: Work, new: pb.NetParameter) -> Iterator[VggcError]:
    """Four input_dim for each input, which become an Input layer with a name that no other layer has."""
    names, dims = list(work.net.input), list(work.net.input_dim)
    if len(dims) != 4 * len(names):
        where = work.source.at("input_dim[0]" if dims else "input[0]")
        what = f"{len(dims)} input_dim for {len(names)} input(s); there must be four each"
        yield GraphError(what, where=where, remedy="state num, channels, height and width")
    if not names:
        return
    layer = new.layer.add(name="input", type="Input", top=names)
    while layer.name in {old.layer.name for old in work.net.layers}:
        layer.name += "_"
    for start in range(0, len(dims), 4):
        layer.input_param.shape.add(dim=dims[start : start + 4])


def _add_layer(work: Work, index: int, old: pb.V1LayerParameter, new: pb.LayerParameter) -> None:
    v0 = old.layer
    if v0.type not in FIELDS:
        what = f'layer type "{v0.type}" did not exist in December 2013'
        remedy = f"known are {', '.join(FIELDS)}; or {REMEDY}"
        work.problems.append(UnknownLayerError(what, where=work.where(index, "type", v0.name), remedy=remedy))
        return
    new.name, new.type = v0.name, TYPES[v0.type]
    new.blobs.MergeFrom(v0.blobs)
    for name, multiplier in SPECS.items():
        _add_specs(new, multiplier, getattr(v0, name))
    for field, value in v0.ListFields():
        if field.name in FIELDS[v0.type]:
            _put(new, v0.type, field.name, value)
        elif field.name in KNOWN and field.name not in EVERYWHERE:
            work.notes.append(f'{field.name} of layer "{v0.name}" has no effect: type {v0.type} does not read it')


def _add_specs(new: pb.LayerParameter, multiplier: str, values: Sequence[float]) -> None:
    for index, value in enumerate(values):
        while len(new.param) <= index:
            new.param.add()
        setattr(new.param[index], multiplier, value)


def _put(new: pb.LayerParameter, kind: str, name: str, value: object) -> None:
    if name in V0_TRANSFORM:
        put_field(new.transform_param, V0_TRANSFORM[name], value)
    else:
        put_field(getattr(new, PARAMS[kind]), V0_FIELDS[name][0], value)


def check_multipliers(layer: Layer, blobs: int) -> None:
    """blobs_lr and weight_decay are stated for all parameter blobs of a layer or for none, and are not negative.

    Raises:
        LayerError: they are not.
    """
    for name, multiplier in SPECS.items():
        values = [getattr(spec, multiplier) for spec in layer.param.param if spec.HasField(multiplier)]  # type: ignore[arg-type]
        what = f"{len(values)} {name} for {blobs} parameter blob(s)"
        remedy = f"state {blobs or 'none'}" if not blobs else f"state {blobs}, or none"
        layer.check(len(values) in (0, blobs), what, field=f"{name}[0]", remedy=remedy)
        for index, value in enumerate(values):
            layer.check(value >= 0, f"{name} {value:g} is negative", field=f"{name}[{index}]", remedy="make it >= 0")
