"""From torch to Caffe: nets as people write them, single functions, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import caffe_compat as cc
from caffe_compat.errors import ConversionError, Problems
from caffe_compat.graph import Graph
from converters import from_torch
from converters.importing.options import ImportOptions
from converters.importing.translation import Imported
from converters.to_caffe import save
from tests.converters import torch_nets
from tests.converters.importing import in_caffe, types

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

BOUND = 1e-5
"""Most that outputs of the two may differ, of the largest value."""
OTHERWISE = ("mobilenet v2", "mobilenet v3", "vgg with lrn")
"""Nets with ReLU6, which is BVLC Caffe's Clip, or an LRN whose k is not 1: OpenCV's importer does not read these."""
FLOOR = ImportOptions(pool_rewrite="floor")


def image(size: int = 32, channels: int = 3, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        result = module(x)
    return [result] if isinstance(result, Tensor) else list(result)


def check(got: Sequence[np.ndarray], want: Sequence[Tensor]) -> None:
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.shape == tuple(theirs.shape)
        assert np.abs(mine - theirs.numpy()).max() <= BOUND * max(1.0, float(theirs.abs().max()))


def compared(module: nn.Module, x: Tensor, options: ImportOptions | None = None) -> Imported:
    """The Caffe net of a module, after seeing that it computes the same; outputs by name, as torch's are not named."""
    made = from_torch(module, x, options)
    (name,) = (layer.top[0] for layer in made.net.layer if layer.type == "Input")
    found = in_caffe(made, {name: x.numpy()})
    want = outputs(module, x)
    check(sorted(found.values(), key=lambda a: a.shape), sorted(want, key=lambda a: a.shape))
    return made


@pytest.mark.parametrize("name", torch_nets.NETS)
@pytest.mark.parametrize("rewrite", ["floor", "crop"])
def test_a_net_computes_the_same_and_loads_again(name: str, rewrite: str, tmp_path: Path) -> None:
    module, x = torch_nets.made(name), image()
    made = compared(module, x, ImportOptions(pool_rewrite=rewrite))
    net, weights = save(made, tmp_path / "m.caffemodel")[::-1]
    for files in ((net, weights), (weights,)):
        with torch.no_grad():
            tops = cc.load(*files)({"x": x} if "x" in str(made.net) else {"input": x})
        want = sorted(outputs(module, x), key=lambda a: a.shape)
        check([top.numpy() for top in sorted(tops.values(), key=lambda a: a.shape)], want)


@pytest.mark.parametrize("name", [name for name in torch_nets.NETS if name not in OTHERWISE])
@pytest.mark.parametrize("fold", [False, True])
def test_opencv_loads_it_and_computes_the_same(name: str, fold: bool, tmp_path: Path) -> None:
    module, x = torch_nets.made(name), image()
    made = from_torch(module, x, ImportOptions("crop", fold_batch_norm=fold))
    weights, net = save(made, tmp_path / "m.caffemodel")
    loaded = cv2.dnn.readNetFromCaffe(str(net), str(weights))
    loaded.setInput(x.numpy())
    tops = loaded.forward(list(Graph.from_net(made.net).outputs))
    want = sorted(outputs(module, x), key=lambda a: a.numel())
    got = sorted(tops, key=lambda a: a.size)
    check([top.reshape(each.shape) for top, each in zip(got, want, strict=True)], want)


@pytest.mark.parametrize("name", torch_nets.NETS)
def test_batch_normalisation_folds_into_weights(name: str) -> None:
    made = compared(torch_nets.made(name), image(), ImportOptions("floor", fold_batch_norm=True))
    left = types(made).count("BatchNorm")
    assert left == {"densenet": 4}.get(name, 0)
    folded = [note for note in made.notes if "BatchNormalization" in note]
    norms = sum(isinstance(each, nn.BatchNorm2d) for each in torch_nets.made(name).modules())
    assert len(folded) == norms - left
    assert all(float(note.rpartition("cost at most ")[2].split()[0]) < 1e-7 for note in folded)


def test_pools_that_round_down_are_refused_unless_asked_for() -> None:
    with pytest.raises(ConversionError, match=r'maxpool.*sizes 8 x 8.*9 x 9.*"floor", "crop"'):
        from_torch(torch_nets.made("resnet"), image())


def test_pooling_by_zeros_needs_values_that_are_not_negative() -> None:
    compared(torch_nets.made("resnet"), image(), ImportOptions(pool_rewrite="pad"))
    with pytest.raises(ConversionError, match="pool_rewrite"):
        from_torch(nn.MaxPool2d(3, 2, 1), image(), ImportOptions(pool_rewrite="pad"))


def test_layers_are_called_as_modules() -> None:
    made = from_torch(torch_nets.made("resnet"), image(), FLOOR)
    names = [layer.name for layer in made.net.layer]
    assert names[:6] == ["x", "conv1", "bn1", "bn1/scale", "relu", "maxpool"]
    assert {"layer1.0.conv1", "layer2.0.down.1", "fc"} <= set(names)
    assert all(layer.top[0] == layer.name for layer in made.net.layer if layer.type == "Convolution")
    assert made.net.name == "Resnet"
    assert from_torch(nn.ReLU(), image(), name="other").net.name == "other"


def test_the_module_stays_as_it_was() -> None:
    module = torch_nets.made("vgg").train()
    module.classifier[2].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    from_torch(module, image(), FLOOR)
    assert module.training
    assert module.features.training
    assert not module.classifier[2].training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


# -- single operators --------------------------------------------------------------------------------------


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "add scaled": lambda x: torch.add(x, x.relu(), alpha=2),
    "rsub": lambda x: 3 - x,
    "rsub scaled": lambda x: torch.rsub(x, x.relu(), alpha=0.5),
    "sub": lambda x: x - x.sigmoid(),
    "div": lambda x: x / (x.abs() + 1),
    "div by number": lambda x: x / 3,
    "pow": lambda x: x.abs() ** 1.5,
    "square": lambda x: x**2,
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 1),
    "exp log": lambda x: torch.log(torch.exp(x) + 1),
    "sqrt": lambda x: torch.sqrt(x.abs()),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 1),
    "neg": lambda x: -x,
    "maximum": lambda x: torch.maximum(x, -x),
    "minimum": lambda x: torch.minimum(x, x.sigmoid()),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp above": lambda x: x.clamp(min=0.25),
    "clamp_max": lambda x: torch.clamp_max(x, 0.25),
    "relu6": functional.relu6,
    "hardtanh": functional.hardtanh,
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
    "elu": lambda x: functional.elu(x, 0.7),
    "selu": functional.selu,
    "celu": lambda x: functional.celu(x, 2.0),
    "silu": functional.silu,
    "mish": functional.mish,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "softplus": functional.softplus,
    "softmax": lambda x: functional.softmax(x, 1),
    "softmax of rows": lambda x: x.softmax(-1),
    "tanh": torch.tanh,
    "flatten": lambda x: x.flatten(2),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, -1),
    "stack": lambda x: torch.stack([x, x.relu()], 1),
    "cat of rows": lambda x: torch.cat([x, x.relu()], -2),
    "split": lambda x: x.split(3, 1)[1],
    "split sizes": lambda x: torch.split(x, [1, 3], 1)[0],
    "chunk": lambda x: x.chunk(3, 1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "slice": lambda x: x[:, 1:3, 2:, ::2],
    "narrow": lambda x: x.narrow(2, 1, 4),
    "select": lambda x: x[:, 2],
    "flip": lambda x: x[:, [3, 2, 1, 0]],
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1) * x,
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "pad": lambda x: functional.pad(x, (1, 2, 0, 1)),
    "pad and pool": lambda x: functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, 1),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean of all": lambda x: x.mean(),
    "mean of the last": lambda x: x.mean(-1),
    "sum": lambda x: x.sum((1, 2, 3)),
    "amax": lambda x: x.amax((2, 3)),
    "adaptive average": lambda x: functional.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive max": lambda x: functional.adaptive_max_pool2d(x, 2),
    "max pool": lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True),
    "average pool": lambda x: functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average pool not counting": lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "nearest": lambda x: functional.interpolate(x, scale_factor=3),
    "nearest to a size": lambda x: functional.interpolate(x, size=(12, 6)),
    "nearest half": lambda x: functional.interpolate(x, scale_factor=0.5),
    "bilinear": lambda x: functional.interpolate(x, size=(9, 13), mode="bilinear", align_corners=True),
    "pixel shuffle": lambda x: functional.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: functional.pixel_unshuffle(x, 2),
    "channel shuffle": lambda x: functional.channel_shuffle(x, 2),
    "cast": lambda x: x.to(torch.float32).contiguous().clone() + 1,
    "scalar tensor": lambda x: x * torch.tensor(2.0),
    "attention": lambda x: x * x.mean(1, keepdim=True) if x.shape[1] == 1 else x * x[:, :1].sigmoid(),
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name: str) -> None:
    compared(Function(FUNCTIONS[name]), image(6, 4), FLOOR)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2),
    "conv same": lambda: nn.Conv2d(4, 6, 4, padding="same"),
    "conv valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "conv transpose": lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2),
    "linear": lambda: nn.Linear(6, 3),
    "linear without bias": lambda: nn.Linear(6, 3, bias=False),
    "bilinear head": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Tanh(), nn.Linear(8, 2)),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm plain": lambda: nn.BatchNorm2d(4, affine=False),
    "prelu": lambda: nn.PReLU(4),
    "prelu shared": nn.PReLU,
    "lrn": lambda: nn.LocalResponseNorm(3, 0.1, 0.5, 2.0),
    "two lrns": lambda: nn.Sequential(nn.LocalResponseNorm(3), nn.LocalResponseNorm(5)),
    "zero pad": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 3, 3, 2)),
    "unflatten": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 2, 36))),
    "identity": nn.Identity,
    "dropouts": lambda: nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.ReLU()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = LAYERS[name]()
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    compared(module.eval(), image(6, 4))


def test_one_dimension() -> None:
    module = nn.Sequential(nn.Conv1d(4, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool1d(2, 1), nn.AvgPool1d(2, 1)).eval()
    compared(module, image(12, 4)[:, :, 0])


def test_several_inputs_and_a_shared_layer() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 4, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.one(left) - self.one(right)

    module, left, right = Siamese().eval(), image(), image(seed=1)
    made = from_torch(module, (left, right))
    found = in_caffe(made, {"left": left.numpy(), "right": right.numpy()})
    with torch.no_grad():
        check(list(found.values()), [module(left, right)])
    assert [layer.name for layer in made.net.layer] == ["left", "right", "one", "one_2", "sub"]


def test_embedding() -> None:
    module = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 2)).eval()
    x = torch.tensor([[1, 6, 0]])
    made = from_torch(module, x)
    with torch.no_grad():
        check(list(in_caffe(made, {"input": x.numpy()}).values()), [module(x)])


# -- refusals ----------------------------------------------------------------------------------------------


class Positions(nn.Module):
    """Uses the places of maxima."""

    def forward(self, x: Tensor) -> Tensor:
        values, places = functional.max_pool2d(x, 2, return_indices=True)
        return values + places


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gelu": (nn.GELU, "error function"),
    "log softmax": (lambda: nn.LogSoftmax(1), "Softmax"),
    "group norm": (lambda: nn.GroupNorm(2, 4), "GroupNormalization"),
    "layer norm": (lambda: nn.LayerNorm(6), "LayerNormalization"),
    "instance norm": (lambda: nn.InstanceNorm2d(4), "InstanceNormalization"),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), "align the corners"),
    "uneven adaptive pool": (lambda: nn.AdaptiveAvgPool2d(4), r"\[6, 6\] to \[4, 4\]"),
    "lrn of even size": (lambda: nn.LocalResponseNorm(4), "odd size"),
    "dilated pool": (lambda: nn.MaxPool2d(2, 1, dilation=2), "dilations"),
    "reflection": (lambda: nn.ReflectionPad2d(1), 'mode "reflect"'),
    "matmul of blobs": (lambda: Function(lambda x: x @ x.transpose(2, 3)), "constants only"),
    "median": (lambda: Function(lambda x: x.median(1)[0]), "aten.median"),
    "cumsum": (lambda: Function(lambda x: x.cumsum(1)), "aten.cumsum"),
    "places": (Positions, "places of maxima"),
    "half": (lambda: Function(lambda x: x.half().float()), "float16"),
    "padding with ones": (lambda: Function(lambda x: functional.pad(x, (1, 1), value=1.0)), "padding with 1"),
    "rounded": (lambda: Function(lambda x: torch.div(x, 2, rounding_mode="floor")), "rounds"),
    "norm of the batch": (
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        "aten._native_batch_norm_legit",
    ),
    "conv of its input": (lambda: Function(lambda x: functional.conv2d(x, x[:1])), "weight is computed"),
    "branch on values": (lambda: Function(lambda x: x if x.sum() > 0 else -x), "torch.export refuses"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused(name: str) -> None:
    module, reason = REFUSED[name]
    with pytest.raises((ConversionError, Problems), match=reason):
        from_torch(module(), image(6, 4))


def test_all_refusals_come_at_once() -> None:
    module = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.GELU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.LogSoftmax(1)
    )
    with pytest.raises(Problems) as error:
        from_torch(module, image(6, 4))
    texts = [str(each) for each in error.value.errors]
    assert [text.split('"')[1] for text in texts] == ["1", "2", "3"]
    assert all(each.remedy for each in error.value.errors)
    assert "torch: Sequential" in texts[0]


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(ConversionError, match=r"no values|refuses"):
        from_torch(nn.Conv2d(4, 4, 1, device="meta"), torch.randn(1, 4, 6, 6, device="meta"))
