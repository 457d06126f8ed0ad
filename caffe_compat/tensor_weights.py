"""Weights from safetensors files and torch state dicts: tensors called <layer>.<blob>.

Rules: the safetensors format's specification; state dicts are read without running any code in them.
"""

from __future__ import annotations

import json
import mmap
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from caffe_compat.errors import BinaryError, FormatError, Where
from caffe_compat.layers.base import registered
from caffe_compat.mapped import PathName, map_file
from caffe_compat.weights import Blob, LayerBlobs, Weights

if TYPE_CHECKING:
    from torch import Tensor

NAMES = "caffe_names"
"""The metadata entry of a file with other names than Caffe's: JSON, name -> [layer, index, blob, shape] of Caffe's."""
ABOUT = "extra/vggc.json"
"""The member of a .pt that has the entries which other formats call metadata."""
MAX_HEADER = 16 << 20
MAX_AXES = 32
DAMAGED = "the file is cut short or damaged: fetch it again"
_DTYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


# -- safetensors -------------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """A tensor in a safetensors header; its bytes stand at begin..end of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(path: PathName) -> Weights:
    """Read a safetensors file; values are views of the mapped file.

    Raises:
        VggcError: there is no such file, or it may not be read.
        BinaryError: its header breaks the format's rules, or a tensor is no float.
    """
    source = os.fspath(path)
    data = map_file(source)
    header, start = _header(data, source)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BinaryError("__metadata__ is no table of strings", where=Where(source, offset=8), remedy=DAMAGED)
    entries = sorted((_entry(name, value, start, source) for name, value in header.items()), key=lambda e: e[3:])
    at = start
    for entry in entries:
        if entry.begin != at:
            what = f'tensor "{entry.name}" begins at byte {entry.begin}, the one before it ends at {at}'
            raise BinaryError(what, where=Where(source, offset=8), remedy=DAMAGED)
        at = entry.end
    if at != len(data):
        what = f"the tensors end at byte {at} of {len(data)}"
        raise BinaryError(what, where=Where(source, offset=8), remedy=DAMAGED)
    found = [(entry.name, _view(data, entry, source)) for entry in entries]
    return Weights(_layers(found, source, metadata), source, "safetensors", metadata)


def _header(data: mmap.mmap, source: str) -> tuple[dict[str, Any], int]:
    """The JSON at the front, and where the tensors begin."""
    size = int.from_bytes(data[:8], "little")
    where = Where(source, offset=0)
    if len(data) < 8 or size > min(len(data) - 8, MAX_HEADER):
        what = f"the header claims {size} bytes; {max(len(data) - 8, 0)} are there, {MAX_HEADER} are allowed"
        raise BinaryError(what, where=where, remedy=DAMAGED)
    try:
        header = json.loads(data[8 : 8 + size].decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BinaryError(f"the header is not valid: {error}", where=where, remedy=DAMAGED) from error
    if not isinstance(header, dict):
        raise BinaryError("the header is no table", where=where, remedy=DAMAGED)
    return header, 8 + size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name comes twice")
    return table


def _entry(name: str, value: Any, start: int, source: str) -> _Entry:
    """A header entry whose sizes agree with each other."""
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if len(value) == 3:
            numbers = [*shape, begin, end]
        case _:
            numbers = [-1]
    if any(type(number) is not int or number < 0 for number in numbers) or len(numbers) > MAX_AXES + 2:
        what = f'the header entry of tensor "{name}" is not valid'
        raise BinaryError(what, where=Where(source, offset=8), remedy=DAMAGED)
    if dtype not in _DTYPES:
        what = f'tensor "{name}" is of type {dtype}; weights are {", ".join(_DTYPES)}'
        raise BinaryError(what, where=Where(source, offset=8), remedy="save it as F32")
    size = prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if end - begin != size:
        what = f'tensor "{name}" has {end - begin} bytes, its shape {shape} needs {size}'
        raise BinaryError(what, where=Where(source, offset=8), remedy=DAMAGED)
    return _Entry(name, dtype, tuple(shape), start + begin, start + end)


def _view(data: mmap.mmap, entry: _Entry, source: str) -> Blob:
    dtype = np.dtype(_DTYPES[entry.dtype])
    count, where = prod(entry.shape), Where(source, offset=entry.begin)
    values: Any = np.frombuffer(data, dtype, count, entry.begin) if count else np.zeros(0, dtype)
    if entry.dtype == "BF16":
        return Blob(entry.shape, widened(values), where=where)
    return Blob(entry.shape, values, False, source, entry.begin, where)


def widened(halves: Any) -> Any:
    """bfloat16, given as its bits, as float32: the same value."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


# -- torch -------------------------------------------------------------------------------------------------


def read_pt(path: PathName) -> Weights:
    """Read a state dict, a flat table of tensors, as `torch.save` writes it.

    Raises:
        VggcError: there is no such file, or it may not be read.
        FormatError: it is no such table, or holds anything but dense float tensors.
    """
    source = os.fspath(path)
    metadata = _check_archive(source)
    table = _load(source)
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise FormatError(f"it holds a {type(table).__name__}, not a state dict", where=source, remedy=_FLAT)
    found = [(name, _tensor(name, value, source)) for name, value in table.items()]
    return Weights(_layers(found, source, metadata), source, "pt", metadata)


_FLAT = "save with torch.save(model.state_dict(), path)"


def _check_archive(source: str) -> dict[str, str]:
    """What the file says of itself. torch maps the members where they lie: none may be compressed, or overlap."""
    data = map_file(source)
    if data[:4] != b"PK\x03\x04":
        raise BinaryError("this is not a zip archive as torch.save writes it", where=source, remedy=_FLAT)
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            about = next((member for member in members if member.filename.partition("/")[2] == ABOUT), None)
            text = archive.read(about) if about and _readable(about, len(data)) else b"{}"
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BinaryError(f"the archive is damaged: {error}", where=source, remedy=DAMAGED) from error
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > len(data):
        raise BinaryError("the archive is compressed, or claims more than it holds", where=source, remedy=_FLAT)
    return _stated(text, source)


def _readable(member: zipfile.ZipInfo, size: int) -> bool:
    return member.compress_type == zipfile.ZIP_STORED and member.file_size <= min(MAX_HEADER, size)


def _stated(text: bytes, source: str) -> dict[str, str]:
    """The entries of a file that we have written; {} of others."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise BinaryError(f"its {ABOUT} is no table of strings", where=source, remedy=DAMAGED)
    return found


def _load(source: str) -> Any:
    import torch

    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the file makes it raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BinaryError(f"torch refuses it: {reason}", where=source, remedy=_FLAT) from error


def _tensor(name: str, value: Any, source: str) -> Blob:
    """A tensor's values in C order; a view of the mapped file when they lie so."""
    import torch

    if not isinstance(value, torch.Tensor):
        what = f'"{name}" is a {type(value).__name__}, not a tensor'
        raise FormatError(what, where=source, remedy=_FLAT)
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not dense or value.dtype not in kinds:
        what = f'tensor "{name}" is {value.dtype} ({value.layout}, {value.device}); weights are dense floats'
        raise FormatError(what, where=source, remedy="save it as float32")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        what = f'tensor "{name}" repeats its values: {value.numel()} from fewer'
        raise FormatError(what, where=source, remedy="save it after .contiguous()")
    return Blob(tuple(value.shape), _values(value), where=Where(source))


def _values(tensor: Tensor) -> Any:
    import torch

    flat = tensor.detach().resolve_neg().reshape(-1)
    if flat.dtype is torch.bfloat16:
        flat = flat.float()
    return flat.numpy()


# -- names -------------------------------------------------------------------------------------------------


def _layers(
    found: Iterable[tuple[str, Blob]], source: str, metadata: Mapping[str, str] | None = None
) -> tuple[LayerBlobs, ...]:
    """Tensors gathered by layer, each layer's in Caffe's order as far as their names tell it."""
    layers: dict[str, dict[str, Blob]] = {}
    places = _places(metadata or {}, source)
    for key, blob in found:
        if key in places:
            layer, index, shape = places[key]
            layers.setdefault(layer, {})[str(index)] = _as(blob, shape, key, source)
            continue
        layer, dot, name = key.rpartition(".")
        if not dot:
            what = f'tensor "{key}" is not called <layer>.<blob>'
            raise FormatError(what, where=source, remedy='rename it, e.g. "conv1_1.weight"')
        layers.setdefault(layer, {})[name] = blob
    ordered = []
    for layer, blobs in layers.items():
        names = in_order(blobs)
        where = Where(source, layer=layer)
        ordered.append(LayerBlobs(layer, tuple(blobs[name] for name in names), "", where, names))
    return tuple(ordered)


def _places(metadata: Mapping[str, str], source: str) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """What a file written with other names than Caffe's says about them: name -> layer, place and shape.

    Raises:
        BinaryError: the entry is not as we write it.
    """
    try:
        table = json.loads(metadata.get(NAMES, "{}"))
        found = {name: (layer, index, tuple(shape)) for name, (layer, index, _blob, shape) in table.items()}
    except (AttributeError, TypeError, ValueError, RecursionError):
        found = {"": ("", -1, ())}
    for layer, index, shape in found.values():
        numbers = (index, *shape)
        if not isinstance(layer, str) or any(type(number) is not int or number < 0 for number in numbers):
            what = f'the metadata entry "{NAMES}" is not valid'
            raise BinaryError(what, where=source, remedy="convert the model again")
    if len({place[:2] for place in found.values()}) != len(found):
        what = f'the metadata entry "{NAMES}" gives two tensors one place'
        raise BinaryError(what, where=source, remedy="convert the model again")
    return found


def _as(blob: Blob, shape: tuple[int, ...], name: str, source: str) -> Blob:
    """The blob in Caffe's shape."""
    if prod(shape) != blob.values.size:
        what = f'tensor "{name}" has {blob.values.size} values, the shape stated for it {prod(shape)}'
        raise BinaryError(what, where=source, remedy="convert the model again")
    return replace(blob, shape=shape)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Blob names in the order of the first layer type that has them all; indices stand for themselves."""
    words = {name for name in names if not is_index(name)}
    known = next((cls.BLOBS for _, _, cls in registered() if words <= set(cls.BLOBS)), ("weight", "bias"))

    def rank(name: str) -> tuple[int, str]:
        if is_index(name):
            return int(name), name
        return known.index(name) if name in known else len(known), name

    return tuple(sorted(names, key=rank))


def is_index(name: str) -> bool:
    """Whether a blob is called by its place: 0, 1, ..."""
    return name.isascii() and name.isdigit() and len(name) < 4
