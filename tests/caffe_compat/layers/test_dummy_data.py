"""DummyData: shapes, fillers, refilling."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import ConversionError, LayerError
from tests.caffe_compat.layers.harness import Lone, forward, lone, session

UNIFORM = 'data_filler { type: "uniform" min: 2 max: 3 }'


def dummy(fields: str, tops: int = 1) -> Lone:
    return lone(f'type: "DummyData" dummy_data_param {{ {fields} }}', tops=tops)


@pytest.mark.parametrize(
    ("fields", "tops", "shapes"),
    [
        ("shape { dim: 2 dim: 3 }", 1, [(2, 3)]),
        ("shape { dim: 2 dim: 3 }", 2, [(2, 3), (2, 3)]),
        ("shape { dim: 2 } shape { dim: 3 dim: 4 }", 2, [(2,), (3, 4)]),
        ("num: 1 channels: 2 height: 3 width: 4", 2, [(1, 2, 3, 4)] * 2),
        ("num: 1 num: 5 channels: 2 height: 3 width: 4 width: 6", 2, [(1, 2, 3, 4), (5, 2, 3, 6)]),
        ("shape { }", 1, [()]),
    ],
)
def test_shapes(fields: str, tops: int, shapes: list[tuple[int, ...]]) -> None:
    it = dummy(fields, tops)
    assert it.top_shapes == shapes
    assert [top.shape for top in forward(it, [])] == shapes
    assert not any(top.any() for top in forward(it, []))


def test_constant_tops_stay_and_others_are_filled_anew() -> None:
    it = dummy(f'shape {{ dim: 50 }} {UNIFORM} data_filler {{ type: "constant" value: 4 }}', 2)
    (first, fixed), (second, again) = forward(it, []), forward(it, [])
    assert ((first >= 2) & (first < 3)).all()
    assert (first != second).any()
    assert (fixed == 4).all()
    assert (again == 4).all()


def test_values_follow_from_the_name() -> None:
    one, two = (forward(dummy(f"shape {{ dim: 5 }} {UNIFORM}"), [])[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_changing_a_top_changes_no_later_pass() -> None:
    it = dummy("shape { dim: 5 } data_filler { value: 4 }")
    it.layer.forward([], [])[0].zero_()
    assert (forward(it, [])[0] == 4).all()


def test_onnx_of_constants() -> None:
    it = dummy("shape { dim: 2 dim: 3 } data_filler { value: 4 }")
    np.testing.assert_array_equal(session(it).run(None, {})[0], np.full((2, 3), 4, np.float32))


def test_onnx_cannot_fill_anew() -> None:
    with pytest.raises(ConversionError, match="DummyData reads data"):
        session(dummy(f"shape {{ dim: 5 }} {UNIFORM}"))


@pytest.mark.parametrize(
    ("fields", "tops", "message"),
    [
        ("", 1, "0 shape entries"),
        ("num: 1 channels: 2 height: 3", 1, "0 width entries"),
        ("shape { dim: 1 } shape { dim: 1 }", 3, r"2 shape entries for 3 top\(s\)"),
        ("num: 1 num: 1 channels: 2 height: 3 width: 1", 3, "2 num entries"),
        ("shape { dim: 1 } num: 1 channels: 2 height: 3 width: 1", 1, "both shape and num"),
        (f"shape {{ dim: 1 }} {UNIFORM} {UNIFORM}", 3, "2 data_filler entries"),
        ('shape { dim: 1 } data_filler { type: "what" }', 1, 'data_filler of top 0: unknown filler "what"'),
    ],
)
def test_refused(fields: str, tops: int, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        dummy(fields, tops)
