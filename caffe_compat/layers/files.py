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
    """A file to read that a net names: no net reaches folders that the user has not named.

    A relative name is looked for in the data folders (`context.state["data_folders"]`), in their order, and then in the
    net's folder; an absolute one must lead into one of them. Links are followed out of data folders, which are the
    user's own, but not out of the net's folder, which may have come with the net.

    Args:
        name: as the net has it.
        field: where the net has it.

    Raises:
        LayerError: it is empty, or leads out of the folders.
    """
    own = _inside_own(layer, name, field)
    found = [path for folder in data_folders(layer) if (path := _inside(folder, name))]
    found += [own] if own else []
    what = f'"{name}" is outside the folder {Path(layer.context.folder).resolve()}'
    remedy = "put the file into it, or name the folder that holds it as a data folder (data_folders, --data-folder)"
    layer.check(bool(found), what, field=field, remedy=remedy)
    return next((path for path in found if os.path.exists(path)), found[-1])


def own_path(layer: Layer, name: str, field: str) -> Path:
    """A file to write that a net names, which must lie in the net's folder; `inner_path` tells the rest."""
    path = _inside_own(layer, name, field)
    if path is None:
        what = f'"{name}" is outside the folder {Path(layer.context.folder).resolve()}'
        raise layer.error(what, field=field, remedy="name a file in it")
    return path


def data_folders(layer: Layer) -> list[Path]:
    """The folders that the user has named for data."""
    return [Path(os.path.abspath(folder)) for folder in layer.context.state.get("data_folders") or ()]


def _inside_own(layer: Layer, name: str, field: str) -> Path | None:
    layer.check(bool(name), "no file is named", field=field, remedy=f"set {field}")
    layer.check("\0" not in name, "the file name holds a zero byte", field=field, remedy="correct the name")
    folder = Path(layer.context.folder).resolve()
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder) else None


def _inside(folder: Path, name: str) -> Path | None:
    """A name in a data folder, with what `..` leaves of it; None when it leads out of it."""
    path = Path(os.path.normpath(folder / name))
    return path if path.is_relative_to(folder) else None


def inner_file(layer: Layer, name: str) -> Path | None:
    """A file named in a net, None when it is not there or not in a folder that the net may read."""
    path = inner_name(layer, name)
    return path if path is not None and os.path.isfile(path) else None


def inner_name(layer: Layer, name: str) -> Path | None:
    """A file or folder named in a net, None when it does not exist or the net may not read it."""
    try:
        path = inner_path(layer, name, "")
    except LayerError:
        return None
    return path if os.path.exists(path) else None


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
