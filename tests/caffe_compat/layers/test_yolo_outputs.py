"""YoloDetectionOutput and Yolov3DetectionOutput against loops over single predictions."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from caffe_compat.errors import ConversionError, LayerError
from caffe_compat.layers.base import Shape
from caffe_compat.layers.yolo_detection_output import centred_overlaps
from tests.caffe_compat.layers import naive_boxes as naive
from tests.caffe_compat.layers.harness import Array, arrays, export, forward, lone
from tests.caffe_compat.layers.refusals import refusal

BIASES = (1.2, 0.7, 2.5, 3.0, 0.5, 4.0, 2.0, 1.0)
CLASSES = 3
Found = list[tuple[int, float, list[float]]]
"""(class, score, [x, y, width, height])."""


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def stated(name: str, values: tuple[float, ...]) -> str:
    return " ".join(f"{name}: {value}" for value in values)


def rows(found: Found, threshold: float, images: int) -> Array:
    """What is left, as the layers give it."""
    found = sorted(found, key=lambda item: -item[1])
    corners = [[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for _, _, (x, y, w, h) in found]
    kept: list[int] = []
    for i, box in enumerate(corners):
        if all(naive.overlap(box, corners[j]) < threshold for j in kept):
            kept.append(i)
    left = [[0, found[i][0] + 1, found[i][1], *corners[i]] for i in kept]
    return np.array(left or [[image, *[-1] * 6] for image in range(images)])


# -- YOLOv2 ----------------------------------------------------------------------------------------------------


def text_v2(fields: str = "", boxes: int = 2) -> str:
    stated_biases = stated("biases", BIASES[: 2 * boxes])
    fields = f"num_classes: {CLASSES} num_box: {boxes} {stated_biases} {fields}"
    return f'type: "YoloDetectionOutput" yolo_detection_output_param {{ {fields} }}'


def found_v2(x: Array, boxes: int, least: float) -> Found:
    n, channels, _, side = x.shape
    values = x.reshape(n, boxes, channels // boxes, -1, side)
    found: Found = []
    for b, j, i, k in np.ndindex(n, side, side, boxes):
        v = values[b, k, :, j, i]
        e = np.exp(v[5 : 5 + CLASSES] - v[5 : 5 + CLASSES].max())
        score = sigmoid(v[4]) * (e / e.sum()).max()
        if score >= least:
            place = [(i + sigmoid(v[0])) / side, (j + sigmoid(v[1])) / side]
            size = [exp(v[2 + axis]) * BIASES[2 * k + axis] / side for axis in (0, 1)]
            found.append((int(e.argmax()), score, place + size))
    return found


@pytest.mark.parametrize(
    ("shapes", "fields", "least", "threshold"),
    [
        (((1, 16, 3, 3),), "", 0.01, 0.45),
        (((2, 16, 4, 4),), "confidence_threshold: 0.4 nms_threshold: 0.2", 0.4, 0.2),
        (((1, 16, 3, 3), (1, 16, 5, 5)), "nms_threshold: 0.9", 0.01, 0.9),
        (((1, 16, 3, 3), (1, 16, 5, 5), (1, 1, 1, 1)), "", 0.01, 0.45),
        (((1, 20, 3, 3),), "", 0.01, 0.45),
        (((1, 16, 4, 3),), "", 0.01, 0.45),
        (((3, 16, 2, 2),), "confidence_threshold: 1", 1, 0.45),
    ],
)
def test_v2(shapes: tuple[Shape, ...], fields: str, least: float, threshold: float) -> None:
    values = [value.astype(np.float32) for value in arrays(*shapes)]
    it = lone(text_v2(fields), *shapes)
    want = rows([item for x in values[:2] for item in found_v2(x, 2, least)], threshold, shapes[0][0])
    (got,) = forward(it, values)
    assert it.top_shapes == [(1, 1, 1, 7)]
    assert got.shape == (1, 1, *want.shape)
    np.testing.assert_allclose(got[0, 0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("", "num_classes is missing or 0", "num_classes"),
        ("num_classes: 2 num_box: 2 biases: 1", "1 biases for 2 boxes", "biases[0]"),
        ("num_classes: 2", "0 biases for", "biases[0]"),
    ],
)
def test_refused_v2(fields: str, what: str, field: str) -> None:
    text = f'type: "YoloDetectionOutput" yolo_detection_output_param {{ {fields} }}'
    message, place = refusal(text, (1, 16, 3, 3))
    assert what in message
    assert place == f"yolo_detection_output_param.{field}"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 15, 3, 3), "15 channels; 2 boxes of 8 values"),
        ((1, 17, 3, 3), "17 channels; 2 boxes of 8 values"),
        ((1, 16, 3, 4), "lower than wide"),
        ((1, 16, 9), "four axes"),
    ],
)
def test_bottoms_that_do_not_fit_v2(shape: Shape, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(text_v2(), shape)


# -- YOLOv3 ----------------------------------------------------------------------------------------------------

SCALES, MASKS = (8, 4), (2, 3, 0, 1)


def text_v3(fields: str = "", groups: int = 2) -> str:
    known = f"num_classes: {CLASSES} num_box: 2 {stated('biases', BIASES)} {stated('anchors_scale', SCALES)}"
    fields = f"{known} {stated('mask', MASKS)} mask_group_num: {groups} {fields}"
    return f'type: "Yolov3DetectionOutput" yolov3_detection_output_param {{ {fields} }}'


def found_v3(x: Array, bottom: int, groups: int, least: float, gaussian: bool) -> Found:
    n, _, height, width = x.shape
    first = 8 if gaussian else 4
    values = x[:, : 2 * (first + 1 + CLASSES)].reshape(n, 2, first + 1 + CLASSES, height, width)
    found: Found = []
    for b, j, i, k in np.ndindex(n, height, width, 2):
        v = values[b, k, :, j, i]
        sure = sigmoid(v[first])
        tx, ty, tw, th = v[[0, 2, 4, 6]] if gaussian else v[:4]
        if gaussian:
            sure *= (4 - sum(sigmoid(u) for u in v[1:8:2])) / 4
        anchor = MASKS[bottom * (len(MASKS) // groups) + k]
        size = [
            exp(t) * BIASES[2 * anchor + axis] / (cells * SCALES[bottom])
            for axis, (t, cells) in enumerate(((tw, width), (th, height)))
        ]
        box = [(i + sigmoid(tx)) / width, (j + sigmoid(ty)) / height, *size]
        scores = [sure * sigmoid(c) for c in v[first + 1 :]]
        found += [(c, score, box) for c, score in enumerate(scores) if score > least]
    return found


@pytest.mark.parametrize(
    ("shapes", "fields", "least", "threshold"),
    [
        (((1, 16, 3, 3), (1, 16, 6, 6)), "", 0.01, 0.45),
        (((2, 16, 3, 5), (2, 16, 6, 10)), "confidence_threshold: 0.3 nms_threshold: 0.3", 0.3, 0.3),
        (((1, 18, 3, 3),), "", 0.01, 0.45),
        (((1, 24, 3, 4), (1, 24, 6, 8)), "gaussian_box: true confidence_threshold: 0.1", 0.1, 0.45),
        (((2, 16, 3, 3), (2, 16, 6, 6)), "confidence_threshold: 1", 1, 0.45),
    ],
)
def test_v3(shapes: tuple[Shape, ...], fields: str, least: float, threshold: float) -> None:
    values = [value.astype(np.float32) for value in arrays(*shapes)]
    it = lone(text_v3(fields, len(shapes)), *shapes)
    gaussian = "gaussian" in fields
    each = [found_v3(x, t, len(shapes), least, gaussian) for t, x in enumerate(values)]
    want = rows([item for found in each for item in found], threshold, shapes[0][0])
    (got,) = forward(it, values)
    assert got.shape == (1, 1, *want.shape)
    np.testing.assert_allclose(got[0, 0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("", "num_classes is missing or 0", "num_classes"),
        ("num_classes: 1", "1 bottom(s) for 2 mask_group_num", "mask_group_num"),
        ("num_classes: 1 mask_group_num: 1", "0 anchors_scale for 1 bottom(s)", "anchors_scale[0]"),
        ("num_classes: 1 mask_group_num: 1 anchors_scale: 8 mask: 0 mask: 1", "2 mask(s) for 1 bottom(s)", "mask[0]"),
        (
            "num_classes: 1 mask_group_num: 1 anchors_scale: 8 num_box: 1 mask: 1 biases: 1 biases: 2",
            "a mask names anchor 1; there are 1 pairs of biases",
            "biases[0]",
        ),
    ],
)
def test_refused_v3(fields: str, what: str, field: str) -> None:
    text = f'type: "Yolov3DetectionOutput" yolov3_detection_output_param {{ {fields} }}'
    message, place = refusal(text, (1, 18, 3, 3))
    assert what in message
    assert place == f"yolov3_detection_output_param.{field}"


def test_bottoms_that_do_not_fit_v3() -> None:
    with pytest.raises(LayerError, match="bottom 1 has 15 channels; 2 boxes of 8 values"):
        lone(text_v3(), (1, 16, 3, 3), (1, 15, 6, 6))


# -- both ------------------------------------------------------------------------------------------------------


def test_centred_overlaps() -> None:
    boxes = naive.random_boxes(12)
    centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1).astype(np.float32)
    want = [[naive.overlap(a, b) for b in boxes] for a in boxes]
    np.testing.assert_allclose(centred_overlaps(centred, centred), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "shapes"), [(text_v2(), ((1, 16, 3, 3),)), (text_v3(), ((1, 16, 3, 3), (1, 16, 6, 6)))]
)
def test_onnx_is_refused_with_the_blobs_to_cut_at(text: str, shapes: tuple[Shape, ...]) -> None:
    with pytest.raises(ConversionError) as caught:
        export(lone(text, *shapes))
    assert ", ".join(f"in{i}" for i in range(len(shapes))) in caught.value.remedy
