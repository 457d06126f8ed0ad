"""Lists of images, as convert_imageset and ImageData read them: lines "file label"."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import FormatError, TextError, VggcError, Where
from caffe_compat.mapped import map_file, read_failed
from caffe_compat.writing import new_file

LARGEST = 2**30
"""Bytes of a list."""
LABEL = re.compile(rb"[-+]?\d{1,10}")
_FORM = 'write lines "file label", with an integer after the last space'


@dataclass(frozen=True)
class ImageList:
    """Names of image files and their labels.

    Attributes:
        names: in the order of the list.
        labels: (n) int32.
        source: the list's own name.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int32]
    source: str = "<list>"


def read_list(path: Path) -> ImageList:
    """Read a list of images. The label stands after the last space, so names may have spaces; blank lines count not.

    Caffe gives a line without a number the label 0; here that is an error.

    Raises:
        VggcError: there is no such file, or it may not be read.
        TextError: a line has no label, or there is no line.
    """
    source = str(path)
    data = map_file(path)
    if len(data) > LARGEST:
        what = f"{len(data):,} bytes of text; a list of images has at most {LARGEST:,}"
        raise VggcError(what, where=source, remedy="name the list, not a data file")
    entries = list(_entries(data[:], source))
    if not entries:
        raise TextError("this list names no image", where=source, remedy=_FORM)
    names, labels = zip(*entries, strict=True)
    return ImageList(names, np.array(labels, np.int32), source)


def _entries(text: bytes, source: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(text.split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        if not line.strip():
            continue
        name, _, label = line.rpartition(b" ")
        where = Where(source, number, len(name) + 2 if name else 1)
        shown = line[:80].decode(errors="backslashreplace")
        if not name.strip() or not LABEL.fullmatch(label):
            raise TextError(f'no label: "{shown}"', where=where, remedy=_FORM)
        if not -(2**31) <= int(label) < 2**31:
            raise TextError(f"the label {int(label)} is no 32-bit integer", where=where, remedy=_FORM)
        if b"\0" in name:
            raise TextError("a name with a zero byte", where=where, remedy=_FORM)
        yield name.decode(errors="surrogateescape"), int(label)


# -- folders ---------------------------------------------------------------------------------------------------

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".jp2")


@dataclass(frozen=True)
class ClassFolders:
    """Images in one folder a class.

    Attributes:
        images: names relative to the folder; labels count the classes from 0.
        classes: the folders' names, sorted.
        passed_over: files that are no images by their endings.
    """

    images: ImageList
    classes: tuple[str, ...]
    passed_over: tuple[str, ...]


def list_folders(folder: Path) -> ClassFolders:
    """The images in the folders of a folder, sorted by name; hidden files and folders are not looked at.

    Raises:
        VggcError: there is no such folder, or it may not be read.
        FormatError: it has no folders, or they hold no images.
    """
    try:
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and _shown(entry.name))
        files = [(name, label) for label, kind in enumerate(classes) for name in _files(folder, kind)]
    except OSError as error:
        raise read_failed(str(folder), error) from error
    images = [(name, label) for name, label in files if name.lower().endswith(ENDINGS)]
    if not images:
        remedy = "put the images into one folder a class, or give a list of files and labels"
        raise FormatError("no images in folders of this folder", where=str(folder), remedy=remedy)
    names, labels = zip(*images, strict=True)
    others = tuple(name for name, _ in files if not name.lower().endswith(ENDINGS))
    return ClassFolders(ImageList(names, np.array(labels, np.int32), str(folder)), tuple(classes), others)


def _files(folder: Path, kind: str) -> list[str]:
    """Every file below a folder of a class, sorted, relative to `folder`."""
    found = []
    for place, folders, files in os.walk(folder / kind, onerror=_raise):
        folders[:] = filter(_shown, folders)
        found += [os.path.relpath(os.path.join(place, name), folder) for name in filter(_shown, files)]
    return sorted(found)


def _shown(name: str) -> bool:
    return not name.startswith(".")


def _raise(error: OSError) -> None:
    raise error


def write_list(images: ImageList, path: Path) -> None:
    """Write a list of images that `read_list` and Caffe read.

    Raises:
        VggcError: it cannot be written.
    """
    with new_file(path) as file:
        for name, label in zip(images.names, images.labels.tolist(), strict=True):
            file.write(f"{name} {label}\n".encode(errors="surrogateescape"))
