"""Writing files so that a half-written one is never seen under its name."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from caffe_compat.errors import VggcError

REMEDIES = {
    errno.ENOSPC: "free some space; nothing was changed",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOENT: "create the folder first",
    errno.EISDIR: "name a file, not a folder",
}


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file in the making: it takes its place under `path` when the block ends well, and vanishes otherwise.

    Raises:
        VggcError: it cannot be written; whatever stood under `path` is untouched.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fchmod(descriptor, 0o666 & ~_umask())
                os.fsync(descriptor)
            os.replace(name, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "nothing was changed")
        raise VggcError(f"cannot be written: {error.strerror or error}", where=str(path), remedy=remedy) from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
