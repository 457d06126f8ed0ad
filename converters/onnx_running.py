"""Running an ONNX model with ONNX Runtime, which is an optional extra, and looking at the values inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from caffe_compat.errors import ConversionError, VggcError
from converters.onnx_reading import read_model

Array = NDArray[Any]

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def run_onnx(path: Path, inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """The named tensors of a model, outputs or not; those inside are made outputs in memory.

    Raises:
        VggcError: ONNX Runtime is not installed, or cannot run the model on these inputs.
        BinaryError: not an ONNX file.
    """
    model = read_model(path)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = _session(path, model)
    try:
        values: list[Array] = session.run(list(names), dict(inputs))
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise VggcError(f"ONNX Runtime cannot run it: {_first_line(error)}", where=str(path)) from error
    return dict(zip(names, values, strict=True))


def _session(path: Path, model: onnx.ModelProto) -> Any:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(EXTERNAL_FOLDER, str(path.parent.resolve()))
    try:
        return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise VggcError(f"ONNX Runtime refuses it: {_first_line(error)}", where=str(path)) from error


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise VggcError("ONNX Runtime is not installed", remedy="pip install 'vggc[verify]'") from error
    return onnxruntime


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def tensors(model: onnx.ModelProto) -> list[str]:
    """The tensors that nodes make, in order."""
    return [name for node in model.graph.node for name in node.output if name]


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Input -> sizes, 0 where one is left open."""
    given = {tensor.name for tensor in model.graph.initializer}
    infos = [info for info in model.graph.input if info.name not in given]
    return {info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim) for info in infos}


def input_type(model: onnx.ModelProto, name: str) -> np.dtype[Any]:
    """The type of an input's values."""
    kind = next(info.type.tensor_type.elem_type for info in model.graph.input if info.name == name)
    return onnx.helper.tensor_dtype_to_np_dtype(kind)


def initializers(path: Path) -> dict[str, Array]:
    """The weights of a model by name, in the order of the file.

    Raises:
        ConversionError: weights in other files cannot be read.
    """
    model = read_model(path)
    try:
        return {
            tensor.name: onnx.numpy_helper.to_array(tensor, str(path.parent.resolve()))
            for tensor in model.graph.initializer
        }
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ConversionError(f"its weights cannot be read: {_first_line(error)}", where=str(path)) from error
