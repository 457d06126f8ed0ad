"""Files other than Caffe's: one module a target format reads and writes it; `convert`, `inspect`, `verify`."""

from converters.from_onnx import from_onnx
from converters.from_torch import from_torch

__all__ = ["from_onnx", "from_torch"]
