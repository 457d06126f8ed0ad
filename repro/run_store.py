"""What an evaluation keeps in its run folder: posteriors of single images, which any process may add to at any time.

    run.json                      which images
    <model>/model.json            which model, how it was run
    <model>/<pass>-q<Q>.<rank>    records, added at the end

A file of records has a header of 16 bytes, b"VGGCEVAL" and the number of values (uint64), then records: the image's
index (uint32), the CRC-32 of the values (uint32), the values (float32), all little-endian. A process that is ended at
any moment leaves whole records and at most one that is not, which is dropped when the file is opened again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import FormatError, VggcError
from caffe_compat.writing import new_file, write_failed

MAGIC = b"VGGCEVAL"
HEADER = struct.Struct("<8sQ")
FORMAT = 1
CHUNK = 4096
"""Records that are checked at once."""

Floats = NDArray[np.float32]


def record(values: int) -> np.dtype[np.void]:
    """One record."""
    return np.dtype([("index", "<u4"), ("crc", "<u4"), ("values", "<f4", (values,))])


class RunStore:
    """A run folder for the images of one set.

    Args:
        folder: made when it is not there.
        names: of the images, in order.
        source: where the images are, for people.

    Raises:
        VggcError: it holds another run, or cannot be written.
    """

    def __init__(self, folder: Path, names: Sequence[str], source: str) -> None:
        self.folder, self.count = folder, len(names)
        digest = hashlib.sha256()
        for name in names:
            digest.update(name.encode(errors="surrogateescape") + b"\0")
        told = {"format": FORMAT, "images": self.count, "names_sha256": digest.hexdigest(), "source": source}
        path = folder / "run.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists() and any(entry.name != path.name for entry in folder.iterdir() if _visible(entry)):
                raise VggcError("this folder is not empty", where=str(folder), remedy="name another run folder (--out)")
        except OSError as error:
            raise write_failed(folder, error) from error
        found = read_table(path) if path.exists() else None
        if found is None:
            write_table(path, told)
        elif {**found, "source": ""} != {**told, "source": ""}:
            what = f"this run is of other images: {found.get('images')} of {found.get('source')}"
            raise VggcError(what, where=str(folder), remedy="name another run folder (--out)")

    def model(self, key: str, about: Mapping[str, Any]) -> ModelStore:
        """The part for one model run in one way; `key` follows from both."""
        folder = self.folder / key
        folder.mkdir(exist_ok=True)
        path = folder / "model.json"
        if not path.exists():
            write_table(path, about)
        return ModelStore(folder, self.count)


def _visible(entry: Path) -> bool:
    return not entry.name.startswith(".")


class ModelStore:
    """The results of one model."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    @property
    def about(self) -> dict[str, Any]:
        """What is said of the model."""
        return read_table(self.folder / "model.json")

    def say(self, **entries: Any) -> None:
        """Say more of the model."""
        write_table(self.folder / "model.json", {**self.about, **entries})

    def results(self, name: str, scale: int) -> Results:
        """What is there of a pass at a scale.

        Raises:
            FormatError: a file is damaged before its end.
        """
        files = sorted(self.folder.glob(f"{name}-q{scale}.*"))
        return Results(files, self.count)

    def adding(self, name: str, scale: int, rank: int, values: int) -> Adding:
        """A file to add records to.

        Raises:
            VggcError: another process adds to it, or it cannot be written.
        """
        return Adding(self.folder / f"{name}-q{scale}.{rank}", values)


def read_table(path: Path) -> dict[str, Any]:
    """A JSON table.

    Raises:
        FormatError: it is damaged.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"cannot be read: {error}", where=str(path), remedy="name another run folder") from error
    if not isinstance(found, dict):
        raise FormatError("this is no table", where=str(path), remedy="name another run folder")
    return found


def write_table(path: Path, entries: Mapping[str, Any]) -> None:
    """Write a JSON table, which is never seen half."""
    with new_file(path) as file:
        file.write(json.dumps(entries, indent=2, sort_keys=True).encode() + b"\n")


class Adding:
    """A file of records that is added to; locked while it is open."""

    def __init__(self, path: Path, values: int) -> None:
        self.path, self.values, self._type = path, values, record(values)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._mend()
        except BlockingIOError as error:
            what = "another process is adding to this run"
            raise VggcError(what, where=str(path), remedy="wait until it is done") from error
        except OSError as error:
            raise write_failed(path, error) from error

    def _mend(self) -> None:
        """Write the header, or drop the record that was not completed."""
        size = os.fstat(self._file).st_size
        if size < HEADER.size:
            os.ftruncate(self._file, 0)
            os.write(self._file, HEADER.pack(MAGIC, self.values))
            return
        header = os.pread(self._file, HEADER.size, 0)
        if HEADER.unpack(header) != (MAGIC, self.values):
            what = f"this file does not hold records of {self.values} values"
            raise FormatError(what, where=str(self.path), remedy="name another run folder (--out)")
        whole = (size - HEADER.size) // self._type.itemsize
        os.ftruncate(self._file, HEADER.size + whole * self._type.itemsize)
        os.lseek(self._file, 0, os.SEEK_END)

    def add(self, index: int, values: NDArray[np.floating]) -> None:
        """Add a record.

        Raises:
            VggcError: it cannot be written.
        """
        one = np.zeros(1, self._type)
        one["index"], one["values"] = index, values
        one["crc"] = zlib.crc32(one["values"].tobytes())
        data = memoryview(one.tobytes())
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise write_failed(self.path, error) from error

    def close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)


class Results:
    """The records of several files as one table; they stay in the files.

    Attributes:
        places: (images) where an image's record is, -1 where there is none.
        values: in each record; 0 when there are no files.
    """

    def __init__(self, files: Sequence[Path], count: int) -> None:
        self.places = np.full(count, -1, np.int64)
        self._name = str(files[0].parent) if files else ""
        self.values, self._starts = 0, [0]
        self._parts: list[np.memmap[Any, Any]] = []
        for path in files:
            part = _records(path)
            if part is None:
                continue
            self.values = self.values or part.dtype["values"].shape[0]
            if part.dtype["values"].shape[0] != self.values:
                what = f"records of another number of values than the {self.values} of the files beside it"
                raise FormatError(what, where=str(path), remedy="name another run folder (--out)")
            self._take(part, path)

    def _take(self, part: np.memmap[Any, Any], path: Path) -> None:
        kept = _sound(part, path)
        indices = part["index"][:kept].astype(np.int64)
        if kept and int(indices.max()) >= len(self.places):
            raise FormatError("a record of an image that is not in the set", where=str(path), remedy="remove the file")
        self.places[indices] = self._starts[-1] + np.arange(kept)
        self._parts.append(part)
        self._starts.append(self._starts[-1] + kept)

    def missing(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the images that have no record."""
        return indices[self.places[indices] < 0]

    def rows(self, indices: NDArray[np.int64]) -> Floats:
        """The values of some images.

        Raises:
            VggcError: one has no record.
        """
        places = self.places[indices]
        if (places < 0).any():
            what = f"{int((places < 0).sum())} image(s) have no result"
            raise VggcError(what, where=self._name, remedy="run it again; what is there is kept")
        found = np.empty((len(indices), self.values), np.float32)
        for number, part in enumerate(self._parts):
            start, end = self._starts[number : number + 2]
            here = (places >= start) & (places < end)
            found[here] = part["values"][places[here] - start]
        return found


def _records(path: Path) -> np.memmap[Any, Any] | None:
    """The whole records of a file, mapped; None when there are none."""
    size = path.stat().st_size
    if size < HEADER.size:
        return None
    with open(path, "rb") as file:
        magic, values = HEADER.unpack(file.read(HEADER.size))
    if magic != MAGIC or not 0 < values < 2**31:
        raise FormatError("this is no file of results", where=str(path), remedy="name another run folder (--out)")
    kind = record(values)
    whole = (size - HEADER.size) // kind.itemsize
    return np.memmap(path, kind, "r", HEADER.size, (whole,)) if whole else None


def _sound(part: np.memmap[Any, Any], path: Path) -> int:
    """How many records count: all, or all but a last one that a crash of the machine has spoilt.

    Raises:
        FormatError: one before the last is spoilt.
    """
    check: Callable[[np.void], bool] = lambda one: zlib.crc32(one["values"].tobytes()) == int(one["crc"])  # noqa: E731
    for start in range(0, len(part), CHUNK):
        for offset, one in enumerate(np.asarray(part[start : start + CHUNK])):
            if check(one):
                continue
            if start + offset == len(part) - 1:
                return start + offset
            what = f"record {start + offset} is damaged"
            raise FormatError(what, where=str(path), remedy="remove the file; its images are run again")
    return len(part)
