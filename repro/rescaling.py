"""Isotropic rescaling to a smallest side (Sect. 3.1 and 3.2 of arXiv:1409.1556)."""

from __future__ import annotations

from caffe_compat.data.images import MOST_PIXELS, Image, opencv
from caffe_compat.errors import VggcError

EVEN, UP, DOWN = "even", "up", "down"
ROUNDINGS = (EVEN, UP, DOWN)
"""What becomes of a side that is no whole number: the nearest, half to even or half up; or what is below."""
BILINEAR = "bilinear"
INTERPOLATIONS = {BILINEAR: "INTER_LINEAR", "nearest": "INTER_NEAREST", "cubic": "INTER_CUBIC", "area": "INTER_AREA"}
"""Name -> OpenCV's."""


def rescaled_size(height: int, width: int, smallest: int, rounding: str = EVEN) -> tuple[int, int]:
    """Height and width after rescaling: the smallest side is `smallest`, the other `side * smallest / least`.

    That is rounded to the nearest, half to even, in exact integers; the paper does not say how.
    """
    least = min(height, width)
    return _scaled(height, smallest, least, rounding), _scaled(width, smallest, least, rounding)


def rescale(image: Image, smallest: int, rounding: str = EVEN, interpolation: str = BILINEAR) -> Image:
    """An image (H, W, C) of uint8, rescaled by OpenCV's bilinear interpolation (`cv::resize`, INTER_LINEAR).

    Raises:
        VggcError: the result would have more pixels than an image may have.
    """
    height, width = image.shape[:2]
    size = rescaled_size(height, width, smallest, rounding)
    if size[0] * size[1] > MOST_PIXELS:
        what = f"an image of {height} x {width} rescaled to {smallest} would be {size[0]} x {size[1]}"
        raise VggcError(what, remedy="cut it into parts, or take it out of the set")
    return resize(image, size, interpolation)


def resize(image: Image, size: tuple[int, int], interpolation: str = BILINEAR) -> Image:
    """An image (H, W, C) with another height and width; itself when it has these."""
    if size == image.shape[:2]:
        return image
    cv2 = opencv()
    method = getattr(cv2, INTERPOLATIONS[interpolation])
    resized: Image = cv2.resize(image, (size[1], size[0]), interpolation=method)
    return resized.reshape(*size, -1)


def _scaled(side: int, numerator: int, denominator: int, rounding: str) -> int:
    whole, rest = divmod(side * numerator, denominator)
    if rounding == DOWN or 2 * rest < denominator:
        return whole
    return whole + (2 * rest > denominator or rounding == UP or whole % 2 == 1)
