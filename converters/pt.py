"""Writing .pt without torch: a plain state dict that `torch.load(weights_only=True)` reads, mapped if asked to.

Layout: https://docs.pytorch.org/docs/stable/notes/serialization.html - an uncompressed zip archive with the table of
tensors as a pickle (`data.pkl`), which only names what the restricted unpickler knows, and one member a tensor. What
other formats call metadata is a member that torch does not read (`extra/vggc.json`).
"""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from caffe_compat.loading import NET
from caffe_compat.mapped import map_file
from caffe_compat.tensor_weights import ABOUT
from converters.model import Model, NamedBlob
from converters.streaming import Payloads, Target, parts

STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage"}
FOLDER = "archive/"
ALIGNMENT = 64
"""Payloads begin at multiples of it, as torch has them."""
PADDING = b"FB"
"""The extra field that torch fills up with."""
LOCAL_HEADER = 30
"""Bytes of a member's header in front of its name."""


class _Stream:
    """A target for zipfile: without a position, so that nothing is written twice. What it is given stays as it is."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def write(self, data: bytes | memoryview) -> int:
        self._target.write(data, lasting=True)
        return len(memoryview(data).cast("B"))

    def flush(self) -> None:
        """Everything is written at once."""


def write(model: Model, target: Target, _payloads: Payloads) -> None:
    """Write `{"<layer>.<blob>": tensor}` with Caffe's shapes. The same model always gives the same bytes."""
    blobs = list(model.blobs())
    with zipfile.ZipFile(cast(IO[bytes], _Stream(target)), "w") as archive:
        _text_member(archive, target, "data.pkl", pickled(blobs))
        _text_member(archive, target, "byteorder", b"little")
        for number, item in enumerate(blobs):
            _member(archive, target, f"data/{number}", item.blob.values.nbytes, parts(item.blob.values))
        about = {key: value for key, value in model.metadata().items() if key not in (NET, "format")}
        _text_member(archive, target, ABOUT, json.dumps(about, sort_keys=True).encode())
        _text_member(archive, target, "version", b"3\n")


def _text_member(archive: zipfile.ZipFile, target: Target, name: str, data: bytes) -> None:
    _member(archive, target, name, len(data), [memoryview(data)])


def _member(archive: zipfile.ZipFile, target: Target, name: str, size: int, data: Iterable[memoryview]) -> None:
    large = size * 1.05 > zipfile.ZIP64_LIMIT  # as zipfile has it
    info = zipfile.ZipInfo(FOLDER + name)
    info.create_system, info.file_size, info.flag_bits = 3, size, 0x08  # sizes follow the data
    filled = -(target.size + len(info.FileHeader(large)) + 4) % ALIGNMENT
    info.extra = struct.pack("<2sH", PADDING, filled) + bytes(filled)
    with archive.open(info, "w", force_zip64=large) as file:
        for part in data:
            file.write(part)


# -- the table -------------------------------------------------------------------------------------------------


def pickled(blobs: Sequence[NamedBlob]) -> bytes:
    """The table of tensors as a pickle of protocol 2, whose payloads are members of the archive."""
    entries = (_text(item.name) + _tensor(number, item) for number, item in enumerate(blobs))
    return b"\x80\x02}(" + b"".join(entries) + b"u."


def _tensor(number: int, item: NamedBlob) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
    shape, values = item.shape, item.blob.values
    storage = (_text("storage"), _global("torch", STORAGES[values.dtype.name]), _text(str(number)), _text("cpu"))
    strides = [prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape))]
    arguments = (
        _tuple(*storage, _number(values.size)) + b"Q",
        _number(0),
        _tuple(*map(_number, shape)),
        _tuple(*map(_number, strides)),
        b"\x89",
        _global("collections", "OrderedDict") + b")R",
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + _tuple(*arguments) + b"R"


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 2**31 else b"\x8a\x08" + struct.pack("<q", value)


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


# -- what was written ------------------------------------------------------------------------------------------


def payloads(path: Path) -> dict[str, NDArray[np.uint8]]:
    """The bytes of each tensor of a file that `write` made, where they lie in the mapped file. Nothing is unpickled."""
    data = map_file(path)
    with zipfile.ZipFile(path) as archive:
        table = pickletools.genops(archive.read(f"{FOLDER}data.pkl"))
        texts = [str(argument) for op, argument, _ in table if op.name == "BINUNICODE"]
        members = {info.filename: info for info in archive.infolist()}
    found = {}
    for name, number in zip(texts[::4], texts[2::4], strict=True):  # name, "storage", number, "cpu"
        info = members[f"{FOLDER}data/{number}"]
        lengths = struct.unpack_from("<HH", data, info.header_offset + 26)
        begin = info.header_offset + LOCAL_HEADER + sum(lengths)
        found[name] = np.frombuffer(data, np.uint8, info.file_size, begin)
    return found
