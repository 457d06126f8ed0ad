"""Scikit-learn's handwritten digits as small colour JPEGs: data that is there without a download."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.images import Image, opencv
from caffe_compat.errors import VggcError
from repro.image_sets import EncodedImages, Items

SIZE = 32
EVERY = 5
"""Every so manieth digit is for validation."""
QUALITY = 95
CLASSES = tuple(map(str, range(10)))
MOST = 16.0
"""The largest value in scikit-learn's digits."""


def digit_images(split: str | None = None) -> EncodedImages:
    """The 1,797 digits, ten classes, 32 x 32.

    Dark ink of some colour on light paper of some colour, both drawn for each digit by a fixed generator, so that
    there is a colour to learn nothing from. They are the same everywhere up to the JPEG encoder.

    Args:
        split: "train" (four of five) or "val" (each fifth); None for all.

    Raises:
        VggcError: scikit-learn is not installed.
    """
    files, labels = _drawn()
    held_out = np.arange(len(labels)) % EVERY == EVERY - 1
    chosen = np.flatnonzero({None: np.full(len(labels), True), "train": ~held_out, "val": held_out}[split])
    names = [f"{labels[index]}/{index:04d}.jpg" for index in chosen]
    return EncodedImages([files[index] for index in chosen], Items(names, labels[chosen]), CLASSES, "digits")


@cache
def _drawn() -> tuple[list[bytes], NDArray[np.int64]]:
    """JPEG files and labels of all digits."""
    cv2, found = opencv(), _load()
    generator = np.random.default_rng(0)
    paper = generator.integers(160, 256, (len(found.images), 3))
    ink = generator.integers(0, 96, (len(found.images), 3))
    files = []
    for strokes, light, dark in zip(found.images, paper, ink, strict=True):
        covered = cv2.resize((strokes / MOST).astype(np.float32), (SIZE, SIZE))[..., None]
        image: Image = np.rint(light + (dark - light) * covered).astype(np.uint8)
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        assert done
        files.append(data.tobytes())
    return files, found.target.astype(np.int64)


def _load() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        what = "the digits come with scikit-learn, which is not installed"
        raise VggcError(what, remedy="pip install 'vggc[repro]'") from error
    return load_digits()
