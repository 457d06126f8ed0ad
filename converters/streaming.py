"""Writing large files atomically: payload bytes go from the source to the target inside the kernel.

A target is written under a temporary name beside it, flushed to disk, and renamed when all targets are complete. Its
sha256 is computed meanwhile in a thread of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import VggcError
from caffe_compat.mapped import read_failed
from caffe_compat.weights import Blob
from caffe_compat.writing import create_part, write_failed

CHUNK = 8 << 20
"""Bytes between two calls of a progress function, and the most that are copied in memory."""
PIECE = 1 << 18
"""Bytes hashed at a time: they stay in the processor's cache."""
SMALL = 1 << 16
"""Bytes up to which data is copied for the hashing thread; for more it is waited for."""
Progress = Callable[[int], None]


class Digest:
    """sha256 of bytes given one after the other, computed in a thread of its own."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "sha256")
        self._tasks: list[Future[None]] = []
        self._stopped = False

    def update(self, data: memoryview) -> Future[None]:
        """Add bytes from memory, which must not change until the result is there."""
        task = self._thread.submit(self._hash.update, data)
        self._tasks.append(task)
        return task

    def read(self, descriptor: int, offset: int, size: int) -> None:
        """Add bytes of an open file, which must stay open."""
        self._tasks.append(self._thread.submit(self._read, descriptor, offset, size))

    def _read(self, descriptor: int, offset: int, size: int) -> None:
        buffer = bytearray(min(PIECE, size))
        view, end = memoryview(buffer), offset + size
        while offset < end and not self._stopped:
            count = os.preadv(descriptor, [view[: end - offset]], offset)
            if not count:
                raise OSError("a file became shorter while it was read")
            self._hash.update(view[:count])
            offset += count

    def hexdigest(self) -> str:
        """Wait for the thread, end it and give the digest."""
        self._thread.shutdown()
        for task in self._tasks:
            task.result()
        return self._hash.hexdigest()

    def stop(self) -> None:
        """End the thread early; no file is read after this."""
        self._stopped = True
        self._thread.shutdown(cancel_futures=True)


class Target:
    """A file in the making: a context that leaves nothing behind unless `rename` was called.

    Bytes are appended with `write` and `copy`, and hashed on the way; or another library makes the file through
    `file`, `place` and `copy` fill in values, and the file is hashed at the end.

    Args:
        path: the final name.
        progress: called with the number of bytes just written.

    Attributes:
        size, sha256: of the complete file, after `finish`.
        companions: files that are renamed just before this one, because it refers to them.

    Raises:
        VggcError: the file cannot be written; whatever stood under `path` is untouched.
    """

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        self.size = 0
        self.sha256 = ""
        self.companions: list[Target] = []
        self._progress = progress or (lambda _n: None)
        self._digest: Digest | None = Digest()
        self._descriptor = -1
        self._temporary: Path | None = None

    def __enter__(self) -> Target:
        try:
            self._descriptor, self._temporary = create_part(self.path, self._named)
        except OSError as error:
            self._temporary = None
            raise write_failed(self.path, error) from error
        return self

    def _named(self, temporary: Path) -> None:
        self._temporary = temporary

    @property
    def part(self) -> Path:
        """Where the file lies until it is renamed."""
        assert self._temporary is not None
        return self._temporary

    def companion(self) -> Target:
        """Another file that belongs to this one; its `path` is to be set before this one is finished."""
        made = Target(self.path, self._progress)
        self.companions.append(made)
        return made.__enter__()

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview, *, lasting: bool = False) -> None:
        """Append bytes from memory; when they are `lasting`, not to be changed, their hash is not waited for."""
        view = memoryview(data).cast("B")
        hashed = self._digest and self._digest.update(view if len(view) > SMALL else memoryview(bytes(view)))
        _write_all(self._descriptor, view)
        self._count(len(view))
        if hashed and len(view) > SMALL and not lasting:
            hashed.result()

    def copy(self, source: int, offset: int, size: int) -> None:
        """Append bytes of another open file."""
        if self._digest:
            self._digest.read(source, offset, size)
        for start in range(offset, offset + size, CHUNK):
            part = min(CHUNK, offset + size - start)
            _copy_range(source, self._descriptor, start, part)
            self._count(part)

    def file(self) -> BinaryIO:
        """The file for another library, to be closed before anything else is written; it takes all bytes of a call."""
        self._hash_later()
        return os.fdopen(os.dup(self._descriptor), "r+b")

    def place(self, at: int) -> None:
        """Go to a byte of the file; `copy` and `write` then overwrite from there."""
        self._hash_later()
        os.lseek(self._descriptor, at, os.SEEK_SET)

    def _hash_later(self) -> None:
        if self._digest:
            self._digest.stop()
            self._digest = None

    def _count(self, n: int) -> None:
        self.size += n
        self._progress(n)

    # -- the end -------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Flush to disk, and complete the hash."""
        self.size = os.fstat(self._descriptor).st_size
        if self._digest is None:
            self._digest = Digest()
            self._digest.read(self._descriptor, 0, self.size)
        os.fsync(self._descriptor)
        self.sha256 = self._digest.hexdigest()

    def rename(self) -> None:
        """Let the finished file take its place; nothing is changed when that fails."""
        for companion in self.companions:
            companion.rename()
        try:
            os.replace(self.part, self.path)
        except OSError as error:
            raise write_failed(self.path, error) from error
        _sync_folder(self.path.parent)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None) -> None:
        for companion in self.companions:
            companion.__exit__(None, None, None)
        if self._digest:
            self._digest.stop()
        if self._temporary:
            self._temporary.unlink(missing_ok=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        if isinstance(error, OSError):
            raise write_failed(self.path, error) from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system allows it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def _copy_range(source: int, target: int, offset: int, size: int) -> None:
    """Copy inside the kernel; where that is not possible, through memory."""
    end = offset + size
    with contextlib.suppress(OSError, AttributeError):
        while offset < end and (copied := os.copy_file_range(source, target, end - offset, offset)):
            offset += copied
    while offset < end:
        data = os.pread(source, min(end - offset, PIECE), offset)
        if not data:
            raise OSError("a file became shorter while it was read")
        _write_all(target, memoryview(data))
        offset += len(data)


class Source:
    """An open file whose runs of bytes are copied to targets."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise read_failed(path, error) from error
        self._state = _state(os.fstat(self.descriptor))
        self._digest: Digest | None = None

    def hash(self) -> None:
        """Start to hash the whole file."""
        self._digest = Digest()
        self._digest.read(self.descriptor, 0, os.fstat(self.descriptor).st_size)

    def sha256(self) -> str:
        """The hash that was started."""
        return self._digest.hexdigest() if self._digest else ""

    def check(self) -> None:
        """See to it that the file is still the one that was opened, unchanged.

        Raises:
            VggcError: it is not.
        """
        with contextlib.suppress(OSError):
            if _state(os.stat(self.path)) == _state(os.fstat(self.descriptor)) == self._state:
                return
        raise VggcError("the file was changed while it was read", where=self.path, remedy="run it again")

    def close(self) -> None:
        if self._digest:
            self._digest.stop()
        os.close(self.descriptor)


def _state(status: os.stat_result) -> tuple[int, ...]:
    """What tells one state of a file from another."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Payloads:
    """Copies blobs to targets: runs of a file inside the kernel, everything else from memory. A context."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}

    def __enter__(self) -> Payloads:
        return self

    def __exit__(self, *_error: object) -> None:
        for source in self._sources.values():
            source.close()

    def source(self, path: str) -> Source:
        """The open file of that name.

        Raises:
            VggcError: it cannot be read.
        """
        if path not in self._sources:
            self._sources[path] = Source(path)
        return self._sources[path]

    def check(self) -> None:
        """See to it that no source was changed.

        Raises:
            VggcError: one was.
        """
        for source in self._sources.values():
            source.check()

    def send(self, blob: Blob, target: Target) -> None:
        """Append the blob's values, little endian, in their own type."""
        if blob.path and blob.values.nbytes:
            target.copy(self.source(blob.path).descriptor, blob.offset, blob.values.nbytes)
            return
        for part in parts(blob.values):
            target.write(part)


def parts(values: NDArray[Any]) -> Iterator[memoryview]:
    """The bytes of flat values, little endian, a piece at a time; without a copy where they lie so."""
    step = CHUNK // values.itemsize
    little = values.dtype.newbyteorder("<")
    for start in range(0, values.size, step):
        yield np.ascontiguousarray(values[start : start + step], dtype=little).data.cast("B")
