"""LMDB databases, read page by page from the mapped file.

The lmdb package trusts the pages: a damaged one ends the process with SIGBUS. Here every offset is checked before it is
followed; nothing is locked or written, and the same database may be read at any number of places. Format: version 1 of
LMDB's data format (liblmdb 0.9, mdb.c), little endian, 64 bits.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from struct import Struct, error
from typing import NamedTuple

from caffe_compat.errors import BinaryError, FormatError, Where
from caffe_compat.mapped import map_file

FILE = "data.mdb"
MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, OVERFLOW, DUPLICATES = 1, 2, 4, 32
"""Flags of pages."""
ELSEWHERE = 1
"""Flag of a node whose value fills pages of its own."""
HEADER = 16
DEEPEST = 32
NONE = 2**64 - 1

_META = Struct("<16xII16xI50xH24xQQQQ")  # magic, version, page size, main tree: depth, entries, root; last page, txn
_PAGE = Struct("<QHHHH")  # number, -, flags, end of the pointers, start of the nodes
_NODE = Struct("<HHHH")  # size or page (low, high), flags, key size
_DAMAGED = "fetch it anew, or write it again"


class Meta(NamedTuple):
    """What a meta page says."""

    magic: int
    version: int
    page_size: int
    depth: int
    entries: int
    root: int
    last_page: int
    transaction: int


def no_key(path: Path, key: bytes) -> FormatError:
    """A database is not the one that a record was read from."""
    what = f'this database has no record "{key.decode(errors="backslashreplace")}", where a reader had stopped'
    return FormatError(what, where=str(path), remedy="use the same database, or start from the beginning")


class LmdbDatabase:
    """The records of an LMDB folder, or of its data file.

    Args:
        path: the folder, or the file.

    Raises:
        FormatError: it is no LMDB database, of another version, or cut off.
    """

    kind = "LMDB"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = str(path / FILE if path.is_dir() else path)
        self.data: mmap.mmap = map_file(self.file)
        self.meta = self._meta()

    def count(self) -> int:
        return self.meta.entries

    def close(self) -> None:
        self.data.close()

    def items(self, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        spans = self.spans()
        if after is not None and all(key != after for key, *_ in spans):
            raise no_key(self.path, after)
        for key, _, start, end in spans:
            yield key, bytes(self.data[start:end])

    def fetch(self, key: bytes, start: int, end: int) -> bytes:
        return bytes(self.data[start:end])

    def spans(self) -> Iterator[tuple[bytes, mmap.mmap, int, int]]:
        if self.meta.root == NONE:
            return
        budget = [self.meta.last_page + 1]  # a tree reads no page twice
        try:
            for key, start, end in self._tree(self.meta.root, 1, budget):
                yield key, self.data, start, end
        except (error, ValueError) as problem:
            raise self._damaged(self.meta.root, str(problem)) from problem

    # -- pages ---------------------------------------------------------------------------------------------

    def _meta(self) -> Meta:
        """The newer of the two meta pages."""
        first = self._meta_at(0)
        size = first.page_size
        fine = size >= 512 and size & (size - 1) == 0 and size <= 65536
        if not fine:
            raise self._damaged(0, f"pages of {size} bytes")
        newer = max(first, self._meta_at(size), key=lambda meta: meta.transaction)
        wanted = (newer.last_page + 1) * size
        if len(self.data) < wanted:
            what = f"this database is cut off: {len(self.data):,} of {wanted:,} bytes"
            raise BinaryError(what, where=Where(self.file, offset=len(self.data)), remedy=_DAMAGED)
        return newer

    def _meta_at(self, offset: int) -> Meta:
        try:
            meta = Meta(*_META.unpack_from(self.data, offset))
        except error:
            raise BinaryError(
                "this is no LMDB database", where=Where(self.file, offset=offset), remedy=_DAMAGED
            ) from None
        if meta.magic != MAGIC:
            raise BinaryError("this is no LMDB database", where=Where(self.file, offset=offset), remedy=_DAMAGED)
        if meta.version != VERSION:
            what = f"this database has LMDB's data format {meta.version}, Caffe's has {VERSION}"
            remedy = "write it again with LMDB 0.9 (mdb_dump, then mdb_load)"
            raise FormatError(what, where=self.file, remedy=remedy)
        return meta

    def _tree(self, page: int, depth: int, budget: list[int]) -> Iterator[tuple[bytes, int, int]]:
        """Every key under a page, and where its value lies."""
        start, flags, pointers = self._page(page, depth, budget)
        for pointer in pointers:
            low, high, node_flags, key_size = _NODE.unpack_from(self.data, start + pointer)
            key = start + pointer + _NODE.size
            if key + key_size > start + self.meta.page_size:
                raise self._damaged(page, f"a key of {key_size} bytes")
            if flags & BRANCH:
                yield from self._tree(low | high << 16 | node_flags << 32, depth + 1, budget)
            else:
                found = bytes(self.data[key : key + key_size])
                yield found, *self._value(page, key + key_size, low | high << 16, node_flags, budget)

    def _page(self, page: int, depth: int, budget: list[int]) -> tuple[int, int, tuple[int, ...]]:
        """Offset, flags and the nodes' offsets of a branch or leaf page."""
        size = self.meta.page_size
        budget[0] -= 1
        if page > self.meta.last_page or depth > DEEPEST or budget[0] < 0:
            raise self._damaged(page, f"a tree that has page {page} at depth {depth}")
        start = page * size
        number, _, flags, lower, upper = _PAGE.unpack_from(self.data, start)
        if number != page or flags & (BRANCH | LEAF | OVERFLOW | DUPLICATES) not in (BRANCH, LEAF):
            raise self._damaged(page, f"page {number} with flags {flags} as page {page}")
        if not HEADER <= lower <= upper <= size:
            raise self._damaged(page, f"{lower} to {upper} as its free space")
        count = (lower - HEADER) // 2
        pointers = Struct(f"<{count}H").unpack_from(self.data, start + HEADER)
        if any(pointer < upper or pointer + _NODE.size > size for pointer in pointers):
            raise self._damaged(page, "a node outside the page")
        return start, flags, pointers

    def _value(self, page: int, start: int, size: int, flags: int, budget: list[int]) -> tuple[int, int]:
        """Where the value of a leaf's node lies, whose data starts there."""
        if flags & ~ELSEWHERE:
            what = "this database has parts of its own (sub-databases or duplicate keys), which Caffe's have not"
            raise FormatError(what, where=self.file, remedy="name a database of Datum records")
        end = (page + 1) * self.meta.page_size
        if flags & ELSEWHERE:
            (other,) = Struct("<Q").unpack_from(self.data, start)
            pages = (HEADER - 1 + size) // self.meta.page_size + 1
            budget[0] -= pages
            if other + pages > self.meta.last_page + 1 or budget[0] < 0:
                raise self._damaged(page, f"a value of {size} bytes on page {other}")
            start, end = other * self.meta.page_size + HEADER, len(self.data)
        if start + size > end:
            raise self._damaged(page, f"a value of {size} bytes")
        return start, start + size

    def _damaged(self, page: int, what: str) -> BinaryError:
        offset = min(page * getattr(getattr(self, "meta", None), "page_size", 0), len(self.data))
        return BinaryError(f"this database is damaged: {what}", where=Where(self.file, offset=offset), remedy=_DAMAGED)
