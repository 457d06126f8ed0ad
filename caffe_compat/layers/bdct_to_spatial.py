"""BdctToSpatial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 8
"""Height and width of the blocks of JPEG."""
QUANTA = {
    75: "8 6 5 8 12 20 26 31 6 6 7 10 13 29 30 28 7 7 8 12 20 29 35 28 7 9 11 15 26 44 40 31 "
    "9 11 19 28 34 55 52 39 12 18 28 32 41 52 57 46 25 32 39 44 52 61 60 51 36 46 48 49 56 50 52 50",
    95: "2 1 1 2 2 4 5 6 1 1 1 2 3 6 6 6 1 1 2 2 4 6 7 6 1 2 2 3 5 9 8 6 "
    "2 2 4 6 7 11 10 8 2 4 6 6 8 10 11 9 5 6 8 9 10 12 12 10 7 9 10 10 11 10 10 10",
}
"""Quality -> JPEG's quantisation matrix of luminance, row by row."""


def decoder(quality: int) -> NDArray[np.float64]:
    """What each of 64 quantised frequencies adds to each of 64 pixels of a block: (pixel, frequency)."""
    at = np.arange(BLOCK)
    waves = np.cos((2 * at[:, None] + 1) * at * np.pi / (2 * BLOCK)) / 2  # (pixel, frequency)
    waves[:, 0] /= np.sqrt(2)
    kernel: NDArray[np.float64] = np.kron(waves, waves) * np.array(QUANTA[quality].split(), float)
    return kernel


@register
class BdctToSpatial(Layer):
    """Images from the quantised frequencies of their 8 x 8 blocks, JPEG's decoding without rounding.

    Bottom (N, 64, H, W) has the frequencies of each block, row by row; top (N, 1, 8 H, 8 W). The matrix is that of
    `quality` 75 or 95. No gradient. Source: bdct_to_spatial_layer.cpp, bdct_to_spatial_layer.cu of
    GuanshuoXu/caffe_deep_learning_for_steganalysis.
    """

    TYPE = "BdctToSpatial"
    DIALECTS = ("steganalysis",)
    PARAM = "bdct_to_spatial_param"
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"quality {self.p.quality:g}"
        field = "bdct_to_spatial_param.quality"
        self.check(self.p.quality in QUANTA, what, field=field, remedy="use 75 or 95")
        self.kernel = decoder(int(self.p.quality))[:, :, None, None]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shape = bottoms[0]
        what = f"the bottom has shape {shape}"
        fine = len(shape) == 4 and shape[1] == BLOCK**2
        self.check(fine, what, field="bottom[0]", remedy="feed (N, 64, H, W)")
        return [(shape[0], 1, BLOCK * shape[2], BLOCK * shape[3])]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        x = bottoms[0].detach()
        kernel = torch.as_tensor(self.kernel, dtype=x.dtype, device=x.device)
        return [torch.pixel_shuffle(torch.conv2d(x, kernel), BLOCK)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        pixels = g.op("Conv", [*bottoms, g.constant(self.kernel.astype(np.float32))], kernel_shape=[1, 1])
        g.op("DepthToSpace", pixels, tops, blocksize=BLOCK, mode="CRD")
