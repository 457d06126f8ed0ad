"""Layers of FlowNet2 against loops."""

from __future__ import annotations

from math import ceil, floor

import numpy as np
import pytest

from caffe_compat.errors import LayerError
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

# -- Correlation -------------------------------------------------------------------------------------------


def correlation(text: str) -> str:
    return f'type: "Correlation" correlation_param {{ {text} }}'


def correlated(a: Array, b: Array, pad: int, kernel: int, far: int, s1: int, s2: int, subtract: bool) -> Array:
    a, b = (np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))) for x in (a, b))
    border, reach = far + (kernel - 1) // 2, far // s2
    height, width = (ceil((n - 2 * border) / s1) for n in a.shape[2:])
    out = np.zeros((len(a), (2 * reach + 1) ** 2, height, width))
    for channel, (p, o) in enumerate(np.ndindex(2 * reach + 1, 2 * reach + 1)):
        down, right = (p - reach) * s2, (o - reach) * s2
        for y, x in np.ndindex(height, width):
            top, left = y * s1 + far, x * s1 + far
            one = a[:, :, top : top + kernel, left : left + kernel]
            two = b[:, :, top + down : top + down + kernel, left + right : left + right + kernel]
            out[:, channel, y, x] = (np.abs(one - two) if subtract else one * two).mean((1, 2, 3))
    return out


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize(
    ("pad", "kernel", "far", "s1", "s2"),
    [(4, 1, 4, 1, 2), (3, 3, 2, 2, 1), (0, 1, 0, 1, 1), (2, 3, 1, 3, 2), (3, 1, 2, 2, 2)],
)
def test_patches(pad: int, kernel: int, far: int, s1: int, s2: int, subtract: bool) -> None:
    shape = (2, 3, 6, 7)
    kind = "SUBTRACT" if subtract else "MULTIPLY"
    sizes = f"pad: {pad} kernel_size: {kernel} max_displacement: {far} stride_1: {s1} stride_2: {s2}"
    it = lone(correlation(f"{sizes} correlation_type: {kind}"), shape, shape, dialect="flownet2")
    a, b = arrays(shape, shape)
    want = correlated(a, b, pad, kernel, far, s1, s2, subtract)
    assert it.top_shapes == [want.shape]
    np.testing.assert_allclose(forward(it, [a, b])[0], want, atol=1e-13)
    if not subtract:
        check_gradients(it, [a, b])


@pytest.mark.parametrize(
    ("text", "what", "field"),
    [
        ("max_displacement: 1", "kernel_size is not stated", "correlation_param"),
        ("kernel_size: 1", "max_displacement is not stated", "correlation_param"),
        ("kernel_size: 2 max_displacement: 1", "kernel_size 2 is even", "correlation_param.kernel_size"),
        ("kernel_size: 1 max_displacement: 1 stride_1: 0", "stride_1 is 0", "correlation_param.stride_1"),
        ("kernel_size: 1 max_displacement: 1 stride_2: 0", "stride_2 is 0", "correlation_param.stride_2"),
    ],
)
def test_what_correlation_refuses(text: str, what: str, field: str) -> None:
    assert refusal(correlation(text), (1, 1, 5, 5), (1, 1, 5, 5)) == (what, field)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 1, 5, 5), (1, 1, 5, 6)), "maps of shape"),
        (((1, 5, 5), (1, 5, 5)), "maps of shape"),
        (((1, 1, 4, 5), (1, 1, 4, 5)), "do not fit"),
    ],
)
def test_maps_that_correlation_refuses(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(correlation("kernel_size: 1 max_displacement: 2"), *shapes)


# -- Resample ----------------------------------------------------------------------------------------------


def away(x: float) -> int:
    return floor(abs(x) + 0.5) * (1 if x >= 0 else -1)


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def bicubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return x * x * (1.5 * x - 2.5) + 1
    return x * (x * (-0.5 * x + 2.5) - 4) + 2 if x < 2 else 0.0


def resampled(x: Array, size: tuple[int, int], kind: str, antialias: bool) -> Array:
    height, width = x.shape[2:]
    fy, fx = height / size[0], width / size[1]
    out = np.zeros((*x.shape[:2], *size))
    wide = antialias and max(fx, fy) > 1
    ax, ay = (1 / (f if wide else 1) for f in (fx, fy))
    support, shape = (4, bicubic) if kind == "CUBIC" else (2, triangle)
    rx, ry = (2 if f < 1 else ceil(support / a) for f, a in ((fx, ax), (fy, ay)))
    for i, j in np.ndindex(size):
        y, z = i * fy + fx / 2 - 0.5, j * fx + fy / 2 - 0.5
        total = 0.0
        for h in range(max(0, away(y) - ry), min(height, away(y) + ry + 1)):
            for w in range(max(0, away(z) - rx), min(width, away(z) + rx + 1)):
                weight = shape(ax * (z - w)) * shape(ay * (y - h))
                total += weight
                out[:, :, i, j] += weight * x[:, :, h, w]
        out[:, :, i, j] = out[:, :, i, j] / total if total else 0
    return out


SIZES = [((9, 11), (4, 5)), ((3, 4), (9, 10)), ((4, 5), (4, 5)), ((12, 9), (5, 5)), ((8, 8), (4, 4)), ((3, 8), (6, 4))]


def check_resampling(text: str, x: Array, want: Array) -> None:
    it = lone(f'type: "Resample" resample_param {{ {text} }}', x.shape, dialect="flownet2")
    assert it.top_shapes == [want.shape]
    np.testing.assert_allclose(forward(it, [x])[0], want, atol=1e-5)
    check_gradients(it, [x])
    for opset in (13, 18):
        for bottom in (x, np.concatenate([x, x])):
            got = run_onnx(session(it, opset=opset), [bottom])[0]
            assert LAYERS.ratio(got, forward(it, [bottom], dtype=np.float32)[0]) <= 1


@pytest.mark.parametrize("kind", ["LINEAR", "CUBIC"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("size", "source"), SIZES)
def test_filters(size: tuple[int, int], source: tuple[int, int], kind: str, antialias: bool) -> None:
    (x,) = arrays((2, 3, *source))
    flag = "true" if antialias else "false"
    text = f"height: {size[0]} width: {size[1]} type: {kind} antialias: {flag}"
    check_resampling(text, x, resampled(x, size, kind, antialias))


@pytest.mark.parametrize(("size", "source"), SIZES)
def test_nearest_cells(size: tuple[int, int], source: tuple[int, int]) -> None:
    (x,) = arrays((2, 3, *source))
    fy, fx = (n / m for n, m in zip(source, size, strict=True))
    rows = [away(i * fy + fx / 2 - 0.5) for i in range(size[0])]
    columns = [away(j * fx + fy / 2 - 0.5) for j in range(size[1])]
    cells = [[row * source[1] + column for column in columns] for row in rows]  # may lie in the next row
    check_resampling(f"height: {size[0]} width: {size[1]} type: NEAREST", x, x.reshape(2, 3, -1)[:, :, cells])


def test_the_size_of_another_blob() -> None:
    it = lone('type: "Resample"', (1, 2, 3, 4), (1, 1, 6, 8), dialect="synopsys")
    x, other = arrays((1, 2, 3, 4), (1, 1, 6, 8))
    np.testing.assert_allclose(forward(it, [x, other])[0], resampled(x, (6, 8), "LINEAR", True), atol=1e-5)
    (_, none), _ = gradients(it, [x, other], [np.ones((1, 2, 6, 8))])
    assert not none.any()


def test_places_without_a_value_do_not_spoil_others() -> None:
    it = lone('type: "Resample" resample_param { height: 8 width: 8 }', (1, 1, 4, 4))
    x = np.ones((1, 1, 4, 4))
    x[0, 0, 0, 0] = np.nan
    assert np.isfinite(forward(it, [x])[0][0, 0, 7, 7])


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("height: 2 width: 2 type: AREA", (1, 1, 4, 4), "type AREA"),
        ("height: 2", (1, 1, 4, 4), "a top of 2 x 0"),
        ("height: 2 width: 2", (1, 4, 4), "it takes four axes"),
        ("height: 20 width: 2 type: NEAREST", (1, 1, 4, 8), "reads outside the map"),
    ],
)
def test_what_resample_refuses(text: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "Resample" resample_param {{ {text} }}', shape)


# -- FlowWarp ----------------------------------------------------------------------------------------------


def warped(image: Array, flow: Array, fill: float) -> Array:
    out = np.full(image.shape, fill)
    height, width = image.shape[2:]
    for n, y, x in np.ndindex(len(image), height, width):
        x2, y2 = x + flow[n, 0, y, x], y + flow[n, 1, y, x]
        if not (0 <= x2 < width and 0 <= y2 < height):
            continue
        left, top = int(x2), int(y2)
        right, below = min(left + 1, width - 1), min(top + 1, height - 1)
        across, down = x2 - left, y2 - top
        upper = (1 - across) * image[n, :, top, left] + across * image[n, :, top, right]
        lower = (1 - across) * image[n, :, below, left] + across * image[n, :, below, right]
        out[n, :, y, x] = (1 - down) * upper + down * lower
    return out


@pytest.mark.parametrize(("fill", "value"), [("ZERO", 0.0), ("NOT_A_NUMBER", np.nan)])
def test_images_follow_the_flow(fill: str, value: float) -> None:
    image, flow = arrays((2, 3, 5, 6), (2, 2, 5, 6))
    flow *= 1.5
    flow[0, :, 0, 0], flow[0, 0, 1, 1], flow[0, 1, 1, 2] = 0, np.nan, np.inf
    text = f'type: "FlowWarp" flow_warp_param {{ fill_value: {fill} }}'
    it = lone(text, image.shape, flow.shape, dialect="flownet2")
    want = warped(image, flow, value)
    assert 0 < (np.isnan(want) if np.isnan(value) else want == value).sum() < want.size
    np.testing.assert_allclose(forward(it, [image, flow])[0], want, atol=1e-13)
    (by_image, by_flow), _ = gradients(it, [image, flow], [np.ones(image.shape)])
    assert np.isfinite(by_image).all()
    assert np.isfinite(by_flow).all()


def test_gradients_of_image_and_flow() -> None:
    image, flow = arrays((1, 2, 4, 5), (1, 2, 4, 5))
    check_gradients(lone('type: "FlowWarp"', image.shape, flow.shape), [image, flow])


@pytest.mark.parametrize("flow", [(1, 3, 4, 5), (2, 2, 4, 5), (1, 2, 4, 4), (1, 2, 20)])
def test_flows_of_another_size_are_refused(flow: tuple[int, ...]) -> None:
    with pytest.raises(LayerError, match="a flow of shape"):
        lone('type: "FlowWarp"', (1, 3, 4, 5), flow)
