"""Databases that data layers read: values in the order of their keys, from the first again after the last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from caffe_compat.errors import FormatError
from caffe_compat.schema import pb


class Records(Protocol):
    """A place in a database."""

    def peek(self) -> bytes:
        """The value that `take` gives next.

        Raises:
            FormatError: the database cannot be read, or is empty.
        """

    def take(self, count: int) -> list[bytes]:
        """The next `count` values.

        Raises:
            FormatError: the database cannot be read, or is empty.
        """


def open_records(path: Path, backend: int) -> Records:
    """The records of a database folder.

    Args:
        backend: DataParameter.DB.

    Raises:
        FormatError: the backend is not supported.
    """
    if backend != pb.DataParameter.LMDB:
        what = "LevelDB databases cannot be read"
        raise FormatError(
            what, where=str(path), remedy="write the records to an LMDB database, and state backend: LMDB"
        )
    return LmdbRecords(path)


class LmdbRecords:
    """The values of an LMDB folder. It is open only while a call reads it, and no lock file is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next: bytes | None = None

    def peek(self) -> bytes:
        with self._cursor() as cursor:
            return bytes(cursor.value())

    def take(self, count: int) -> list[bytes]:
        values = []
        with self._cursor() as cursor:
            for _ in range(count):
                values.append(bytes(cursor.value()))
                if not cursor.next():
                    cursor.first()
            self._next = bytes(cursor.key())
        return values

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        """At the next record."""
        import lmdb

        try:
            with (
                lmdb.open(str(self.path), readonly=True, lock=False, create=False) as database,
                database.begin() as view,
            ):
                cursor = view.cursor()
                if (
                    not (cursor.set_range(self._next) if self._next is not None else cursor.first())
                    and not cursor.first()
                ):
                    remedy = "write the records into it"
                    raise FormatError("this database holds no record", where=str(self.path), remedy=remedy)
                yield cursor
        except (lmdb.Error, OSError) as error:
            what, remedy = f"this is no LMDB database that can be read: {error}", "name the folder that has data.mdb"
            raise FormatError(what, where=str(self.path), remedy=remedy) from error
