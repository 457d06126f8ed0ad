"""Files that a net names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Layer
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from caffe_compat.layers.base import Shape

LARGEST_BLOB = 2**30
"""Bytes of a BlobProto file that a net names: a mean image, an infogain matrix."""


def inner_path(layer: Layer, name: str, field: str) -> Path:
    """A file named in a net, inside the net's folder: no net reaches the rest of the machine.

    Args:
        name: as the net has it, relative to `context.folder`; an absolute name may lead into that folder.
        field: where the net has it.

    Raises:
        LayerError: it is empty, or leads out of the folder.
    """
    layer.check(bool(name), "no file is named", field=field, remedy=f"set {field}")
    layer.check("\0" not in name, "the file name holds a zero byte", field=field, remedy="correct the name")
    folder = Path(layer.context.folder).resolve()
    path = (folder / name).resolve()
    what = f'"{name}" is outside the folder {folder}'
    remedy = "put the file into it, or name a folder that holds both"
    layer.check(path.is_relative_to(folder), what, field=field, remedy=remedy)
    return path


def inner_file(layer: Layer, name: str) -> Path | None:
    """A file named in a net, None when it is not there or not inside the net's folder."""
    try:
        path = inner_path(layer, name, "")
    except LayerError:
        return None
    return path if path.is_file() else None


def read_blob(layer: Layer, path: Path, field: str) -> tuple[Shape, np.ndarray]:
    """Shape as stated and float32 values of a binary BlobProto file.

    Raises:
        LayerError: it is no BlobProto, or its values do not fill its shape.
    """
    blob = pb.BlobProto()
    remedy = "write it as a binary BlobProto"
    try:
        size = path.stat().st_size
        layer.check(size <= LARGEST_BLOB, f'"{path.name}" has {size} bytes, more than {LARGEST_BLOB}', field=field)
        blob.ParseFromString(path.read_bytes())
        values = np.array(blob.double_data or blob.data, dtype=np.float32)
    except (OSError, DecodeError) as error:
        raise layer.error(f'"{path.name}" cannot be read: {error}', field=field, remedy=remedy) from error
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else legacy
    product = 1
    for size in shape:
        product *= max(size, 0)
    what = f'"{path.name}" states shape {shape} and holds {values.size} values'
    layer.check(product == values.size > 0, what, field=field, remedy=remedy)
    return shape, values


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when all went well."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
