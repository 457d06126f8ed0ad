"""Nets as people write them in torch, small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(into: int, out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    convolution = nn.Conv2d(into, out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class Vgg(nn.Module):
    """torchvision's form: features, adaptive pool, classifier."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out in ((3, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        hidden = [nn.Linear(256, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, 10)]
        self.classifier = nn.Sequential(*hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class VggLrn(nn.Module):
    """The paper's A-LRN in small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.LocalResponseNorm(5, alpha=1e-2, beta=0.75, k=2.0)
        self.fc = nn.Linear(8 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.norm1(functional.relu(self.conv1(x))), 2)
        return functional.softmax(self.fc(x.view(x.size(0), -1)), dim=1)


class Residual(nn.Module):
    """A basic block."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        plain = stride == 1 and into == out
        self.down = None if plain else nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.down is None else self.down(x)
        return functional.relu(y)


class Resnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Residual(8, 8, 1), Residual(8, 8, 1))
        self.layer2 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16, 1))
        self.fc = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean([2, 3]))


class Inverted(nn.Module):
    """MobileNet v2's block."""

    def __init__(self, into: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = into * expand
        self.use_residual = stride == 1 and into == out
        self.conv = nn.Sequential(
            nn.Conv2d(into, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_residual else self.conv(x)


class MobilenetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [Inverted(8, 12, 2, 4), Inverted(12, 12, 1, 4)]
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(), *blocks)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class Squeeze(nn.Module):
    """Squeeze and excitation with MobileNet v3's functions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 4, 1)
        self.fc2 = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = functional.adaptive_avg_pool2d(x, 1)
        scale = functional.hardsigmoid(self.fc2(functional.relu(self.fc1(scale))))
        return scale * x


class MobilenetV3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.se = Squeeze(8)
        self.head = nn.Sequential(nn.Conv2d(8, 12, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1))
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.head(self.se(self.stem(x))).flatten(1))


class Fire(nn.Module):
    def __init__(self, into: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(into, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.squeeze(x))
        return torch.cat([functional.relu(self.expand1x1(x)), functional.relu(self.expand3x3(x))], 1)


class Squeezenet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.features = nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.ReLU(), pool, Fire(12, 4, 8), Fire(16, 4, 8))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(16, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class Inception(nn.Module):
    def __init__(self, into: int) -> None:
        super().__init__()
        self.branch1 = conv(into, 4, 1)
        self.branch2 = nn.Sequential(conv(into, 4, 1), conv(4, 6))
        self.branch3 = nn.Sequential(conv(into, 2, 1), conv(2, 4, 5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(into, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Googlenet(nn.Module):
    """Ceil pools, LRN, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(3, 8, 7, 2)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = nn.LocalResponseNorm(5)
        self.inception3a = Inception(8)
        self.inception3b = Inception(16)
        self.aux = nn.Linear(16, 3)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inception3a(self.norm1(self.pool1(self.conv1(x))))
        aux = self.aux(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        x = functional.avg_pool2d(self.inception3b(x), x.shape[2])
        return self.fc(torch.flatten(x, 1)), aux


class Dense(nn.Module):
    def __init__(self, into: int, grow: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(into)
        self.conv = nn.Conv2d(into, grow, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(functional.relu(self.norm(x)))], 1)


class Densenet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        transition = nn.Sequential(nn.BatchNorm2d(14), nn.ReLU(), nn.Conv2d(14, 8, 1), nn.AvgPool2d(2, 2))
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), Dense(6, 4), Dense(10, 4), transition, Dense(8, 4))
        self.classifier = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(functional.adaptive_avg_pool2d(x, (1, 1)), 1))


class Shuffle(nn.Module):
    """ShuffleNet v2's unit: halves, depthwise, a shuffle of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(4, 4, 1), nn.Conv2d(4, 4, 3, 1, 1, groups=4), nn.BatchNorm2d(4), conv(4, 4, 1))
        self.first = conv(3, 8, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, self.branch(right)), dim=1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


class Unet(nn.Module):
    """Up by transposed convolution and by nearest neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = conv(3, 6), conv(6, 8), conv(8, 8)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.merge = conv(16, 6)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        three = self.down3(functional.max_pool2d(two, 2))
        two = self.merge(torch.cat([self.up(three), two], 1))
        one = torch.cat([functional.interpolate(two, scale_factor=2.0, mode="nearest"), one], 1)
        return torch.sigmoid(self.last(one))


def mobilenet_v1() -> nn.Module:
    blocks: list[nn.Module] = [conv(3, 8, 3, 2)]
    for into, out, stride in ((8, 12, 1), (12, 16, 2)):
        blocks += [conv(into, into, 3, stride, into), conv(into, out, 1)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


NETS: Mapping[str, Callable[[], nn.Module]] = {
    "vgg": Vgg,
    "vgg with lrn": VggLrn,
    "resnet": Resnet,
    "mobilenet v1": mobilenet_v1,
    "mobilenet v2": MobilenetV2,
    "mobilenet v3": MobilenetV3,
    "squeezenet": Squeezenet,
    "googlenet": Googlenet,
    "densenet": Densenet,
    "shufflenet": Shuffle,
    "unet": Unet,
}


def made(name: str, seed: int = 0) -> nn.Module:
    """A net with random weights and statistics, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = NETS[name]()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                randomise(module)
    return net.eval()


def randomise(norm: Any) -> None:
    """Statistics and weights as training would leave them."""
    nn.init.normal_(norm.running_mean, 0, 0.3)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0, 0.3)
