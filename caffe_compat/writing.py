"""Writing files so that a half-written one is never seen under its name."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from caffe_compat.errors import VggcError

REMEDIES = {
    errno.ENOSPC: "free some space; nothing was changed",
    errno.EDQUOT: "free some space; nothing was changed",
    errno.EFBIG: "nothing was changed; write to a file system, or with a limit (ulimit -f), that allows such a size",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "choose a folder, not a file, to write into",
    errno.EISDIR: "name a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_STEM = 48
"""Characters of the target's name that its temporary name has; the longest name that fits stays below 255 bytes."""


def write_failed(path: Path, error: OSError) -> VggcError:
    """An OSError while writing, as an error with a remedy."""
    remedy = REMEDIES.get(error.errno or 0, "nothing was changed")
    return VggcError(f"cannot be written: {error.strerror or error}", where=str(path), remedy=remedy)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file in the making: it takes its place under `path` when the block ends well, and vanishes otherwise.

    Raises:
        VggcError: it cannot be written; whatever stood under `path` is untouched.
    """
    try:
        descriptor, temporary = create_part(path)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
                os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise write_failed(path, error) from error


def create_part(path: Path, told: Callable[[Path], object] = lambda _name: None) -> tuple[int, Path]:
    """A new file beside `path`, to be renamed to it: its descriptor, open for reading and writing, and its name.

    `told` is called with the name before there is such a file, for who must remove it whenever he is interrupted.
    It is locked for as long as the descriptor is open, so that another run can tell it from what a killed run left
    behind; such remains of the same target are removed.

    Raises:
        OSError: it cannot be made.
    """
    remove_remains(path)
    while True:
        temporary = path.with_name(f".{path.name[:_STEM]}.{secrets.token_hex(4)}.part")
        told(temporary)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        _lock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)  # another run has taken it for remains before it was locked


def remove_remains(path: Path) -> None:
    """Remove temporary files of `path` whose process is gone, whatever ended it."""
    ours = re.compile(rf"\.{re.escape(path.name[:_STEM])}\.[0-9a-f]{{8}}\.part")
    with os.scandir(path.parent) as entries:
        found = [entry.path for entry in entries if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
    for name in found:
        with suppress(OSError):
            _remove_unlocked(name)


def _remove_unlocked(name: str) -> None:
    descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            os.unlink(name)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    """Whether the lock was got; some network file systems have none."""
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True
