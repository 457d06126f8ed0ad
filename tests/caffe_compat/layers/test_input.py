"""Input: shapes of the tops."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from caffe_compat.errors import LayerError
from caffe_compat.graph import Graph
from caffe_compat.layers.base import Context, Shape
from caffe_compat.layers.input import Input
from caffe_compat.schema import pb
from caffe_compat.textformat import parse
from tests.caffe_compat.layers.refusals import refusal


def make(text: str, tops: int, profile: str = "bvlc") -> Input:
    outs = " ".join(f'top: "out{index}"' for index in range(tops))
    layer = Input(text_format.Parse(f'type: "Input" {text} {outs}', pb.LayerParameter()), Context(profile=profile))
    layer.setup([])
    return layer


@pytest.mark.parametrize(
    ("text", "tops", "shapes"),
    [
        ("input_param { shape { dim: [1, 3, 4, 4] } }", 1, [(1, 3, 4, 4)]),
        ("input_param { shape { dim: [2, 3] } }", 3, [(2, 3)] * 3),
        ("input_param { shape { dim: [2, 3] } shape { dim: 5 } }", 2, [(2, 3), (5,)]),
        ("input_param { shape {} }", 1, [()]),
        ("input_param { shape { dim: [0, 3] } }", 1, [(0, 3)]),
    ],
)
def test_one_shape_serves_all_tops(text: str, tops: int, shapes: list[Shape]) -> None:
    assert make(text, tops).top_shapes([]) == shapes


@pytest.mark.parametrize(
    ("text", "tops", "what", "field"),
    [
        ("", 1, "has no shape", "top"),
        ("input_param { shape { dim: 1 } shape { dim: 2 } }", 3, "2 shape(s) for 3 top(s)", "input_param.shape"),
        ("input_param { shape { dim: [1, -1] } }", 1, "size -1 is negative", "input_param.shape[0]"),
    ],
)
def test_refuses_what_caffe_refuses(text: str, tops: int, what: str, field: str) -> None:
    said, place = refusal(f'type: "Input" {text}', tops=tops)
    assert what in said
    assert place == field


def test_the_caller_may_give_what_the_net_leaves_out() -> None:
    net = text_format.Parse('layer { name: "i" type: "Input" top: "x" }', pb.NetParameter())
    assert Graph.from_net(net, input_shapes={"x": (2, 3)}).inputs == {"x": (2, 3)}


def test_of_december_2013_has_four_axes() -> None:
    assert make("input_param { shape { dim: [1, 2, 3, 4] } }", 1, "dec2013").top_shapes([]) == [(1, 2, 3, 4)]
    with pytest.raises(LayerError, match="has 2 size"):
        make("input_param { shape { dim: [1, 2] } }", 1, "dec2013")


def test_computes_nothing() -> None:
    with pytest.raises(LayerError, match="nothing to compute"):
        make("input_param { shape { dim: 1 } }", 1).forward([], [])


def test_errors_of_input_fields_have_their_place() -> None:
    text = 'input: "x"\ninput: "x"\ninput_shape { dim: 1 }\ninput_shape { dim: 1 }'
    document = parse(text, pb.NetParameter)
    with pytest.raises(LayerError, match="produced by more than one layer") as caught:
        Graph.from_net(document.message, source=document.map)
    assert caught.value.where.line == 2
