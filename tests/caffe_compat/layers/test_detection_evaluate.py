"""DetectionEvaluate on boxes whose truth is known, and against loops over single ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_compat.errors import LayerError
from caffe_compat.layers.detection_evaluate import in_pixels, pixel_overlaps
from caffe_compat.schema import pb
from tests.caffe_compat.layers import naive_boxes as naive
from tests.caffe_compat.layers.harness import Array, Lone, forward, lone
from tests.caffe_compat.layers.refusals import refusal

SQUARE, OTHER = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)


def text(fields: str = "") -> str:
    return f'type: "DetectionEvaluate" detection_evaluate_param {{ num_classes: 3 {fields} }}'


def rows(*given: tuple[float, ...]) -> Array:
    return np.array(given, float)[None, None]


def run(it: Lone, found: Array, truth: Array) -> list[list[float]]:
    (top,) = forward(it, [found, truth])
    assert top.shape[:2] == (1, 1)
    return [[round(float(value), 6) for value in row] for row in top[0, 0]]


def evaluate(found: Array, truth: Array, fields: str = "", dialect: str = "") -> list[list[float]]:
    return run(lone(text(fields), found.shape, truth.shape, dialect=dialect), found, truth)


def true(image: int, label: int, box: tuple[float, ...], difficult: int = 0) -> tuple[float, ...]:
    return (image, label, 0, *box, difficult)


def test_the_best_detection_of_a_box_is_true_and_later_ones_are_false() -> None:
    near = (0.1, 0.1, 0.5, 0.45)
    found = rows(
        (0, 1, 0.5, *near), (0, 1, 0.9, *SQUARE), (0, 1, 0.7, *OTHER), (0, 2, 0.8, *SQUARE), (1, 1, 0.6, *SQUARE)
    )
    truth = rows(true(0, 1, SQUARE), true(0, 2, OTHER))
    assert evaluate(found, truth) == [
        [-1, 1, 1, -1, -1],
        [-1, 2, 1, -1, -1],
        [0, 1, 0.9, 1, 0],
        [0, 1, 0.7, 0, 1],
        [0, 1, 0.5, 0, 1],
        [0, 2, 0.8, 0, 1],
        [1, 1, 0.6, 0, 1],
    ]


def test_detections_without_truth_keep_their_order() -> None:
    found = rows((1, 2, 0.1, *SQUARE), (1, 2, 0.9, *SQUARE), (0, 1, 0.5, *SQUARE))
    assert evaluate(found, rows(true(0, 2, SQUARE)))[2:] == [[0, 1, 0.5, 0, 1], [1, 2, 0.1, 0, 1], [1, 2, 0.9, 0, 1]]


def test_difficult_boxes() -> None:
    found = rows((0, 1, 0.9, *SQUARE), (0, 1, 0.8, *SQUARE), (0, 1, 0.7, *OTHER))
    truth = rows(true(0, 1, SQUARE, 1), true(0, 1, OTHER))
    assert evaluate(found, truth) == [
        [-1, 1, 2, -1, -1],
        [-1, 2, 0, -1, -1],
        [0, 1, 0.9, 1, 0],
        [0, 1, 0.8, 0, 1],
        [0, 1, 0.7, 1, 0],
    ]
    assert evaluate(found, truth, "evaluate_difficult_gt: false") == [
        [-1, 1, 1, -1, -1],
        [-1, 2, 0, -1, -1],
        [0, 1, 0.9, 0, 0],
        [0, 1, 0.8, 0, 0],
        [0, 1, 0.7, 1, 0],
    ]


def test_rows_of_images_without_detections_do_not_count() -> None:
    found = rows((0, -1, -1, -1, -1, -1, -1), (1, 1, 0.5, *SQUARE))
    truth = rows(true(0, 1, SQUARE), tuple([-1.0] * 8), true(0, 1, OTHER))
    assert evaluate(found, truth) == [[-1, 1, 1, -1, -1], [-1, 2, 0, -1, -1], [1, 1, 0.5, 0, 1]]


def test_against_single_boxes() -> None:
    generator = np.random.default_rng(0)
    boxes, others = naive.random_boxes(60, least=0.3), naive.random_boxes(20, 1, least=0.3)
    keys = generator.integers([0, 1], [3, 3], (60, 2))
    found = np.column_stack([keys, generator.permutation(60) / 60, boxes])[None, None]
    keys = generator.integers([0, 1], [3, 3], (20, 2))
    truth = np.column_stack([keys, np.zeros(20), others, np.zeros(20)])[None, None]
    want = []
    for image, label in [(i, c) for i in range(3) for c in (1, 2)]:
        own = sorted((row for row in found[0, 0] if tuple(row[:2]) == (image, label)), key=lambda row: -row[2])
        near = [row for row in truth[0, 0] if tuple(row[:2]) == (image, label)]
        seen: set[int] = set()
        for row in own:
            shared = [naive.overlap(row[3:], other[3:7]) for other in near]
            hit = bool(shared) and max(shared) >= 0.4
            first = hit and shared.index(max(shared)) not in seen
            seen |= {shared.index(max(shared))} if hit else set()
            want.append([image, label, round(row[2], 6), int(first), int(not first)])
    got = evaluate(found, truth, "overlap_threshold: 0.4")[2:]
    assert any(row[3] for row in got)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("classes", "label", "same"), [(2, 7, 1), (3, 7, 2)])
def test_openvino_takes_labels_that_are_too_large(classes: int, label: int, same: int) -> None:
    found = rows((0, same, 0.9, *SQUARE))
    shapes = (found.shape, (1, 1, 1, 8))
    it = lone(text().replace("3", str(classes)), *shapes, dialect="openvino")
    assert run(it, found, rows(true(0, label, SQUARE)))[-1] == [0, same, 0.9, 1, 0]


# -- pixels ----------------------------------------------------------------------------------------------------


def test_boxes_in_pixels_take_the_sizes_in_turn(tmp_path: Path) -> None:
    (tmp_path / "sizes.txt").write_text("a 10 20\nb 100 200\n")
    found, truth = rows((0, 1, 0.9, 0, 0, 0.1, 0.2)), rows(true(0, 1, (0, 0, 0.1, 0.1)))
    it = lone(
        text('name_size_file: "sizes.txt" overlap_threshold: 0.55'), found.shape, truth.shape, folder=str(tmp_path)
    )
    judged = [run(it, found, truth)[-1][3:] for _ in range(4)]
    assert judged == [[1, 0], [0, 1], [1, 0], [0, 1]], "3 x 2 of 3 x 3 pixels, then 21 x 11 of 21 x 21"


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ("", [20, 0, 100, 50]),
        ("height: 5 width: 5", [20, 0, 100, 50]),
        ("height: 5 width: 5 resize_mode: FIT_SMALL_SIZE", [20, 0, 100, 50]),
        ("height: 5 width: 5 resize_mode: FIT_SMALL_SIZE height_scale: 30 width_scale: 40", [8, 0, 48, 30]),
        ("height: 8 width: 8 resize_mode: FIT_LARGE_SIZE_AND_PAD", [20, 0, 100, 50]),
    ],
)
def test_boxes_are_brought_back_to_the_image(fields: str, want: list[float]) -> None:
    resize = text_format.Parse(fields, pb.ResizeParameter())
    boxes = np.array([[0.2, -0.5, 1.2, 1.0]], np.float32)
    got, size = in_pixels(boxes, (50, 100), resize if fields else None)
    np.testing.assert_allclose(got, [want], rtol=1e-5)
    more = 0 if "scale" in fields else 1
    np.testing.assert_allclose(size, (want[2] - want[0] + more) * (want[3] - want[1] + more), rtol=1e-5)


def test_padding_is_taken_off() -> None:
    """An image of 50 x 100 in a square has a quarter of padding above and below."""
    resize = pb.ResizeParameter(height=8, width=8, resize_mode="FIT_LARGE_SIZE_AND_PAD")
    boxes = np.array([[0.5, 0.25, 1, 0.75], [0, 0.8, 1, 0.9]], np.float32)
    got, _ = in_pixels(boxes, (50, 100), resize)
    np.testing.assert_allclose(got, [[50, 0, 100, 50], [0, 40, 100, 45]], rtol=1e-5)
    got, _ = in_pixels(boxes[:1, [1, 0, 3, 2]], (100, 50), resize)
    np.testing.assert_allclose(got, [[0, 50, 50, 100]], rtol=1e-5)


def test_pixel_overlaps_count_the_last_pixel() -> None:
    a, b = np.array([[0, 0, 1, 1]], np.float32), np.array([[1, 1, 2, 2], [5, 5, 6, 6], [3, 0, 2, 0]], np.float32)
    four = np.array([4.0], np.float32)
    got = pixel_overlaps(a, four, b, np.array([4, 4, 0], np.float32))
    np.testing.assert_allclose(got, [[1 / 7, 1 / 7, 1 / 3]], rtol=1e-6)


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("overlap_threshold: 0", "overlap_threshold 0.0 is not positive", "overlap_threshold"),
        ("background_label_id: 3", "background_label_id 3 is not one of the 3 classes", "background_label_id"),
        ("resize_param { height: 3 }", "resize_param has height 3 and width 0", "resize_param"),
    ],
)
def test_refused_parameters(fields: str, what: str, field: str) -> None:
    message, place = refusal(text(fields), (1, 1, 2, 7), (1, 1, 2, 8), dialect="ssd")
    assert message == what
    assert place == f"detection_evaluate_param.{field}"


def test_bottoms_that_do_not_fit() -> None:
    for shapes, message in (
        (((1, 1, 2, 6), (1, 1, 2, 8)), "bottom 0 has shape"),
        (((1, 1, 2, 7), (2, 1, 2, 8)), "bottom 1 has shape"),
    ):
        with pytest.raises(LayerError, match=message):
            lone(text(), *shapes)
    with pytest.raises(LayerError, match="num_classes is missing"):
        lone('type: "DetectionEvaluate"', (1, 1, 2, 7), (1, 1, 2, 8))


@pytest.mark.parametrize("where", ["detection", "true box"])
def test_the_background_is_no_label(where: str) -> None:
    labels = {"detection": (0, 1), "true box": (1, 0)}[where]
    with pytest.raises(LayerError, match=f"a {where} has the background's label 0"):
        evaluate(rows((0, labels[0], 0.5, *SQUARE)), rows(true(0, labels[1], SQUARE)))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("", "lists no image"), ("a 3", "cannot be read")]
)
def test_sizes_that_cannot_be_read(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "sizes.txt").write_text(content)
    found, truth = rows((0, 1, 0.9, *SQUARE)), rows(true(0, 1, SQUARE))
    it = lone(text('name_size_file: "sizes.txt"'), found.shape, truth.shape, folder=str(tmp_path))
    with pytest.raises(LayerError, match=message):
        run(it, found, truth)
