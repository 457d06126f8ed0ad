"""Files mapped into memory, and what a file is by its first bytes."""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Callable
from os import PathLike
from typing import NamedTuple

from caffe_compat.errors import BinaryError, FormatError, VggcError, Where

PathName = str | PathLike[str]

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]")  # tab, newline, form feed and carriage return are text
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def map_file(path: PathName) -> mmap.mmap:
    """The file mapped read-only; pages are loaded when they are touched and are shared between processes.

    Read-only rather than copy-on-write: a private writable map of a file larger than the memory may be refused,
    and a stray write into weights fails instead of passing unseen. The file must keep its length while it is used.

    Raises:
        VggcError: it does not exist, may not be read, or is a folder.
        FormatError: it is empty or not a regular file.
    """
    source = os.fspath(path)
    try:
        with open(_regular(source), "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise BinaryError("the file is empty", where=Where(source, offset=0), remedy="fetch it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise read_failed(source, error) from error


def _regular(source: str) -> str:
    """The same name when it is a regular file; a pipe or device would block or never end."""
    mode = os.stat(source).st_mode
    if stat.S_ISDIR(mode):
        raise VggcError("this is a folder", where=source, remedy="name a file in it")
    if not stat.S_ISREG(mode):
        raise FormatError("this is not a regular file", where=source, remedy="copy its contents to a file")
    return source


def read_failed(source: str, error: OSError | ValueError) -> VggcError:
    """An OSError while reading, as an error with a remedy."""
    if isinstance(error, FileNotFoundError):
        return VggcError("no such file", where=source, remedy="check the path")
    if isinstance(error, PermissionError):
        return VggcError("may not be read", where=source, remedy="change its permissions")
    text = error.strerror if isinstance(error, OSError) else str(error)
    return VggcError(f"cannot be read: {text}", where=repr(source) if "\0" in source else source)


class Kind(NamedTuple):
    """What a file turns out to be.

    Attributes:
        name: "HDF5", "zip", "text", ...; "" when nothing is recognised.
        remedy: what to do when that is not what was asked for.
    """

    name: str
    remedy: str = ""


def _at_start(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(prefixes)


def _hdf5(head: bytes) -> bool:
    return any(head.startswith(HDF5_SIGNATURE, offset) for offset in (0, 512, 1024, 2048))


def _html(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def _safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and head[6:8] == b"\0\0" and head[9:10] in b'"} \n'


def is_text(head: bytes) -> bool:
    """No control characters, or a byte order mark."""
    return head.startswith(_BYTE_ORDER_MARKS) or not _CONTROL.search(head)


def mostly_text(head: bytes) -> bool:
    """At most one control character in fifty: text with a slip in it, not a binary net."""
    return len(_CONTROL.findall(head)) * 50 <= len(head)


_KINDS: tuple[tuple[Kind, Callable[[bytes], bool]], ...] = (
    (Kind("HDF5", "give it as the weights"), _hdf5),
    (Kind("safetensors", "give it as the weights"), _safetensors),
    (Kind("gzip", "unpack it first (gunzip)"), _at_start(b"\x1f\x8b")),
    (Kind("bzip2", "unpack it first (bunzip2)"), _at_start(b"BZh")),
    (Kind("xz", "unpack it first (unxz)"), _at_start(b"\xfd7zXZ\0")),
    (Kind("7z", "unpack it first"), _at_start(b"7z\xbc\xaf\x27\x1c")),
    (Kind("zip", "unpack it first, or give it as weights when it is a PyTorch file (.pt)"), _at_start(b"PK\x03\x04")),
    (Kind("NumPy array", "only caffemodel, HDF5, safetensors and PyTorch weights are read"), _at_start(b"\x93NUMPY")),
    (
        Kind("pickle", "load it with the program that wrote it and save it as safetensors"),
        _at_start(b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
    ),
    (
        Kind("Git LFS pointer", "fetch the file itself with `git lfs pull`"),
        _at_start(b"version https://git-lfs", b"version https://hawser"),
    ),
    (Kind("HTML page", "the download went wrong: fetch the raw file"), _html),
    (Kind("text", "give it as the net (.prototxt)"), is_text),
)


def kind_of(data: mmap.mmap | bytes) -> Kind:
    """What the first bytes say."""
    head = data[:4096]
    return next((kind for kind, matches in _KINDS if matches(head)), Kind(""))
