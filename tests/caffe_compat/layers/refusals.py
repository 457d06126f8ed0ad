"""What a layer refuses, and which field it blames."""

from __future__ import annotations

import re

import pytest
from google.protobuf import text_format

from caffe_compat.errors import LayerError, Where
from caffe_compat.guessing import guess_net
from caffe_compat.layers.base import Context, Shape, find_layer
from caffe_compat.schema import pb


def refusal(text: str, *shapes: Shape, tops: int = 1, profile: str = "bvlc", dialect: str = "") -> tuple[str, str]:
    """Set up a layer that must be refused.

    Args:
        text: its fields in prototxt, with the type.
        shapes: of the bottoms.

    Returns:
        What is wrong, and the path of the field that is to blame ("" for none), which the schema has.
    """
    outs = " ".join(f'top: "out{index}"' for index in range(tops))
    param = text_format.Parse(f'name: "it" {text} {outs}', pb.LayerParameter())
    context = Context(profile=profile, dialect=dialect or guessed(param, len(shapes)))
    layer = find_layer(param.type, context)(param, context, lambda field: Where(source=field))
    with pytest.raises(LayerError) as caught:
        layer.setup(list(shapes))
    assert caught.value.remedy
    field = caught.value.where.source
    assert _exists(field), f"the schema has no {field}"
    return caught.value.what, field


def guessed(param: pb.LayerParameter, bottoms: int) -> str:
    """The fork that a net of the layer alone is taken for."""
    copy = pb.LayerParameter(bottom=[f"in{index}" for index in range(bottoms)])
    copy.MergeFrom(param)
    guess = guess_net(pb.NetParameter(layer=[copy]))
    return "" if guess.rivals else guess.dialect


def _exists(path: str) -> bool:
    descriptor = pb.LayerParameter.DESCRIPTOR
    for name in filter(None, re.sub(r"\[\d+\]", "", path).split(".")):
        if name not in descriptor.fields_by_name:
            return False
        descriptor = descriptor.fields_by_name[name].message_type
    return True
