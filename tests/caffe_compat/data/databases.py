"""Small databases for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lmdb


def write_lmdb(folder: Path, values: Sequence[bytes]) -> Path:
    """An LMDB folder with the values in that order."""
    with lmdb.open(str(folder), map_size=2**24) as database, database.begin(write=True) as transaction:
        for index, value in enumerate(values):
            transaction.put(f"{index:08d}".encode(), value)
    (folder / "lock.mdb").unlink()
    return folder
