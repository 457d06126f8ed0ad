"""Classes and functions that generated modules carry: `vggc convert net.py` copies from here what a net needs.

Nothing else imports this file. It is written as the generated files are, in torch alone.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Blobs(nn.Module):
    """Parameter blobs of a layer that torch has no module for."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class Scale(nn.Module):
    """A factor, and a bias, for each channel."""

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        ones = [1] * (x.ndim - 2)
        weight = self.weight.view(-1, *ones)
        if self.bias is None:
            return x * weight
        return torch.addcmul(self.bias.view(-1, *ones), x, weight)


class BatchNorm(nn.Module):
    """Normalisation by fixed statistics: Caffe keeps sums and what they weigh."""

    mean: Tensor
    variance: Tensor
    scale_factor: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.zeros(channels))
        self.register_buffer("scale_factor", torch.zeros(1))

    def forward(self, x: Tensor, scale: Scale | None = None) -> Tensor:
        factor = self.scale_factor.item()
        inverse = 1 / factor if factor else 0.0
        mean, variance = self.mean * inverse, self.variance * inverse
        weight, bias = (scale.weight, scale.bias) if scale else (None, None)
        return F.batch_norm(x, mean, variance, weight, bias, eps=self.eps)


def lrn_across_channels(
    x: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
) -> Tensor:
    """Division by the energy of `size` channels around each."""
    channels, before = x.shape[1], min(size // 2, x.shape[1] - 1)
    squares = F.pad(x.square(), (0, 0, 0, 0, before, before))
    energy = squares[:, :channels]
    for shift in range(1, 2 * before + 1):
        energy = energy + squares[:, shift : shift + channels]
    alpha, beta = torch.tensor((alpha, beta)).tolist()  # float32, as Caffe has them
    return x * (energy * (alpha / size) + k).pow(-beta)


def lrn_within_channel(x: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """Division by the energy of `size` x `size` positions around each."""
    energy = F.avg_pool2d(x.square(), size, 1, size // 2)
    beta = torch.tensor(beta).item()  # float32, as Caffe has it
    return x * (energy * alpha + 1).pow(-beta)


def normalize(x: Tensor, scale: Tensor, dim: tuple[int, ...], eps: float) -> Tensor:
    """Division by the Euclidean norm over `dim`."""
    norm = x.square().sum(dim, keepdim=True).add(eps).sqrt()
    return x / norm * scale


def crop(x: Tensor, like: Tensor, axis: int, *offsets: int) -> Tensor:
    """The part of x that starts at the offsets and has the sizes of `like`."""
    for dim, offset in enumerate(offsets, axis):
        x = x.narrow(dim, offset, like.shape[dim])
    return x


def maximum(first: Tensor, *others: Tensor) -> Tensor:
    """The largest value at each place."""
    top, *rest = others
    top = torch.where(first > top, first, top)
    for other in rest:
        top = torch.where(other > top, other, top)
    return top


def wide_max_pool2d(
    x: Tensor,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    ceil_mode: bool,
) -> Tensor:
    """Pooling with more padding than torch takes: it belongs to no window."""
    lowest = torch.finfo(torch.float32).min
    x, _ = widely_padded(x, kernel, stride, padding, ceil_mode, lowest)
    return F.max_pool2d(x, kernel, stride)


def wide_avg_pool2d(
    x: Tensor,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    ceil_mode: bool,
) -> Tensor:
    """Pooling with more padding than torch takes: it counts as zeros."""
    x, (rows, columns) = widely_padded(x, kernel, stride, padding, ceil_mode, 0.0)
    sums = F.avg_pool2d(x, kernel, stride, divisor_override=1)
    return sums / (rows[:, None] * columns).to(x)


def widely_padded(
    x: Tensor,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    ceil_mode: bool,
    value: float,
) -> tuple[Tensor, list[Tensor]]:
    """All that windows reach, and the length of each inside the padding."""
    pads, lengths = [], []
    for axis in (0, 1):
        sizes = (kernel, stride, padding)
        k, s, p = (n if isinstance(n, int) else n[axis] for n in sizes)
        size = x.shape[2 + axis]
        room = size + 2 * p - k
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if (count - 1) * s >= size + p:
            count -= 1  # the last window must start inside
        starts = torch.arange(count) * s - p
        lengths.append((starts + k).clamp(max=size + p) - starts)
        pads.append((p, (count - 1) * s + k - p - size))
    (above, below), (left, right) = pads
    return F.pad(x, (left, right, above, below), value=value), lengths


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file by name."""
    data = bytearray(Path(path).read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    types = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        part = data[start + first : start + last]
        values = torch.frombuffer(part, dtype=types[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors
