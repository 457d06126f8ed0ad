"""Resizing by a ResizeParameter, of images and of the boxes in them (im_transforms.cpp of weiliu89/caffe@ssd)."""

from __future__ import annotations

from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.images import Image, opencv
from caffe_compat.schema import pb

Floats = NDArray[np.float32]
Resize = pb.ResizeParameter


def resized_size(param: pb.ResizeParameter, height: int, width: int) -> tuple[int, int]:
    """Height and width of an image after resizing (InferNewSize)."""
    if param.resize_mode != Resize.FIT_SMALL_SIZE:
        return param.height, param.width
    aspect, wanted = _aspect(height, width), _aspect(param.height, param.width)
    if aspect < wanted:
        return floor(np.float32(param.width) / aspect), param.width
    return param.height, floor(aspect * np.float32(param.height))


def resize_image(image: Image, param: pb.ResizeParameter, generator: np.random.Generator) -> Image:
    """Warped, or resized with its aspect ratio and padded (ApplyResize); one of several interp_modes is drawn."""
    cv2 = opencv()
    modes = {
        Resize.LINEAR: cv2.INTER_LINEAR,
        Resize.AREA: cv2.INTER_AREA,
        Resize.NEAREST: cv2.INTER_NEAREST,
        Resize.CUBIC: cv2.INTER_CUBIC,
        Resize.LANCZOS4: cv2.INTER_LANCZOS4,
    }
    drawn = param.interp_mode[generator.integers(len(param.interp_mode))] if param.interp_mode else Resize.LINEAR
    height, width = resized_size(param, *image.shape[:2])
    if param.resize_mode == Resize.FIT_LARGE_SIZE_AND_PAD:
        height, width = _fitted(param, *image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=modes[drawn])
    small = small.reshape(height, width, -1)
    return _padded(small, param) if param.resize_mode == Resize.FIT_LARGE_SIZE_AND_PAD else small


def _aspect(height: float, width: float) -> Any:
    return np.float32(width) / np.float32(height)


def _fitted(param: pb.ResizeParameter, height: int, width: int) -> tuple[int, int]:
    """The largest size of that aspect ratio inside the stated one."""
    aspect = _aspect(height, width)
    if aspect > _aspect(param.height, param.width):
        return max(1, floor(np.float32(param.width) / aspect)), param.width
    return param.height, max(1, floor(aspect * np.float32(param.height)))


def _padded(image: Image, param: pb.ResizeParameter) -> Image:
    """The image in the middle of the stated size."""
    cv2 = opencv()
    border = {
        Resize.CONSTANT: cv2.BORDER_CONSTANT,
        Resize.MIRRORED: cv2.BORDER_REFLECT_101,
        Resize.REPEAT_NEAREST: cv2.BORDER_REPLICATE,
    }[param.pad_mode]
    rows, columns = param.height - image.shape[0], param.width - image.shape[1]
    top, left = rows // 2, columns // 2
    values = [*param.pad_value] * (image.shape[2] if len(param.pad_value) == 1 else 1)
    padded = cv2.copyMakeBorder(image, top, rows - top, left, columns - left, border, value=values or 0)
    result: Image = padded.reshape(param.height, param.width, -1)
    return result


def resize_boxes(boxes: Floats, param: pb.ResizeParameter, height: int, width: int) -> Floats:
    """Boxes, as parts of an image of that size, as parts of the resized one (UpdateBBoxByResizePolicy)."""
    aspect, new = _aspect(height, width), np.array([param.width, param.height], np.float32)
    wanted, old, pad = new[0] / new[1], np.array([width, height], np.float32), np.zeros(2, np.float32)
    if param.resize_mode == Resize.FIT_LARGE_SIZE_AND_PAD:
        if aspect > wanted:
            pad[1] = (new[1] - new[0] / aspect) / 2
        else:
            pad[0] = (new[0] - aspect * new[1]) / 2
    elif param.resize_mode == Resize.FIT_SMALL_SIZE:
        if aspect < wanted:
            new[1] = new[0] / aspect
        else:
            new[0] = aspect * new[1]
    scaled = boxes * np.tile(old, 2) * np.tile(new - 2 * pad, 2) / np.tile(old, 2)
    corners = [np.maximum(scaled[:, :2], np.float32(0)), np.minimum(scaled[:, 2:], new)]
    return np.asarray((np.concatenate(corners, 1) + np.tile(pad, 2)) / np.tile(new, 2), np.float32)


def stretch_boxes(boxes: Floats, param: pb.ResizeParameter, size: tuple[int, int], kept: Floats) -> Floats:
    """Boxes in the units of height_scale and width_scale, where FIT_SMALL_SIZE states both (ExtrapolateBBox).

    Args:
        boxes: as parts of the crop.
        size: height and width of the image before resizing.
        kept: the crop, as a part of the resized image.

    Raises:
        ValueError: the crop is smaller than the scales.
    """
    scales = np.array([param.width_scale, param.height_scale], np.float32)
    if param.resize_mode != Resize.FIT_SMALL_SIZE or not scales.all():
        return boxes
    aspect, new = _aspect(*size), np.array([param.width, param.height], np.float32)
    new = np.array([new[0], new[0] / aspect] if aspect < new[0] / new[1] else [new[1] * aspect, new[1]], np.float32)
    crop = new * (kept[2:] - kept[:2])
    if (crop < scales).any():
        raise ValueError(f"a crop of {crop[1]:g} x {crop[0]:g} is smaller than height_scale and width_scale")
    return np.asarray(boxes * np.tile(crop, 2) / np.tile(scales, 2), np.float32)
