"""Targets of anchors and proposals against loops."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from caffe_compat.layers.proposal import anchors
from tests.caffe_compat.layers.harness import Array, Lone, forward, lone

HEIGHT, WIDTH, STRIDE = 6, 7, 16
INFO = np.array([[HEIGHT * 16.0, WIDTH * 16.0, 1.0]])
TRUTH = np.array([[10.0, 12, 60, 70, 2], [40, 8, 100, 50, 1], [2, 2, 9, 9, 3]])
SMALL = "'feat_stride': 16\\n'scales': [1, 2]"


def python_layer(name: tuple[str, str], text: str, *shapes: tuple[int, ...], tops: int) -> Lone:
    fields = f'module: "rpn.{name[0]}" layer: "{name[1]}" param_str: "{text}"'
    return lone(f'type: "Python" python_param {{ {fields} }}', *shapes, tops=tops, phase="TRAIN")


def anchor_layer(text: str = SMALL, count: int = 6, truth: int = 3) -> Lone:
    name = ("anchor_target_layer", "AnchorTargetLayer")
    return python_layer(name, text, (1, 2 * count, HEIGHT, WIDTH), (truth, 5), (1, 3), tops=4)


def proposal_layer(rois: int, truth: int = 3, classes: int = 4) -> Lone:
    name = ("proposal_target_layer", "ProposalTargetLayer")
    return python_layer(name, f"'num_classes': {classes}", (rois, 5), (truth, 5), tops=5)


def overlap(a: Array, b: Array) -> float:
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    shared = max(w, 0) * max(h, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return float(shared / (sum(areas) - shared))


def code(box: Array, truth: Array) -> list[float]:
    w, h, tw, th = box[2] - box[0] + 1, box[3] - box[1] + 1, truth[2] - truth[0] + 1, truth[3] - truth[1] + 1
    shifts = [(truth[0] + tw / 2 - box[0] - w / 2) / w, (truth[1] + th / 2 - box[1] - h / 2) / h]
    return [*shifts, log(tw / w), log(th / h)]


def naive_anchors(border: float = 0) -> tuple[Array, Array]:
    """Labels (A, H, W) before any are drawn, and targets (A, H, W, 4)."""
    base = anchors(16, (0.5, 1, 2), (1, 2))
    labels, targets = np.full((6, HEIGHT, WIDTH), -1.0), np.zeros((6, HEIGHT, WIDTH, 4))
    shared = np.full((6, HEIGHT, WIDTH, len(TRUTH)), -1.0)
    for a, y, x in np.ndindex(6, HEIGHT, WIDTH):
        box = base[a] + np.array([x, y, x, y]) * STRIDE
        if min(box[:2]) >= -border and box[2] < INFO[0, 1] + border and box[3] < INFO[0, 0] + border:
            shared[a, y, x] = [overlap(box, truth) for truth in TRUTH]
            targets[a, y, x] = code(box, TRUTH[shared[a, y, x].argmax()])
    most = shared.max(3)
    labels[(most >= 0) & (most < 0.3)] = 0
    labels[most >= 0.7] = 1
    for index in range(len(TRUTH)):
        labels[shared[..., index] == shared[..., index].max()] = 1
    return labels, targets


@pytest.mark.parametrize("border", [0, 12])
def test_labels_and_targets_of_anchors(border: int) -> None:
    text = SMALL + (f"\\n'allowed_border': {border}" if border else "")
    labels, targets, inside, outside = forward(anchor_layer(text), [np.zeros((1, 12, HEIGHT, WIDTH)), TRUTH, INFO])
    want, codes = naive_anchors(border)
    assert (want == 1).sum() >= 3
    assert 8 < (want >= 0).sum() <= 256
    np.testing.assert_array_equal(labels.reshape(6, HEIGHT, WIDTH), want)
    np.testing.assert_allclose(targets.reshape(6, 4, HEIGHT, WIDTH).transpose(0, 2, 3, 1), codes, rtol=1e-5, atol=1e-6)
    objects, counted = ((want == 1)[:, None], (want >= 0)[:, None])
    np.testing.assert_array_equal(inside.reshape(6, 4, HEIGHT, WIDTH), objects.repeat(4, 1))
    np.testing.assert_allclose(outside.reshape(6, 4, HEIGHT, WIDTH), counted.repeat(4, 1) / counted.sum(), rtol=1e-6)


def test_at_most_256_anchors_are_drawn() -> None:
    shape = (1, 12, 40, 40)
    name = ("anchor_target_layer", "AnchorTargetLayer")
    it = python_layer(name, SMALL, shape, (40, 5), (1, 3), tops=4)
    corner = np.random.default_rng(0).uniform(0, 500, (40, 2))
    truth = np.concatenate([corner, corner + 30, np.ones((40, 1))], 1)
    labels, _, inside, outside = forward(it, [np.zeros(shape), truth, np.array([[640.0, 640, 1]])])
    assert ((labels == 1).sum(), (labels >= 0).sum()) == (min((labels == 1).sum(), 128), 256)
    assert inside.sum() == 4 * (labels == 1).sum()
    assert outside.sum() == pytest.approx(4, rel=1e-5)


def test_shapes_of_anchors() -> None:
    it = anchor_layer("feat_stride: 16", 9)
    assert it.top_shapes == [(1, 1, 9 * HEIGHT, WIDTH), *[(1, 36, HEIGHT, WIDTH)] * 3]


def test_proposals_and_their_targets() -> None:
    boxes = np.array([[12.0, 12, 60, 66], [40, 8, 90, 55], [0, 0, 20, 20], [70, 60, 99, 90]])
    rois = np.insert(boxes, 0, 0, 1)
    found = forward(proposal_layer(4), [rois, TRUTH])
    every = np.concatenate([boxes, TRUTH[:, :4]])
    assert [top.shape for top in found] == [(7, 5), (7,), *[(7, 16)] * 3]
    seen = []
    for roi, label, target, inside, outside in zip(*found, strict=True):
        seen.append(int(np.flatnonzero((every == roi[1:]).all(1))[0]))
        shared = [overlap(roi[1:], truth) for truth in TRUTH]
        truth = TRUTH[int(np.argmax(shared))]
        assert label == (truth[4] if max(shared) >= 0.5 else 0)
        want, weights = np.zeros((4, 4)), np.zeros((4, 4))
        if label:
            want[int(label)] = np.array(code(roi[1:], truth)) / [0.1, 0.1, 0.2, 0.2]
            weights[int(label)] = 1
        np.testing.assert_allclose(target, want.ravel(), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(inside, weights.ravel())
        np.testing.assert_array_equal(outside, weights.ravel())
    assert sorted(seen) == list(range(7))
    assert (np.diff((found[1] > 0).astype(int)) <= 0).all()  # those of objects come first


def test_128_proposals_are_drawn_with_32_of_objects() -> None:
    near = TRUTH[0, :4] + np.random.default_rng(1).uniform(0, 3, (300, 4))
    far = np.random.default_rng(2).uniform(0, 5, (300, 4)) + np.array([70, 60, 90, 90])
    rois = np.insert(np.concatenate([near, far]), 0, 0, 1)
    torch.manual_seed(0)
    labels = forward(proposal_layer(600), [rois, TRUTH])[1]
    assert (len(labels), (labels > 0).sum()) == (128, 32)


@pytest.mark.parametrize(
    ("text", "what"),
    [("", "param_str"), ("'feat_stride': 0", "param_str"), ("'feat_stride': 16\\n'x': 1", "param_str")],
)
def test_other_parameters_are_refused(text: str, what: str) -> None:
    with pytest.raises(LayerError, match=what):
        anchor_layer(text)


def test_bottoms_are_checked() -> None:
    with pytest.raises(LayerError, match="true boxes of shape"):
        python_layer(("proposal_target_layer", "ProposalTargetLayer"), "'num_classes': 4", (4, 5), (3, 4), tops=5)
    with pytest.raises(LayerError, match="several items"):
        forward(proposal_layer(1), [np.array([[1.0, 0, 0, 9, 9]]), TRUTH])
    with pytest.raises(LayerError, match="label 3 of 2 classes"):
        forward(proposal_layer(1, classes=2), [np.array([[0.0, 0, 0, 9, 9]]), TRUTH])
    with pytest.raises(LayerError, match="no anchor lies inside"):
        forward(anchor_layer(), [np.zeros((1, 12, HEIGHT, WIDTH)), TRUTH, np.array([[8.0, 8, 1]])])


def test_nothing_is_learned_through_them() -> None:
    it = proposal_layer(1)
    rois = torch.tensor([[0.0, 0, 0, 9, 9]], requires_grad=True)
    assert not any(top.requires_grad for top in it.layer.forward([rois, torch.tensor(TRUTH)], []))
