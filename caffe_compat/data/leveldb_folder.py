"""LevelDB databases, read without changing them."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from caffe_compat.data.lmdb_pages import no_key
from caffe_compat.errors import BinaryError, FormatError

TABLES = (".ldb", ".sst")
"""Endings of files that never change once they are written."""
CHANGING = ("CURRENT", "MANIFEST-")
LOG = ".log"
OPTIONS = {"write_buffer_size": 2**28, "block_size": 2**16, "max_open_files": 100}
"""Those of db_leveldb.cpp."""


def plyvel() -> Any:
    """The package that reads and writes LevelDB.

    Raises:
        FormatError: it is not installed.
    """
    try:
        import plyvel
    except ImportError as error:
        what = "LevelDB databases are read with plyvel, which is not installed"
        raise FormatError(what, remedy="pip install 'vggc[data]'") from error
    return plyvel


class LevelDatabase:
    """The records of a LevelDB folder.

    LevelDB writes to a folder when it opens it, even to read. So it is given a hidden folder of links to the tables and
    copies of the small rest (the log holds up to 256 MiB); that folder vanishes with `close`, or with this object.

    Args:
        path: the folder.

    Raises:
        FormatError: it is no LevelDB database, damaged, or in use by another process; plyvel is not installed.
    """

    kind = "LevelDB"

    def __init__(self, path: Path) -> None:
        self.path = path
        library = plyvel()
        refuse_locked(path)
        view = Path(tempfile.mkdtemp(prefix=".vggc-leveldb-"))
        self._open: list[Any] = []  # what must be closed, last first; plyvel crashes when a database goes before a walk
        self._finalizer = weakref.finalize(self, _remove, view, self._open)
        try:
            with reading(path):
                _fill(view, path)
                self._open.append(library.DB(str(view), create_if_missing=False, paranoid_checks=True, **OPTIONS))
        except BaseException:
            self.close()
            raise

    def count(self) -> None:
        return None

    def close(self) -> None:
        self._finalizer()

    def spans(self) -> Iterator[tuple[bytes, bytes, int, int]]:
        for key, value in self.items():
            yield key, value, 0, len(value)

    def fetch(self, key: bytes, start: int, end: int) -> bytes:
        with reading(self.path):
            value: bytes = self._open[0].get(key, verify_checksums=True, fill_cache=False)
        return value

    def items(self, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        with reading(self.path):
            # Not `iterator`, which ends without an error where a table cannot be read.
            walk = self._open[0].raw_iterator(verify_checksums=True, fill_cache=False)
            self._open.append(walk)
            if after is None:
                walk.seek_to_first()
            else:
                walk.seek(after)
                if not walk.valid() or walk.key() != after:
                    raise no_key(self.path, after)
                walk.next()
            while walk.valid():
                yield walk.key(), walk.value()
                walk.next()
            self._open.remove(walk)
            walk.close()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of plyvel and of the file system while reading a folder.

    Raises:
        FormatError: in their place.
    """
    library = plyvel()
    try:
        yield
    except library.CorruptionError as error:
        what = f"this LevelDB database is damaged: {_told(error)}"
        raise BinaryError(what, where=str(path), remedy="fetch it anew, or write it again") from error
    except library.Error as error:
        what = f"this LevelDB database cannot be read: {_told(error)}"
        raise FormatError(what, where=str(path), remedy="fetch it anew, or write it again") from error
    except OSError as error:
        what = f"this LevelDB database cannot be read: {error.strerror or error}"
        remedy = f"allow reading it, and leave room for its log in {tempfile.gettempdir()} (TMPDIR)"
        raise FormatError(what, where=str(path), remedy=remedy) from error


def refuse_locked(path: Path) -> None:
    """Look whether another process has the database open.

    Raises:
        FormatError: one has.
    """
    import fcntl

    with suppress(FileNotFoundError, PermissionError), open(path / "LOCK", "rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            what = "another process has this LevelDB database open"
            raise FormatError(what, where=str(path), remedy="wait until it is done") from error


def _told(error: Exception) -> str:
    """The library's message; it may hold names of files as bytes."""
    text = error.args[0] if error.args else ""
    return text.decode(errors="backslashreplace") if isinstance(text, bytes) else str(text)


def _fill(view: Path, path: Path) -> None:
    """Links and copies of the files that make up the database."""
    folder = path.resolve()
    for entry in sorted(os.listdir(folder)):
        if not (folder / entry).is_file():
            continue  # a pipe would never end
        if entry.endswith(TABLES):
            (view / entry).symlink_to(folder / entry)
        elif entry.startswith(CHANGING) or entry.endswith(LOG):
            shutil.copyfile(folder / entry, view / entry)


def _remove(view: Path, opened: list[Any]) -> None:
    while opened:
        opened.pop().close()
    shutil.rmtree(view, ignore_errors=True)
