"""Databases in the making, as convert_imageset writes them (db_lmdb.cpp, db_leveldb.cpp)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from caffe_compat.data.leveldb_folder import OPTIONS, plyvel
from caffe_compat.errors import FormatError, VggcError

Pairs = Sequence[tuple[bytes, bytes]]
MAP_SIZE = 2**30
"""Bytes that an LMDB database may have at first; it is doubled as often as needed."""
FORMAT = (0, 9)
"""The LMDB library whose files Caffe reads; 1.0 writes others."""


class RecordWriter(Protocol):
    """An open database; records are added in the order of their keys."""

    def last_key(self) -> bytes | None:
        """The key written last, None when there is no record."""

    def put(self, records: Pairs) -> None:
        """Add records, all or none of them, so that they outlast a crash.

        Raises:
            VggcError: they cannot be written.
        """

    def close(self) -> None:
        """Finish."""


class LmdbWriter:
    """Writes an LMDB folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.library = path, _lmdb()
        with writing(path, self.library):
            self.database = self.library.open(str(path), map_size=MAP_SIZE, mode=0o664)

    def last_key(self) -> bytes | None:
        with self.database.begin() as view, view.cursor() as cursor:
            return bytes(cursor.key()) if cursor.last() else None

    def put(self, records: Pairs) -> None:
        with writing(self.path, self.library):
            while not self._fits(records):
                self.database.set_mapsize(2 * self.database.info()["map_size"])

    def _fits(self, records: Pairs) -> bool:
        try:
            with self.database.begin(write=True) as view:
                for key, value in records:
                    view.put(key, value, append=True)
        except self.library.MapFullError:
            return False
        return True

    def close(self) -> None:
        self.database.close()


class LevelWriter:
    """Writes a LevelDB folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.library = path, plyvel()
        with writing(path, self.library):
            self.database = self.library.DB(str(path), create_if_missing=True, **OPTIONS)

    def last_key(self) -> bytes | None:
        with writing(self.path, self.library), self.database.raw_iterator() as walk:
            walk.seek_to_last()
            return bytes(walk.key()) if walk.valid() else None

    def put(self, records: Pairs) -> None:
        with writing(self.path, self.library), self.database.write_batch(sync=True) as batch:
            for key, value in records:
                batch.put(key, value)

    def close(self) -> None:
        self.database.close()


WRITERS: dict[str, Callable[[Path], RecordWriter]] = {"lmdb": LmdbWriter, "leveldb": LevelWriter}


def _lmdb() -> Any:
    """The package that writes LMDB.

    Raises:
        FormatError: it is not installed, or writes a format that Caffe does not read.
    """
    try:
        lmdb = importlib.import_module("lmdb")
    except ImportError as error:
        what = "LMDB databases are written with the lmdb package, which is not installed"
        raise FormatError(what, remedy="pip install 'vggc[data]', or write LevelDB (--backend leveldb)") from error
    if lmdb.version()[:2] != FORMAT:
        what = f"the lmdb package has LMDB {'.'.join(map(str, lmdb.version()))}, whose files Caffe cannot read"
        raise FormatError(what, remedy="install one with LMDB 0.9, or write LevelDB (--backend leveldb)")
    return lmdb


@contextmanager
def writing(path: Path, library: Any) -> Iterator[None]:
    """Errors of a database's library and of the file system become errors with a remedy."""
    try:
        yield
    except (library.Error, OSError) as error:
        what = f"cannot be written: {error}"
        raise VggcError(what, where=str(path), remedy="see that there is room, and run the command again") from error
