"""Every tolerance of the suite by name. Loosening one needs a reason beside it.

A value passes when |got - want| <= scale * max|want| + rtol * |want| + atol. NaN and infinities must stand in the same
places; sentinels as large as FLT_MAX must be equal and do not count towards max|want|.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HUGE = 1e37
"""At and above, a float32 is a sentinel (-FLT_MAX of an empty window), not a measurement."""


@dataclass(frozen=True)
class Tolerance:
    """How far a value may be from the recorded one.

    Attributes:
        scale: times the largest magnitude of the recorded array.
        rtol: times the magnitude of the recorded element.
        atol: absolute.
    """

    scale: float = 0.0
    rtol: float = 0.0
    atol: float = 0.0

    def ratio(self, got: NDArray[np.generic], want: NDArray[np.generic]) -> float:
        """The worst |got - want| over what is allowed: at most 1 passes. Shapes must agree."""
        g, w = np.asarray(got, np.float64).ravel(), np.asarray(want, np.float64).ravel()
        finite = np.isfinite(w) & (np.abs(w) < HUGE)
        special = ~finite & ~((g == w) | (np.isnan(g) & np.isnan(w)))
        if special.any() or not np.isfinite(g[finite]).all():
            return float("inf")
        g, w = g[finite], w[finite]
        if not w.size:
            return 0.0
        excess = np.abs(g - w)
        allowed = self.scale * np.abs(w).max() + self.rtol * np.abs(w) + self.atol
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(excess == 0, 0.0, excess / allowed).max())


EXACT = Tolerance()

# The last BVLC commit. The recording program against itself with other BLAS kernels: 2e-6 of max|ref| (layers),
# 5e-6 (trajectories), 1e-6 (upgraded nets), 6e-5 (models; most below 5e-6).
LAYERS = Tolerance(scale=1e-5, atol=1e-6)
UPGRADE = LAYERS
FORKS = LAYERS
NOISE_AROUND_ZERO = Tolerance(scale=1e-5, atol=1e-4)
"""Gradients that are mathematically zero: the bias of a layer directly in front of a batch normalisation. Two
recordings with other BLAS kernels differ by up to 5e-5 there."""
TRAJECTORY = Tolerance(scale=1e-4, atol=1e-6)
LEARNING_RATE = Tolerance(rtol=1e-6)
ENGINES = Tolerance(scale=1e-5, atol=1e-6)
"""PyTorch and ONNX Runtime on the same small net."""
MODELS = Tolerance(scale=5e-4)
MODELS_TIGHT = Tolerance(scale=1e-5)
"""The project's own bound; models above it are listed in the summary."""
ONNX = Tolerance(scale=5e-4, atol=1e-7)
"""ONNX Runtime's float32 Sigmoid and Softmax give 0 where Caffe gives 1e-8."""
OPENCV = Tolerance(scale=1e-4, atol=1e-5)
"""References of another implementation, recorded by OpenCV and older Caffes."""
PIXELS_DECODED = Tolerance(atol=2.0)
"""JPEG decoders differ by this much a pixel (times the transformation's scale)."""
PIXELS_RESIZED = Tolerance(atol=1.0)
SUMMARY = Tolerance(rtol=1e-6, atol=1e-6)
"""Sums in float64 over float32 values that are equal bit for bit."""

# Test-time protocols.
POSTERIORS = Tolerance(atol=2e-5)
SCORE_MAPS = Tolerance(atol=2e-4)
FEATURES_L2 = Tolerance(atol=1e-6)
FEATURES_RAW = Tolerance(scale=1e-5)
BOXES = Tolerance(atol=2e-3)

# Statistics of random fillers.
FILLER_BOUND = 1e-6
"""Relative: no sample may lie further outside the bounds."""
FILLER_SIGMAS = 5.0
"""Standard errors of the mean."""
FILLER_STD = 0.05
"""Relative error of the standard deviation."""
FILLER_SUM = Tolerance(rtol=1e-5)
"""Slices that are normalised to a sum."""
