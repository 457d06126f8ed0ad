"""Weights as Caffe's snapshots in HDF5 hold them: /data/<layer>/<index>.

Rules: net.cpp (ToHDF5, CopyTrainedLayersFromHDF5) and util/hdf5.cpp of BVLC Caffe. A "/" in a layer's
name nests groups.
"""

from __future__ import annotations

import mmap
import os
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.errors import BinaryError, VggcError, Where
from caffe_compat.mapped import PathName, map_file
from caffe_compat.weights import Blob, LayerBlobs, Weights

if TYPE_CHECKING:
    import h5py

ATTRIBUTES = ("preprocessing", "exchanged_channels", "vggc_version")
"""Entries that other formats call metadata, as attributes of the file, which Caffe does not look at."""
MAX_ATTRIBUTE = 1 << 16
MAX_AXES = 32
MAX_DEPTH = 32
MAX_OBJECTS = 50_000
SPARE = 64 << 20
"""Bytes that values may take beyond EXPANSION times the file when they are compressed or were never written."""
EXPANSION = 100
_REFUSED = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError, RecursionError)


def read_hdf5(path: PathName) -> Weights:
    """Read weights that Caffe saved as HDF5; plainly stored values become views of the mapped file.

    Raises:
        VggcError: there is no such file, or it may not be read.
        BinaryError: it is damaged, has no weights, points outside itself, or claims far more than it holds.
    """
    import h5py

    source = os.fspath(path)
    data = map_file(source)
    try:
        with h5py.File(source, "r", locking=False) as file:
            return _Reader(source, data).read(file)
    except VggcError:
        raise
    except _REFUSED as error:
        what = f"the HDF5 library refuses it: {error}"
        raise BinaryError(what, where=source, remedy="it is damaged or no HDF5 file: fetch it again") from error


def own_member(group: Any, key: str, spare: int) -> Any:
    """What is called `key` in a group, with values in this very file.

    Args:
        spare: bytes that the values may take.

    Raises:
        ValueError: it is a link to elsewhere, its values lie in another file, or it claims too much.
        KeyError: there is no such member.
    """
    import h5py

    link = group.get(key, getlink=True)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise ValueError(f'"{key}" is a {type(link).__name__}, which is not followed')
    found = group[key]
    if not isinstance(found, h5py.Dataset):
        return found
    if found.external or found.is_virtual:
        raise ValueError(f'the values of "{key}" lie in another file, which is not opened')
    if found.shape is None or found.size * max(found.dtype.itemsize, 4) > spare:
        raise ValueError(f'"{key}" has no values, or claims far more than the file can hold')
    return found


class _Reader:
    def __init__(self, source: str, data: mmap.mmap) -> None:
        self.source, self.data = source, data
        self.layers: list[LayerBlobs] = []
        self.notes: list[str] = []
        self.seen: set[int] = set()
        self.objects = 0
        self.spare = SPARE + EXPANSION * len(data)

    def error(self, what: str, name: str, remedy: str) -> BinaryError:
        return BinaryError(what, where=Where(self.source, layer=name), remedy=remedy)

    def read(self, file: h5py.File) -> Weights:
        import h5py

        data = self.member(file, "data", "") if "data" in file else None
        if not isinstance(data, h5py.Group):
            what = "it has no group /data with layers" + (", but training data" if data is not None else "")
            raise self.error(what, "", "give a file saved by Caffe's snapshot or save_hdf5")
        for name in data:
            self.group(self.layer_group(data, name), name, 1)
        if not self.layers:
            raise self.error("its group /data has no layers", "", "give a file saved by Caffe's snapshot or save_hdf5")
        if "diff" in file:
            self.notes.append("gradients (/diff) are in the file and were not read")
        return Weights(tuple(self.layers), self.source, "hdf5", self.metadata(file), tuple(self.notes))

    def metadata(self, file: h5py.File) -> dict[str, str]:
        """What a file that we have written says of itself; attributes of another kind are left alone."""
        import h5py

        found = {}
        for key in ATTRIBUTES:
            if key not in file.attrs:
                continue
            attribute = h5py.h5a.open(file.id, key.encode())
            fixed = h5py.check_string_dtype(attribute.dtype)
            if attribute.shape == () and fixed and fixed.length and fixed.length <= MAX_ATTRIBUTE:
                found[key] = bytes(file.attrs[key]).decode()
        return found

    def layer_group(self, data: h5py.Group, name: str) -> h5py.Group:
        import h5py

        group = self.member(data, name, "")
        if not isinstance(group, h5py.Group):
            raise self.error(f"/data/{name} is no group", "", "give a file saved by Caffe's snapshot or save_hdf5")
        return group

    def group(self, group: h5py.Group, name: str, depth: int) -> None:
        """One layer, and those whose names go on after a slash."""
        import h5py

        self.enter(group, name, depth)
        members = {key: self.member(group, key, name) for key in group}
        datasets = {key: member for key, member in members.items() if isinstance(member, h5py.Dataset)}
        strange = [key for key, member in members.items() if not isinstance(member, h5py.Dataset | h5py.Group)]
        strange += [key for key in datasets if not (key.isascii() and key.isdigit() and str(int(key[:9])) == key)]
        if strange:
            raise self.error(f'"{strange[0]}" is no parameter blob: those are called 0, 1, ...', name, "remove it")
        if datasets or not members:
            names = sorted(datasets, key=int)
            blobs = tuple(self.blob(datasets[key], name, key) for key in names)
            self.layers.append(LayerBlobs(name, blobs, "", Where(self.source, layer=name), tuple(names)))
        for key, member in members.items():
            if key not in datasets:
                self.group(member, f"{name}/{key}", depth + 1)

    def enter(self, group: h5py.Group, name: str, depth: int) -> None:
        """Refuse groups inside themselves."""
        import h5py

        address = h5py.h5o.get_info(group.id).addr
        if address in self.seen or depth > MAX_DEPTH:
            raise self.error("groups are nested in themselves, or too deep", name, "fetch the file again")
        self.seen.add(address)

    def member(self, group: h5py.Group, key: str, name: str) -> Any:
        """What is called `key`; links to elsewhere are not followed."""
        import h5py

        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise self.error(f"more than {MAX_OBJECTS} groups and datasets", name, "fetch the file again")
        link = group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            what = f'"{key}" is a {type(link).__name__}, which is not followed'
            raise self.error(what, name, "copy the file with the links resolved (h5repack)")
        return group[key]

    # -- values --------------------------------------------------------------------------------------------

    def blob(self, dataset: h5py.Dataset, name: str, key: str) -> Blob:
        shape, dtype = self.checked(dataset, name, key)
        offset = self.plain(dataset, dtype)
        if offset is None:
            values = self.copied(dataset, dtype, name, key)
            return Blob(shape, values, where=Where(self.source, layer=name))
        if offset + prod(shape) * dtype.itemsize > len(self.data):
            raise self.error(f"the values of blob {key} lie outside the file", name, "fetch it again")
        values = np.frombuffer(self.data, dtype, prod(shape), offset)
        return Blob(shape, values, False, self.source, offset, Where(self.source, offset=offset, layer=name))

    def checked(self, dataset: h5py.Dataset, name: str, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and number type, as far as Caffe takes them (hdf5_load_nd_dataset_helper)."""
        shape, dtype = dataset.shape, dataset.dtype
        if shape is None or len(shape) > MAX_AXES:
            raise self.error(f"blob {key} has no values, or more than {MAX_AXES} axes", name, "save it again")
        if dataset.external or dataset.is_virtual:
            what = f"the values of blob {key} lie in another file, which is not opened"
            raise self.error(what, name, "copy them into this file (h5repack)")
        if dtype.kind not in "iuf" or dtype.itemsize > 8 or dtype.subdtype:
            raise self.error(f"blob {key} holds {dtype}; Caffe reads floats and integers", name, "save it as float32")
        return tuple(int(size) for size in shape), dtype

    def plain(self, dataset: h5py.Dataset, dtype: np.dtype[Any]) -> int | None:
        """Where the values stand in the file as they are used; None when they do not."""
        if dtype.kind != "f" or dtype.newbyteorder("<") != dtype or dataset.chunks or not dataset.size:
            return None
        return dataset.id.get_offset()  # type: ignore[no-any-return]

    def copied(self, dataset: h5py.Dataset, dtype: np.dtype[Any], name: str, key: str) -> Any:
        """Compressed, big-endian or integer values, or those never written, in memory."""
        size = max(dataset.size, prod(dataset.chunks or ())) * max(dtype.itemsize, 4)
        self.spare -= size
        if self.spare < 0:
            what = f"blob {key} claims {size} bytes, far more than the file of {len(self.data)} can hold"
            raise self.error(what, name, "fetch it again, or unpack it with h5repack")
        values = np.asarray(dataset[()]).ravel()
        if dtype.kind != "f":
            self.notes.append(f'layer "{name}": blob {key} holds {dtype}, read as float32')
            return values.astype(np.float32)
        return values.astype(dtype.newbyteorder("="), copy=False)
