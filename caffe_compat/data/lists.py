"""Lists of images, as convert_imageset and ImageData read them: lines "file label"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import TextError, VggcError, Where
from caffe_compat.mapped import map_file

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
