"""Images in records: raw planes, or files in their own encoding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import FormatError, Where
from caffe_compat.mapped import map_file
from caffe_compat.schema import pb

Image = NDArray[np.uint8]
"""(H, W, C), BGR."""
Planes = NDArray[np.uint8] | NDArray[np.float32]
"""(C, H, W)."""
MOST_PIXELS = 2**28
"""Images whose header claims more are not decoded, unless OPENCV_IO_MAX_IMAGE_PIXELS says otherwise."""


def opencv() -> Any:
    """OpenCV, which encoded images need.

    Raises:
        FormatError: it is not installed.
    """
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))
    try:
        import cv2
    except ImportError as error:
        what = "encoded images are read with OpenCV, which is not installed"
        raise FormatError(what, remedy="pip install 'vggc[images]'") from error
    return cv2


def decode_image(data: bytes, color: bool | None = None, *, turn: bool = True, reduce: int = 1) -> Image:
    """An encoded image (io.cpp DecodeDatumToCVMat).

    Args:
        color: three channels or one; None for those that the file has.
        turn: follow the orientation that a camera has noted (EXIF), as OpenCV does from version 3.1 on; images with
            the channels that the file has are never turned.
        reduce: 2, 4 or 8 to decode colours at that fraction of the size, which JPEG does faster than at the whole.

    Raises:
        FormatError: the bytes are no image, or not of 8 bits a value; OpenCV is not installed.
    """
    cv2 = opencv()
    flag = _flags(color, turn, reduce)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    except cv2.error as error:
        raise FormatError(f"an image cannot be decoded: {error}", remedy="write the record anew") from error
    if image is None:
        raise FormatError("an image cannot be decoded", remedy="write the record anew, as JPEG or PNG")
    if image.dtype != np.uint8:
        raise FormatError(f"an image has values of type {image.dtype}", remedy="store images of 8 bits a value")
    return np.asarray(image, np.uint8).reshape(*image.shape[:2], -1)


def _flags(color: bool | None, turn: bool, reduce: int) -> int:
    cv2 = opencv()
    flags: dict[bool | None, int] = {
        None: cv2.IMREAD_UNCHANGED,
        True: getattr(cv2, f"IMREAD_REDUCED_COLOR_{reduce}") if reduce > 1 else cv2.IMREAD_COLOR,
        False: cv2.IMREAD_GRAYSCALE,
    }
    return flags[color] | (0 if turn or color is None else cv2.IMREAD_IGNORE_ORIENTATION)


def read_image(path: Path, color: bool = True, size: tuple[int, int] = (0, 0)) -> Image:
    """An image file (io.cpp ReadImageToCVMat).

    Args:
        color: three channels, else one.
        size: height and width to resize it to, linearly; zeros leave it as it is.

    Raises:
        FormatError: it is no image; OpenCV is not installed.
        VggcError: there is no such file, or it may not be read.
    """
    data = map_file(path)
    try:
        image = decode_image(data[:], color)
    except FormatError as error:
        raise FormatError(error.what, where=Where(str(path)), remedy=error.remedy) from error
    finally:
        data.close()
    return resize(image, *size) if all(size) else image


def resize(image: Image, height: int, width: int) -> Image:
    """An image of another size, by linear interpolation of bytes."""
    resized: Image = opencv().resize(image, (width, height))
    return resized.reshape(height, width, -1)


def planes(image: Image) -> NDArray[np.uint8]:
    """An image (H, W, C) as (C, H, W)."""
    return np.asarray(image.transpose(2, 0, 1))


def encode_image(image: Image, kind: str) -> bytes:
    """An image as a file of some kind, "png", "jpg", ...

    Raises:
        FormatError: OpenCV cannot write that kind, or is not installed.
    """
    cv2 = opencv()
    try:
        done, data = cv2.imencode(f".{kind}", image)
    except cv2.error as error:
        raise FormatError(f'images cannot be encoded as "{kind}"', remedy="use png or jpg") from error
    if not done:
        raise FormatError(f'an image cannot be encoded as "{kind}"', remedy="use png or jpg")
    encoded: bytes = data.tobytes()
    return encoded


def datum_image(datum: pb.Datum, color: bool | None = None) -> Planes:
    """The image of a record, (C, H, W); `color` is for encoded ones, see `decode_image`.

    Raises:
        FormatError: see `decode_image` and `raw_planes`.
    """
    return planes(decode_image(datum.data, color)) if datum.encoded else raw_planes(datum)


def raw_planes(datum: pb.Datum) -> Planes:
    """The values of a record without encoding, (C, H, W); bytes where there are any, else floats.

    Raises:
        FormatError: they do not fill the shape that the record states.
    """
    shape = (datum.channels, datum.height, datum.width)
    data = datum.data
    values = np.frombuffer(data, np.uint8) if data else np.array(datum.float_data, np.float32)
    if min(shape) <= 0 or values.size != shape[0] * shape[1] * shape[2]:
        what = f"a record states shape {shape} and holds {values.size} values"
        raise FormatError(what, remedy="write the record anew; records with boxes need a layer of type AnnotatedData")
    return values.reshape(shape)
