"""Nets that keep their parameters channels last compute the same."""

from __future__ import annotations

import torch

import caffe_compat as cc
from caffe_compat.module import Net

NET = """
input: "data" input_shape { dim: [2, 6, 9, 8] }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3
  group: 2 weight_filler { type: "xavier" } } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "up" type: "Reshape" bottom: "pool" top: "up" reshape_param { shape { dim: [0, 2, 2, 4, 3] } } }
layer { name: "volume" type: "Convolution" bottom: "up" top: "volume" convolution_param { num_output: 3 kernel_size: 2
  weight_filler { type: "xavier" } } }
layer { name: "fc" type: "InnerProduct" bottom: "volume" top: "fc" inner_product_param { num_output: 5
  weight_filler { type: "xavier" } } }
"""


def test_values_and_shapes_stay_whatever_the_number_of_axes() -> None:
    plain, last = (Net(cc.Graph.from_net(cc.parse_net(NET))) for _ in range(2))
    assert last.channels_last() is last
    x = torch.rand(2, 6, 9, 8, generator=torch.Generator().manual_seed(0))
    found = last({"data": x.contiguous(memory_format=torch.channels_last)}, blobs="all")
    for blob, value in plain({"data": x}, blobs="all").items():
        torch.testing.assert_close(found[blob], value, rtol=1e-5, atol=1e-6)
    weight = last.params["conv"][0]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight, plain.params["conv"][0])
    assert weight.grad_fn is None
    assert weight.requires_grad
    assert torch.equal(last.params["volume"][0], plain.params["volume"][0])
