"""Proposals of regions against loops over anchors."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.proposal import anchors
from tests.caffe_compat.layers.harness import Array, Lone, arrays, forward, lone
from tests.caffe_compat.layers.refusals import refusal

SIZE = (4, 5)
IMAGE = [60.0, 70.0, 1.5]


def python_layer(text: str, phase: str = "TEST", count: int = 9, tops: int = 2) -> Lone:
    fields = f'module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{text}"'
    shapes = [(1, 2 * count, *SIZE), (1, 4 * count, *SIZE), (1, 3)]
    return lone(f'type: "Python" python_param {{ {fields} }}', *shapes, tops=tops, phase=phase)


def native(dialect: str, text: str = "", items: int = 1, count: int = 4, tops: int = 2) -> Lone:
    fields = f"feat_stride: 12 ratio: 0.5 ratio: 2 scale: 1 scale: 2 {text}"
    shapes = [(items, 2 * count, *SIZE), (items, 4 * count, *SIZE), (1, 4 if dialect == "caffe-windows" else 3)]
    return lone(f'type: "Proposal" proposal_param {{ {fields} }}', *shapes, tops=tops, dialect=dialect)


def bottoms(count: int, info: list[float], items: int = 1) -> list[Array]:
    scores = np.random.default_rng(3).permutation(items * 2 * count * 20) / 1000
    (deltas,) = arrays((items, 4 * count, *SIZE), low=-0.5, high=0.5)
    return [scores.reshape(items, 2 * count, *SIZE), deltas, np.array([info])]


def candidates(scores: Array, deltas: Array, base: Array, stride: int, image: list[float]) -> list[Array]:
    """(x1, y1, x2, y2, score) of every anchor."""
    found = []
    for y, x, (a, box) in product(range(SIZE[0]), range(SIZE[1]), enumerate(base)):
        x1, y1, x2, y2 = box + np.array([x, y, x, y]) * stride
        w, h = x2 - x1 + 1, y2 - y1 + 1
        dx, dy, dw, dh = deltas[4 * a : 4 * a + 4, y, x]
        middle, down = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h
        w, h = w * np.exp(dw), h * np.exp(dh)
        edges = [middle - w / 2, down - h / 2, middle + w / 2, down + h / 2]
        cut = [min(max(v, 0), image[1 - i % 2] - 1) for i, v in enumerate(edges)]
        found.append(np.array([*cut, scores[len(base) + a, y, x]]))
    return found


def overlap(a: Array, b: Array) -> float:
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    shared = max(w, 0) * max(h, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return float(shared / (sum(areas) - shared))


def suppressed(found: list[Array], before: int, after: int, threshold: float = 0.7) -> list[Array]:
    kept: list[Array] = []
    for box in sorted(found, key=lambda box: -box[4])[:before]:
        if all(overlap(box, other) <= threshold for other in kept):
            kept.append(box)
    return kept[:after]


def is_large(box: Array, width: float, height: float) -> bool:
    return bool(box[2] - box[0] + 1 >= width and box[3] - box[1] + 1 >= height)


def test_anchors_of_the_paper() -> None:
    want = [
        [-83, -39, 100, 56],
        [-175, -87, 192, 104],
        [-359, -183, 376, 200],
        [-55, -55, 72, 72],
        [-119, -119, 136, 136],
        [-247, -247, 264, 264],
        [-35, -79, 52, 96],
        [-79, -167, 96, 184],
        [-167, -343, 184, 360],
    ]  # as generate_anchors.py of py-faster-rcnn lists them, counted from 0
    np.testing.assert_array_equal(anchors(16, [0.5, 1, 2], [8, 16, 32]), np.array(want) - 1)


@pytest.mark.parametrize(
    ("text", "scales"),
    [
        ("'feat_stride': 12", [8, 16, 32]),
        ("'feat_stride': 12 \\n'scales': !!python/tuple [1, 2, 3.5, 4]", [1, 2, 3.5, 4]),
        ("{'feat_stride': 12, 'scales': (1, 2)}", [1, 2]),
        ('{\\"feat_stride\\": 12}', [8, 16, 32]),
        ("feat_stride: 12\\nscales: [3,]", [3]),
    ],
)
def test_python_layer_of_faster_rcnn(text: str, scales: list[float]) -> None:
    it = python_layer(text, count=3 * len(scales))
    assert it.layer.TYPE == "Python"
    assert it.top_shapes == [(1, 5), (1, 1, 1, 1)]
    given = bottoms(3 * len(scales), IMAGE)
    found = candidates(given[0][0], given[1][0], anchors(16, [0.5, 1, 2], scales), 12, IMAGE)
    want = suppressed([box for box in found if is_large(box, 24, 24)], 6000, 300)
    rois, scores = forward(it, given)
    assert rois.shape == (len(want), 5)
    assert scores.shape == (len(want), 1)
    np.testing.assert_allclose(rois[:, 1:], [box[:4] for box in want], atol=1e-4)
    np.testing.assert_allclose(scores[:, 0], [box[4] for box in want], rtol=1e-6)
    assert not rois[:, 0].any()


def test_more_is_proposed_in_training() -> None:
    train, test = (python_layer("'feat_stride': 12", phase).layer for phase in ("TRAIN", "TEST"))
    assert [(layer.before, layer.after) for layer in (train, test)] == [(12000, 2000), (6000, 300)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "16",
        "'scales': [1]",
        "'feat_stride': x",
        "'feat_stride': 0",
        "'feat_stride': 16, 'ratios': [1]",
        "feat_stride: [1",
        "'feat_stride': 16 __import__",
    ],
)
def test_other_parameters_are_refused(text: str) -> None:
    with pytest.raises(LayerError, match="is not feat_stride and scales"):
        python_layer(text)


def test_opencv_fills_up_with_zeros() -> None:
    it = native("opencv", "post_nms_topn: 100 pre_nms_topn: 60 nms_thresh: 0.5 min_size: 1000")
    assert it.top_shapes == [(100, 5), (100, 1)]
    given = bottoms(4, IMAGE)
    found = candidates(given[0][0], given[1][0], anchors(16, [0.5, 2], [1, 2]), 12, IMAGE)
    want = suppressed(found, 60, 100, 0.5)
    rois, scores = forward(it, given)
    np.testing.assert_allclose(rois[: len(want), 1:], [box[:4] for box in want], atol=1e-4)
    np.testing.assert_allclose(scores[: len(want), 0], [box[4] for box in want], rtol=1e-6)
    assert not rois[len(want) :].any()
    assert not scores[len(want) :].any()


def test_caffe_windows_proposes_for_every_item() -> None:
    info = [60.0, 70.0, 1.5, 0.5]
    it = native("caffe-windows", "post_nms_topn: 7 min_size: 8", items=2)
    assert it.top_shapes == [(14, 5), (14,)]
    given = bottoms(4, info, items=2)
    base = []
    for ratio, scale in product([0.5, 2], [1, 2]):
        width = 16 / np.sqrt(ratio)
        reach = [int(size * scale / 16 - 1 + 0.5) / 2 for size in (width, width * ratio)]
        base.append([7.5 - reach[0], 7.5 - reach[1], 7.5 + reach[0], 7.5 + reach[1]])
    want = []
    for item in range(2):
        found = candidates(given[0][item], given[1][item], np.array(base), 12, info)
        for box in found:
            box[4] *= is_large(box, 8 * info[3], 8 * info[2])
        want += [[item, *box] for box in suppressed(found, 6000, 7)]
    rois, scores = forward(it, given)
    np.testing.assert_allclose(rois, [row[:5] for row in want], atol=1e-4)
    np.testing.assert_allclose(scores, [row[5] for row in want], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "what", "field"),
    [
        ("ratio: 1", "scale [] must be positive", "proposal_param"),
        ("scale: 1", "ratio [] must be positive", "proposal_param"),
        ("ratio: 0 scale: 1", "ratio [0.0] must be positive", "proposal_param.ratio[0]"),
        ("ratio: 1 scale: 1 feat_stride: 0", "feat_stride is 0", "proposal_param.feat_stride"),
        ("ratio: 1 scale: 1 post_nms_topn: 0", "post_nms_topn is 0", "proposal_param.post_nms_topn"),
    ],
)
def test_parameters_that_are_refused(text: str, what: str, field: str) -> None:
    shapes = [(1, 2, 3, 3), (1, 4, 3, 3), (1, 3)]
    got = refusal(f'type: "Proposal" proposal_param {{ {text} }}', *shapes, tops=2, dialect="opencv")
    assert what in got[0]
    assert got[1] == field


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 6, 3, 3), (1, 4, 3, 3), (1, 3)], "scores of shape"),
        ([(2, 2, 3, 3), (2, 4, 3, 3), (1, 3)], "scores of shape"),
        ([(1, 2, 3), (1, 4, 3), (1, 3)], "scores of shape"),
        ([(1, 2, 3, 3), (1, 4, 3, 4), (1, 3)], "deltas of shape"),
        ([(1, 2, 3, 3), (1, 4, 3, 3), (1, 2)], "image sizes of shape"),
    ],
)
def test_shapes_that_are_refused(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone('type: "Proposal" proposal_param { ratio: 1 scale: 1 }', *shapes, dialect="opencv")


def test_one_top_will_do() -> None:
    assert len(forward(python_layer("'feat_stride': 12", tops=1), bottoms(9, IMAGE))) == 1
