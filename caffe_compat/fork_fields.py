"""Fields of forks in a net: which the layers follow, which change nothing, and which must be refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from caffe_compat.dialects import (
    BVLC,
    OURS,
    Kind,
    forks_with_field,
    forks_with_type,
    is_fork_field,
    is_fork_message,
)
from caffe_compat.errors import GraphError, LayerError
from caffe_compat.layers.base import Layer
from caffe_compat.schema import pb
from caffe_compat.source import SourceMap, UnknownField

HARMLESS = frozenset(
    {
        "batch_norm_param.engine",
        "concat_param.engine",
        "convolution_param.conv_algorithm",
        "convolution_param.conv_algos_override",
        "convolution_param.cudnn_convolution_algo_seeker",
        "data_param.cache",
        "data_param.disk_reader_threads",
        "data_param.parser_threads",
        "data_param.precache",
        "data_param.threads",
        "data_param.verbose",
        "default_backward_math",
        "default_backward_type",
        "default_conv_algos_override",
        "default_cudnn_math_override",
        "default_forward_math",
        "default_forward_type",
        "dropout_param.engine",
        "eltwise_mem_sharing",
        "eltwise_param.engine",
        "engine",
        "image_data_param.cache",
        "image_data_param.precache",
        "image_data_param.threads",
        "inner_product_param.engine",
        "mem_param",
        "reduce_buckets",
        "transform_param.display",
        "transform_param.use_gpu_transform",
    }
)
"""Fields, by their path in the net or in a layer, that choose an engine, precision or number of threads."""
WITHOUT_EFFECT = {
    "version": "no reader of such files goes by it",
    "quantize": "the fork then rounds weights and blobs to a few bits; here they stay as they are",
    "net_quantization_param": "the fork then rounds weights and blobs to a few bits; here they stay as they are",
}
"""Fields of a net that are left out, and what that means."""
OBSOLETE = {"layer.can_clobber": "only Caffe of March 2014 had it, and no code read it"}
"""Fields that were once in BVLC's schema, by their path in a layer of that time, and why nothing is lost."""
REMEDY = "remove it if it does not matter for this net"


def judge_unknown(unknown: UnknownField, dialect: str, kind: str = "") -> GraphError | str:
    """An error for a field that the schema does not have, or a note when it changes nothing.

    Args:
        unknown: the field.
        dialect: of the net.
        kind: type of the layer that it is in.
    """
    path = _inside_layer(unknown.path)
    name = path.rpartition(".")[2]
    if unknown.ignored and forks_with_type(kind):
        what = f"field {name} of a {kind} layer is written by no fork that is known, and may be its parameters"
        return GraphError(what, where=unknown.where, remedy="give the net's prototxt (--net) with these weights")
    if unknown.ignored:
        return (
            f"{unknown.where}: {unknown.path} is no field that Caffe has; it is ignored, as Caffe does ({unknown.text})"
        )
    if path in HARMLESS and dialect != BVLC:
        return f"{unknown.where}: {name} changes nothing here and is ignored"
    if unknown.path in WITHOUT_EFFECT and dialect != BVLC:
        return f"{unknown.where}: {name} is ignored: {WITHOUT_EFFECT[unknown.path]}"
    if path in OBSOLETE and dialect != BVLC:
        return f"{unknown.where}: {name} is ignored: {OBSOLETE[path]}"
    forks = forks_with_field(_message_of(path, net=path == unknown.path), name)
    what = f'unknown field "{name}"' + (f", which is one of {', '.join(forks)}" if forks else "")
    return GraphError(what, where=unknown.where, remedy=REMEDY if forks else "remove it")


def ignored_fields(net: pb.NetParameter, source: SourceMap, dialect: str) -> list[str]:
    """A note for each field that is left out because it changes nothing."""
    types = {f"layer[{index}]": layer.type for index, layer in enumerate(net.layer)}
    verdicts = (judge_unknown(own, dialect, types.get(own.path.partition(".")[0], "")) for own in source.unknown)
    return [verdict for verdict in verdicts if isinstance(verdict, str)]


def _inside_layer(path: str) -> str:
    head, _, rest = path.partition(".")
    return rest if head.startswith(("layer[", "layers[")) else path


def _message_of(path: str, *, net: bool) -> str:
    """The name of the message that the last part of a path is in; "" when the schema does not have it."""
    kind: Kind = (pb.NetParameter if net else pb.LayerParameter).DESCRIPTOR
    for part in path.split(".")[:-1]:
        field = kind.fields_by_name.get(part.partition("[")[0])
        if field is None or field.message_type is None:
            return ""
        kind = field.message_type
    return str(kind.name)


def refused_fields(layer: Layer) -> Iterator[LayerError]:
    """An error for each field of a fork that a layer does not follow; with dialect "bvlc", for every one."""
    alone = layer.context.dialect == BVLC
    for path, kind, name in _fork_fields(layer.param, "", whole=alone):
        if alone:
            yield layer.error(f'unknown field "{name}" under dialect {BVLC}', field=path, remedy="remove it")
        elif not _followed(type(layer), path):
            what = f"{layer.TYPE} does not follow {path} of {', '.join(forks_with_field(kind, name)) or 'a fork'} here"
            yield layer.error(what, field=path, remedy=REMEDY)


def follows(kind: type[Layer], param: pb.LayerParameter) -> bool:
    """Whether a layer of that class follows every field of a fork in `param`."""
    return all(_followed(kind, path) for path, _, _ in _fork_fields(param, "", whole=False))


def _followed(kind: type[Layer], path: str) -> bool:
    return any(f"{path}.".startswith(f"{followed}.") for followed in kind.FORK_FIELDS)


def _fork_fields(message: Any, prefix: str, *, whole: bool) -> Iterator[tuple[str, str, str]]:
    """Path, message and name of the forks' fields inside BVLC's messages of a layer.

    With `whole` also those of the layer itself, which otherwise its class reads or, as Caffe does, ignores, and the
    forks' enum values.
    """
    for field, value in message.ListFields():
        path = prefix + field.name
        values = value if field.is_repeated else [value]
        if is_fork_field(field):
            if whole or prefix:
                yield path, message.DESCRIPTOR.name, field.name
        elif whole and field.enum_type is not None and max(values) >= OURS:
            yield path, message.DESCRIPTOR.name, field.enum_type.values_by_number[max(values)].name
        elif field.message_type is not None and not is_fork_message(field.message_type):
            for inner in values:
                yield from _fork_fields(inner, f"{path}.", whole=whole)
