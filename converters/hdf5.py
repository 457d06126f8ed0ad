"""Writing .h5 in Caffe's own layout (Net::ToHDF5): /data/<layer>/<index>, one contiguous dataset a blob.

h5py writes the structure with room for the values; the values then go from the source's map to their place.
"""

from __future__ import annotations

from typing import Any

from converters.model import Model, NamedBlob
from converters.streaming import Payloads, Target


def write(model: Model, target: Target, payloads: Payloads) -> None:
    """Write weights so that Caffe can load them. The same model always gives the same bytes.

    Caffe itself cannot read layers with "/" in their names from HDF5; they become nested groups.
    """
    import h5py

    places: list[tuple[int, NamedBlob]] = []
    with h5py.File(target.temporary, "w", libver=("earliest", "v108")) as file:
        data = file.create_group("data")
        for node in model.graph.nodes if model.graph else ():
            data.require_group(node.layer.name)
        for item in model.blobs():
            places.append((_dataset(data.require_group(item.layer), item), item))
    for offset, item in places:
        if offset >= 0:
            target.place(offset)
            payloads.send(item.blob, target)


def _dataset(group: Any, item: NamedBlob) -> int:
    """Make one contiguous dataset; returns its place in the file, -1 when it has no values."""
    import h5py

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
