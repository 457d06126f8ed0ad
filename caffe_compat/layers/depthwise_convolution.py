"""DepthwiseConvolution."""

from __future__ import annotations

from caffe_compat.layers.base import register
from caffe_compat.layers.convolution import Convolution


@register
class DepthwiseConvolution(Convolution):
    """Convolution by group, under another name (depthwise_conv_layer.cpp of yonghenglh6/DepthwiseConvolution).

    `num_output` and `group` are stated as for Convolution.
    """

    TYPE = "DepthwiseConvolution"
    V1 = ()  # type: ignore[assignment]
    V0 = ()  # type: ignore[assignment]
    DIALECTS = ("depthwise",)
