"""Running an ONNX model with ONNX Runtime, which is an optional extra, and looking at the values inside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from caffe_compat.errors import ConversionError, VggcError
from caffe_compat.tensor_weights import NAMES
from converters.model import Model
from converters.onnx import Options, build, reference_weights
from converters.onnx_reading import read_model

Array = NDArray[Any]

PRODUCER = "vggc"
EARLIER = re.compile(r"@\d+$")
"""Values of a blob before a layer changes it in place, in models of ours."""
CONSTANT = re.compile(r"/const(_\d+)?$")
"""Initializers that are not weights, in models of ours."""
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def run_onnx(path: Path, inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """The named tensors of a model, outputs or not; those inside are made outputs in memory.

    Raises:
        VggcError: ONNX Runtime is not installed, or cannot run the model on these inputs.
        BinaryError: not an ONNX file.
    """
    model = load(path)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = _session(path, model)
    try:
        values: list[Array] = session.run(list(names), dict(inputs))
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise VggcError(f"ONNX Runtime cannot run it: {_first_line(error)}", where=str(path)) from error
    return dict(zip(names, values, strict=True))


Session = Callable[[Sequence[str], Mapping[str, Array]], "list[Array]"]
"""From names of tensors and the inputs to their values."""


def file_session(path: Path, threads: int = 0) -> Session:
    """A model file, made ready to run many times on the processor.

    Args:
        threads: as many as there are processors when 0.

    Raises:
        VggcError: ONNX Runtime is not installed, or cannot run the model.
    """
    runtime, options = _runtime(), _options(path.parent, threads)
    try:
        made = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise VggcError(f"ONNX Runtime refuses it: {_first_line(error)}", where=str(path)) from error
    return partial(_run, made, str(path))


def model_session(model: Model, blobs: Sequence[str], *, open_size: bool = False, threads: int = 0) -> Session:
    """A net as an ONNX model in memory, made ready to run many times on the processor.

    Args:
        blobs: those that may be asked for.
        open_size: for images of any size; see converters.onnx.Options.

    Raises:
        ConversionError: the net has no form in ONNX.
        VggcError: as `file_session`.
    """
    runtime, options, source = _runtime(), _options(None, threads), model.weights.source
    proto, used = build(model, Options(open_size=open_size))
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in blobs if name not in known)
    reference_weights(proto, used)
    arrays = [np.require(item.blob.values.reshape(item.shape), requirements=["C", "A"]) for item in used]
    values = [runtime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    options.add_external_initializers([item.name for item in used], values)
    try:
        made = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise VggcError(f"ONNX Runtime refuses it: {_first_line(error)}", where=source) from error
    session = partial(_run, made, source)
    session.kept = arrays, values  # type: ignore[attr-defined]  # they stay alive as long as what reads them
    return session


def _options(folder: Path | None, threads: int) -> Any:
    """Memory goes back after each run: sizes of images differ, and what is kept for each would add up."""
    options = _runtime().SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if folder is not None:
        options.add_session_config_entry(EXTERNAL_FOLDER, str(folder.resolve()))
    return options


def _run(session: Any, source: str, names: Sequence[str], inputs: Mapping[str, Array]) -> Any:
    try:
        return session.run(list(names), dict(inputs))
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise VggcError(f"ONNX Runtime cannot run it: {_first_line(error)}", where=source) from error


def load(path: Path) -> onnx.ModelProto:
    """The whole model, but for external data.

    Raises:
        VggcError: there is no such file, or it may not be read.
        BinaryError: not an ONNX file.
    """
    read_model(path)  # checks it before it is loaded
    return onnx.load(str(path), load_external_data=False)


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
    """The tensors that nodes make, in order; of a model of ours only those that are blobs."""
    made = [name for node in model.graph.node for name in node.output if name]
    if model.producer_name != PRODUCER:
        return made
    told = {info.name for info in [*model.graph.value_info, *model.graph.output]}
    return [name for name in made if name in told and not EARLIER.search(name)]


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
    """The weights of a model by name, in the order of the file; of a model of ours without its constants.

    Raises:
        ConversionError: weights in other files cannot be read.
        BinaryError: not an ONNX file.
    """
    model = load(path)
    names = caffes_names(model)
    try:
        return {
            names.get(tensor.name, tensor.name): onnx.numpy_helper.to_array(tensor, str(path.parent.resolve()))
            for tensor in model.graph.initializer
            if model.producer_name != PRODUCER or not CONSTANT.search(tensor.name)
        }
    except (KeyError, OSError, TypeError, ValueError, onnx.checker.ValidationError) as error:
        raise ConversionError(f"its weights cannot be read: {_first_line(error)}", where=str(path)) from error


def caffes_names(model: onnx.ModelProto) -> dict[str, str]:
    """Weights that a model of ours has under other names -> Caffe's, as far as it tells them."""
    stated = next((entry.value for entry in model.metadata_props if entry.key == NAMES), "{}")
    try:
        return {name: f"{layer}.{blob}" for name, (layer, _index, blob, _shape) in json.loads(stated).items()}
    except (AttributeError, TypeError, ValueError, RecursionError):
        return {}
