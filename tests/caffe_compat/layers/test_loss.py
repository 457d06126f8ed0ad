"""Labels and normalisation, which the loss layers share; what holds for all of them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import registered
from caffe_compat.layers.loss import clamp_straight, label_indices, normalization, normalizer
from caffe_compat.schema import pb
from tests.caffe_compat.layers.harness import lone

Loss = pb.LossParameter
COUNTED = torch.tensor([True, False, True, False])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8])
def test_labels_of_any_type(kind: torch.dtype) -> None:
    layer = lone('type: "SoftmaxWithLoss"', (2, 3), (2,)).layer
    index, counted = label_indices(layer, torch.tensor([0, 2]).to(kind), 3)
    assert index.tolist() == [0, 2]
    assert index.dtype == torch.int64
    assert counted is None


def test_ignored_labels() -> None:
    layer = lone('type: "SoftmaxWithLoss"', (2, 3), (2,)).layer
    index, counted = label_indices(layer, torch.tensor([0.0, 255.0]), 3, 255)
    assert index.tolist() == [0, 0]
    assert counted is not None
    assert counted.tolist() == [True, False]


def test_no_labels_at_all() -> None:
    layer = lone('type: "SoftmaxWithLoss"', (2, 3), (2,)).layer
    assert label_indices(layer, torch.zeros(0), 3)[0].shape == (0,)


def test_a_label_that_is_no_number() -> None:
    layer = lone('type: "SoftmaxWithLoss"', (2, 3), (2,)).layer
    with pytest.raises(LayerError, match="at index 1 is not one of the 3 classes"):
        label_indices(layer, torch.tensor([0.0, float("inf")]), 3)


@pytest.mark.parametrize(
    ("mode", "counted", "value"),
    [
        (Loss.FULL, COUNTED, 12),
        (Loss.VALID, COUNTED, 2),
        (Loss.VALID, None, 12),
        (Loss.VALID, COUNTED & False, 1),
        (Loss.BATCH_SIZE, COUNTED, 3),
        (Loss.NONE, COUNTED, 1),
    ],
)
def test_normalizer(mode: pb.LossParameter.NormalizationMode, counted: torch.Tensor | None, value: int) -> None:
    assert int(normalizer(mode, 3, 4, counted)) == value


def test_normalizer_of_nothing() -> None:
    assert normalizer(Loss.BATCH_SIZE, 0, 4, None) == 1


@pytest.mark.parametrize(
    ("fields", "default", "mode"),
    [
        ({}, Loss.VALID, Loss.VALID),
        ({}, Loss.BATCH_SIZE, Loss.BATCH_SIZE),
        ({"normalize": True}, Loss.BATCH_SIZE, Loss.VALID),
        ({"normalize": False}, Loss.VALID, Loss.BATCH_SIZE),
        ({"normalize": False, "normalization": Loss.FULL}, Loss.VALID, Loss.FULL),
    ],
)
def test_normalization(fields: dict[str, int], default: int, mode: int) -> None:
    assert normalization(Loss(**fields), default) == mode  # type: ignore[arg-type]


def test_clamp_with_the_gradient_of_the_identity() -> None:
    x = torch.tensor([-2.0, 0.5, float("inf")], requires_grad=True)
    y = clamp_straight()(x, -1.0, 1.0)
    assert y.tolist() == [-1.0, 0.5, 1.0]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1.0, 1.0, 1.0]


class TestAllLosses:
    """Rules of LossLayer (loss_layer.hpp) for every registered loss."""

    LOSSES: ClassVar = sorted({cls.TYPE for _, scope, cls in registered() if cls.LOSS and scope == "bvlc"})

    def test_they_are_registered(self) -> None:
        assert set(self.LOSSES) == {
            "ContrastiveLoss",
            "EuclideanLoss",
            "HingeLoss",
            "InfogainLoss",
            "MultinomialLogisticLoss",
            "SigmoidCrossEntropyLoss",
            "SoftmaxWithLoss",
        }

    @pytest.mark.parametrize("kind", LOSSES)
    def test_the_top_may_be_left_out_and_counts_one(self, kind: str) -> None:
        shapes = {"EuclideanLoss": [(4, 3), (4, 3)], "SigmoidCrossEntropyLoss": [(4, 3), (4, 3)]}
        shapes |= {"ContrastiveLoss": [(4, 3), (4, 3), (4,)], "InfogainLoss": [(4, 3), (4,), (3, 3)]}
        it = lone(f'type: "{kind}"', *shapes.get(kind, [(4, 3), (4,)]), tops=0)
        assert it.top_shapes == [()]
        assert it.node.loss_weights == (1.0,)

    @pytest.mark.parametrize("kind", LOSSES)
    def test_a_float32_net_stays_float32(self, kind: str) -> None:
        shapes = {"EuclideanLoss": [(4, 3), (4, 3)], "SigmoidCrossEntropyLoss": [(4, 3), (4, 3)]}
        shapes |= {"ContrastiveLoss": [(4, 3), (4, 3), (4,)], "InfogainLoss": [(4, 3), (4,), (3, 3)]}
        chosen = shapes.get(kind, [(4, 3), (4,)])
        bottoms = [torch.from_numpy(np.full(shape, 0.5, np.float32)) for shape in chosen]
        (loss,) = lone(f'type: "{kind}"', *chosen).layer.forward(bottoms, [])
        assert loss.dtype == torch.float32
        assert loss.shape == ()
