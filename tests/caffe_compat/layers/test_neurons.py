"""Layers that map each number by itself."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, log10, tanh

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import forward, gradients, lone

Rule = Callable[[float], float]


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def always(value: float) -> Rule:
    return lambda _: value


def swish(beta: float) -> tuple[Rule, Rule]:
    return (
        lambda x: x * sigmoid(beta * x),
        lambda x: sigmoid(beta * x) * (1 + beta * x * (1 - sigmoid(beta * x))),
    )


POINTS = (-3.0, -1.0, -0.25, 0.0, 0.25, 0.5, 1.0, 3.0)
RULES: dict[str, tuple[Rule, Rule]] = {
    'type: "AbsVal"': (abs, lambda x: float(np.sign(x))),
    'type: "BNLL"': (lambda x: log(1 + exp(x)), sigmoid),
    'type: "Clip" clip_param { min: -1 max: 0.5 }': (
        lambda x: max(-1.0, min(x, 0.5)),
        lambda x: float(-1 <= x <= 0.5),
    ),
    'type: "Clip" clip_param { min: 1 max: -1 }': (always(1.0), always(0.0)),
    'type: "ELU" elu_param { alpha: 0.5 }': (
        lambda x: x if x > 0 else 0.5 * (exp(x) - 1),
        lambda x: 1.0 if x > 0 else 0.5 * exp(x),
    ),
    'type: "Exp"': (exp, exp),
    'type: "Exp" exp_param { base: 2 scale: 0.5 shift: 3 }': (
        lambda x: 2 ** (3 + 0.5 * x),
        lambda x: 0.5 * log(2) * 2 ** (3 + 0.5 * x),
    ),
    'type: "Log" log_param { shift: 4 }': (lambda x: log(4 + x), lambda x: 1 / (4 + x)),
    'type: "Log" log_param { base: 10 scale: 0.5 shift: 2 }': (
        lambda x: log10(2 + 0.5 * x),
        lambda x: 0.5 / (log(10) * (2 + 0.5 * x)),
    ),
    'type: "Power"': (lambda x: x, always(1.0)),
    'type: "Power" power_param { scale: -2 shift: 1 }': (lambda x: 1 - 2 * x, always(-2.0)),
    'type: "Power" power_param { power: 2 scale: 3 shift: 1 }': (
        lambda x: (1 + 3 * x) ** 2,
        lambda x: 6 * (1 + 3 * x),
    ),
    'type: "Power" power_param { power: -0.5 shift: 4 }': (
        lambda x: (4 + x) ** -0.5,
        lambda x: -0.5 * (4 + x) ** -1.5,
    ),
    'type: "Power" power_param { power: 0 shift: -7 }': (always(1.0), always(0.0)),
    'type: "Power" power_param { power: 3 scale: 0 shift: -2 }': (always(-8.0), always(0.0)),
    'type: "ReLU"': (lambda x: max(x, 0.0), lambda x: float(x > 0)),
    'type: "ReLU" relu_param { negative_slope: 0.25 }': (
        lambda x: max(x, 0.0) + 0.25 * min(x, 0.0),
        lambda x: 1.0 if x > 0 else 0.25,
    ),
    'type: "ReLU" relu_param { negative_slope: -2 }': (
        lambda x: max(x, 0.0) - 2 * min(x, 0.0),
        lambda x: 1.0 if x > 0 else -2.0,
    ),
    'type: "Sigmoid"': (sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x))),
    'type: "Swish"': swish(1),
    'type: "Swish" swish_param { beta: 2 }': swish(2),
    'type: "TanH"': (tanh, lambda x: 1 - tanh(x) ** 2),
}


@pytest.mark.parametrize("text", RULES)
def test_value_and_gradient_follow_the_formula(text: str) -> None:
    value, slope = RULES[text]
    it = lone(text, (len(POINTS),))
    x = np.array(POINTS)
    np.testing.assert_allclose(forward(it, [x])[0], [value(point) for point in POINTS], rtol=1e-12, atol=1e-12)
    found = gradients(it, [x], [np.full(len(POINTS), 2.0)])[0][0]
    np.testing.assert_allclose(found, [2 * slope(point) for point in POINTS], rtol=1e-12, atol=1e-12)


def test_threshold_is_strict() -> None:
    it = lone('type: "Threshold" threshold_param { threshold: 0.5 }', (3,))
    assert forward(it, [np.array([0.25, 0.5, 0.75])])[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("text", [text for text in RULES if "AbsVal" not in text] + ['type: "Threshold"'])
def test_works_in_place(text: str) -> None:
    assert lone(text, (4,), inplace=True).graph.outputs == ("in0",)


def test_abs_val_refuses_in_place() -> None:
    with pytest.raises(LayerError, match="in place"):
        lone('type: "AbsVal"', (4,), inplace=True)


def test_bnll_keeps_large_values() -> None:
    it = lone('type: "BNLL"', (4,))
    x = np.array([-1000.0, -60.0, 60.0, 1000.0])
    np.testing.assert_allclose(forward(it, [x])[0], [0, exp(-60), 60, 1000], rtol=1e-12)
    np.testing.assert_allclose(gradients(it, [x], [np.ones(4)])[0][0], [0, exp(-60), 1, 1], rtol=1e-12)


def test_bnll_in_place_differentiates_its_top_in_2013() -> None:
    x = np.linspace(-3, 3, 8).reshape(1, 8, 1, 1)
    y = np.log1p(np.exp(x))
    for profile, at in (("bvlc", x), ("dec2013", y)):
        it = lone('type: "BNLL"', x.shape, inplace=True, profile=profile)
        np.testing.assert_allclose(forward(it, [x])[0], y, rtol=1e-12)
        np.testing.assert_allclose(gradients(it, [x], [np.ones_like(x)])[0][0], 1 / (1 + np.exp(-at)), rtol=1e-12)


@pytest.mark.parametrize(
    ("param", "x", "want"),
    [
        ("power: 3", [0.0, 2], [np.nan, 12]),
        ("power: 0.5 shift: 1 scale: 2", [-0.5, 1.5], [np.nan, 0.5]),
        ("power: 2", [0.0, 2], [0, 4]),
        ("power: -1", [0.0, 2], [-np.inf, -0.25]),
    ],
)
def test_power_is_divided_by_its_base_in_the_gradient(param: str, x: list[float], want: list[float]) -> None:
    it = lone(f'type: "Power" power_param {{ {param} }}', (2,))
    np.testing.assert_allclose(gradients(it, [np.array(x)], [np.ones(2)])[0][0], want)


def test_fixed_power_ignores_nan() -> None:
    it = lone('type: "Power" power_param { scale: 0 shift: 3 }', (2,))
    x = np.array([np.nan, np.inf])
    assert forward(it, [x])[0].tolist() == [3, 3]
    assert gradients(it, [x], [np.ones(2)])[0][0].tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["exp", "log"])
@pytest.mark.parametrize("base", ["0", "-2", "inf"])
def test_bases_without_a_finite_logarithm_are_refused(kind: str, base: str) -> None:
    with pytest.raises(LayerError, match="base"):
        lone(f'type: "{kind.title()}" {kind}_param {{ base: {base} }}', (2,))


def test_log_refuses_base_1() -> None:
    with pytest.raises(LayerError, match="1 / log"):
        lone('type: "Log" log_param { base: 1 }', (2,))
    assert forward(lone('type: "Exp" exp_param { base: 1 }', (1,)), [np.array([5.0])])[0].tolist() == [1]


def test_exp_overflow_of_the_shift_is_infinite() -> None:
    it = lone('type: "Exp" exp_param { base: 10 shift: 50 }', (1,))
    assert forward(it, [np.zeros(1)])[0].tolist() == [np.inf]
