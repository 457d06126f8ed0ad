"""What the tests of databases share: recorded databases, and small ones of known contents."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import cv2
import lmdb
import numpy as np
import plyvel
from numpy.typing import NDArray

from caffe_compat.schema import pb
from tests.parity.cases import DATA

RECORDED = DATA / "golden" / "data"
"""Databases, lists and images that BVLC Caffe wrote and read."""


def recorded(name: str, target: Path) -> Path:
    """A copy of a recorded database that may be written to."""
    shutil.copytree(RECORDED / name, target, copy_function=shutil.copyfile)
    for path in target.iterdir():
        path.chmod(0o644)
    return target


def datum(image: NDArray[np.uint8], label: int = 0) -> bytes:
    """A record of an image (C, H, W)."""
    channels, height, width = image.shape
    return pb.Datum(
        channels=channels, height=height, width=width, data=image.tobytes(), label=label
    ).SerializeToString()


def images(count: int, *shape: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Random images (C, H, W)."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, shape or (3, 6, 5), dtype=np.uint8) for _ in range(count)]


def write_lmdb(path: Path, records: Mapping[bytes, bytes]) -> Path:
    with lmdb.open(str(path), map_size=2**26) as database, database.begin(write=True) as view:
        for key, value in records.items():
            view.put(key, value)
    return path


def write_leveldb(path: Path, records: Mapping[bytes, bytes]) -> Path:
    database = plyvel.DB(str(path), create_if_missing=True)
    for key, value in records.items():
        database.put(key, value)
    database.close()
    return path


def write_images(path: Path, pictures: list[NDArray[np.uint8]]) -> Path:
    """An LMDB folder of images (C, H, W); labels and keys count them."""
    return write_lmdb(path, {b"%08d" % index: datum(image, index) for index, image in enumerate(pictures)})


def png(image: NDArray[np.uint8]) -> bytes:
    """An image (C, H, W) as a PNG file."""
    done, data = cv2.imencode(".png", image.transpose(1, 2, 0))
    assert done
    return bytes(data)


def stamps(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Each file's time of change, size and content."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size, path.read_bytes()) for path in folder.iterdir()}
