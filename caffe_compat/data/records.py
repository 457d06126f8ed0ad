"""Databases that data layers read: records in the order of their keys, from the first again after the last."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from caffe_compat.data.leveldb_folder import LevelDatabase
from caffe_compat.data.lmdb_pages import FILE, LmdbDatabase
from caffe_compat.errors import FormatError

CURRENT = "CURRENT"
"""The file that every LevelDB folder has."""


class Record(NamedTuple):
    """A key and what is stored under it."""

    key: bytes
    value: bytes

    @property
    def name(self) -> str:
        """The key for messages."""
        return self.key.decode(errors="backslashreplace")


class Database(Protocol):
    """A database that is read and never changed.

    Attributes:
        path: its folder.
        kind: "LMDB" or "LevelDB".
    """

    path: Path
    kind: str

    def items(self, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values in the order of the keys, all or those behind a key.

        Raises:
            FormatError: it is damaged, or has no such key.
        """

    def spans(self) -> Iterator[tuple[bytes, mmap.mmap | bytes, int, int]]:
        """Keys, and where their values lie: in what, from where and up to where; good until the next step.

        Raises:
            FormatError: it is damaged.
        """

    def fetch(self, key: bytes, start: int, end: int) -> bytes:
        """The value that `spans` has told of, from any thread.

        Raises:
            FormatError: it is damaged.
        """

    def count(self) -> int | None:
        """The number of records; None when all would have to be read for it."""

    def close(self) -> None:
        """Let go of the files."""


def open_database(path: Path) -> Database:
    """A database of either kind; which it is, its files say.

    Raises:
        FormatError: it is not there, is no database, is damaged, or another process writes to it.
    """
    if not path.exists():
        raise FormatError("no such database", where=str(path), remedy="check the path, or write it (vggc data convert)")
    return _opener(path)(path)


def is_database(path: Path) -> bool:
    """Whether a folder looks like a database."""
    return (path / FILE).is_file() or (path / CURRENT).is_file()


def _opener(path: Path) -> Callable[[Path], Database]:
    if path.is_file() or (path / FILE).is_file():
        return LmdbDatabase
    if (path / CURRENT).is_file():
        return LevelDatabase
    what = f"this folder is no database: it has neither {FILE} (LMDB) nor {CURRENT} (LevelDB)"
    raise FormatError(what, where=str(path), remedy="name the folder that convert_imageset or vggc data convert wrote")


class Records:
    """A place in a database, which starts at the first record."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._items = database.items()
        self._ahead: Record | None = None
        self._last: bytes | None = None

    def place(self) -> str:
        """Where it stands: the key of the last record that was taken, in hexadecimal digits; "" at the beginning."""
        return "" if self._last is None else self._last.hex()

    def go_to(self, place: str) -> None:
        """Stand where `place` told.

        Raises:
            FormatError: the database has no such record, or is damaged.
            ValueError: these are no such digits.
        """
        self._last = bytes.fromhex(place) if place else None
        self._items, self._ahead = self.database.items(self._last), None
        self.peek()

    def peek(self) -> Record:
        """The record that `take` gives next.

        Raises:
            FormatError: the database is damaged, or holds no record.
        """
        if self._ahead is None:
            self._ahead = self._read()
        return self._ahead

    def take(self, count: int) -> list[Record]:
        """The next records, from the first again after the last; raises as `peek`."""
        return [self._next() for _ in range(count)]

    def skip(self, count: int) -> None:
        """Go on by so many records; raises as `peek`."""
        for _ in range(count):
            self._next()

    def _next(self) -> Record:
        record, self._ahead = self.peek(), None
        self._last = record.key
        return record

    def _read(self) -> Record:
        item = next(self._items, None)
        if item is None:
            self._items = self.database.items()
            item = next(self._items, None)
        if item is None:
            remedy = "write the records into it"
            raise FormatError("this database holds no record", where=str(self.database.path), remedy=remedy)
        return Record(*item)


def open_records(path: Path) -> Records:
    """The records of a database folder; raises as `open_database`."""
    return Records(open_database(path))
