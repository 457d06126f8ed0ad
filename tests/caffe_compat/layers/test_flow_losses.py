"""L1Loss, NegReLU, Downsample, Correlation1D and Eltwise of FlowNet2 against loops."""

from __future__ import annotations

from math import ceil, sqrt

import numpy as np
import pytest

from caffe_compat.errors import GraphError, LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import (
    Array,
    arrays,
    check_gradients,
    forward,
    gradients,
    lone,
    run_onnx,
    session,
)
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS

# -- NegReLU -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0, 0.25])
def test_what_is_positive_is_cut(slope: float) -> None:
    it = lone(f'type: "NegReLU" relu_param {{ negative_slope: {slope} }}', (5,))
    x, grad = np.array([-2.0, -0.5, 0, 0.5, 3]), np.arange(1.0, 6)
    np.testing.assert_array_equal(forward(it, [x])[0], np.minimum(x, 0) + slope * np.maximum(x, 0))
    (found,), _ = gradients(it, [x], [grad])
    np.testing.assert_array_equal(found, grad * ((x < 0) + slope * (x >= 0)))


def test_neg_relu_in_place() -> None:
    assert lone('type: "NegReLU"', (2, 3), inplace=True).top_shapes == [(2, 3)]


# -- L1Loss ------------------------------------------------------------------------------------------------


def l1(d: Array, by_entries: bool, plateau: float) -> tuple[float, Array]:
    """Loss and gradient of bottom 0."""
    total, entries, grad = 0.0, 0, np.zeros(d.shape)
    for at in np.ndindex(*d.shape):
        if np.isnan(d[at]):
            continue
        entries += 1
        if abs(d[at]) >= plateau:
            total += abs(d[at])
            grad[at] = 1 if d[at] > 0 else -1
    count = entries / d.shape[1] if by_entries else len(d)
    return total / count, grad / count


def l2(d: Array, by_entries: bool, plateau: float, eps: float, prescale: bool) -> tuple[float, Array]:
    """Loss and gradient of bottom 0."""
    known, d = ~np.isnan(d), np.nan_to_num(d)
    count = known.sum() / d.shape[1] if by_entries else len(d)
    weight = 1 / d.shape[1] if prescale else 1
    total, grad = 0.0, np.zeros(d.shape)
    for n, y, x in np.ndindex(len(d), *d.shape[2:]):
        squares = sum(weight * value * value for value in d[n, :, y, x])
        if squares < plateau * plateau:
            total += sqrt(eps)
            continue
        root = sqrt(squares + eps)
        total += root
        grad[n, :, y, x] = weight * d[n, :, y, x] / root * known[n, :, y, x]
    return total / count, grad / count


def l1_text(fields: str) -> str:
    return f'type: "L1Loss" l1_loss_param {{ {fields} }}'


def flows() -> tuple[Array, Array]:
    a, b = arrays((2, 3, 4, 5), (2, 3, 4, 5))
    a[0, 1, 2, 3] = b[1, 2, 0, 0] = b[1, 1, 0, 0] = np.nan
    a[1, 0, 1, 1] = b[1, 0, 1, 1]
    return a, b


def check_loss(fields: str, want: tuple[float, Array]) -> None:
    """With two bottoms, and with their difference alone."""
    a, b = flows()
    two, one = (lone(l1_text(fields), *[a.shape] * count, dialect="flownet2") for count in (2, 1))
    np.testing.assert_allclose(forward(two, [a, b])[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(forward(one, [a - b])[0], want[0], rtol=1e-12)
    (of_a, of_b), _ = gradients(two, [a, b], [np.array(1.5)])
    np.testing.assert_allclose(of_a, 1.5 * want[1], rtol=1e-12)
    np.testing.assert_allclose(of_b, -1.5 * want[1], rtol=1e-12)
    (alone,), _ = gradients(one, [a - b], [np.array(1.5)])
    np.testing.assert_allclose(alone, 1.5 * want[1], rtol=1e-12)


@pytest.mark.parametrize("by_entries", [False, True])
@pytest.mark.parametrize("plateau", [0, 0.75])
def test_absolute_differences(by_entries: bool, plateau: float) -> None:
    a, b = flows()
    fields = f"normalize_by_num_entries: {str(by_entries).lower()} plateau: {plateau}"
    check_loss(fields, l1(a - b, by_entries, plateau))


@pytest.mark.parametrize("by_entries", [False, True])
@pytest.mark.parametrize("plateau", [0, 2])
@pytest.mark.parametrize(("eps", "prescale"), [(0.25, False), (0.5, True)])
def test_distances(by_entries: bool, plateau: float, eps: float, prescale: bool) -> None:
    a, b = flows()
    flags = f"normalize_by_num_entries: {by_entries} l2_prescale_by_channels: {prescale}".lower()
    fields = f"l2_per_location: true epsilon: {eps} plateau: {plateau} {flags}"
    check_loss(fields, l2(a - b, by_entries, plateau, eps, prescale))


def test_no_number_at_all() -> None:
    it = lone(l1_text("normalize_by_num_entries: true"), (1, 2))
    x = np.full((1, 2), np.nan)
    assert np.isnan(forward(it, [x])[0])
    assert not gradients(it, [x], [np.array(1.0)])[0][0].any()


@pytest.mark.parametrize(
    ("fields", "shapes", "want"),
    [
        ("", ((2, 3), (2, 4)), ("bottoms of shape (2, 3) and (2, 4)", "bottom[1]")),
        ("", ((1, 2, 3, 4, 5),), ("bottom 0 has 5 axes; L1Loss allows 4", "bottom[0]")),
        (
            "l2_per_location: true",
            ((3,), (3,)),
            ("the bottom has 1 axes; l2_per_location needs channels", "l1_loss_param.l2_per_location"),
        ),
    ],
)
def test_what_the_loss_refuses(fields: str, shapes: tuple[Shape, ...], want: tuple[str, str]) -> None:
    assert refusal(l1_text(fields), *shapes, dialect="flownet2") == want


# -- Downsample --------------------------------------------------------------------------------------------


def away(x: float) -> int:
    return int(abs(x) + 0.5) * (1 if x >= 0 else -1)


def downsampled(x: Array, size: tuple[int, int]) -> Array:
    """The top; infinity where rounding decides whether it is a number."""
    height, width = x.shape[2:]
    sx, sy = (width - 1) / (size[1] - 1), (height - 1) / (size[0] - 1)
    out = np.zeros((*x.shape[:2], *size))
    for n, c, i, j in np.ndindex(*out.shape):
        at_x, at_y = j / (size[1] - 1) * (width - 1), i / (size[0] - 1) * (height - 1)
        value = known = lost = 0.0
        for row in range(max(0, away(at_y) - ceil(sy)), min(height, away(at_y) + ceil(sy) + 1)):
            for column in range(max(0, away(at_x) - ceil(sx)), min(width, away(at_x) + ceil(sx) + 1)):
                weight = max(0.0, 1 - abs(column - at_x) / sx) * max(0.0, 1 - abs(row - at_y) / sy)
                if np.isnan(x[n, c, row, column]):
                    lost += weight
                else:
                    value, known = value + weight * x[n, c, row, column], known + weight
        out[n, c, i, j] = value / known if known and lost <= known / 2 else np.nan
        if lost and abs(lost - known / 2) < 1e-5:
            out[n, c, i, j] = np.inf
    return out


SIZES = [((9, 11), (4, 5)), ((8, 13), (5, 6)), ((6, 20), (4, 8)), ((4, 5), (4, 3)), ((5, 4), (5, 7))]


@pytest.mark.parametrize(("size", "top"), SIZES)
@pytest.mark.parametrize("spoilt", [0, 0.2])
def test_means_of_what_is_known(size: tuple[int, int], top: tuple[int, int], spoilt: float) -> None:
    (x,) = arrays((2, 3, *size))
    x[np.random.default_rng(11).uniform(size=x.shape) < spoilt] = np.nan
    want = downsampled(x, top)
    text = 'type: "Downsample" downsample_param {{ top_height: {} top_width: {} }}'
    it = lone(text.format(*top), x.shape)
    assert it.top_shapes == [want.shape]
    sure = ~np.isinf(want)
    assert sure.mean() > 0.8
    np.testing.assert_allclose(forward(it, [x])[0][sure], want[sure], atol=1e-5)
    for opset in (13, 18):
        exported = session(it, opset=opset)
        for bottom in (x, np.concatenate([x, x])):
            got, ours = run_onnx(exported, [bottom])[0], forward(it, [bottom], dtype=np.float32)[0]
            counted = np.concatenate([sure] * (len(bottom) // len(x)))
            np.testing.assert_array_equal(np.isnan(got)[counted], np.isnan(ours)[counted])
            assert LAYERS.ratio(np.nan_to_num(got)[counted], np.nan_to_num(ours)[counted]) <= 1


def test_most_of_a_place_must_be_known() -> None:
    it = lone('type: "Downsample" downsample_param { top_height: 2 top_width: 3 }', (1, 1, 2, 5))
    x = np.array([[[[1.0, np.nan, np.nan, 2, 4], [np.nan, 1, 3, np.nan, 5]]]])
    # Weights of the five columns in the three places: 1 1/2 0 0 0, 0 1/2 1 1/2 0, 0 0 0 1/2 1.
    want = [[1, np.nan, 10 / 3], [np.nan, 7 / 3, 5]]
    np.testing.assert_allclose(forward(it, [x])[0][0, 0], want, rtol=1e-6)


def test_the_size_of_another_flow() -> None:
    shapes = (1, 2, 5, 7), (1, 1, 3, 4)
    x, other = arrays(*shapes)
    it = lone('type: "Downsample" downsample_param { top_height: 2 top_width: 2 }', *shapes)
    np.testing.assert_allclose(forward(it, [x, other])[0], downsampled(x, (3, 4)), atol=1e-6)
    same = lone('type: "Downsample"', shapes[0], shapes[0])
    np.testing.assert_array_equal(forward(same, [x, x])[0], x)


@pytest.mark.parametrize(
    ("fields", "shapes", "what"),
    [
        ("", ((1, 2, 5, 7),), "a top of 0 x 0"),
        ("top_height: 2", ((1, 2, 5, 7),), "a top of 2 x 0"),
        ("top_height: 2 top_width: 2", ((2, 5, 7),), "it takes four axes"),
        ("", ((1, 2, 5, 7), (3, 4)), "bottom 1 has shape"),
        ("top_height: 2 top_width: 1", ((1, 2, 5, 7),), "5 x 7 to 2 x 1; an axis of one cell has no steps"),
        ("top_height: 2 top_width: 2", ((1, 2, 1, 7),), "1 x 7 to 2 x 2; an axis of one cell has no steps"),
    ],
)
def test_what_downsample_refuses(fields: str, shapes: tuple[Shape, ...], what: str) -> None:
    with pytest.raises(LayerError, match=what):
        lone(f'type: "Downsample" downsample_param {{ {fields} }}', *shapes)


# -- Correlation1D -----------------------------------------------------------------------------------------


def moves(far: int, s2: int, way: int) -> list[int]:
    reach = far // s2
    width = reach + 1 if way else 2 * reach + 1
    shift = {0: -reach, -1: -width, 1: 0}[way]
    return [(index + shift) * s2 for index in range(width)]


def correlated(a: Array, b: Array, pad: int, kernel: int, far: int, s1: int, steps: list[int], subtract: bool) -> Array:
    left = pad + max(0, -steps[0])  # so much more than the layer needs
    a, b = (np.pad(x, ((0, 0), (0, 0), (0, 0), (left, pad))) for x in (a, b))
    columns, rows = a.shape[3] - left + pad, a.shape[2]
    size = ceil((rows - kernel + 1) / s1), ceil((columns - 2 * far - kernel + 1) / s1)
    out = np.zeros((len(a), len(steps), *size))
    for channel, y, x in np.ndindex(len(steps), *size):
        start = left - pad + x * s1 + far
        one = a[:, :, y * s1 : y * s1 + kernel, start : start + kernel]
        start += steps[channel]
        two = b[:, :, y * s1 : y * s1 + kernel, start : start + kernel]
        out[:, channel, y, x] = (np.abs(one - two) if subtract else one * two).mean((1, 2, 3))
    return out


LINES = [(4, 1, 4, 1, 1, -1), (3, 3, 2, 2, 1, 0), (0, 1, 0, 1, 1, 1), (4, 3, 3, 3, 2, -1), (3, 1, 2, 2, 2, 1)]


def line_text(pad: int, kernel: int, far: int, s1: int, s2: int, way: int, subtract: bool) -> str:
    kind = "SUBTRACT" if subtract else "MULTIPLY"
    sizes = f"pad: {pad} kernel_size: {kernel} max_displacement: {far} stride_1: {s1} stride_2: {s2}"
    fields = f"{sizes} single_direction: {way} correlation_type: {kind}"
    return f'type: "Correlation1D" correlation_param {{ {fields} }}'


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize(("pad", "kernel", "far", "s1", "s2", "way"), LINES)
def test_patches_along_lines(pad: int, kernel: int, far: int, s1: int, s2: int, way: int, subtract: bool) -> None:
    shape = (2, 3, 5, 7)
    it = lone(line_text(pad, kernel, far, s1, s2, way, subtract), shape, shape)
    a, b = arrays(shape, shape)
    want = correlated(a, b, pad, kernel, far, s1, moves(far, s2, way), subtract)
    assert it.top_shapes == [want.shape]
    np.testing.assert_allclose(forward(it, [a, b])[0], want, atol=1e-13)
    if not subtract:
        check_gradients(it, [a, b])
    for opset in (13, 18):
        exported = session(it, opset=opset)
        for bottoms in ([a, b], [np.concatenate([a, b]), np.concatenate([b, a])]):
            got, ours = run_onnx(exported, bottoms)[0], forward(it, bottoms, dtype=np.float32)[0]
            assert LAYERS.ratio(got, ours) <= 1


def slips(
    a: Array, b: Array, grad: Array, pad: int, kernel: int, far: int, s1: int, steps: list[int]
) -> tuple[Array, Array]:
    """The gradients of SUBTRACT, cell by cell, as the fork finds them; reads beyond a row find zeros."""
    left = pad + max(0, -steps[0])
    wide = [np.pad(x, ((0, 0), (0, 0), (0, 0), (left, pad + max(0, steps[-1])))) for x in (a, b)]
    of_a, of_b = np.zeros(a.shape), np.zeros(b.shape)
    for item, channel, y, x in np.ndindex(*a.shape):
        for top, step in enumerate(steps):
            for i, j in np.ndindex(*grad.shape[2:]):
                share = grad[item, top, i, j] / (kernel * kernel * a.shape[1])
                if not i * s1 <= y < i * s1 + kernel:
                    continue
                if j * s1 + far <= x + pad < j * s1 + far + kernel:
                    own, other = (part[item, channel, y, x + left + step] for part in wide)
                    of_a[item, channel, y, x] += share * (1 if own >= other else -1)
                if j * s1 + far <= x + pad - step < j * s1 + far + kernel:
                    own, other = (part[item, channel, y, x + left - step] for part in wide)
                    of_b[item, channel, y, x] += share * (-1 if own >= other else 1)
    return of_a, of_b


@pytest.mark.parametrize(("pad", "kernel", "far", "s1", "s2", "way"), LINES)
def test_gradients_of_differences_have_the_forks_signs(
    pad: int, kernel: int, far: int, s1: int, s2: int, way: int
) -> None:
    shape = (2, 2, 5, 7)
    it = lone(line_text(pad, kernel, far, s1, s2, way, True), shape, shape)
    a, b, grad = arrays(shape, shape, it.top_shapes[0])
    b[:, :, 2] = a[:, :, 2]
    want = slips(a, b, grad, pad, kernel, far, s1, moves(far, s2, way))
    (of_a, of_b), _ = gradients(it, [a, b], [grad])
    np.testing.assert_allclose(of_a, want[0], atol=1e-13)
    np.testing.assert_allclose(of_b, want[1], atol=1e-13)


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("max_displacement: 1", "kernel_size is not stated", ""),
        ("kernel_size: 1", "max_displacement is not stated", ""),
        ("kernel_size: 2 max_displacement: 1", "kernel_size 2 is even", ".kernel_size"),
        ("kernel_size: 1 max_displacement: 1 stride_1: 0", "stride_1 is 0", ".stride_1"),
        ("kernel_size: 1 max_displacement: 1 stride_2: 0", "stride_2 is 0", ".stride_2"),
        ("kernel_size: 1 max_displacement: 1 single_direction: 2", "single_direction 2", ".single_direction"),
        (
            "kernel_size: 1 max_displacement: 3 stride_2: 2 single_direction: -1",
            "the displacement of 4 cells to the left reads the row above, past 0 of padding",
            ".pad",
        ),
    ],
)
def test_what_correlation_along_lines_refuses(fields: str, what: str, field: str) -> None:
    text = f'type: "Correlation1D" correlation_param {{ {fields} }}'
    assert refusal(text, (1, 1, 5, 9), (1, 1, 5, 9)) == (what, f"correlation_param{field}")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 1, 5, 5), (1, 1, 5, 6)), "maps of shape"),
        (((1, 5, 5), (1, 5, 5)), "maps of shape"),
        (((1, 1, 5, 4), (1, 1, 5, 4)), "do not fit"),
        (((1, 1, 0, 9), (1, 1, 0, 9)), "do not fit"),
    ],
)
def test_maps_that_have_no_such_lines(shapes: tuple[Shape, ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone('type: "Correlation1D" correlation_param { kernel_size: 1 max_displacement: 2 }', *shapes)


# -- Eltwise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coeff", [1, -2.5])
def test_a_sum_of_one(coeff: float) -> None:
    it = lone(f'type: "Eltwise" eltwise_param {{ coeff: {coeff} }}', (2, 3), dialect="flownet2")
    x, grad = arrays((2, 3), (2, 3))
    np.testing.assert_array_equal(forward(it, [x])[0], coeff * x)
    np.testing.assert_array_equal(gradients(it, [x], [grad])[0][0], coeff * grad)
    assert not it.layer.OUTPUT_FREE  # with coeff 1 the top is its bottom
    with pytest.raises(GraphError, match="at least 2 bottom"):
        lone('type: "Eltwise"', (2, 3))


@pytest.mark.parametrize("operation", ["PROD", "MAX"])
def test_what_takes_two(operation: str) -> None:
    text = f'type: "Eltwise" eltwise_param {{ operation: {operation} }}'
    want = f"operation {operation} of one bottom", "eltwise_param.operation"
    assert refusal(text, (2, 3), dialect="flownet2") == want
