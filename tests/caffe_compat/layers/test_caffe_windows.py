"""Layers and fields of happynear/caffe-windows against loops."""

from __future__ import annotations

from math import acos, cos, exp, floor, log, pi

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from caffe_compat.fillers import fill
from caffe_compat.layers.base import Shape
from caffe_compat.schema import pb
from tests.caffe_compat.layers.harness import Array, arrays, forward, gradients, lone
from tests.caffe_compat.layers.refusals import refusal

RNG = np.random.default_rng(11)


def test_flip() -> None:
    (x,) = arrays((2, 3, 4, 5))
    for fields, wanted in (
        ("", x[..., ::-1]),
        ("flip_height: true", x[:, :, ::-1, ::-1]),
        ("flip_width: false", x),
        ("flip_width: false flip_height: true", x[:, :, ::-1]),
    ):
        np.testing.assert_array_equal(forward(lone(f'type: "Flip" flip_param {{ {fields} }}', x.shape), [x])[0], wanted)
    assert refusal('type: "Flip"', (2, 3)) == ("the bottom has shape (2, 3); four axes are needed", "bottom[0]")


def test_insanity() -> None:
    (x,) = arrays((4, 5, 6))
    text = 'type: "Insanity" insanity_param { lb: 3 ub: 8 }'
    slope = 5 / (log(8) - log(3))
    np.testing.assert_allclose(forward(lone(text, x.shape), [x])[0], np.where(x > 0, x, x / slope), rtol=1e-6)
    (y,) = forward(lone(text, x.shape, phase="TRAIN"), [x])
    np.testing.assert_array_equal(y[x > 0], x[x > 0])
    divisors = x[x < 0] / y[x < 0]
    assert 3 <= divisors.min() < 4
    assert 7 < divisors.max() <= 8


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [("lb: 3 ub: 3", "ub 3 <= lb 3", "ub"), ("lb: 0 ub: 3", "lb 0, ub 3; neither may be 0", "lb")],
)
def test_insanity_that_is_refused(fields: str, what: str, field: str) -> None:
    assert refusal(f'type: "Insanity" insanity_param {{ {fields} }}', (2, 3)) == (what, f"insanity_param.{field}")
    assert refusal('type: "Insanity"', (2,))[1] == "bottom[0]"


def test_noise() -> None:
    torch.manual_seed(0)
    (x,) = arrays((40, 50))
    text = 'type: "Noise" noise_param {{ bias: 2 {} }}'
    np.testing.assert_array_equal(forward(lone(text.format("gaussian_std: 1"), x.shape), [x])[0], x)
    normal = forward(lone(text.format("gaussian_std: 0.5"), x.shape, phase="TRAIN"), [x])[0] - x
    assert abs(normal.mean() - 2) < 0.05
    assert abs(normal.std() - 0.5 * np.sqrt((x * x).mean())) < 0.05
    flat = forward(lone(text.format("uniform_range: 0.5"), x.shape, phase="TRAIN"), [x])[0] - x
    assert 1.5 <= flat.min() < 1.6
    assert 2.4 < flat.max() <= 2.5


@pytest.mark.parametrize("kind", ["L1", "L2"])
@pytest.mark.parametrize("learned", [True, False])
def test_inner_distance(kind: str, learned: bool) -> None:
    x, weight = arrays((3, 2, 2), (5, 4))
    text = f'type: "InnerDistance" inner_distance_param {{ num_output: 5 distance_type: "{kind}" {FILLER} }}'
    it = lone(text, *((3, 2, 2), (5, 4))[: 2 - learned])
    bottoms, blobs = ([x], [weight]) if learned else ([x, weight], [])
    wanted = [[sum(abs(a - b) ** int(kind[1]) for a, b in zip(i.ravel(), w, strict=True)) for w in weight] for i in x]
    np.testing.assert_allclose(forward(it, bottoms, blobs)[0], wanted)
    assert it.node.blob_shapes == (((5, 4),) if learned else ())


FILLER = 'weight_filler { type: "gaussian" std: 1 }'


def test_rows_of_length_one() -> None:
    text = f'type: "InnerDistance" inner_distance_param {{ num_output: 5 normalize: true {FILLER} }}'
    x, weight = arrays((3, 4), (5, 4))
    unit = weight / np.sqrt((weight * weight).sum(1, keepdims=True) + 1e-6)
    kept = torch.from_numpy(weight.copy())
    y = lone(text, (3, 4)).layer.forward([torch.from_numpy(x)], [kept])[0]
    np.testing.assert_allclose(y, ((x[:, None] - unit) ** 2).sum(2))
    np.testing.assert_allclose(kept, unit)


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("", "num_output is 0", "num_output"),
        ("num_output: 2 transpose: true", "transpose is not followed", "transpose"),
        ("num_output: 2 update_center_only: true", "update_center_only is not followed", "update_center_only"),
        ('num_output: 2 distance_type: "L3"', 'distance_type "L3"', "distance_type"),
    ],
)
def test_distances_that_are_refused(fields: str, what: str, field: str) -> None:
    text = f'type: "InnerDistance" inner_distance_param {{ {fields} }}'
    assert refusal(text, (3, 4)) == (what, f"inner_distance_param.{field}")


def test_factors_of_places() -> None:
    x, s, grad = arrays((2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 4, 5))
    text = 'type: "ChannelScale" channel_scale_param {{ {} }}'
    shapes: list[Shape] = [x.shape, s.shape]
    cases = {
        "": (x * s, grad * s, (x * grad).sum(1, keepdims=True)),
        "do_forward: false": (x, grad * s, (x * grad).sum(1, keepdims=True)),
        "do_backward_feature: false": (x * s, grad, (x * grad).sum(1, keepdims=True)),
        "do_backward_scale: false": (x * s, grad * s, np.zeros(s.shape)),
    }
    for fields, (top, of_x, of_s) in cases.items():
        it = lone(text.format(fields), *shapes)
        np.testing.assert_allclose(forward(it, [x, s])[0], top)
        found, _ = gradients(it, [x, s], [grad])
        np.testing.assert_allclose(found[0], of_x)
        np.testing.assert_allclose(found[1], of_s)
    assert refusal(text.format("global_scale: true"), *shapes)[1] == "channel_scale_param.global_scale"
    with pytest.raises(LayerError, match=r"factors of shape \(2, 3, 4, 5\)"):
        lone(text.format(""), x.shape, x.shape)


def test_hotspots() -> None:
    text = 'type: "Hotspot" hotspot_param { output_height: 4 output_width: 5 data_height: 8 data_width: 20 }'
    points = np.array([[-10.0, 0, 3, 2]])
    (top,) = forward(lone(text, (1, 4)), [points])
    wanted = np.zeros((1, 2, 4, 5))
    for p, y, x in np.ndindex(2, 4, 5):
        cx, cy = (points[0, 2 * p] / 20 + 0.5) * 5, (points[0, 2 * p + 1] / 8 + 0.5) * 4
        value = exp(-((x - cx) ** 2 + (y - cy) ** 2) / 2) / (2 * pi)
        wanted[0, p, y, x] = value if value > 1e-4 else 0
    np.testing.assert_allclose(top, wanted, rtol=1e-6)
    sized = 'type: "Hotspot" hotspot_param { data_height: 8 data_width: 20 }'
    assert lone(sized, (1, 4), (1, 1, 6, 7)).top_shapes == [(1, 2, 6, 7)]
    assert "no second bottom" in refusal(sized, (1, 4))[0]
    assert refusal('type: "Hotspot"', (1, 4)) == ("data_height 0, data_width 0", "hotspot_param")


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_around_points(axis: int) -> None:
    sizes = "region_height: 3 region_width: 2 data_height: 24 data_width: 12"
    text = f'type: "SubRegion" sub_region_param {{ {sizes} as_dim: {axis} }}'
    x, truth = arrays((2, 3, 5, 6), (2, 4))
    points = np.array([[0, 0, 5, 11], [-6, -12, 2, 1.5]], float)
    it = lone(text, x.shape, points.shape, truth.shape, tops=3)
    assert it.top_shapes[0] == ((2, 6, 3, 2) if axis else (4, 3, 3, 2))
    parts, places, middles = np.zeros((2, 2, 3, 3, 2)), np.zeros((2, 4)), np.zeros((2, 4))
    for n, p in np.ndindex(2, 2):
        x0 = floor((points[n, 2 * p] / 12 + 0.5) * 6 - 1)
        y0 = floor((points[n, 2 * p + 1] / 24 + 0.5) * 5 - 1)
        middles[n, 2 * p : 2 * p + 2] = (x0 + 1.5) / 6 * 12, (y0 + 2) / 5 * 24
        places[n, 2 * p : 2 * p + 2] = truth[n, 2 * p : 2 * p + 2] + [6, 12] - middles[n, 2 * p : 2 * p + 2]
        for c, h, w in np.ndindex(3, 3, 2):
            if 0 <= y0 + h < 5 and 0 <= x0 + w < 6:
                parts[n, p, c, h, w] = x[n, c, y0 + h, x0 + w]
    wanted = parts.reshape(2, 6, 3, 2) if axis else parts.transpose(1, 0, 2, 3, 4).reshape(4, 3, 3, 2)
    for found, want in zip(forward(it, [x, points, truth]), (wanted, places, middles), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-10)
    assert refusal('type: "SubRegion"', x.shape, (2, 4), (2, 4)) == (
        "region_height is 0",
        "sub_region_param.region_height",
    )


def psi(angle: float, m: int) -> float:
    k = min(floor(angle * m / pi), m - 1)
    return (-1) ** k * cos(m * angle) - 2 * k


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_margins(m: int) -> None:
    kind = ("SINGLE", "DOUBLE", "TRIPLE", "QUADRUPLE")[m - 1]
    fields = f"num_output: 5 type: {kind} base: 9 gamma: 0.5 power: 2 iteration: 3 {FILLER}"
    it = lone(f'type: "MarginInnerProduct" margin_inner_product_param {{ {fields} }}', (7, 4), (7,), tops=2)
    x, weight, labels = RNG.normal(size=(7, 4)), RNG.normal(size=(5, 4)), RNG.integers(0, 5, 7).astype(float)
    unit = weight / np.sqrt((weight**2).sum(1, keepdims=True))
    factor = 9 * (1 + 0.5 * 4) ** -2
    wanted = x @ unit.T
    for item, label in enumerate(labels.astype(int)):
        length = np.sqrt((x[item] ** 2).sum())
        own = wanted[item, label]
        if m > 1:
            wanted[item, label] = (length * psi(acos(own / length), m) + factor * own) / (1 + factor)
    top, told = forward(it, [x, labels], [weight])
    np.testing.assert_allclose(top, wanted, rtol=1e-8)
    assert told.tolist() == [pytest.approx(factor)]


@pytest.mark.parametrize("m", [2, 3, 4])
def test_gradients_with_margins_point_the_right_way(m: int) -> None:
    """The weight's is that of an inner product; that of x is scaled, in the direction of the true one."""
    kind = ("DOUBLE", "TRIPLE", "QUADRUPLE")[m - 2]
    text = f'type: "MarginInnerProduct" margin_inner_product_param {{ num_output: 3 base: 0 type: {kind} {FILLER} }}'
    it = lone(text, (1, 4), (1,), tops=2)
    x, weight = RNG.normal(size=(1, 4)), RNG.normal(size=(3, 4))
    unit = weight / np.sqrt((weight**2).sum(1, keepdims=True))
    grad = np.array([[0, 1.0, 0]])
    (of_x, _), (of_weight,) = gradients(it, [x, np.array([1.0])], [grad, np.zeros(1)], [weight])
    np.testing.assert_allclose(of_weight, grad.T @ x)

    def value(at: Array) -> float:
        length = np.sqrt((at**2).sum())
        return float(length * psi(acos(float(at[0] @ unit[1]) / length), m))

    steps = np.eye(4) * 1e-6
    slope = np.array([(value(x + step) - value(x - step)) / 2e-6 for step in steps])
    along = float(of_x[0] @ slope / np.sqrt((of_x**2).sum() * (slope**2).sum()))
    assert along == pytest.approx(1, abs=1e-6)


def test_labels_for_margins() -> None:
    text = f'type: "MarginInnerProduct" margin_inner_product_param {{ num_output: 5 {FILLER} }}'
    assert refusal(text, (7, 4), (6,), tops=2)[1] == "bottom[1]"
    with pytest.raises(LayerError, match="label 5"):
        forward(lone(text, (1, 4), (1,), tops=2), [np.ones((1, 4)), np.array([5.0])], [np.ones((5, 4))])


PAIR = 'type: "GeneralContrastiveLoss" loss_weight: 1 loss_weight: 0'
CONTRASTIVE = [
    "",
    "positive_margin: 0.4 negative_margin: 1.5 positive_weight: 2 negative_weight: 3 positive_outlier_thresh: 0.5",
    "exp_negative_weight: true negative_margin: 2",
    "max_negative_only: true max_positive_only: true",
    "positive_first: true positive_upper_bound: 0.8",
    "normalize_negative: 0.1",
]


@pytest.mark.parametrize("fields", CONTRASTIVE)
def test_contrastive_loss(fields: str) -> None:
    p = pb.LayerParameter().general_contrastive_loss_param
    for name, value in zip(fields.split()[::2], fields.split()[1::2], strict=True):
        setattr(p, name[:-1], {"true": True}.get(value) or float(value))
    d, labels = RNG.uniform(0, 2, (4, 3)), np.array([0.0, 2, 1, 0])
    value, slope, means = naive_contrastive(d, labels.astype(int), p)
    text = f"{PAIR} general_contrastive_loss_param {{ {fields} }}"
    it = lone(text, d.shape, labels.shape, tops=2)
    loss, told = forward(it, [d, labels])
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    np.testing.assert_allclose(told, means, rtol=1e-6)
    found, _ = gradients(it, [d, labels], [np.array(1.0), np.zeros(2)])
    np.testing.assert_allclose(found[0], slope, rtol=1e-6, atol=1e-12)


def naive_contrastive(d: Array, labels: Array, p: pb.GeneralContrastiveParameter) -> tuple[float, Array, list[float]]:
    num, dim = d.shape
    parts, raw = np.zeros(d.shape), np.zeros(d.shape)
    for i, j in np.ndindex(num, dim):
        own = j == labels[i]
        if own:
            raw[i, j] = min(p.positive_outlier_thresh, max(0, d[i, j] - p.positive_margin))
        elif d[i, j] < p.negative_margin:
            raw[i, j] = p.negative_margin - d[i, j]
        push = exp(-d[i, j]) if p.exp_negative_weight and raw[i, j] else raw[i, j]
        parts[i, j] = raw[i, j] * p.positive_weight if own else push * p.negative_weight
    own_parts = parts[np.arange(num), labels]
    rivals = [[-1 if j == labels[i] and j else parts[i, j] for j in range(dim)] for i in range(num)]
    counted = np.ones(d.shape, bool)
    for i, j in np.ndindex(num, dim):
        if j == labels[i]:
            counted[i, j] = not p.max_positive_only or i == own_parts.argmin()
        else:
            far = p.positive_first and d[i, labels[i]] > p.positive_upper_bound
            counted[i, j] = not far and not (p.max_negative_only and j != np.argmax(rivals[i]))
    own_mask = np.arange(dim) == labels[:, None]
    means = [raw[own_mask].sum() / num, raw[~own_mask].sum() / num / (dim - 1)]
    return abs(parts * counted).sum() / num, naive_slopes(d, labels, p, counted) / num, means


def naive_slopes(d: Array, labels: Array, p: pb.GeneralContrastiveParameter, counted: Array) -> Array:
    slope = np.zeros(d.shape)
    for i, j in np.ndindex(*d.shape):
        far = p.positive_first and d[i, labels[i]] > p.positive_upper_bound
        if j == labels[i]:
            inside = p.positive_margin < d[i, j] < p.positive_outlier_thresh
            slope[i, j] = p.positive_weight * (far or (inside and counted[i, j]))
        elif d[i, j] < p.negative_margin and counted[i, j]:
            slope[i, j] = -p.negative_weight * (exp(-d[i, j]) if p.exp_negative_weight else 1)
    others = np.arange(d.shape[1]) != labels[:, None]
    share = -slope[others].sum() / p.normalize_negative / len(d) if p.HasField("normalize_negative") else 0
    slope[others] /= share if share > p.positive_weight else 1
    return slope


def test_a_growing_margin_and_distances_of_another_blob() -> None:
    text = PAIR + " general_contrastive_loss_param { add_intra_mae: true negative_margin: 0 }"
    it = lone(text, (1, 2), (1,), (1, 2), tops=2)
    bottoms = [np.zeros((1, 2)), np.array([0.0]), np.array([[1.0, 0.005]])]
    first, second = forward(it, bottoms), forward(it, bottoms)
    assert first[0] == pytest.approx(1)
    np.testing.assert_allclose(first[1], [1, 0, 0.01], rtol=1e-6)
    assert second[0] == pytest.approx(1 + 0.005)
    np.testing.assert_allclose(second[1], [1, 0.005, 0.0199], rtol=1e-6)


def test_the_lowest_scores_are_best() -> None:
    scores, labels = np.array([[1.0, 2, 3], [3, 1, 2], [2, 3, 1]]), np.array([0.0, 0, 2])
    text = 'type: "Accuracy" accuracy_param {{ {} }}'
    assert forward(lone(text.format("min_is_better: true"), (3, 3), (3,)), [scores, labels])[0] == pytest.approx(2 / 3)
    assert forward(lone(text.format(""), (3, 3), (3,)), [scores, labels])[0] == pytest.approx(1 / 3)


def test_fillers() -> None:
    wide = fill(pb.FillerParameter(type="msra", alpha=3), (200, 50), np.random.default_rng(1))
    assert wide.std() == pytest.approx(np.sqrt(2 / 50 / 10), rel=0.05)
    unit = fill(pb.FillerParameter(type="gaussian_unitball"), (20, 50), np.random.default_rng(1))
    np.testing.assert_allclose((unit**2).sum(1), 1, rtol=1e-5)


def test_filled_parameters() -> None:
    text = 'type: "Parameter" parameter_param { shape { dim: 2 } blob_filler { type: "constant" value: 3 } }'
    assert lone(text).layer.fillers()[0].value == 3
    text = 'type: "Parameter" parameter_param { shape { dim: 2 } blob_filler { type: "strange" } }'
    assert refusal(text) == ('unknown filler "strange"', "parameter_param.blob_filler")
    text = 'type: "Parameter" parameter_param { shape { dim: 2 } blob_filler { type: "gaussian_unitball" } }'
    assert refusal(text, dialect="ssd")[0] == 'unknown filler "gaussian_unitball"'
    assert lone(text, dialect="caffe-windows").layer.fillers()[0].type == "gaussian_unitball"
