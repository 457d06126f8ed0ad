"""Mean images: .binaryproto as Caffe writes them, .npy as numpy does; `vggc convert` goes both ways."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import ConversionError, FormatError
from caffe_compat.reading import read_mean
from caffe_compat.schema import pb
from caffe_compat.writing import new_file
from converters.convert import Options, Report, Result

BINARY, ARRAY = ".binaryproto", ".npy"


def is_mean(source: Path) -> bool:
    """Whether a file is converted as a mean image."""
    return source.suffix.lower() in (BINARY, ARRAY)


def read(path: Path) -> NDArray[np.float32]:
    """A mean image, (C, H, W), from either format.

    Raises:
        VggcError: it cannot be read.
        FormatError: it is no such image.
    """
    values = _array(path) if path.suffix.lower() == ARRAY else read_mean(path)
    shape = tuple(values.shape)
    if values.ndim == 4 and shape[0] == 1:
        values = values[0]
    if values.ndim not in (1, 3) or not values.size:
        what = f"a mean of shape {' x '.join(map(str, shape)) or 'scalar'}; C x H x W is needed"
        raise FormatError(what, where=str(path), remedy="save the mean image alone")
    return np.ascontiguousarray(values, np.float32)


def _array(path: Path) -> NDArray[Any]:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FormatError(
            f"cannot be read as an array: {error}", where=str(path), remedy="save it with numpy"
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise FormatError("this is no array of numbers", where=str(path), remedy="save the mean image alone")
    return values


def convert(source: Path, targets: Sequence[Path], options: Options) -> Report:
    """Write a mean image in the other format, float32: .npy as C x H x W, .binaryproto as 1 x C x H x W.

    Raises:
        VggcError: the source cannot be read, or the target not be written.
        ConversionError: not one target, its suffix is of neither format, or it exists and is not to be replaced.
    """
    began = time.perf_counter()
    if len(targets) != 1:
        raise ConversionError("a mean image is converted to one target", where=str(source), remedy=f"name an {ARRAY}")
    target = targets[0]
    kinds = (source.suffix.lower(), target.suffix.lower())
    if kinds[1] not in (BINARY, ARRAY):
        what = f"a mean image is written as {BINARY} or {ARRAY}"
        raise ConversionError(what, where=str(target), remedy="name the target so")
    if target.exists() and (not options.force or target.samefile(source)):
        raise ConversionError("the target exists", where=str(target), remedy="use --force, or name another")
    values = read(source)
    with new_file(target) as file:
        if kinds[1] == ARRAY:
            np.lib.format.write_array(file, values, allow_pickle=False)
        else:
            file.write(_blob(values).SerializeToString(deterministic=True))
    seconds = time.perf_counter() - began
    size, sha256 = digest(target)
    result = Result(str(target), kinds[1][1:], size, sha256, seconds)
    return Report(str(source), *digest(source), kinds[0][1:], "", None, values.size, (), (result,), seconds)


def _blob(values: NDArray[np.float32]) -> pb.BlobProto:
    """The message that compute_image_mean writes."""
    channels, height, width = values.shape if values.ndim == 3 else (len(values), 1, 1)
    blob = pb.BlobProto(num=1, channels=channels, height=height, width=width)
    blob.data.extend(values.ravel().tolist())
    return blob


def digest(path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file."""
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()
