"""Detection layers as plain loops over single boxes, to hold the real ones against."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

import numpy as np
from numpy.typing import NDArray

Box = Sequence[float]
Array = NDArray[np.float64]


def area(box: Box) -> float:
    width, height = box[2] - box[0], box[3] - box[1]
    return 0.0 if width < 0 or height < 0 else width * height


def overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (area(a) + area(b) - width * height)


def decode(code: Box, prior: Box, variance: Box, kind: str = "CORNER", in_target: bool = False) -> list[float]:
    v = [c if in_target else c * s for c, s in zip(code, variance, strict=True)]
    w, h = prior[2] - prior[0], prior[3] - prior[1]
    if kind == "CORNER":
        return [p + c for p, c in zip(prior, v, strict=True)]
    if kind == "CORNER_SIZE":
        return [p + c * s for p, c, s in zip(prior, v, (w, h, w, h), strict=True)]
    x, y = (prior[0] + prior[2]) / 2 + v[0] * w, (prior[1] + prior[3]) / 2 + v[1] * h
    bw, bh = w * exp(v[2]), h * exp(v[3])
    return [x - bw / 2, y - bh / 2, x + bw / 2, y + bh / 2]


def encode(box: Box, prior: Box, variance: Box, kind: str = "CORNER", in_target: bool = False) -> list[float]:
    w, h = prior[2] - prior[0], prior[3] - prior[1]
    if kind == "CENTER_SIZE":
        shift = [(box[i] + box[i + 2] - prior[i] - prior[i + 2]) / 2 / s for i, s in enumerate((w, h))]
        code = [*shift, log((box[2] - box[0]) / w), log((box[3] - box[1]) / h)]
    else:
        size = (w, h, w, h) if kind == "CORNER_SIZE" else (1, 1, 1, 1)
        code = [(b - p) / s for b, p, s in zip(box, prior, size, strict=True)]
    return code if in_target else [c / s for c, s in zip(code, variance, strict=True)]


def suppress(boxes: Sequence[Box], threshold: float, eta: float = 1.0) -> list[int]:
    """Greedy suppression; boxes come best first."""
    kept: list[int] = []
    for index, box in enumerate(boxes):
        if all(overlap(box, boxes[other]) <= threshold for other in kept):
            kept.append(index)
            threshold *= eta if eta < 1 and threshold > 0.5 else 1
    return kept


def random_boxes(count: int, seed: int = 0, least: float = 0.05, most: float = 0.5) -> Array:
    """Boxes in and around the unit square, in float32 precision."""
    generator = np.random.default_rng(seed)
    centres, sizes = generator.uniform(0, 1, (count, 2)), generator.uniform(least, most, (count, 2))
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], 1).astype(np.float32).astype(np.float64)


def match(boxes: Sequence[Box], truth: Sequence[Box], threshold: float | None, inside: bool = False) -> list[int]:
    """Index of the true box of each box, -1 for none, -2 for a box across the border with `inside`.

    Args:
        threshold: from which overlap on boxes that are left get their closest true box; None: they get none.
    """
    shared = [[value if (value := overlap(box, true)) > 1e-6 else 0.0 for true in truth] for box in boxes]
    index = [-2 if inside and (min(box) < 0 or max(box) > 1) else -1 for box in boxes]
    open_truth = set(range(len(truth)))
    while True:
        pairs = [(shared[i][j], -i, -j) for i in range(len(boxes)) if index[i] == -1 for j in open_truth]
        if not pairs or max(pairs)[0] <= 0:
            break
        _, i, j = max(pairs)
        index[-i] = -j
        open_truth.remove(-j)
    for i in range(len(boxes)):
        if threshold is not None and index[i] == -1 and truth:
            closest = max(range(len(truth)), key=lambda j: (shared[i][j], -j))
            if shared[i][closest] > 0 and shared[i][closest] >= threshold:
                index[i] = closest
    return index


def softmax_loss(scores: Sequence[float], label: int) -> float:
    return log(sum(exp(score) for score in scores)) - scores[label]


def logistic_loss(scores: Sequence[float], targets: Sequence[float]) -> float:
    return sum(log(1 + exp(score)) - target * score for score, target in zip(scores, targets, strict=True))


def smooth_l1(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5
