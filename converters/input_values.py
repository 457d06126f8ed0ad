"""What two models are fed with when they are compared: seeded random values, arrays, or an image."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import FormatError, VggcError

Array = NDArray[Any]
Shape = tuple[int, ...]

PIXELS = (-128.0, 128.0)
"""Bounds of random values for blobs that look like images: four axes with 1 or 3 channels."""
OTHERS = (0.0, 1.0)
COLORS = 3
ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Inputs:
    """Values for every input.

    Attributes:
        values: blob -> float32 array.
        said: one sentence a blob: where its values come from.
    """

    values: Mapping[str, Array]
    said: tuple[str, ...]


def random_inputs(shapes: Mapping[str, Shape], seed: int) -> Inputs:
    """Uniform random values, the same for the same seed on every machine."""
    generator = np.random.default_rng(seed)
    values, said = {}, []
    for blob, shape in shapes.items():
        low, high = PIXELS if len(shape) == 4 and shape[1] in (1, 3) else OTHERS
        values[blob] = generator.uniform(low, high, shape).astype(np.float32)
        said.append(f"{blob}: {sizes_text(shape)}, uniform from {low:g} to {high:g}, seed {seed}")
    return Inputs(values, tuple(said))


def read_inputs(path: Path, shapes: Mapping[str, Shape], prepares: Mapping[str, Any]) -> Inputs:
    """Values from a file.

    Args:
        path: .npy for a net with one input, .npz with an array for each input, or an image.
        shapes: what the net declares; arrays may have another first size.
        prepares: mean and scale that the net's data layer states, applied to an image.

    Raises:
        VggcError: the file cannot be read or does not fit the inputs.
    """
    if path.suffix.lower() not in ARRAYS:
        return _image(path, *_only(path, shapes), prepares)
    try:
        values = _npz(path, shapes) if path.suffix.lower() == ".npz" else _npy(path, shapes)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise FormatError(f"cannot be read as arrays: {error}", where=str(path), remedy="save it with numpy") from error
    return Inputs(values, tuple(f"{blob}: {sizes_text(x.shape)} from {path.name}" for blob, x in values.items()))


def _only(path: Path, shapes: Mapping[str, Shape]) -> tuple[str, Shape]:
    if len(shapes) != 1:
        what = f"one array for the inputs {', '.join(shapes) or 'none'}"
        raise VggcError(what, where=str(path), remedy="give an .npz with an array for each")
    return next(iter(shapes.items()))


def _npy(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    blob, shape = _only(path, shapes)
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    _check(path, blob, values.shape, shape)
    return {blob: np.array(values, np.float32)}


def _npz(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        if names != set(shapes):
            what = (
                f"it has the arrays {', '.join(sorted(names)) or 'none'}, the net takes {', '.join(shapes) or 'none'}"
            )
            raise FormatError(what, where=str(path), remedy="give one array for each input, called as the blob")
        return {blob: _member(path, archive, blob, shape) for blob, shape in shapes.items()}


def _member(path: Path, archive: zipfile.ZipFile, blob: str, shape: Shape) -> Array:
    """An array of an .npz; its sizes are checked before it is read."""
    with archive.open(f"{blob}.npy") as file:
        _check(path, blob, _claimed(file), shape)
    with archive.open(f"{blob}.npy") as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False), np.float32)


def _claimed(file: IO[bytes]) -> Shape:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return tuple(read(file)[0])


def _check(path: Path, blob: str, got: Shape, want: Shape) -> None:
    fits = len(got) == len(want) and all(w in (0, g) for g, w in zip(got[1:], want[1:], strict=True))
    if not fits or not prod(got) or (want and want[0] and got[0] > max(1024, want[0])):
        what = f"{blob} is {sizes_text(got)}, the net takes {sizes_text(want)}"
        raise FormatError(what, where=str(path), remedy="only the first size may differ")


def sizes_text(shape: Sequence[int]) -> str:
    """Sizes as "1 x 3 x 224 x 224"."""
    return " x ".join(map(str, shape)) or "a scalar"


# -- images ----------------------------------------------------------------------------------------------------


def _image(path: Path, blob: str, shape: Shape, prepares: Mapping[str, Any]) -> Inputs:
    """One image, resized to the net's size and prepared as its data layer states, for every item of the batch."""
    if len(shape) != 4 or shape[1] not in (1, 3):
        what = f"an image for {blob}, which is {sizes_text(shape)}"
        raise VggcError(what, where=str(path), remedy="give an .npy or .npz")
    pixels, how = decode(path, shape[1], (shape[2], shape[3]))
    rgb = prepares.get("channel_order") == "RGB"
    pixels, how = (pixels[..., ::-1], f"{how}, RGB") if rgb and shape[1] == COLORS else (pixels, how)
    values = pixels.transpose(2, 0, 1).astype(np.float32)
    said = [how]
    if mean := prepares.get("mean_value"):
        values = values - np.array(mean, np.float32).reshape(-1, 1, 1)
        said.append(f"less {', '.join(f'{value:g}' for value in mean)}")
    if scale := prepares.get("scale"):
        values = values * np.float32(scale)
        said.append(f"times {scale:g}")
    batch = np.ascontiguousarray(np.broadcast_to(values, shape))
    return Inputs({blob: batch}, (f"{blob}: {sizes_text(shape)} from {path.name}, {', '.join(said)}",))


def decode(path: Path, channels: int, size: tuple[int, int]) -> tuple[Array, str]:
    """Pixels (height, width, channels) in uint8, BGR as Caffe has them, and how they were read.

    Raises:
        VggcError: neither OpenCV nor PIL is installed, or the file is not an image.
    """
    for reader in (_by_opencv, _by_pil):
        try:
            return reader(path, channels, size)
        except ImportError:
            continue
    raise VggcError(
        "reading images needs OpenCV or PIL", where=str(path), remedy="pip install 'vggc[images]', or give an .npy"
    )


def _by_opencv(path: Path, channels: int, size: tuple[int, int]) -> tuple[Array, str]:
    import cv2

    found = cv2.imread(str(path), cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE)
    if found is None:
        raise _not_an_image(path)
    resized = cv2.resize(found, size[::-1], interpolation=cv2.INTER_LINEAR)
    how = f"OpenCV, {found.shape[1]} x {found.shape[0]} resized"
    return np.asarray(resized, np.uint8).reshape(*size, channels), how


def _by_pil(path: Path, channels: int, size: tuple[int, int]) -> tuple[Array, str]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            found = image.convert("RGB" if channels == 3 else "L")
            pixels = np.asarray(found.resize(size[::-1], Image.Resampling.BILINEAR)).reshape(*size, channels)
            return pixels[..., ::-1], f"PIL, {image.width} x {image.height} resized"
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise _not_an_image(path) from error


def _not_an_image(path: Path) -> VggcError:
    what = "no such file" if not path.exists() else "not an image that can be read"
    return VggcError(what, where=str(path), remedy="give a .jpg, .png, .npy or .npz")
