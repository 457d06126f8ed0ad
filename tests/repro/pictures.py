"""Image files of known contents for tests."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def smooth(height: int, width: int, seed: int = 0) -> Pixels:
    """A picture (H, W, 3) without sharp edges, which JPEG keeps nearly as it is."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (width, height)), np.uint8)


def write(path: Path, image: NDArray[np.generic]) -> Path:
    """Write a picture in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix, image)
    assert done
    path.write_bytes(data.tobytes())
    return path


def tree(folder: Path, **classes: int) -> Path:
    """A folder a class with so many PNG pictures each; no two are equal."""
    for kind, count in classes.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            write(folder / kind / f"{index}.png", smooth(10 + index, 12, zlib.crc32(f"{kind}{index}".encode())))
    return folder


def oriented(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG with an EXIF segment that notes an orientation."""
    tiff = b"MM\x00*\x00\x00\x00\x08" + b"\x00\x01" + b"\x01\x12\x00\x03\x00\x00\x00\x01"
    tiff += orientation.to_bytes(2, "big") + b"\x00\x00" + b"\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def png_16(image: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits a value."""
    done, data = cv2.imencode(".png", image)
    assert done
    return bytes(data.tobytes())
