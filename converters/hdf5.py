"""Writing .h5 in Caffe's own layout (Net::ToHDF5): /data/<layer>/<index>, one contiguous dataset a blob.

h5py writes the structure with room for the values; the values then go from the source to their place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_compat.errors import ConversionError, Where
from caffe_compat.hdf5_weights import ATTRIBUTES
from converters.model import Model, NamedBlob
from converters.streaming import Payloads, Target

LEGACY = ("earliest", "v108")
"""Bounds of the file format: what HDF5 1.8, of Caffe's days, reads."""


def write(model: Model, target: Target, payloads: Payloads) -> None:
    """Write weights so that Caffe can load them. The same model always gives the same bytes.

    How images are prepared is said by an attribute of the file, which Caffe does not look at.
    Caffe itself cannot read layers with "/" in their names from HDF5; they become nested groups.

    Raises:
        ConversionError: names other than Caffe's are asked for, or HDF5 cannot hold a layer's name.
    """
    import h5py

    if model.renamed:
        raise ConversionError("HDF5 has Caffe's layout, with Caffe's names", remedy="use --names caffe")
    places: list[tuple[int, NamedBlob]] = []
    with target.file() as raw, h5py.File(raw, "w", libver=LEGACY) as file:
        about = model.metadata()
        for key in ATTRIBUTES:
            if key in about:
                file.attrs[key] = np.bytes_(about[key].encode())
        data = file.create_group("data")
        for node in model.graph.nodes if model.graph else ():
            _group(data, node.layer.name)
        for item in model.blobs():
            places.append((_dataset(_group(data, item.layer), item), item))
    for offset, item in places:
        if offset >= 0:
            target.place(offset)
            payloads.send(item.blob, target)


def _group(data: Any, layer: str) -> Any:
    """The group of a layer, made when it is not there yet."""
    parts = layer.split("/")
    if any(part in ("", ".") for part in parts) or "\0" in layer:
        raise _refused(layer, "HDF5 takes this name for another")
    try:
        return data.require_group(layer)
    except (TypeError, ValueError) as error:
        raise _refused(layer, "this name goes through a parameter blob of another layer") from error


def _refused(layer: str, what: str) -> ConversionError:
    return ConversionError(what, where=Where(layer=layer), remedy="rename the layer, or convert to .safetensors")


def _dataset(group: Any, item: NamedBlob) -> int:
    """Make one contiguous dataset; returns its place in the file, -1 when it has no values."""
    import h5py

    if item.index < 0:
        what = f"the place of {item.name} among the layer's blobs is not known"
        raise ConversionError(what, where=Where(layer=item.layer), remedy="give the net with --net")
    if str(item.index) in group:
        raise _refused(item.layer, f"blob {item.index} has the name of another layer's group")
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    kind = h5py.h5t.py_create(item.blob.values.dtype.newbyteorder("<"))
    space = h5py.h5s.create_simple(tuple(item.shape)) if item.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.h5d.create(group.id, str(item.index).encode(), kind, space, plist)
    offset = dataset.get_offset()
    return -1 if offset is None else int(offset)
