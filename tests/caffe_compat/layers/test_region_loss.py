"""RegionLoss against loops over cells and true boxes."""

from __future__ import annotations

from math import exp, log
from typing import Any

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from caffe_compat.schema import pb
from tests.caffe_compat.layers import harness, refusals
from tests.caffe_compat.layers import naive_boxes as naive
from tests.caffe_compat.layers.harness import Array, Lone, forward, gradients

N, NUM, CLASSES, SIDE = 2, 3, 4, 5
EACH = 5 + CLASSES
BIASES = (1.3, 2.2, 3.1, 1.8, 0.6, 0.9, 5.0, 4.0, 2.0, 2.0)
SHAPES = ((N, NUM * EACH, SIDE, SIDE), (N, 1500))


def lone(text: str, *shapes: Shape, dialect: str = "mobilenet-yolo") -> Lone:
    return harness.lone(text, *shapes, dialect=dialect)


def refusal(text: str, *shapes: Shape, dialect: str = "mobilenet-yolo") -> tuple[str, str]:
    return refusals.refusal(text, *shapes, dialect=dialect)


def text(fields: str = "", biases: tuple[float, ...] = BIASES) -> str:
    given = " ".join(f"biases: {bias}" for bias in biases)
    return f'type: "RegionLoss" region_loss_param {{ num: {NUM} num_class: {CLASSES} {given} {fields} }}'


def bottoms(*truth: tuple[int, tuple[float, ...]]) -> list[Array]:
    """Predictions, and labels from (image, (class, x, y, width, height))."""
    x = np.random.default_rng(5).normal(0, 0.7, SHAPES[0]).astype(np.float32)
    labels = np.zeros((N, 300, 5))
    count = [0] * N
    for image, row in truth:
        labels[image, count[image]] = row
        count[image] += 1
    return [x.astype(float), labels.reshape(N, 1500)]


TRUTH = (
    (0, (1, 0.31, 0.52, 0.4, 0.5)),
    (0, (3, 0.85, 0.1, 0.2, 0.15)),
    (0, (2, 0.33, 0.55, 0.45, 0.45)),
    (1, (0, 0.5, 0.5, 0.9, 0.8)),
)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def overlap(a: list[float], b: list[float]) -> float:
    corners = [[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in (a, b)]
    return naive.overlap(*corners)


class Reference:
    def __init__(self, p: Any, x: Array, labels: Array) -> None:
        self.p = p
        self.x = x.reshape(N, NUM, EACH, SIDE, SIDE)
        self.labels = labels.reshape(N, 300, 5)
        self.biases = list(p.biases) if len(p.biases) >= 10 else [0.0] * 10

    def box(self, b: int, n: int, j: int, i: int) -> list[float]:
        v = self.x[b, n, :, j, i]
        size = [exp(v[2 + axis]) * self.biases[2 * n + axis] / SIDE for axis in (0, 1)]
        return [(i + sigmoid(v[0])) / SIDE, (j + sigmoid(v[1])) / SIDE, *size]

    def errors(self) -> Array:
        e = np.zeros(self.x.shape)
        for b, n, j, i in np.ndindex(N, NUM, SIDE, SIDE):
            truth = [list(row[1:]) for row in self.labels[b] if row[1]]
            near = max([0.0, *(overlap(self.box(b, n, j, i), true) for true in truth)])
            sure = sigmoid(self.x[b, n, 4, j, i])
            e[b, n, 4, j, i] = 0 if near > self.p.thresh else self.p.noobject_scale * sure * sure * (1 - sure)
        for b in range(N):
            for row in self.labels[b]:
                if not row[3]:
                    break
                self.train(e, b, row)
        return e

    def train(self, e: Array, b: int, row: Array) -> None:
        x, y, w, h = row[1:]
        i, j = int(x * SIDE), int(y * SIDE)
        shared = []
        for n in range(NUM):
            size = [self.biases[2 * n] / SIDE, self.biases[2 * n + 1] / SIDE]
            size = size if self.p.bias_match else self.box(b, n, j, i)[2:]
            shared.append(overlap([0, 0, *size], [0, 0, w, h]))
        n = shared.index(max(shared))
        owner, row_there, column_there = (b, j, i) if max(shared) > 0 else (0, 0, 0)
        n = n if max(shared) > 0 else 0
        v = self.x[owner, n, :, row_there, column_there]
        size = [exp(v[2 + axis]) * self.biases[2 * n + axis] / SIDE for axis in (0, 1)]
        iou = overlap([(i + sigmoid(v[0])) / SIDE, (j + sigmoid(v[1])) / SIDE, *size], [x, y, w, h])
        k = self.p.coord_scale * (1 if self.p.rescore else 2 - w * h)
        at = e[owner, n, :, row_there, column_there]
        for axis, inside in enumerate((x * SIDE - i, y * SIDE - j)):
            s = sigmoid(v[axis])
            at[axis] = k * (s - inside) * s * (1 - s)
        for axis, size_there in enumerate((w, h)):
            at[2 + axis] = k * (v[2 + axis] - log(size_there * SIDE / self.biases[2 * n + axis]))
        sure = sigmoid(v[4])
        at[4] = self.p.object_scale * (sure - (iou if self.p.rescore else 1)) * sure * (1 - sure)
        p = np.exp(v[5:] - v[5:].max())
        p /= p.sum()
        at[5:] = self.p.class_scale * (p - np.eye(CLASSES)[int(row[0])])


@pytest.mark.parametrize(
    "fields",
    [
        "",
        "rescore: 0",
        "bias_match: 0",
        "thresh: 0.6 object_scale: 5 noobject_scale: 1 class_scale: 2 coord_scale: 1.5",
        "thresh: -1",
    ],
)
@pytest.mark.parametrize("truth", [TRUTH, ()])
def test_loss_and_gradient(fields: str, truth: tuple[Any, ...]) -> None:
    values = bottoms(*truth)
    it = lone(text(fields), *SHAPES)
    e = Reference(it.layer.p, *values).errors()
    assert it.top_shapes == [()]
    np.testing.assert_allclose(forward(it, values)[0], (e**2).sum() / N, rtol=1e-4)
    (got, none), _ = gradients(it, values, [np.array(2.0)])
    np.testing.assert_allclose(got, 2 * e.reshape(got.shape) / N, rtol=1e-4, atol=1e-6)
    assert not none.any()


def test_a_box_that_no_anchor_overlaps_trains_the_first_value() -> None:
    """Of the first image, whichever image the box is in; anchors of size 0 make the error infinite."""
    values = bottoms((1, (0, 0.5, 0.5, 0.3, 0.3)))
    it = lone(text("coord_scale: 0 rescore: 0", biases=(1.0, 2.0)), *SHAPES)
    (got, _), _ = gradients(it, values, [np.array(1.0)])
    classes = got.reshape(N, NUM, EACH, SIDE * SIDE)[:, :, 5:]
    assert np.argwhere(classes.any(2)).tolist() == [[0, 0, 0]]


def test_labels_end_at_the_first_zero() -> None:
    values = bottoms(*TRUTH)
    cut = values[1].copy()
    cut[0, 5:10] = 0
    it = lone(text(), *SHAPES)
    only_first = bottoms(TRUTH[0], TRUTH[3])
    assert forward(it, [values[0], cut])[0] == forward(it, only_first)[0]


def test_a_centre_outside_the_image() -> None:
    with pytest.raises(LayerError, match="a true box of image 1 has its centre outside the image"):
        forward(lone(text(), *SHAPES), bottoms((1, (0, 0.5, 1.1, 0.2, 0.2))))


def test_too_few_coordinates() -> None:
    message, field = refusal(text("coords: 3"), *SHAPES)
    assert "coords is 3" in message
    assert field == "region_loss_param.coords"


def test_too_few_biases() -> None:
    message, field = refusal('type: "RegionLoss" region_loss_param { num: 6 biases: 1 }', (1, 150, 5, 5), (1, 1500))
    assert message == "10 biases for 6 boxes"
    assert field == "region_loss_param.biases[0]"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((N, NUM * EACH + 1, SIDE, SIDE), SHAPES[1]), "the predictions have shape"),
        (((N, NUM * EACH, SIDE, SIDE + 1), SHAPES[1]), "the predictions have shape"),
        ((SHAPES[0], (N, 1499)), "1500 values for each of 2 images"),
    ],
)
def test_bottoms_that_do_not_fit(shapes: tuple[Shape, ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(text(), *shapes)


# -- caffe-yolo9000 ----------------------------------------------------------------------------------------------


def rows_of(*truth: tuple[int, tuple[float, ...]]) -> Array:
    """SSD's rows of the same boxes, labels from 1 on, with one that stands for none."""
    made = [[-1.0] * 8]
    for image, (label, x, y, w, h) in truth:
        made.append([image, label + 1, 0, x - w / 2, y - h / 2, x + w / 2, y + h / 2, 0])
    return np.array(made)[None, None]


class Reference9000(Reference):
    def train(self, e: Array, b: int, row: Array) -> None:
        super().train(e, b, row)
        x, y, w, h = row[1:]
        i, j = int(x * SIDE), int(y * SIDE)
        sizes = [[0, 0, self.biases[2 * n] / SIDE, self.biases[2 * n + 1] / SIDE] for n in range(NUM)]
        n = int(np.argmax([overlap(size, [0, 0, w, h]) for size in sizes]))
        at, v, k = e[b, n, :, j, i], self.x[b, n, :, j, i], self.p.coord_scale
        for axis, inside in enumerate((x * SIDE - i, y * SIDE - j)):
            s = sigmoid(v[axis])
            at[axis] = k * np.clip(s - inside, -1, 1) * s * (1 - s)
            wanted = log((w, h)[axis] * SIDE / self.biases[2 * n + axis])
            at[2 + axis] = k * np.clip(v[2 + axis] - wanted, -1, 1)
        sure = sigmoid(v[4])
        at[4] = -2 * self.p.object_scale * (1 - sure) ** 3 * sure * (1 - sure)


@pytest.mark.parametrize("truth", [TRUTH, ()])
def test_loss_of_yolo9000(truth: tuple[Any, ...]) -> None:
    x, labels = bottoms(*truth)
    rows = rows_of(*truth)
    fields = f"side: {SIDE} object_scale: 5 coord_scale: 2"
    it = lone(text(fields), SHAPES[0], rows.shape, dialect="yolo9000")
    e = Reference9000(it.layer.p, x, labels).errors()
    np.testing.assert_allclose(forward(it, [x, rows])[0], (e**2).sum(), rtol=1e-4)
    (got, none), _ = gradients(it, [x, rows], [np.array(2.0)])
    np.testing.assert_allclose(got, 2 * e.reshape(got.shape) / N, rtol=1e-4, atol=1e-6)
    assert not none.any()


def test_what_yolo9000_refuses() -> None:
    for name in ("softmax_tree", "class_map"):
        found = refusal(text(f'{name}: "file"'), SHAPES[0], (1, 1, 3, 8), dialect="yolo9000")
        assert found == (f"{name} is not followed", f"region_loss_param.{name}")
    with pytest.raises(LayerError, match=r"27, 13, 13\) is needed"):
        lone(text(), SHAPES[0], (1, 1, 3, 8), dialect="yolo9000")
    with pytest.raises(LayerError, match="the true boxes have shape"):
        lone(text(f"side: {SIDE}"), *SHAPES, dialect="yolo9000")
    it = lone(text(f"side: {SIDE}"), SHAPES[0], (1, 1, 2, 8), dialect="yolo9000")
    with pytest.raises(LayerError, match="true boxes of item 2 for 2 images"):
        forward(it, [np.zeros(SHAPES[0]), rows_of((2, (0, 0.5, 0.5, 0.1, 0.1)))])


def eval_text(fields: str = "") -> str:
    given = " ".join(f"biases: {bias}" for bias in BIASES)
    sizes = f"side: {SIDE} num_class: {CLASSES} num_object: {NUM}"
    return f'type: "EvalDetection" eval_detection_param {{ {sizes} {given} {fields} }}'


@pytest.mark.parametrize("kind", ["MULTIPLY", "OBJ", "PROB"])
def test_detections_are_told_true_or_false(kind: str) -> None:
    x, _ = bottoms()
    truth = [(0, (1, 0.31, 0.52, 0.4, 0.5)), (0, (2, 0.5, 0.5, 0.6, 0.6)), (1, (2, 0.4, 0.5, 0.5, 0.5))]
    x = x.reshape(N, NUM, EACH, SIDE, SIDE)
    x[:, :, 4] -= 2
    x[:, :, 5:] *= 4
    x = x.reshape(SHAPES[0])
    rows = rows_of(*truth)
    it = lone(eval_text(f"nms: 0.4 threshold: 0.3 score_type: {kind}"), x.shape, rows.shape)
    assert it.top_shapes == [(N, CLASSES + 4 * NUM * SIDE * SIDE)]
    (top,) = forward(it, [x, rows])
    reference = Reference(pb.RegionLossParameter(biases=BIASES), x.astype(np.float32), np.zeros((N, 1500)))
    for image in range(N):
        own = [row for owner, row in truth if owner == image]
        wanted = judged(reference, image, own, kind)
        counts = [sum(row[0] == label for row in own) for label in range(CLASSES)]
        assert top[image, :CLASSES].tolist() == counts
        found = top[image, CLASSES:].reshape(-1, 4)
        np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=1e-4, atol=1e-6)
        assert not found[len(wanted) :].any()
        assert len(wanted) > 5
    assert top[:, CLASSES:].reshape(-1, 4)[:, 2].any()


def judged(reference: Reference, image: int, truth: list[tuple[float, ...]], kind: str) -> list[list[float]]:
    boxes: list[list[tuple[float, list[float]]]] = [[] for _ in range(CLASSES)]
    for j, i, n in np.ndindex(SIDE, SIDE, NUM):
        v = reference.x[image, n, :, j, i]
        sure, likely = sigmoid(v[4]), np.exp(v[5:] - v[5:].max())
        likely /= likely.sum()
        for label in range(CLASSES):
            score = {"OBJ": sure, "PROB": float(likely[label])}.get(kind, sure * float(likely[label]))
            if sure >= 0.005 and sure * likely[label] > 0.005:
                boxes[label].append((score, reference.box(image, n, j, i)))
    rows = []
    for label, found in enumerate(boxes):
        own, taken, kept = [list(row[1:]) for row in truth if row[0] == label], set(), []
        for score, box in sorted(found, key=lambda pair: -pair[0]):
            if any(overlap(box, other) >= 0.4 for other in kept):
                continue
            kept.append(box)
            shares = [overlap(box, true) for true in own]
            near = bool(shares) and max(shares) >= 0.3
            first = near and shares.index(max(shares)) not in taken
            taken.update([shares.index(max(shares))] if near else [])
            rows.append([label, score, first, not own or (near and not first)])
    return rows[: NUM * SIDE * SIDE]  # there is room for no more


def test_without_suppression_there_are_no_detections() -> None:
    it = lone(eval_text(), SHAPES[0], (1, 1, 1, 8))
    assert not forward(it, [bottoms()[0], rows_of()])[0].any()


def test_evaluations_that_are_refused() -> None:
    bare = 'type: "EvalDetection" eval_detection_param { biases: 1 }'
    assert refusal(bare, SHAPES[0], (1, 1, 1, 8)) == ("1 biases for 2 boxes", "eval_detection_param.biases[0]")
    with pytest.raises(LayerError, match="for 3 boxes of 4 classes, side 5"):
        lone(eval_text(), (N, 20, SIDE, SIDE), (1, 1, 1, 8))
    with pytest.raises(LayerError, match="a true box of label 5 of 4 classes"):
        forward(lone(eval_text(), SHAPES[0], (1, 1, 2, 8)), [bottoms()[0], rows_of((0, (4, 0.5, 0.5, 0.1, 0.1)))])
    writing = eval_text('save_output_param { output_directory: "out" }')
    assert 'no files are written to "out"' in lone(writing, SHAPES[0], (1, 1, 1, 8)).layer.notes()[0]
