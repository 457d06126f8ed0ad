"""MultiStageMeanfield: a dense conditional random field as a recurrent network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.files import inner_path
from caffe_compat.layers.permutohedral import Filter, Lattice
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

KERNELS = ("spatial.par", "bilateral.par")
"""Files beside the net with the initial diagonals of blobs 0 and 1."""
UNREAD = (
    "threshold",
    "spatial_filter_weight",
    "bilateral_filter_weight",
    "forced_spatial_filter_weight",
    "forced_bilateral_filter_weight",
)
TINY = 1e-20


@register
class MultiStageMeanfield(Layer):
    """q <- unary - compatibility (W_s S(p) + W_b B(p)) at each pixel, p = softmax(q), `num_iterations` times.

    Bottoms: unary terms and the first q (N, C, H, W), and the image (N, 3 or more, H, W), whose first three channels
    count and which gets no gradient. Top: the last q. S and B are filters of each class by itself, divided by what
    they give of ones: over the lattice of (x, y) / theta_gamma, and of (x, y) / theta_alpha, image / theta_beta.

    Blobs, each (1, 1, C, C): W_s, W_b and compatibility. At first W_s and W_b are diagonal, of the numbers in
    spatial.par and bilateral.par beside the net (the fork reads them rightly in double precision alone), and
    compatibility is -1 times the identity. No code reads the other fields, weights of filters among them.

    Source: multi_stage_meanfield.cpp, meanfield_iteration.cpp, modified_permutohedral.cpp of torrvision/caffe.
    """

    TYPE = "MultiStageMeanfield"
    PARAM = "multi_stage_meanfield_param"
    DIALECTS = ("crfasrnn",)
    BLOBS = ("spatial", "bilateral", "compatibility")
    BOTTOMS = (3, 3)

    # -- rules ---------------------------------------------------------------------------------------------

    def setup(self, bottoms: Sequence[Shape]) -> None:
        field = f"{self.PARAM}.num_iterations"
        what = f"num_iterations is {self.p.num_iterations}"
        self.check(self.p.num_iterations > 1, what, field=field, remedy="state 2 or more")
        for name in ("theta_alpha", "theta_beta", "theta_gamma"):
            theta = getattr(self.p, name)
            what, remedy = f"{name} is {theta:g}", "state a number above 0"
            self.check(0 < theta < float("inf"), what, field=f"{self.PARAM}.{name}", remedy=remedy)
        self._kept: tuple[object, Filter, Tensor] | None = None
        self._check_shapes(bottoms)

    def _check_shapes(self, bottoms: Sequence[Shape]) -> None:
        unary, first, image = bottoms
        what = f"the unary terms have shape {unary}"
        remedy = "give (items, classes, height, width)"
        self.check(len(unary) == 4 and 0 not in unary, what, field="bottom[0]", remedy=remedy)
        what = f"bottom 1 has shape {first}, the unary terms have {unary}"
        self.check(first == unary, what, field="bottom[1]", remedy="give it the same shape")
        what = f"the image has shape {image}, the unary terms have {unary}"
        fits = len(image) == 4 and image[1] >= 3 and (image[0], *image[2:]) == (unary[0], *unary[2:])
        remedy = f"give it ({unary[0]}, 3, {unary[2]}, {unary[3]})"
        self.check(fits, what, field="bottom[2]", remedy=remedy)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        self._check_shapes(bottoms)
        return [bottoms[0]]

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        classes = bottoms[0][1]
        return [(1, 1, classes, classes)] * 3

    def fillers(self) -> list[pb.FillerParameter]:
        return [pb.FillerParameter(type="constant")] * 3

    def initial(self, index: int) -> NDArray[np.float32]:
        classes = self.bottom_shapes[0][1]
        diagonal = -np.ones(classes) if index == len(KERNELS) else self._diagonal(KERNELS[index], classes)
        return np.diag(diagonal).astype(np.float32)[None, None]

    def _diagonal(self, name: str, classes: int) -> NDArray[np.float64]:
        """The first numbers of a file."""
        remedy = f"write {classes} numbers into it, or give the net's weights"
        try:
            words = inner_path(self, name, self.PARAM).read_text(encoding="ascii").split()[:classes]
            numbers = np.array(words, np.float64)
        except (OSError, ValueError) as error:
            raise self.error(f'"{name}" cannot be read: {error}', field=self.PARAM, remedy=remedy) from error
        what = f'"{name}" holds {len(numbers)} numbers for {classes} classes'
        self.check(len(numbers) == classes, what, field=self.PARAM, remedy=remedy)
        return numbers

    def notes(self) -> list[str]:
        stated = [name for name in UNREAD if self.has(name)]
        return [f"{', '.join(stated)} have no effect: the weights are in the blobs"] if stated else []

    def propagates(self, bottom: int) -> bool:
        return bottom != 2

    def macs(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        items, classes, height, width = bottoms[0]
        iterations: int = self.p.num_iterations
        return 3 * iterations * items * classes**2 * height * width

    # -- work ----------------------------------------------------------------------------------------------

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        unary, first, image = bottoms[0].flatten(2), bottoms[1].flatten(2), bottoms[2].detach()
        spatial = self._spatial(bottoms[0])
        matrices = [blob.reshape(blob.shape[-2:]) for blob in blobs]
        items = [
            self._inferred(unary[item], first[item], [spatial, self._bilateral(image[item], unary)], matrices)
            for item in range(len(unary))
        ]
        return [torch.stack(items).view_as(bottoms[0])]

    def _inferred(
        self, unary: Tensor, q: Tensor, filters: list[tuple[Filter, Tensor]], matrices: list[Tensor]
    ) -> Tensor:
        """The last q of one item, (C, pixels)."""
        *kernels, compatibility = matrices
        for _ in range(self.p.num_iterations):
            p = q.softmax(0)
            filtered = [kernel @ (run(p) * norm) for kernel, (run, norm) in zip(kernels, filters, strict=True)]
            q = unary - compatibility @ (filtered[0] + filtered[1])
        return q

    def _spatial(self, like: Tensor) -> tuple[Filter, Tensor]:
        """That of the first image of this size; it serves later passes, also those that learn."""
        import torch

        height, width = like.shape[2:]
        key = (height, width, like.dtype, like.device)
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (key, *self._filter(_places(height, width, self.p.theta_gamma), like))
        return self._kept[1:]

    def _bilateral(self, image: Tensor, like: Tensor) -> tuple[Filter, Tensor]:
        places = _places(image.shape[1], image.shape[2], self.p.theta_alpha)
        colours = (image[:3] / self.p.theta_beta).flatten(1).T.float().cpu().numpy()
        what = "the image has values that are no numbers"
        self.check(bool(np.isfinite(colours).all()), what, field="bottom[2]", remedy="give an image of finite values")
        return self._filter(np.concatenate([places, colours], axis=1), like)

    def _filter(self, features: NDArray[np.float32], like: Tensor) -> tuple[Filter, Tensor]:
        """A filter, and what its results are multiplied by (pixels,)."""
        try:
            made = Lattice.of(features).on(like)
        except OverflowError as error:
            remedy = "scale the image down, or state a larger theta_beta"
            raise self.error(f"the pixels lie too far apart: {error}", field=self.PARAM, remedy=remedy) from error
        ones = made.run(like.new_ones(1, len(features)), reverse=False)[0]
        return made, 1 / (ones + TINY)


def _places(height: int, width: int, theta: float) -> NDArray[np.float32]:
    """(x, y) / theta of each pixel."""
    y, x = np.divmod(np.arange(height * width), width)
    places: NDArray[np.float32] = np.stack([x, y], axis=1).astype(np.float32) / np.float32(theta)
    return places
