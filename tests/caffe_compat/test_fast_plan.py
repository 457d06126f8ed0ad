"""Layers joined and bottoms overwritten: the values of every layer by itself, whatever is asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor

import caffe_compat as cc
from caffe_compat.compiling import compiled
from caffe_compat.module import Net

NET = """
input: "data" input_shape { dim: [2, 3, 12, 12] }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 8 kernel_size: 3
  pad: 1 bias_term: false weight_filler { type: "msra" } } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "bn1" }
layer { name: "scale1" type: "Scale" bottom: "bn1" top: "scale1" scale_param { bias_term: true
  filler { type: "uniform" min: 0.5 max: 2 } bias_filler { type: "gaussian" } } }
layer { name: "relu1" type: "ReLU" bottom: "scale1" top: "scale1" }
layer { name: "conv2" type: "Convolution" bottom: "scale1" top: "conv2" convolution_param { num_output: 8 kernel_size: 3
  pad: 1 weight_filler { type: "msra" } } }
layer { name: "bn2" type: "BatchNorm" bottom: "conv2" top: "conv2" }
layer { name: "sum" type: "Eltwise" bottom: "scale1" bottom: "conv2" top: "sum" }
layer { name: "relu2" type: "ReLU" bottom: "sum" top: "sum" relu_param { negative_slope: 0.1 } }
layer { name: "conv3" type: "Convolution" bottom: "sum" top: "conv3" convolution_param { num_output: 4 kernel_size: 3
  weight_filler { type: "msra" } } }
layer { name: "bn3" type: "BatchNorm" bottom: "conv3" top: "bn3" }
layer { name: "scale3" type: "Scale" bottom: "bn3" top: "bn3" scale_param { filler { value: 1.5 } } }
layer { name: "fc" type: "InnerProduct" bottom: "bn3" top: "fc" inner_product_param { num_output: 5
  weight_filler { type: "xavier" } } }
"""
MODES = {"gradients": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}
Mode = Callable[[], AbstractContextManager[object]]


def made(factor: float) -> Net:
    net = Net(cc.Graph.from_net(cc.parse_net(NET)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("bn1", "bn2", "bn3"):
            mean, variance, weight = net.params[name]
            mean.normal_(generator=generator)
            variance.uniform_(0.5, 3, generator=generator)
            weight.fill_(factor)
    return net


def data() -> Tensor:
    return torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def close(got: Tensor, want: Tensor) -> None:
    """Joined layers round once where two round twice."""
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("factor", [1.0, 2.5, 0.0])
def test_every_blob_alone_is_that_of_the_exact_plan(factor: float, mode: Mode) -> None:
    net, x = made(factor), data()
    given = x.clone()
    with mode():
        every = net({"data": x}, blobs="all")
        for blob, want in every.items():
            close(net({"data": x}, blobs=[blob])[blob], want)
        pair = net({"data": x}, blobs=["conv1", "fc"])
    close(pair["conv1"], every["conv1"])
    close(pair["fc"], every["fc"])
    assert torch.equal(x, given)


def test_one_net_in_all_modes_in_turn() -> None:
    net, x = made(2.5), data()
    found = []
    for mode in (torch.inference_mode, nullcontext, torch.no_grad, torch.inference_mode):
        with mode():  # type: ignore[operator]
            found.append(net({"data": x})["fc"])
    assert all(torch.equal(each, found[0]) for each in found)


def test_gradients_are_those_of_the_exact_plan() -> None:
    net = made(2.5).double()
    gradients = []
    for blobs in (["fc"], "all"):
        x = data().double().requires_grad_()
        net.zero_grad()
        net({"data": x}, blobs=blobs)["fc"].square().sum().backward()  # type: ignore[arg-type, no-untyped-call]
        gradients.append([x.grad, *(p.grad for p in net.parameters() if p.grad is not None)])
    fast, exact = gradients
    assert len(fast) == len(exact) > 6
    for one, other in zip(fast, exact, strict=True):
        close(one, other)


@torch.no_grad()
def test_changed_statistics_count_at_once() -> None:
    net, x = made(2.5), data()
    net({"data": x})
    mean, variance, weight = net.params["bn1"]
    mean.numpy()[...] *= 3
    variance.data.add_(1)
    weight.data.fill_(4)
    close(net({"data": x})["fc"], net({"data": x}, blobs="all")["fc"])
    net.double()
    close(net({"data": x.double()})["fc"], net({"data": x.double()}, blobs="all")["fc"])


@torch.no_grad()
def test_dynamo_takes_the_whole_net() -> None:
    net, x = made(2.5), data()
    traced = torch.compile(net, fullgraph=True, backend="eager")
    close(traced({"data": x})["fc"], net({"data": x})["fc"])


def test_compiled_for_inference() -> None:
    net, x = made(2.5), data()
    want = net({"data": x})
    run = compiled(net)
    found = run({"data": x}, blobs=["conv1", "fc"])
    close(found["fc"], want["fc"].detach())
    assert not found["fc"].requires_grad
    assert net.params["conv1"][0].requires_grad
