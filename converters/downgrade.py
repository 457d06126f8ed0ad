"""Nets of the newest generation in an older one, layer by layer, where it has a form for all of it.

Rules: the inverse of util/upgrade_proto.cpp of BVLC Caffe; upgrading the result gives the net back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import Message

from caffe_compat.errors import ConversionError, VggcError, Where, raise_all
from caffe_compat.generations import (
    DATA_PARAMS,
    TRANSFORM_FIELDS,
    V0_FIELDS,
    V0_PARAMS,
    V0_TYPES,
    V1_SPECS,
    V1_TYPES,
)
from caffe_compat.schema import pb
from caffe_compat.upgrade import put_field

GENERATIONS = ("V2", "V1", "V0")
TO_V1 = {new: old for old, new in V1_TYPES.items() if new}
TO_V0 = {V1_TYPES[v1]: v0 for v0, v1 in V0_TYPES.items()}
"""V2 type string -> the older name."""
PLAIN = ("name", "type", "bottom", "top", "param", "blobs", "include", "exclude")
"""Fields of a V2 layer that are not parameters of its type."""
NEWER = {
    "convolution_param": ("dilation", "axis", "force_nd_im2col"),
    "inner_product_param": ("axis", "transpose"),
    "pooling_param": ("round_mode",),
    "softmax_param": ("axis",),
    "concat_param": ("axis",),
    "slice_param": ("axis",),
}
"""Fields that came with or after V2, in messages that V1 has as well: programs of V1's days do not know them."""
OLDER = {"concat_param": "concat_dim", "slice_param": "slice_dim"}
"""What stands for `axis` in V1."""
REMEDY = "write it as V2 (--generation V2)"


def downgrade(net: pb.NetParameter, generation: str) -> pb.NetParameter:
    """A net of the newest generation, without blobs, in an older one.

    Args:
        net: its Input layers come before all others.
        generation: "V1", "V0", or "V2" for a copy.

    Raises:
        ConversionError: a layer, or something that it states, has no form there; `Problems` when several.
    """
    if generation not in GENERATIONS:
        raise ConversionError(f'no generation "{generation}"', remedy=f"use one of {', '.join(GENERATIONS)}")
    made = pb.NetParameter()
    if generation == "V2":
        made.CopyFrom(net)
        return made
    made.name = net.name
    if net.HasField("force_backward"):
        made.force_backward = net.force_backward
    problems: list[VggcError] = []
    for layer in net.layer:
        try:
            _WRITERS[generation](layer, made)
        except VggcError as error:
            problems.append(error)
    raise_all(problems)
    return made


def refused(layer: pb.LayerParameter, what: str, remedy: str = REMEDY) -> ConversionError:
    """The error that an older generation has no form for something."""
    return ConversionError(what, where=Where(layer=layer.name), remedy=remedy)


def _input(layer: pb.LayerParameter, net: pb.NetParameter) -> None:
    """Net inputs are fields of the net, with four sizes each."""
    shapes = list(layer.input_param.shape) * (len(layer.top) if len(layer.input_param.shape) == 1 else 1)
    if len(shapes) != len(layer.top) or any(len(shape.dim) != 4 for shape in shapes):
        sizes = ", ".join(str(list(shape.dim)) for shape in shapes)
        raise refused(layer, f"inputs of the shapes {sizes}; older generations take four sizes")
    for top, shape in zip(layer.top, shapes, strict=True):
        net.input.append(top)
        net.input_dim.extend(shape.dim)


# -- V1 ----------------------------------------------------------------------------------------------------


def _v1(layer: pb.LayerParameter, net: pb.NetParameter) -> None:
    if layer.type == "Input":
        _input(layer, net)
        return
    if layer.type not in TO_V1:
        raise refused(layer, f"V1 has no layer of type {layer.type}")
    kind: Any = pb.V1LayerParameter.LayerType.Value(TO_V1[layer.type])
    new = pb.V1LayerParameter(name=layer.name, bottom=layer.bottom, top=layer.top, type=kind)
    new.include.extend(layer.include)
    new.exclude.extend(layer.exclude)
    for name, values in _specs(layer):
        put_field(new, name, values)
    for field, value in layer.ListFields():
        if field.name in PLAIN:
            continue
        if field.name not in pb.V1LayerParameter.DESCRIPTOR.fields_by_name:
            raise refused(layer, f"V1 has no {field.name}")
        put_field(new, field.name, _of_2014(layer, field.name, value))
    net.layers.append(new)


def _specs(layer: pb.LayerParameter) -> Iterator[tuple[str, list[Any]]]:
    """V1's lists, one entry a parameter blob, of what any of them states."""
    for old, new in V1_SPECS.items():
        if any(spec.HasField(new) for spec in layer.param):
            yield old, [getattr(spec, new) for spec in layer.param]


def _of_2014(layer: pb.LayerParameter, name: str, value: Any) -> Any:
    """A parameter message as V1 could state it."""
    if not isinstance(value, Message):
        return value
    made: Any = type(value)()
    made.CopyFrom(value)
    revived = [field for field in TRANSFORM_FIELDS if name in DATA_PARAMS.values() and made.HasField(field)]
    if revived:
        raise refused(layer, f"{revived[0]} in {name} has no effect in V2, but has one in V1", "remove it")
    for newer in NEWER.get(name, ()):
        _without(layer, made, newer, OLDER.get(name, ""))
    if name == "convolution_param":
        for stem, field in (("kernel", "kernel_size"), ("pad", "pad"), ("stride", "stride")):
            _pair(made, stem, field)
    return made


def _without(layer: pb.LayerParameter, message: Any, field: str, older: str) -> None:
    """Leave a field out that states its default, or let the older one say it."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    stated: Any = getattr(message, field)
    usual = all(n == 1 for n in stated) if not descriptor.has_presence else stated == descriptor.default_value
    if not usual:
        if not older or stated < 0:
            raise refused(layer, f"{field} {stated if descriptor.has_presence else list(stated)} is newer than V1")
        setattr(message, older, stated)
    message.ClearField(field)


def _pair(message: Any, stem: str, field: str) -> None:
    """Two numbers of a list as `_h` and `_w`."""
    values = list(getattr(message, field))
    if len(values) == 2:
        message.ClearField(field)
        setattr(message, f"{stem}_h", values[0])
        setattr(message, f"{stem}_w", values[1])


# -- V0 ----------------------------------------------------------------------------------------------------


def _v0(layer: pb.LayerParameter, net: pb.NetParameter) -> None:
    if layer.type == "Input":
        _input(layer, net)
        return
    if layer.type not in TO_V0:
        raise refused(layer, f"V0 has no layer of type {layer.type}")
    kind = TO_V0[layer.type]
    old = pb.V0LayerParameter(name=layer.name, type=kind)
    for name, values in _specs(layer):
        if name not in ("blobs_lr", "weight_decay"):
            raise refused(layer, f"V0 has no {V1_SPECS[name]} of parameter blobs")
        put_field(old, name, values)
    for field, value in layer.ListFields():
        if field.name in PLAIN[:-2]:
            continue
        if field.name != V0_PARAMS.get(kind):
            raise refused(layer, f"V0 has no {field.name} in layers of type {kind}")
        _flatten(layer, old, _of_2014(layer, field.name, value))
    net.layers.add(layer=old, bottom=layer.bottom, top=layer.top)


def _flatten(layer: pb.LayerParameter, old: pb.V0LayerParameter, message: Message) -> None:
    """The fields of a parameter message in V0's one message for all."""
    names = {new: name for name, (new, kinds) in V0_FIELDS.items() if old.type in kinds}
    for field, value in message.ListFields():
        single = value if field.has_presence else value[0] if len(value) == 1 else None
        if field.name not in names or single is None:
            raise refused(layer, f"V0 has no {field.name} in layers of type {old.type}")
        put_field(old, names[field.name], single)


_WRITERS: dict[str, Callable[[pb.LayerParameter, pb.NetParameter], None]] = {"V1": _v1, "V0": _v0}
