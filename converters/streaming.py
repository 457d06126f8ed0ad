"""Writing large files atomically: payload bytes go from the mapped source to the target inside the kernel.

The target is written under a temporary name beside it, flushed to disk and renamed; its sha256 is computed by a
second thread from the same bytes, so nothing is read back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import VggcError
from caffe_compat.weights import Blob

CHUNK = 8 << 20
Progress = Callable[[int], None]


def write_failed(path: Path, error: OSError) -> VggcError:
    """An OSError while writing, as an error with a remedy."""
    remedies = {
        errno.ENOSPC: "free some space; nothing was changed",
        errno.EACCES: "choose a folder that you may write to",
        errno.EROFS: "choose a folder that you may write to",
        errno.ENOENT: "create the folder first",
    }
    remedy = remedies.get(error.errno or 0, "nothing was changed")
    return VggcError(f"cannot write: {error.strerror or error}", where=str(path), remedy=remedy)


class Digest:
    """sha256 of a stream, computed in a thread of its own."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | memoryview | None] = queue.Queue(maxsize=64)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (data := self._queue.get()) is not None:
            self._hash.update(data)

    def update(self, data: bytes | memoryview) -> None:
        self._queue.put(data)

    def hexdigest(self) -> str:
        """Wait for the thread and give the digest; once."""
        self._queue.put(None)
        self._thread.join()
        return self._hash.hexdigest()


class Target:
    """A file in the making: a context that renames on success and leaves nothing on failure.

    Bytes are appended with `write` and `copy`, and hashed on the way; or another library makes the file at
    `temporary`, `place` fills in values, and the file is hashed at the end.

    Args:
        path: the final name.
        progress: called with the number of bytes just written.

    Raises:
        VggcError: the file cannot be written; whatever stood under `path` is untouched.
    """

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        self.size = 0
        self.sha256 = ""
        self._progress = progress or (lambda _n: None)
        self._digest: Digest | None = None
        self._streamed = True

    def __enter__(self) -> Target:
        try:
            self._fd, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent)
        except OSError as error:
            raise write_failed(self.path, error) from error
        self.temporary = Path(name)
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes from memory."""
        view = memoryview(data).cast("B")
        self._hash(view)
        self._count(len(view))
        while view:
            view = view[os.write(self._fd, view) :]

    def copy(self, source: int, view: memoryview, offset: int) -> None:
        """Append `view`, which lies at `offset` of the open file `source`."""
        for done in range(0, len(view), CHUNK):
            part = view[done : done + CHUNK]
            self._hash(part)
            _copy_range(source, self._fd, offset + done, part)
            self._count(len(part))

    def place(self, at: int) -> None:
        """Go to a byte of the file that another library made; `copy` and `write` then overwrite from there."""
        self._streamed = False
        os.lseek(self._fd, at, os.SEEK_SET)

    def _hash(self, view: memoryview) -> None:
        if self._streamed:
            self._digest = self._digest or Digest()
            self._digest.update(view)

    def _count(self, n: int) -> None:
        self.size += n
        self._progress(n)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None) -> None:
        try:
            if error is None:
                self._finish()
        except OSError as failure:
            error = failure
        finally:
            os.close(self._fd)
        if error is None:
            return
        self.temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_failed(self.path, error) from error

    def _finish(self) -> None:
        """Flush, hash and rename."""
        os.fchmod(self._fd, 0o666 & ~_umask())
        whole = None if self._digest else Source(str(self.temporary))
        pending = whole.sha256() if whole else None
        os.fsync(self._fd)
        self.size = os.fstat(self._fd).st_size
        self.sha256 = pending.result() if pending else self._digest.hexdigest()  # type: ignore[union-attr]
        os.replace(self.temporary, self.path)
        _sync_folder(self.path.parent)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system allows it."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _copy_range(source: int, target: int, offset: int, part: memoryview) -> None:
    """Copy inside the kernel; where that is not possible, from the mapping."""
    done = 0
    with contextlib.suppress(OSError, AttributeError):
        while done < len(part):
            copied = os.copy_file_range(source, target, len(part) - done, offset + done)
            if copied == 0:
                break
            done += copied
    while done < len(part):
        done += os.write(target, part[done:])


class Source:
    """A mapped file whose runs of bytes are copied to targets."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        size = os.fstat(self.fd).st_size
        self.view = memoryview(mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")

    def sha256(self) -> Future[str]:
        """Hash the whole file in a thread of its own."""
        return _HASHERS.submit(_sha256, self.view)


_HASHERS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sha256")


def _sha256(view: memoryview) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(view), CHUNK):
        digest.update(view[start : start + CHUNK])
    return digest.hexdigest()


class Payloads:
    """Copies blobs to a target: runs of a file inside the kernel, everything else from memory."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}

    def source(self, path: str) -> Source:
        if path not in self._sources:
            self._sources[path] = Source(path)
        return self._sources[path]

    def send(self, blob: Blob, target: Target) -> None:
        """Append the blob's values, little endian, in their own type."""
        nbytes = blob.values.nbytes
        if blob.path and nbytes:
            source = self.source(blob.path)
            target.copy(source.fd, source.view[blob.offset : blob.offset + nbytes], blob.offset)
            return
        for part in _parts(blob.values):
            target.write(part)


def _parts(values: NDArray[Any]) -> Iterator[memoryview]:
    step = CHUNK // max(values.itemsize, 1)
    little = values.dtype.newbyteorder("<")
    for start in range(0, values.size, step):
        yield np.ascontiguousarray(values[start : start + step], dtype=little).data.cast("B")
