"""Images in records: raw planes, or files in their own encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import FormatError
from caffe_compat.schema import pb

Image = NDArray[np.uint8]
"""(H, W, C), BGR."""


def opencv() -> Any:
    """OpenCV, which encoded images need.

    Raises:
        FormatError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        what = "encoded images are read with OpenCV, which is not installed"
        raise FormatError(what, remedy="pip install 'vggc[images]'") from error
    return cv2


def decode_image(data: bytes, color: bool | None = None) -> Image:
    """An encoded image (io.cpp DecodeDatumToCVMat).

    Args:
        color: three channels or one; None for those that the file has.

    Raises:
        FormatError: the bytes are no image, or not of 8 bits a value; OpenCV is not installed.
    """
    cv2 = opencv()
    flag = {None: cv2.IMREAD_UNCHANGED, True: cv2.IMREAD_COLOR, False: cv2.IMREAD_GRAYSCALE}[color]
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    except cv2.error as error:
        raise FormatError(f"an image cannot be decoded: {error}", remedy="write the record anew") from error
    if image is None:
        raise FormatError("an image cannot be decoded", remedy="write the record anew, as JPEG or PNG")
    if image.dtype != np.uint8:
        raise FormatError(f"an image has values of type {image.dtype}", remedy="store images of 8 bits a value")
    return np.asarray(image, np.uint8).reshape(*image.shape[:2], -1)


def raw_planes(datum: pb.Datum) -> NDArray[np.uint8] | NDArray[np.float32]:
    """The values of a record without encoding, (C, H, W); bytes where there are any, else floats.

    Raises:
        FormatError: they do not fill the shape that the record states.
    """
    shape = (datum.channels, datum.height, datum.width)
    values = np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data, np.float32)
    if min(shape) <= 0 or values.size != shape[0] * shape[1] * shape[2]:
        what = f"a record states shape {shape} and holds {values.size} values"
        raise FormatError(what, remedy="write the record anew")
    return values.reshape(shape)
