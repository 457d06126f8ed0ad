from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_compat.errors import ConversionError, LayerError
from tests.caffe_compat.layers.harness import arrays, forward, gradients, lone, run_onnx, session

SHAPE = (2, 3, 1, 1)


def test_test_phase_copies() -> None:
    (x,) = arrays((4, 5))
    it = lone('type: "Dropout" dropout_param { dropout_ratio: 0.9 }', (4, 5))
    assert np.array_equal(forward(it, [x])[0], x)


def test_train_phase_scales_the_survivors() -> None:
    torch.manual_seed(0)
    it = lone('type: "Dropout" dropout_param { dropout_ratio: 0.25 }', (100, 100), phase="TRAIN")
    y = forward(it, [np.full((100, 100), 3.0)])[0]
    assert np.unique(y).tolist() == [0, 4]
    assert abs((y > 0).mean() - 0.75) < 0.02


def test_a_recorded_mask_is_used() -> None:
    it = lone('type: "Dropout"', SHAPE, phase="TRAIN", profile="dec2013")
    mask = np.array([[1, 0, 1], [0, 0, 1]], np.uint8).reshape(SHAPE)
    it.graph.context.state["draws"] = {"it": mask}
    (x,) = arrays(SHAPE)
    assert np.array_equal(forward(it, [x])[0], x * mask * 2)
    assert np.array_equal(gradients(it, [x], [x])[0][0], x * mask * 2)
    it.graph.context.state["draws"] = {"it": mask[:1]}
    with pytest.raises(LayerError, match="mask"):
        forward(it, [x])


@pytest.mark.parametrize("ratio", ["1", "-0.5", "1.5"])
def test_ratio_outside_0_to_1_is_refused_in_training(ratio: str) -> None:
    text = f'type: "Dropout" dropout_param {{ dropout_ratio: {ratio} }}'
    lone(text, (2,))
    with pytest.raises(LayerError, match="dropout_ratio"):
        lone(text, (2,), phase="TRAIN")


def test_no_backward_in_the_test_phase_of_2013() -> None:
    (x,) = arrays(SHAPE)
    assert np.array_equal(gradients(lone('type: "Dropout"', SHAPE), [x], [x])[0][0], x)
    with pytest.raises(LayerError, match="backward"):
        gradients(lone('type: "Dropout"', SHAPE, profile="dec2013"), [x], [x])


def test_training_has_no_exact_onnx_form() -> None:
    with pytest.raises(ConversionError, match="random"):
        session(lone('type: "Dropout"', (2, 3), phase="TRAIN"))


UNSCALED = 'type: "Dropout" dropout_param { dropout_ratio: 0.75 scale_train: false }'


def test_forks_may_scale_in_the_test_phase() -> None:
    """dropout_layer.cpp of rbgirshick/caffe-fast-rcnn."""
    torch.manual_seed(0)
    (x,) = arrays(SHAPE)
    assert np.array_equal(forward(lone(UNSCALED, SHAPE), [x])[0], x * 0.25)
    assert np.array_equal(run_onnx(session(lone(UNSCALED, SHAPE)), [x])[0], np.float32(x) * np.float32(0.25))
    ones = np.full((100, 100), 3.0)
    y = forward(lone(UNSCALED, (100, 100), phase="TRAIN"), [ones])[0]
    assert np.unique(y).tolist() == [0, 3]
    assert abs((y > 0).mean() - 0.25) < 0.02


def test_forks_use_a_recorded_mask_as_it_is() -> None:
    it = lone(UNSCALED, SHAPE, phase="TRAIN")
    mask = np.array([[1, 0, 1], [0, 0, 1]], np.uint8).reshape(SHAPE)
    it.graph.context.state["draws"] = {"it": mask}
    (x,) = arrays(SHAPE)
    assert np.array_equal(forward(it, [x])[0], x * mask)
    assert np.array_equal(gradients(it, [x], [x])[0][0], x * mask)
