"""Nets as the tree of December 2013 (BVLC Caffe at 3213bd87e) reads them.

Only generation V0 existed. Where the later upgrade folds padding layers into their readers, drops fields that have
moved and renames, here every layer keeps its place; only the spelling is that of the newest generation, which the
layer classes of profile "dec2013" take. Rules: caffe.proto, layer_factory.cpp, net.cpp (Init,
GetLearningRateAndWeightDecay) and the layers' SetUp of that commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from caffe_compat.errors import GraphError, LayerError, UnknownLayerError, VggcError, Where, raise_all
from caffe_compat.generations import V0_FIELDS, V0_PARAMS, V0_TRANSFORM, V0_TYPES, V1_TYPES
from caffe_compat.layers.base import Layer
from caffe_compat.schema import pb
from caffe_compat.source import SourceMap
from caffe_compat.upgrade import Upgraded, Work, generation_of, put_field, refuse_mixture, upgrade_net

if TYPE_CHECKING:
    from caffe_compat.graph import Graph, Node

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


def read(net: pb.NetParameter, source: SourceMap | None = None, dialect: str = "") -> Upgraded:
    """A net of any generation for profile "dec2013"; `net` is not changed.

    V0 is translated. V1 and V2 are upgraded as ever and must then do without everything that came later: what the
    tree of December 2013 could not have read, or would have ignored, is refused.

    Raises:
        GraphError: the net has something that did not exist then; `Problems` when there are several.
        UpgradeError: generations are mixed, or Caffe would refuse the net.
    """
    if generation_of(net) == "V0" or not (net.layer or net.layers):
        return translate(net, source)
    upgraded = upgrade_net(net, source, dialect)
    work = Work(upgraded.net, source=source or SourceMap(), origins=list(upgraded.origins))
    raise_all([*upgraded.problems, *_newer_than_v0(work)])
    return upgraded


def translate(net: pb.NetParameter, source: SourceMap | None = None) -> Upgraded:
    """A V0 net in the messages of the newest generation, for profile "dec2013"; `net` is not changed.

    Fields that a layer's type does not read are left out and noted: that Caffe ignores them.

    Raises:
        GraphError: it has fields, layer types or a number of input_dim that did not exist then; `Problems` when there
            are several.
        UpgradeError: generations are mixed.
    """
    work = Work(net, source=source or SourceMap(), origins=[f"layers[{i}]" for i in range(len(net.layers))])
    refuse_mixture(work)
    new = pb.NetParameter(name=net.name, force_backward=net.force_backward)
    work.problems.extend(_newer_fields(work))
    work.problems.extend(_add_inputs(work, new))
    for index, old in enumerate(net.layers):
        _add_layer(work, index, old, new.layer.add(bottom=old.bottom, top=old.top))
    raise_all(work.problems)
    origins = ([""] if net.input else []) + work.origins
    return Upgraded(new, tuple(origins), (), tuple(work.notes), "V0", True)


def _newer_fields(work: Work) -> Iterator[VggcError]:
    """Fields of the net and of its layers that the schema of that commit does not have."""
    for field, _ in work.net.ListFields():
        if field.name not in NET_FIELDS:
            yield _newer(work.source.at(field.name if field.has_presence else f"{field.name}[0]"), field.name)
    for index, layer in enumerate(work.net.layers):
        for field, _ in layer.layer.ListFields():
            if field.name not in KNOWN:
                yield _newer(work.where(index, field.name, layer.layer.name), field.name)


def _newer(where: Where, path: str) -> VggcError:
    what = f"{path} did not exist in December 2013"
    return (LayerError if where.layer else GraphError)(what, where=where, remedy=f"remove it, or {REMEDY}")


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
        work.problems.append(_no_such_type(work, index, v0.type, v0.name))
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


# -- later generations -------------------------------------------------------------------------------------

ALWAYS = {"name", "type", "bottom", "top", "blobs", "param"}
"""Fields of a V2 layer that every type takes."""
V0_OF = {kind: v0 for v0, kind in TYPES.items()}


def _newer_than_v0(work: Work) -> Iterator[VggcError]:
    """What an upgraded net says that V0 layers could not."""
    for field, _ in work.net.ListFields():
        if field.name not in ("name", "layer", "force_backward"):
            yield _newer(work.source.at(field.name if field.has_presence else f"{field.name}[0]"), field.name)
    for index, layer in enumerate(work.net.layer):
        if layer.type != "Input" and layer.type not in V0_OF:
            yield _no_such_type(work, index, layer.type, layer.name)
            continue
        for path in _stated(layer, _readable(layer.type)):
            yield _newer(work.where(index, path, layer.name), path)


def _readable(kind: str) -> dict[str, set[str]]:
    """Message inside a V2 layer -> its fields that have a counterpart in V0."""
    if kind == "Input":
        return {"input_param": {"shape"}}
    v0 = V0_OF[kind]
    own = {V0_FIELDS[name][0] for name in FIELDS[v0] if name in V0_FIELDS}
    moved = {V0_TRANSFORM[name] for name in FIELDS[v0] if name in V0_TRANSFORM}
    return {PARAMS.get(v0, ""): own, "transform_param": moved}


def _stated(layer: pb.LayerParameter, readable: dict[str, set[str]]) -> Iterator[str]:
    """Paths of the fields that are neither readable nor at their default."""
    for field, value in layer.ListFields():
        if field.name in readable:
            inner = [f.name for f, v in value.ListFields() if f.name not in readable[field.name] and _matters(f, v)]
            yield from (f"{field.name}.{name}" for name in inner)
        elif field.name not in ALWAYS and not (isinstance(value, Message) and not value.ListFields()):
            yield field.name
    for index, spec in enumerate(layer.param):
        yield from (f"param[{index}].{f.name}" for f, _ in spec.ListFields() if f.name not in SPECS.values())


def _matters(field: Any, value: Any) -> bool:
    """Whether a field says more than its default."""
    return value != field.default_value if field.has_presence else any(value)


def _no_such_type(work: Work, index: int, kind: str, name: str) -> VggcError:
    what = f'layer type "{kind}" did not exist in December 2013'
    return UnknownLayerError(what, where=work.where(index, "type", name), remedy=REMEDY)


# -- rules for the layers of a net -------------------------------------------------------------------------


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


def training_notes(graph: Graph) -> Iterator[str]:
    """What surprises in a net of phase TRAIN: layers that do not learn, gradients that are not that Caffe's."""
    for index, node in enumerate(graph.nodes):
        name, kind, needed = node.layer.name, node.layer.TYPE, graph.backward.layers[index]
        if node.params and not needed:
            yield f'layer "{name}" gets no gradient: neither its blobs_lr nor that of a layer below is stated above 0'
        if "Loss" in kind and not needed:
            yield f'the loss of layer "{name}" counts as 0: nothing below it learns'
        for other in overwriters(graph, index) if needed and kind in ("LRN", "Softmax") else ():
            what = f'that Caffe would use what "{other.layer.name}" leaves in its top'
            yield f'the gradient of layer "{name}" is the true one; {what}'


def overwriters(graph: Graph, index: int) -> list[Node]:
    """The layers that change the first top of a node in place, and not only where its gradient is 0, as ReLU does."""
    tops, later = graph.nodes[index].tops, graph.nodes[index + 1 :]
    changing = [node for node in later if node.layer.TYPE in ("BNLL", "Dropout")]
    return [node for node in changing if tops and tops[0].blob == node.bottoms[0].blob == node.tops[0].blob]
