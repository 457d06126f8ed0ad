"""The same nets twice: as prototxt, and written by hand in torch with its in-place activations and fused BatchNorm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Text:
    """A prototxt in the making; every method returns the name of the top."""

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def layer(self, kind: str, bottoms: list[str], top: str, body: str = "") -> str:
        self.count += 1
        ends = " ".join(f'bottom: "{b}"' for b in bottoms) + f' top: "{top}"'
        self.lines.append(f'layer {{ name: "{kind}{self.count}" type: "{kind}" {ends} {body} }}')
        return top

    def new(self, kind: str, bottoms: list[str], body: str = "") -> str:
        return self.layer(kind, bottoms, f"{kind.lower()}{self.count + 1}", body)

    def input(self, size: int = 224) -> str:
        shape = f"input_param {{ shape {{ dim: 1 dim: 3 dim: {size} dim: {size} }} }}"
        return self.layer("Input", [], "data", shape)

    def conv(self, x: str, out: int, k: int, stride: int = 1, pad: int = 0, group: int = 1, bias: bool = True) -> str:
        body = f"num_output: {out} kernel_size: {k} stride: {stride} pad: {pad} group: {group}"
        body += f' bias_term: {str(bias).lower()} weight_filler {{ type: "msra" }}'
        return self.new("Convolution", [x], f"convolution_param {{ {body} }}")

    def relu(self, x: str) -> str:
        return self.layer("ReLU", [x], x)

    def norm(self, x: str) -> str:
        self.layer("BatchNorm", [x], x, "batch_norm_param { use_global_stats: true }")
        return self.layer("Scale", [x], x, "scale_param { bias_term: true }")

    def pool(self, x: str, k: int, stride: int, method: str = "MAX", pad: int = 0) -> str:
        return self.new(
            "Pooling", [x], f"pooling_param {{ pool: {method} kernel_size: {k} stride: {stride} pad: {pad} }}"
        )

    def fc(self, x: str, out: int) -> str:
        body = f'inner_product_param {{ num_output: {out} weight_filler {{ type: "msra" }} }}'
        return self.new("InnerProduct", [x], body)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Conv(nn.Module):
    """Convolution, BatchNorm, ReLU as asked."""

    def __init__(
        self,
        i: int,
        o: int,
        k: int,
        stride: int = 1,
        pad: int = 0,
        group: int = 1,
        norm: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, stride, pad, groups=group, bias=not norm)
        self.norm = nn.BatchNorm2d(o) if norm else None
        self.relu = nn.ReLU(inplace=True) if relu else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.relu is None else self.relu(x)


# -- VGG-16 --------------------------------------------------------------------------------------------------

VGG = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg_text() -> str:
    t = Text()
    x = t.input()
    for width, depth in VGG:
        for _ in range(depth):
            x = t.relu(t.conv(x, width, 3, pad=1))
        x = t.pool(x, 2, 2)
    for width in (4096, 4096):
        x = t.relu(t.fc(x, width))
        t.layer("Dropout", [x], x)
    t.new("Softmax", [t.fc(x, 1000)])
    return str(t)


def vgg_torch() -> nn.Module:
    parts: list[nn.Module] = []
    channels = 3
    for width, depth in VGG:
        for _ in range(depth):
            parts.append(Conv(channels, width, 3, pad=1))
            channels = width
        parts.append(nn.MaxPool2d(2, 2))
    parts.append(nn.Flatten())
    for i, o in ((25088, 4096), (4096, 4096)):
        parts += [nn.Linear(i, o), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*parts, nn.Linear(4096, 1000), nn.Softmax(1))


# -- GoogLeNet ------------------------------------------------------------------------------------------------

INCEPTION = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (),
    (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), (),
    (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)  # fmt: skip
LRN = "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"


def googlenet_text() -> str:
    t = Text()
    x = t.pool(t.relu(t.conv(t.input(), 64, 7, 2, 3)), 3, 2)
    x = t.relu(t.conv(t.new("LRN", [x], LRN), 64, 1))
    x = t.pool(t.new("LRN", [t.relu(t.conv(x, 192, 3, pad=1))], LRN), 3, 2)
    for widths in INCEPTION:
        x = _inception_text(t, x, *widths) if widths else t.pool(x, 3, 2)
    x = t.pool(x, 7, 1, "AVE")
    t.new("Softmax", [t.fc(t.layer("Dropout", [x], x), 1000)])
    return str(t)


def _inception_text(t: Text, x: str, a: int, b1: int, b2: int, c1: int, c2: int, d: int) -> str:
    one = t.relu(t.conv(x, a, 1))
    three = t.relu(t.conv(t.relu(t.conv(x, b1, 1)), b2, 3, pad=1))
    five = t.relu(t.conv(t.relu(t.conv(x, c1, 1)), c2, 5, pad=2))
    pool = t.relu(t.conv(t.pool(x, 3, 1, pad=1), d, 1))
    return t.new("Concat", [one, three, five, pool])


class Inception(nn.Module):
    def __init__(self, i: int, a: int, b1: int, b2: int, c1: int, c2: int, d: int) -> None:
        super().__init__()
        self.one = Conv(i, a, 1)
        self.three = nn.Sequential(Conv(i, b1, 1), Conv(b1, b2, 3, pad=1))
        self.five = nn.Sequential(Conv(i, c1, 1), Conv(c1, c2, 5, pad=2))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), Conv(i, d, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def googlenet_torch() -> nn.Module:
    parts: list[nn.Module] = [Conv(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5)]
    parts += [Conv(64, 64, 1), Conv(64, 192, 3, pad=1), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2, ceil_mode=True)]
    channels = 192
    for widths in INCEPTION:
        parts.append(Inception(channels, *widths) if widths else nn.MaxPool2d(3, 2, ceil_mode=True))
        channels = widths[0] + widths[2] + widths[4] + widths[5] if widths else channels
    return nn.Sequential(*parts, nn.AvgPool2d(7, 1), nn.Flatten(), nn.Dropout(), nn.Linear(1024, 1000), nn.Softmax(1))


# -- ResNet-50 ------------------------------------------------------------------------------------------------

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


def resnet_text() -> str:
    t = Text()
    x = t.pool(t.relu(t.norm(t.conv(t.input(), 64, 7, 2, 3, bias=False))), 3, 2)
    for width, depth, stride in STAGES:
        for index in range(depth):
            x = _bottleneck_text(t, x, width, stride if index == 0 else 1, index == 0)
    t.new("Softmax", [t.fc(t.pool(x, 7, 1, "AVE"), 1000)])
    return str(t)


def _bottleneck_text(t: Text, x: str, width: int, stride: int, project: bool) -> str:
    side = t.norm(t.conv(x, 4 * width, 1, stride, bias=False)) if project else x
    y = t.relu(t.norm(t.conv(x, width, 1, stride, bias=False)))
    y = t.relu(t.norm(t.conv(y, width, 3, 1, 1, bias=False)))
    return t.relu(t.new("Eltwise", [side, t.norm(t.conv(y, 4 * width, 1, bias=False))]))


class Bottleneck(nn.Module):
    def __init__(self, i: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.side = Conv(i, 4 * width, 1, stride, norm=True, relu=False) if project else None
        self.body = nn.Sequential(
            Conv(i, width, 1, stride, norm=True),
            Conv(width, width, 3, 1, 1, norm=True),
            Conv(width, 4 * width, 1, norm=True, relu=False),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        side = x if self.side is None else self.side(x)
        y = self.body(x)
        y += side
        return self.relu(y)


def resnet_torch() -> nn.Module:
    parts: list[nn.Module] = [Conv(3, 64, 7, 2, 3, norm=True), nn.MaxPool2d(3, 2, ceil_mode=True)]
    channels = 64
    for width, depth, stride in STAGES:
        for index in range(depth):
            parts.append(Bottleneck(channels, width, stride if index == 0 else 1, index == 0))
            channels = 4 * width
    return nn.Sequential(*parts, nn.AvgPool2d(7, 1), nn.Flatten(), nn.Linear(2048, 1000), nn.Softmax(1))


# -- MobileNet ------------------------------------------------------------------------------------------------

MOBILE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenet_text() -> str:
    t = Text()
    x, channels = t.relu(t.norm(t.conv(t.input(), 32, 3, 2, 1, bias=False))), 32
    for width, stride in MOBILE:
        x = t.relu(t.norm(t.conv(x, channels, 3, stride, 1, group=channels, bias=False)))
        x, channels = t.relu(t.norm(t.conv(x, width, 1, bias=False))), width
    t.new("Softmax", [t.fc(t.pool(x, 7, 1, "AVE"), 1000)])
    return str(t)


def mobilenet_torch() -> nn.Module:
    parts: list[nn.Module] = [Conv(3, 32, 3, 2, 1, norm=True)]
    channels = 32
    for width, stride in MOBILE:
        parts.append(Conv(channels, channels, 3, stride, 1, group=channels, norm=True))
        parts.append(Conv(channels, width, 1, norm=True))
        channels = width
    return nn.Sequential(*parts, nn.AvgPool2d(7, 1), nn.Flatten(), nn.Linear(1024, 1000), nn.Softmax(1))


NETS: dict[str, tuple[Callable[[], str], Callable[[], nn.Module]]] = {
    "VGG-16": (vgg_text, vgg_torch),
    "GoogLeNet": (googlenet_text, googlenet_torch),
    "ResNet-50": (resnet_text, resnet_torch),
    "MobileNet": (mobilenet_text, mobilenet_torch),
}


def share(ours: nn.Module, theirs: nn.Module) -> None:
    """Give the hand-written net our parameters; layers come in the same order in both."""
    graph = iter([(kind, blobs) for kind, blobs in _blobs(ours)])
    for module in theirs.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            _copy(module, next(graph)[1])
        elif isinstance(module, nn.BatchNorm2d):
            _copy_norm(module, next(graph)[1], next(graph)[1])


def _blobs(net: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    for node in net.graph.nodes:  # type: ignore[union-attr]
        if node.params:
            yield node.layer.TYPE, net.params[node.layer.name]  # type: ignore[index]


@torch.no_grad()
def _copy(module: nn.Module, blobs: list[Tensor]) -> None:
    for name, blob in zip(("weight", "bias"), blobs, strict=False):
        getattr(module, name).copy_(blob)


@torch.no_grad()
def _copy_norm(module: nn.BatchNorm2d, statistics: list[Tensor], affine: list[Tensor]) -> None:
    mean, variance, factor = statistics
    for target, value in ((module.running_mean, mean / factor), (module.running_var, variance / factor)):
        target.copy_(value)  # type: ignore[union-attr]
    _copy(module, affine)
