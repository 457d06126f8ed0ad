"""DepthwiseConvolution and ConvolutionDepthwise."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers import naive
from tests.caffe_compat.layers.harness import arrays, forward, lone
from tests.caffe_compat.layers.refusals import refusal

SHAPE = (2, 3, 7, 8)


def text(fields: str) -> str:
    return f'type: "ConvolutionDepthwise" convolution_param {{ {fields} }}'


def test_depthwise_convolution_is_convolution_by_group() -> None:
    fields = "convolution_param { num_output: 6 group: 3 kernel_size: 3 stride: 2 pad: 1 }"
    depthwise, grouped = (lone(f'type: "{kind}" {fields}', SHAPE) for kind in ("DepthwiseConvolution", "Convolution"))
    (x,), blobs = arrays(SHAPE), grouped.blobs()
    assert depthwise.node.blob_shapes == grouped.node.blob_shapes == ((6, 1, 3, 3), (6,))
    np.testing.assert_array_equal(forward(depthwise, [x], blobs)[0], forward(grouped, [x], blobs)[0])


@pytest.mark.parametrize(
    ("fields", "kernel", "stride", "pad", "dilation"),
    [
        ("kernel_size: 3 stride: 1", (3, 3), 1, 0, 1),
        ("kernel_size: 3 stride: 2 pad: 1", (3, 3), 2, 1, 1),
        ("kernel_size: 2 kernel_size: 3 stride: 1 dilation: 2", (2, 3), 1, 0, 2),
        ("kernel_h: 2 kernel_w: 4 kernel_size: 9 stride_h: 2 stride_w: 2 stride: 5", (2, 4), 2, 0, 1),
        ("kernel_size: 3 stride: 1 pad: 1 pad: 1 pad: 1", (3, 3), 1, 0, 1),
        ("kernel_h: 5 kernel_size: 3 stride: 1", (3, 3), 1, 0, 1),
        ("kernel_size: 3 stride: 1 num_output: 99 group: 7 axis: 3", (3, 3), 1, 0, 1),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_every_channel_has_a_kernel(
    fields: str, kernel: tuple[int, int], stride: int, pad: int, dilation: int, bias: bool
) -> None:
    it = lone(text(f"{fields} bias_term: {str(bias).lower()}"), SHAPE)
    assert it.node.blob_shapes == ((3, 1, *kernel), (3,))[: 1 + bias]
    (x,), (weight, *rest) = arrays(SHAPE), it.blobs()
    want = naive.convolution(x, weight, rest[0] if bias else np.zeros(3), stride, pad, dilation, group=3)
    assert it.top_shapes == [want.shape]
    np.testing.assert_allclose(forward(it, [x], [weight, *rest])[0], want, rtol=1e-10)


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("stride: 1", "kernel_size is missing", "kernel_size"),
        ("kernel_size: 3", "stride is missing", "stride"),
        ("kernel_h: 3 stride: 1", "kernel_size is missing", "kernel_size"),
        ("kernel_size: 3 stride: 0", "stride 0 x 0 must be positive", "stride"),
        ("kernel_size: 3 stride: 1 dilation: 0", "dilation 0 x 0 must be positive", "dilation"),
    ],
)
def test_refused_parameters(fields: str, what: str, field: str) -> None:
    message, place = refusal(text(fields), SHAPE)
    assert what in message
    assert place == f"convolution_param.{field}"


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 3, 7), "four axes"), ((2, 3, 2, 8), "larger than the padded bottom")]
)
def test_bottoms_that_do_not_fit(shape: Shape, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(text("kernel_size: 3 stride: 1"), shape)


def test_other_channels_at_run_time() -> None:
    it = lone(text("kernel_size: 3 stride: 1"), SHAPE)
    with pytest.raises(LayerError, match="the bottom has 4 channels, the weight 3"):
        it.layer.top_shapes([(2, 4, 7, 8)])
