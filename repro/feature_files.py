"""Features in files, with the images' names: .h5 written as they come, or .npz.

Both hold for each blob an array (images, features), float32, called as the blob; `names`; `labels`, -1 where an image
has none; and how the features were made: an .h5 in its attributes, an .npz in `about`, as JSON.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import VggcError
from caffe_compat.writing import new_file
from repro.image_sets import ImageSet

ENDINGS = (".h5", ".hdf5", ".npz")
CHUNK = 2048
"""Rows that are moved at once."""
Arrays = Mapping[str, NDArray[np.float32]]


class Feed(Protocol):
    """Gives the features of every image to a function and returns those that were left out."""

    def __call__(self, keep: Callable[[int, Arrays], None]) -> list[int]: ...


def write_features(path: Path, images: ImageSet, sizes: Mapping[str, int], about: Mapping[str, Any], feed: Feed) -> int:
    """Write a file of features; it appears when it is complete.

    Args:
        sizes: blob -> features of an image.
        about: how they are made.

    Returns:
        The number of images in it.

    Raises:
        VggcError: it cannot be written, or no image could be read.
    """
    if path.suffix.lower() not in ENDINGS:
        what = f'features go to {", ".join(ENDINGS)}, not to "{path.suffix}"'
        raise VggcError(what, where=str(path), remedy="name such a file (-o)")
    taken = {"names", "labels", "about"} & set(sizes)
    if taken:
        raise VggcError(f'a blob called "{min(taken)}", which the file calls something else', remedy="rename the blob")
    write = _write_npz if path.suffix.lower() == ".npz" else _write_hdf5
    with new_file(path) as file:
        return write(file, images, sizes, about, feed)


def _kept(images: ImageSet, left_out: list[int]) -> NDArray[np.int64]:
    """The images that are there."""
    kept = np.setdiff1d(np.arange(len(images)), left_out)
    if not kept.size:
        raise VggcError("no image could be read", where=images.source, remedy="check the images")
    return kept


def _names(images: ImageSet, kept: NDArray[np.int64]) -> list[str]:
    return [images.items.names[index].encode(errors="backslashreplace").decode() for index in kept]


def _write_npz(file: Any, images: ImageSet, sizes: Mapping[str, int], about: Mapping[str, Any], feed: Feed) -> int:
    arrays = {blob: np.zeros((len(images), size), np.float32) for blob, size in sizes.items()}

    def keep(index: int, values: Arrays) -> None:
        for blob, row in values.items():
            arrays[blob][index] = row

    kept = _kept(images, feed(keep))
    told: dict[str, NDArray[Any]] = {"names": np.array(_names(images, kept)), "labels": images.items.labels[kept]}
    rows = {blob: array[kept] if len(kept) < len(array) else array for blob, array in arrays.items()}
    told["about"] = np.array(json.dumps(about))
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in {**rows, **told}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
    return len(kept)


def _write_hdf5(file: Any, images: ImageSet, sizes: Mapping[str, int], about: Mapping[str, Any], feed: Feed) -> int:
    import h5py

    with h5py.File(file, "w") as made:
        sets = {b: made.create_dataset(b, (len(images), n), "<f4", maxshape=(None, n)) for b, n in sizes.items()}

        def keep(index: int, values: Arrays) -> None:
            for blob, row in values.items():
                sets[blob][index] = row

        kept = _kept(images, feed(keep))
        for each in sets.values():
            _compact(each, kept)
        made.create_dataset("names", data=_names(images, kept), dtype=h5py.string_dtype())
        made.create_dataset("labels", data=images.items.labels[kept])
        made.attrs.update({key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()})
    return len(kept)


def _compact(rows: Any, kept: NDArray[np.int64]) -> None:
    """Close the gaps of images that were left out."""
    if len(kept) == len(rows):
        return
    for start in range(0, len(kept), CHUNK):
        some = kept[start : start + CHUNK]
        rows[start : start + len(some)] = rows[some]
    rows.resize(len(kept), axis=0)
