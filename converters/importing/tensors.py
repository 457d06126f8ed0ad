"""Initializers of ONNX files as arrays: every size is checked against the bytes that are there."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from caffe_compat.errors import BinaryError, VggcError, Where
from caffe_compat.mapped import map_file
from converters.importing.program import Array
from converters.onnx_reading import Stored

HALF, BRAIN = TensorProto.FLOAT16, TensorProto.BFLOAT16
_FIELDS: dict[int, tuple[str, str]] = {
    TensorProto.FLOAT: ("float_data", "<f4"),
    TensorProto.DOUBLE: ("double_data", "<f8"),
    TensorProto.INT64: ("int64_data", "<i8"),
    TensorProto.UINT64: ("uint64_data", "<u8"),
    TensorProto.UINT32: ("uint64_data", "<u4"),
    TensorProto.INT32: ("int32_data", "<i4"),
    TensorProto.INT16: ("int32_data", "<i2"),
    TensorProto.INT8: ("int32_data", "<i1"),
    TensorProto.UINT16: ("int32_data", "<u2"),
    TensorProto.UINT8: ("int32_data", "<u1"),
    TensorProto.BOOL: ("int32_data", "?"),
    HALF: ("int32_data", "<f2"),
    BRAIN: ("int32_data", "<u2"),
}
"""Type -> the field that holds values without raw_data, and numpy's type."""
MAX_AXES = 32
DAMAGED = "the file is damaged: fetch it again"


class Tensors:
    """Reads the tensors of one file.

    Attributes:
        widened: names of tensors that were halves or doubles and are float32 now.
    """

    def __init__(self, source: str, stored: Stored | None = None) -> None:
        self.source, self.stored = source, stored
        self.widened: list[str] = []

    def read(self, tensor: onnx.TensorProto) -> Array:
        """The values of a tensor in its shape; floating-point values as float32.

        Raises:
            BinaryError: type, sizes and bytes do not go together, or values lie outside the file's folder.
        """
        shape = self._shape(tensor)
        if tensor.data_type not in _FIELDS:
            kind = _kind(tensor.data_type)
            raise self._error(tensor, f"holds {kind}", "quantised and other types have no form in Caffe: use float32")
        field, kind = _FIELDS[tensor.data_type]
        if tensor.data_location == TensorProto.EXTERNAL:
            values: Array = self._external(tensor, shape, np.dtype(kind))
        elif self.stored and tensor.name in self.stored.places:
            offset, size = self.stored.places[tensor.name]
            self._fill(tensor, shape, size / np.dtype(kind).itemsize)
            values = np.frombuffer(self.stored.data, kind, prod(shape), offset)
        elif tensor.HasField("raw_data"):
            values = self._raw(tensor, tensor.raw_data, shape, np.dtype(kind))
        else:
            values = self._listed(tensor, field, shape, np.dtype(kind))
        return self._floats(tensor, values).reshape(shape)

    def _floats(self, tensor: onnx.TensorProto, values: Array) -> Array:
        if tensor.data_type == BRAIN:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        elif values.dtype.kind == "f" and values.dtype != np.float32:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32)
        else:
            return values
        self.widened.append(tensor.name)
        return values

    def _shape(self, tensor: onnx.TensorProto) -> tuple[int, ...]:
        if len(tensor.dims) > MAX_AXES or any(dim < 0 for dim in tensor.dims):
            raise self._error(tensor, f"has the sizes {list(tensor.dims)[:MAX_AXES]}", DAMAGED)
        return tuple(tensor.dims)

    def _raw(self, tensor: onnx.TensorProto, data: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        self._fill(tensor, shape, len(data) / dtype.itemsize)
        return np.frombuffer(data, dtype)

    def _listed(self, tensor: onnx.TensorProto, field: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        values = getattr(tensor, field)
        self._fill(tensor, shape, len(values))
        if tensor.data_type == HALF:
            return np.array(values, np.int64).astype(np.uint16).view(np.float16)
        return np.array(values).astype(dtype)

    def _fill(self, tensor: onnx.TensorProto, shape: tuple[int, ...], count: float) -> None:
        if prod(shape) != count:
            what = f"has {count:g} values; its sizes {list(shape)} ask for {prod(shape)}"
            raise self._error(tensor, what, DAMAGED)

    def _error(self, tensor: onnx.TensorProto, what: str, remedy: str) -> BinaryError:
        return BinaryError(f'tensor "{tensor.name}" {what}', where=Where(self.source), remedy=remedy)

    # -- in a file of their own ----------------------------------------------------------------------------

    def _external(self, tensor: onnx.TensorProto, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Values in another file, mapped."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = self._inside(tensor, entries.get("location", ""))
        if not prod(shape):
            return np.zeros(0, dtype)
        try:
            data = map_file(path)
        except VggcError as error:
            raise self._error(tensor, f"lies in {path.name}, where {error.what}", "keep both files together") from error
        offset = self._number(tensor, entries, "offset", 0)
        size = self._number(tensor, entries, "length", len(data) - offset)
        self._fill(tensor, shape, size / dtype.itemsize)
        if offset + size > len(data):
            what = f"lies at bytes {offset} to {offset + size} of {path.name}, which has {len(data)}"
            raise self._error(tensor, what, DAMAGED)
        return np.frombuffer(data, dtype, prod(shape), offset)

    def _number(self, tensor: onnx.TensorProto, entries: dict[str, str], key: str, default: int) -> int:
        text = entries.get(key, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._error(tensor, f'has the {key} "{text[:40]}"', DAMAGED)
        return int(text)

    def _inside(self, tensor: onnx.TensorProto, location: str) -> Path:
        """The file beside the model; no way out of its folder is followed."""
        folder = Path(self.source).parent
        parts = Path(location).parts
        outside = not parts or Path(location).is_absolute() or ".." in parts or "\0" in location
        paths = [folder.joinpath(*parts[: count + 1]) for count in range(len(parts))] if not outside else []
        if outside or "\\" in location or any(path.is_symlink() for path in paths):
            what = f'lies in "{location[:80]}", which is not a plain file in the model\'s folder'
            raise self._error(tensor, what, "put the data beside the model, and name it so in the model")
        return paths[-1]


def _kind(number: int) -> str:
    try:
        return helper.tensor_dtype_to_string(number).removeprefix("TensorProto.")
    except (KeyError, ValueError):
        return f"type {number}"
