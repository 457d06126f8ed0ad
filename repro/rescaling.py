"""Isotropic rescaling to a smallest side (Sect. 3.1 and 3.2 of arXiv:1409.1556)."""

from __future__ import annotations

from caffe_compat.data.images import Image, opencv


def rescaled_size(height: int, width: int, smallest: int) -> tuple[int, int]:
    """Height and width after rescaling: the smallest side is `smallest`, the other `side * smallest / least`.

    That is rounded to the nearest, half to even, in exact integers; the paper does not say how.
    """
    least = min(height, width)
    return _scaled(height, smallest, least), _scaled(width, smallest, least)


def rescale(image: Image, smallest: int) -> Image:
    """An image (H, W, C) of uint8, rescaled by OpenCV's bilinear interpolation (`cv::resize`, INTER_LINEAR)."""
    height, width = rescaled_size(image.shape[0], image.shape[1], smallest)
    if (height, width) == image.shape[:2]:
        return image
    resized: Image = opencv().resize(image, (width, height))
    return resized.reshape(height, width, -1)


def _scaled(side: int, numerator: int, denominator: int) -> int:
    whole, rest = divmod(side * numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))
