"""DetectionOutput of OpenCV against loops."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Array, forward, lone
from tests.caffe_compat.layers.refusals import refusal

N, P, C = 2, 7, 3
RNG = np.random.default_rng(2)


def text(fields: str) -> str:
    nms = "nms_param { nms_threshold: 0.4 }"
    return f'type: "DetectionOutput" detection_output_param {{ num_classes: {C} {nms} {fields} }}'


def overlap(a: Array, b: Array, more: int) -> float:
    if (a[2:] < a[:2]).any() or (b[2:] < b[:2]).any():
        return 0.0
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    common = 0.0 if (high < low).any() else float(np.prod(high - low + more))
    return common / float(np.prod(a[2:] - a[:2] + more) + np.prod(b[2:] - b[:2] + more) - common) if common else 0.0


@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("centre", [True, False])
def test_detections(pixels: bool, encoded: bool, shared: bool, centre: bool) -> None:
    located = 1 if shared else C
    low = RNG.uniform(0, 50, (P, 2))
    priors = np.concatenate([low, low + RNG.uniform(5, 40, (P, 2))], 1)
    variances = np.full((P, 4), 0.5)
    codes, scores = RNG.normal(0, 0.3, (N, P, located, 4)), RNG.uniform(0, 1, (N, P, C))
    given = priors.reshape(1, 1, -1) if encoded else np.stack([priors.ravel(), variances.ravel()])[None]
    fields = (
        f"keep_top_k: 5 confidence_threshold: 0.2 share_location: {str(shared).lower()}"
        f" normalized_bbox: {str(not pixels).lower()} variance_encoded_in_target: {str(encoded).lower()}"
        f" code_type: {'CENTER_SIZE' if centre else 'CORNER'}"
    )
    bottoms = [codes.reshape(N, -1, 4, 1), scores.reshape(N, -1), given]
    it = lone(text(fields), *(bottom.shape for bottom in bottoms), dialect="opencv")
    assert it.top_shapes == [(1, 1, 10, 7)]
    wanted = []
    for image in range(N):
        rows = []
        for label in (1, 2):
            order = sorted(
                (p for p in range(P) if scores[image, p, label] > 0.2), key=lambda p: -scores[image, p, label]
            )
            kept: list[Array] = []
            for p in order:
                code = codes[image, p, 0 if shared else label] * (1 if encoded else 0.5)
                box = centred(priors[p], code, int(pixels)) if centre else priors[p] + code
                if all(overlap(other, box, int(pixels)) <= 0.4 for other in kept):
                    kept.append(box)
                    rows.append([image, label, scores[image, p, label], *box])
        wanted += sorted(rows, key=lambda row: -row[2])[:5]
    (top,) = forward(it, bottoms)
    np.testing.assert_allclose(top[0, 0, : len(wanted)], wanted, rtol=1e-4, atol=1e-3)
    assert not top[0, 0, len(wanted) :].any()


def centred(prior: Array, code: Array, more: int) -> Array:
    w, h = prior[2] - prior[0] + more, prior[3] - prior[1] + more
    x, y = code[0] * w + prior[0] + w / 2, code[1] * h + prior[1] + h / 2
    half = exp(code[2]) * w / 2, exp(code[3]) * h / 2
    return np.array([x - half[0], y - half[1], x + half[0], y + half[1]])


def test_refused_parameters_and_shapes() -> None:
    shapes = ((1, 4 * P), (1, C * P), (1, 2, 4 * P))
    what, field = refusal(text(""), *shapes, dialect="opencv")
    assert (what, field) == ("keep_top_k -1", "detection_output_param.keep_top_k")
    with pytest.raises(LayerError, match=r"priors of shape \(1, 2, 28\)"):
        lone(text("keep_top_k: 5 variance_encoded_in_target: true"), *shapes, dialect="opencv")
    with pytest.raises(LayerError, match=r"bottom 1 has shape \(1, 20\) for 7 priors"):
        lone(text("keep_top_k: 5"), shapes[0], (1, 20), shapes[2], dialect="opencv")
