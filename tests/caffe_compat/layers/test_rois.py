"""Layers that read regions of interest, against loops."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, floor

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import (
    Array,
    Lone,
    arrays,
    check_gradients,
    forward,
    gradients,
    has_dynamic_batch,
    lone,
    run_onnx,
    session,
)
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS

FLT_MAX = float(np.finfo(np.float32).max)
MAP = (2, 3, 7, 9)


def c_round(x: float) -> int:
    return floor(abs(x) + 0.5) * (1 if x >= 0 else -1)


def some_rois(seed: int = 0, count: int = 12) -> Array:
    """Regions inside and outside a map of 7 x 9, with halves, without area, and that end before they start."""
    generator = np.random.default_rng(seed)
    corners = generator.integers(-8, 26, (count, 4)) / 2
    fixed = [[2.5, 1.5, 2.5, 1.5], [0, 0, 8, 6], [6, 5, 2, 1], [20, 20, 30, 30], [-9, -9, -4, -4]]
    rois = np.concatenate([np.array(fixed), corners])
    return np.concatenate([generator.integers(0, MAP[0], (len(rois), 1)), rois], 1)


def parts(start: int, size: int, count: int, limit: int) -> Iterator[tuple[int, int]]:
    for index in range(count):
        low, high = floor(index * size / count) + start, ceil((index + 1) * size / count) + start
        yield min(max(low, 0), limit), min(max(high, 0), limit)


def grown(roi: Array, ratio: float) -> list[float]:
    x1, y1, x2, y2 = roi[1:]
    across, down = (x2 - x1 + 1) * ratio, (y2 - y1 + 1) * ratio
    return [x1 - across, y1 - down, x2 + across, y2 + down]


# -- ROIPooling --------------------------------------------------------------------------------------------


def roi_pool(text: str, dialect: str = "fast-rcnn", rois: int = 17) -> Lone:
    return lone(f'type: "ROIPooling" roi_pooling_param {{ {text} }}', MAP, (rois, 5), dialect=dialect)


def pooled(x: Array, rois: Array, size: tuple[int, int], scale: float, ratio: float = 0.0) -> tuple[Array, Array]:
    """Maxima and where they are, h * W + w, -1 for nowhere."""
    shape = (len(rois), x.shape[1], *size)
    out, where = np.zeros(shape), np.full(shape, -1)
    for r, roi in enumerate(rois):
        x1, y1, x2, y2 = (c_round(value * scale) for value in grown(roi, ratio))
        rows = list(parts(y1, max(y2 - y1 + 1, 1), size[0], x.shape[2]))
        columns = list(parts(x1, max(x2 - x1 + 1, 1), size[1], x.shape[3]))
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                for c in range(x.shape[1]):
                    best = -FLT_MAX
                    for h in range(top, bottom):
                        for w in range(left, right):
                            if x[int(roi[0]), c, h, w] > best:
                                best, where[r, c, i, j] = x[int(roi[0]), c, h, w], h * x.shape[3] + w
                    empty = top >= bottom or left >= right
                    out[r, c, i, j] = 0 if empty else best
    return out, where


def spread(x: Array, rois: Array, where: Array, top_diff: Array, malformed: bool, scale: float) -> Array:
    grad = np.zeros(x.shape)
    for r, roi in enumerate(rois):
        x1, y1, x2, y2 = (c_round(value * scale) for value in roi[1:])
        if not malformed and (x2 < x1 or y2 < y1):
            continue
        for index in np.argwhere(where[r] >= 0):
            place = where[r][tuple(index)]
            grad[int(roi[0]), index[0], place // x.shape[3], place % x.shape[3]] += top_diff[r][tuple(index)]
    return grad


@pytest.mark.parametrize("dialect", ["fast-rcnn", "cascade-rcnn"])
@pytest.mark.parametrize(("size", "scale"), [((3, 3), 1.0), ((2, 5), 0.5), ((1, 1), 0.25), ((9, 4), 1.0)])
def test_maxima_of_regions(size: tuple[int, int], scale: float, dialect: str) -> None:
    x, rois = np.round(arrays(MAP)[0], 1), some_rois()  # rounded: with ties
    it = roi_pool(f"pooled_h: {size[0]} pooled_w: {size[1]} spatial_scale: {scale}", dialect)
    want, where = pooled(x, rois, size, scale)
    assert it.top_shapes == [want.shape]
    np.testing.assert_array_equal(forward(it, [x, rois])[0], want)
    top_diff = np.random.default_rng(1).normal(size=want.shape)
    (grad, none), _ = gradients(it, [x, rois], [top_diff])
    np.testing.assert_allclose(grad, spread(x, rois, where, top_diff, dialect == "cascade-rcnn", scale), atol=1e-12)
    assert not none.any()
    assert [it.layer.propagates(index) for index in range(2)] == [True, False]


def test_regions_grow_first() -> None:
    (x,), rois = arrays(MAP), some_rois(3)
    it = roi_pool("pooled_h: 2 pooled_w: 3 pad_ratio: 0.25", "cascade-rcnn")
    np.testing.assert_array_equal(forward(it, [x, rois])[0], pooled(x, rois, (2, 3), 1.0, 0.25)[0])


def test_values_below_every_number() -> None:
    it = roi_pool("pooled_h: 1 pooled_w: 1", rois=1)
    x = np.full(MAP, -np.inf)
    assert forward(it, [x, np.array([[0, 0, 0, 3, 3.0]])])[0].max() == -FLT_MAX


@pytest.mark.parametrize("tail", [(), (1, 1)])
def test_rois_may_have_axes_of_size_one_and_be_none(tail: tuple[int, ...]) -> None:
    text = 'type: "ROIPooling" roi_pooling_param { pooled_h: 2 pooled_w: 2 }'
    it = lone(text, MAP, (3, 5, *tail), dialect="rfcn")
    (x,), rois = arrays(MAP), some_rois()[:3]
    np.testing.assert_array_equal(forward(it, [x, rois.reshape(3, 5, *tail)])[0], pooled(x, rois, (2, 2), 1.0)[0])
    assert forward(it, [x, np.zeros((0, 5, *tail))])[0].shape == (0, 3, 2, 2)


@pytest.mark.parametrize("text", ["spatial_scale: 0.5", "", "pad_ratio: 0.25 spatial_scale: 0.5"])
@pytest.mark.parametrize("tail", [(), (1, 1)])
def test_onnx_runtime_pools_the_same(text: str, tail: tuple[int, ...]) -> None:
    text = f'type: "ROIPooling" roi_pooling_param {{ pooled_h: 3 pooled_w: 2 {text} }}'
    it = lone(text, MAP, (17, 5, *tail), dialect="cascade-rcnn")
    bottoms = [arrays(MAP)[0], some_rois().reshape(17, 5, *tail)]
    exported = session(it)
    np.testing.assert_allclose(run_onnx(exported, bottoms)[0], forward(it, bottoms, dtype=np.float32)[0], rtol=1e-6)


@pytest.mark.parametrize("roi", [[2, 0, 0, 1, 1], [-1, 0, 0, 1, 1], [0, np.nan, 0, 1, 1], [0, 0, 0, np.inf, 1]])
@pytest.mark.parametrize("kind", ["ROIPooling", "ROIAlign", "PSROIPooling"])
def test_rois_of_no_item_are_refused(kind: str, roi: list[float]) -> None:
    params = {"PSROIPooling": "psroi_pooling_param { spatial_scale: 1 output_dim: 3 group_size: 1 }"}
    text = params.get(kind, "roi_pooling_param { pooled_h: 1 pooled_w: 1 }")
    it = lone(f'type: "{kind}" {text}', MAP, (2, 5), dialect="mscnn" if kind == "ROIAlign" else "rfcn")
    with pytest.raises(LayerError, match="roi 1 is"):
        forward(it, [arrays(MAP)[0], np.array([[0, 0, 0, 1, 1], roi], float)])


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("pooled_w: 2", "roi_pooling_param.pooled_h"),
        ("pooled_h: 2", "roi_pooling_param.pooled_w"),
    ],
)
@pytest.mark.parametrize("kind", ["ROIPooling", "ROIAlign"])
def test_sizes_must_be_stated(kind: str, text: str, field: str) -> None:
    wrong = refusal(f'type: "{kind}" roi_pooling_param {{ {text} }}', MAP, (2, 5), dialect="cascade-rcnn")
    assert wrong == (f"{field.split('.')[1]} 0 must be > 0", field)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 7), (2, 5)), "takes four axes"),
        ((MAP, (2, 4)), "five values"),
        ((MAP, (10,)), "five values"),
        ((MAP, (2, 5, 2)), "five values"),
    ],
)
def test_shapes_that_are_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone('type: "ROIPooling" roi_pooling_param { pooled_h: 1 pooled_w: 1 }', *shapes, dialect="fast-rcnn")


# -- PSROIPooling ------------------------------------------------------------------------------------------


def score_maps(group: int, output: int) -> Array:
    return arrays((2, output * group * group, 7, 9))[0]


def ps_pool(group: int, output: int, scale: float, rois: int) -> Lone:
    text = f"spatial_scale: {scale} output_dim: {output} group_size: {group}"
    shape = (2, output * group * group, 7, 9)
    return lone(f'type: "PSROIPooling" psroi_pooling_param {{ {text} }}', shape, (rois, 5), dialect="rfcn")


def position_sensitive(x: Array, rois: Array, group: int, output: int, scale: float) -> Array:
    out = np.zeros((len(rois), output, group, group))
    for r, roi in enumerate(rois):
        x1, y1 = (c_round(value) * scale for value in roi[1:3])
        x2, y2 = ((c_round(value) + 1) * scale for value in roi[3:])
        high, wide = max(y2 - y1, 0.1) / group, max(x2 - x1, 0.1) / group
        for c, i, j in np.ndindex(output, group, group):
            top, bottom = (min(max(v, 0), 7) for v in (floor(i * high + y1), ceil((i + 1) * high + y1)))
            left, right = (min(max(v, 0), 9) for v in (floor(j * wide + x1), ceil((j + 1) * wide + x1)))
            cells = x[int(roi[0]), (c * group + i) * group + j, top:bottom, left:right]
            out[r, c, i, j] = cells.mean() if cells.size else 0
    return out


@pytest.mark.parametrize(("group", "output", "scale"), [(3, 2, 1.0), (2, 1, 0.5), (1, 4, 0.25), (4, 1, 1.0)])
def test_means_of_position_sensitive_parts(group: int, output: int, scale: float) -> None:
    x, rois = score_maps(group, output), some_rois()
    it = ps_pool(group, output, scale, len(rois))
    want = position_sensitive(x, rois, group, output, scale)
    assert it.top_shapes == [want.shape]
    np.testing.assert_allclose(forward(it, [x, rois])[0], want, atol=1e-13)
    check_gradients(it, [x, rois])


def test_no_regions() -> None:
    assert forward(ps_pool(2, 1, 1.0, 1), [score_maps(2, 1), np.zeros((0, 5))])[0].shape == (0, 1, 2, 2)


@pytest.mark.parametrize(
    ("text", "what", "field"),
    [
        ("output_dim: 0 group_size: 1", "output_dim 0 must be > 0", "psroi_pooling_param.output_dim"),
        ("output_dim: 1 group_size: 0", "group_size 0 must be > 0", "psroi_pooling_param.group_size"),
    ],
)
def test_position_sensitive_sizes(text: str, what: str, field: str) -> None:
    text = f'type: "PSROIPooling" psroi_pooling_param {{ spatial_scale: 1 {text} }}'
    assert refusal(text, MAP, (2, 5), dialect="rfcn") == (what, field)


def test_position_sensitive_channels() -> None:
    text = 'type: "PSROIPooling" psroi_pooling_param { spatial_scale: 1 output_dim: 1 group_size: 2 }'
    with pytest.raises(LayerError, match="a map with 3 channels for output_dim 1 and group_size 2"):
        lone(text, MAP, (2, 5), dialect="rfcn")


# -- ROIAlign ----------------------------------------------------------------------------------------------


def aligned(x: Array, rois: Array, size: tuple[int, int], scale: float, ratio: float) -> Array:
    height, width = x.shape[2:]
    out = np.zeros((len(rois), x.shape[1], size[0] + 1, size[1] + 1))
    for r, roi in enumerate(rois):
        x1, y1, x2, y2 = (value * scale - 0.5 for value in grown(roi, ratio))
        for i, j in np.ndindex(size[0] + 1, size[1] + 1):
            y, z = y1 + i * ((y2 - y1) / size[0]), x1 + j * ((x2 - x1) / size[1])
            inside = -0.5 <= y <= height - 0.5 and -0.5 <= z <= width - 0.5
            if x2 <= x1 or y2 <= y1 or not inside:
                continue
            top, left = (min(max(floor(v), 0), n - 1) for v, n in ((y, height), (z, width)))
            below, beside = (min(max(floor(v) + 1, 0), n - 1) for v, n in ((y, height), (z, width)))
            down, right = min(max(y, 0), height - 1) - top, min(max(z, 0), width - 1) - left
            cells = x[int(roi[0])]
            upper = (1 - right) * cells[:, top, left] + right * cells[:, top, beside]
            lower = (1 - right) * cells[:, below, left] + right * cells[:, below, beside]
            out[r, :, i, j] = (1 - down) * upper + down * lower
    return out


@pytest.mark.parametrize("ratio", [0.0, 0.25])
@pytest.mark.parametrize(("size", "scale"), [((2, 3), 1.0), ((1, 1), 0.5), ((4, 2), 0.25)])
def test_points_of_regions(size: tuple[int, int], scale: float, ratio: float) -> None:
    (x,), rois = arrays(MAP), some_rois()
    text = f"pooled_h: {size[0]} pooled_w: {size[1]} spatial_scale: {scale} pad_ratio: {ratio}"
    text = f'type: "ROIAlign" roi_pooling_param {{ {text} }}'
    it = lone(text, MAP, rois.shape, dialect="cascade-rcnn")
    want = aligned(x, rois, size, scale, ratio)
    assert it.top_shapes == [want.shape]
    np.testing.assert_allclose(forward(it, [x, rois])[0], want, atol=1e-13)
    check_gradients(it, [x, rois])


# -- BoxAnnotatorOHEM --------------------------------------------------------------------------------------


def annotated(bottoms: list[Array], keep: int, ignore: int) -> tuple[Array, Array]:
    rois, losses, labels, weights = bottoms
    kept, weighted = np.full(labels.shape, float(ignore)), np.zeros(weights.shape)
    places = [(n, h, w) for n in range(len(rois)) for h, w in np.ndindex(rois.shape[2:])]
    left: dict[int, int] = {}
    for n, h, w in sorted(places, key=lambda place: -losses[place[0], 0, place[1], place[2]]):
        item = int(rois[n, 0, h, w])
        left[item] = left.get(item, keep) - 1
        if left[item] >= 0:
            kept[n, 0, h, w], weighted[n, :, h, w] = labels[n, 0, h, w], weights[n, :, h, w]
    return kept, weighted


@pytest.mark.parametrize("keep", [1, 3, 100])
@pytest.mark.parametrize("spatial", [(1, 1), (2, 3)])
def test_hardest_regions_of_each_item_are_kept(spatial: tuple[int, int], keep: int) -> None:
    shapes = [(8, channels, *spatial) for channels in (5, 1, 1, 4)]
    rois, losses, labels, weights = arrays(*shapes)
    rois[:, 0] = np.random.default_rng(2).integers(0, 3, (8, *spatial))
    losses = np.round(losses, 1)
    bottoms = [rois, losses, np.round(labels * 5), weights]
    text = f"roi_per_img: {keep} ignore_label: 255"
    it = lone(f'type: "BoxAnnotatorOHEM" box_annotator_ohem_param {{ {text} }}', *shapes, tops=2, dialect="rfcn")
    want = annotated(bottoms, keep, 255)
    assert it.top_shapes == [array.shape for array in want]
    for got, array in zip(forward(it, bottoms), want, strict=True):
        np.testing.assert_array_equal(got, array)
    tops = it.layer.forward([torch.from_numpy(bottom).requires_grad_() for bottom in bottoms], [])
    assert not any(top.requires_grad for top in tops)


def test_flat_bottoms_become_four_axes() -> None:
    text = 'type: "BoxAnnotatorOHEM" box_annotator_ohem_param { roi_per_img: 1 }'
    it = lone(text, (2, 5), (2, 1), (2,), (2, 8), tops=2, dialect="rfcn")
    assert it.top_shapes == [(2, 1, 1, 1), (2, 8, 1, 1)]
    rois = np.zeros((2, 5))
    labels, weights = forward(it, [rois, np.array([[0.5], [1.0]]), np.array([3.0, 4.0]), np.ones((2, 8))])
    assert labels.ravel().tolist() == [-1, 4]
    assert weights.sum(1).ravel().tolist() == [0, 8]


def test_what_the_annotator_refuses() -> None:
    text = 'type: "BoxAnnotatorOHEM" box_annotator_ohem_param { roi_per_img: %d }'
    shapes = [(2, 5), (2, 1), (2, 1), (2, 8)]
    field = "box_annotator_ohem_param.roi_per_img"
    assert refusal(text % 0, *shapes, tops=2, dialect="rfcn") == ("roi_per_img 0 must be > 0", field)
    for position, shape in ((0, (2, 4)), (1, (3, 1)), (2, (2, 1, 2)), (3, (1, 8))):
        wrong = [*shapes[:position], shape, *shapes[position + 1 :]]
        with pytest.raises(LayerError, match=f"bottom {position if position else 0} has shape"):
            lone(text % 1, *wrong, tops=2, dialect="rfcn")
    it = lone(text % 1, *shapes, tops=2, dialect="rfcn")
    bottoms = [np.zeros(shape) for shape in shapes]
    bottoms[0][:, 0] = -1
    with pytest.raises(LayerError, match="below 0"):
        forward(it, bottoms)


def test_batch_of_exported_roi_pooling_is_fixed_or_right() -> None:
    it = roi_pool("pooled_h: 2 pooled_w: 2")
    exported = session(it)
    if has_dynamic_batch(exported):
        bottoms = [arrays((3, 3, 7, 9))[0], some_rois(count=2)]
        assert LAYERS.ratio(run_onnx(exported, bottoms)[0], forward(it, bottoms, dtype=np.float32)[0]) <= 1
