"""Opening image sets: folders of classes, lists, databases, and the digits that come with scikit-learn."""

from __future__ import annotations

import hashlib
import mmap
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.images import Image, opencv, raw_planes
from caffe_compat.data.lists import ClassFolders, ImageList, list_folders, read_list
from caffe_compat.data.lmdb_pages import FILE
from caffe_compat.data.records import Database, is_database, open_database
from caffe_compat.errors import FormatError, Where
from caffe_compat.mapped import map_file, read_failed
from caffe_compat.reading import parse_datum
from caffe_compat.tags import VARINT, Tags
from repro.digits import digit_images
from repro.image_sets import DataError, ImageSet, Item, Items, Subset, require_labels
from repro.image_sizes import HEAD

__all__ = ["SPLITS", "DataError", "ImageSet", "Item", "Items", "Subset", "open_images", "require_labels"]

DIGITS = "digits"
SPLITS = ("train", "val")
HELD_OUT = 0.1
"""Share of the images that `val` gets where a source does not say which those are."""
MOST_CLASSES = 2**20
_LABEL = 5
"""Number of Datum's field `label`."""


def open_images(
    source: str | Path,
    *,
    labels: Path | None = None,
    root: Path | None = None,
    split: str | None = None,
    held_out: float = HELD_OUT,
) -> ImageSet:
    """Open labelled images.

    Args:
        source: "digits" (a folder of that name is "./digits"); a folder with one folder a class, sorted by name; a
            folder with such folders, or databases, in `train` and `val`; an LMDB or LevelDB of Datum records; or a
            list of lines "file label", where a negative label is none.
        labels: a list of the images in the folder `source`.
        root: the folder that names in a list start from and do not lead out of; the list's own by default, and
            `source` where `labels` is the list.
        split: "train" or "val". Where the source does not tell them apart, `held_out` of the images are for
            validation, chosen by a hash of their names, so that they stay the same when images are added.
        held_out: the share of `val` in that case.

    Raises:
        DataError: the source is not there, holds no image, or has classes without images.
        VggcError: it is damaged, or may not be read.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f'no split called "{split}"', remedy=f"splits: {', '.join(SPLITS)}")
    if str(source) == DIGITS and labels is None:
        return digit_images(split)
    path = Path(source)
    opencv()  # says what is missing before the first image seems to be damaged
    if labels is None and _has_splits(path):
        return _open_split(path, split)
    whole = _open_whole(path, labels, root)
    return whole if split is None else hashed_split(whole, split, held_out)


def hashed_split(images: ImageSet, split: str, held_out: float) -> Subset:
    """The images of a split by a hash of their names: those below `held_out` of its range are for validation.

    Raises:
        DataError: none is left.
    """
    digests = (hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8) for name in images.items.names)
    shares = np.array([int.from_bytes(digest.digest(), "big") / 2**64 for digest in digests])
    chosen = np.flatnonzero((shares < held_out) == (split == "val"))
    if not chosen.size:
        what = f'no image is left for "{split}" of {len(images):,} when {held_out:g} of them are for validation'
        raise DataError(what, where=images.source, remedy="give a folder with train and val in it, or more images")
    return Subset(images, chosen)


def _open_whole(path: Path, labels: Path | None, root: Path | None) -> ImageSet:
    if labels is not None:
        return listed_images(read_list(labels), root or path)
    if not path.exists():
        raise DataError("no such images", where=str(path), remedy='check the path, or use "digits"')
    if is_database(path) or path.name == FILE:
        return RecordImages(open_database(path))
    if path.is_dir():
        return folder_images(path)
    return listed_images(read_list(path), root or path.parent)


# -- folders and lists -----------------------------------------------------------------------------------------


class FileImages(ImageSet):
    """Image files in a folder; names are relative to it."""

    def __init__(self, root: Path, items: Items, classes: tuple[str, ...], source: str) -> None:
        self.root, self.items, self.classes, self.source = root, items, classes, source

    def stored(self, index: int) -> bytes:
        data = map_file(self.root / self.items.names[index])
        try:
            return data[:]
        finally:
            data.close()

    def head(self, index: int) -> bytes:
        path = self.root / self.items.names[index]
        try:
            with open(path, "rb") as file:
                return file.read(HEAD)
        except OSError as error:
            raise read_failed(str(path), error) from error

    def place(self, index: int) -> Where:
        return Where(str(self.root / self.items.names[index]))


def folder_images(path: Path, classes: Sequence[str] | None = None) -> FileImages:
    """The images of a folder with one folder a class.

    Args:
        classes: the classes in the order of their labels, of which this folder may lack some; None: the folders.

    Raises:
        DataError: there are none, a class has none, or is not one of `classes`.
    """
    try:
        found = list_folders(path)
    except FormatError as error:
        raise DataError(error.what, where=error.where, remedy=error.remedy) from error
    _refuse_empty(found, path)
    labels = found.images.labels
    if classes is not None:
        numbers = {name: label for label, name in enumerate(classes)}
        if strange := [name for name in found.classes if name not in numbers]:
            what = f"{len(strange)} class(es) that are not among those for training, {_some(strange)}"
            raise DataError(what, where=str(path), remedy="name the folders as in train")
        labels = np.array([numbers[name] for name in found.classes], np.int32)[labels]
    return FileImages(path, Items(found.images.names, labels), tuple(classes or found.classes), str(path))


def _refuse_empty(found: ClassFolders, path: Path) -> None:
    counts = np.bincount(found.images.labels, minlength=len(found.classes))
    if empty := [name for name, count in zip(found.classes, counts, strict=True) if not count]:
        what = f"{len(empty)} class folder(s) without an image, {_some(empty)}"
        raise DataError(what, where=str(path), remedy="put the images there, or remove the folder")


def listed_images(images: ImageList, root: Path) -> FileImages:
    """The images of a list.

    Raises:
        DataError: a name leads out of `root`, or a label is too large.
    """
    for name in images.names:
        if (name.startswith("/") or ".." in name) and not _inside(root, name):
            what = f'"{name}" is outside the folder {root}'
            raise DataError(what, where=images.source, remedy="name the folder that holds it as the root")
    items = Items(images.names, np.maximum(images.labels, -1))
    return FileImages(root, items, nameless(items, images.source), images.source)


def nameless(items: Items, source: str) -> tuple[str, ...]:
    """As many empty names as there are classes by the largest label.

    Raises:
        DataError: there would be too many.
    """
    largest = int(items.labels.max(initial=-1))
    if largest >= MOST_CLASSES:
        what = f'"{items.names[int(items.labels.argmax())]}" has label {largest}; labels are below {MOST_CLASSES:,}'
        raise DataError(what, where=source, remedy="count the classes from 0")
    return ("",) * (largest + 1)


def _inside(root: Path, name: str) -> bool:
    return Path(os.path.abspath(root / name)).is_relative_to(os.path.abspath(root))


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few of some names."""
    return ", ".join(f'"{name}"' for name in names[:most]) + (", ..." if len(names) > most else "")


# -- train and val ---------------------------------------------------------------------------------------------


def _has_splits(path: Path) -> bool:
    return not is_database(path) and all((path / name).is_dir() for name in SPLITS)


def _open_split(path: Path, split: str | None) -> ImageSet:
    """What is in a folder's `train` or `val`; labels are those of the classes in `train`."""
    if split is None:
        raise DataError("this folder holds train and val", where=str(path), remedy="name one of them")
    if is_database(path / split):
        return RecordImages(open_database(path / split))
    if split == "train" or is_database(path / "train"):
        return folder_images(path / split)
    with os.scandir(path / "train") as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return folder_images(path / split, names)


# -- databases -------------------------------------------------------------------------------------------------


class RecordImages(ImageSet):
    """Images in a database of Datum records; names are the keys.

    All records are gone through once, for their labels. Of an LMDB the places of the records are kept.
    """

    def __init__(self, database: Database) -> None:
        self.database, self.source = database, str(database.path)
        keys, labels, starts, ends = [], array("q"), array("Q"), array("Q")
        for key, data, start, end in database.spans():
            keys.append(key)
            labels.append(_label(data, start, end, self.source))
            starts.append(start)
            ends.append(end)
        if not keys:
            raise DataError("this database holds no record", where=self.source, remedy="write the records into it")
        self.keys, self.starts, self.ends = keys, starts, ends
        self.items = Items(_Names(keys), np.maximum(np.array(labels), -1))
        self.classes = nameless(self.items, self.source)

    def stored(self, index: int) -> bytes | Image:
        datum = parse_datum(self.database.fetch(self.keys[index], self.starts[index], self.ends[index]))
        if datum.encoded:
            return datum.data
        if not datum.data:
            raise DataError("a record of floats, which is no image", remedy="write records of bytes")
        pixels: NDArray[np.uint8] = np.asarray(raw_planes(datum), np.uint8)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    def place(self, index: int) -> Where:
        return Where(f'{self.source} record "{self.items.names[index]}"')


class _Names(Sequence[str]):
    """Keys as text, made when they are asked for."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> _Names: ...
    def __getitem__(self, index: int | slice) -> str | _Names:
        if isinstance(index, slice):
            return _Names(self.keys[index])
        return self.keys[index].decode(errors="backslashreplace")


def _label(data: mmap.mmap | bytes, start: int, end: int, source: str) -> int:
    """The label of a Datum, 0 where it has none, without reading its pixels.

    Raises:
        VggcError: it is no record.
    """
    tags, label = Tags(data, source), 0
    tags.place = "a record"
    for field in tags.fields(start, end):
        if field.number == _LABEL and field.wire == VARINT:
            label = tags.varint(field.value, field.end)[0] & 0xFFFF_FFFF
    return label - (label >> 31 << 32)
