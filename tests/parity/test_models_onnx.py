"""Published models as ONNX files in ONNX Runtime, against what Caffe computed on the same inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from caffe_compat.errors import VggcError
from caffe_compat.loading import open_net
from converters.convert import Options, convert
from tests.parity.cases import Case, Folders
from tests.parity.compare import comparing
from tests.parity.model_files import ModelRecord, model_cases, model_path, prototxt_path
from tests.parity.nets import Array
from tests.tolerances import ONNX


def cases(folders: Folders) -> list[Case]:
    return model_cases(folders, "models_onnx")


def test_models_onnx(case: Case, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    record = ModelRecord(case)
    target = tmp_path / "model.onnx"
    with comparing() as compare:
        if missing := layers_without_weights(case):
            with pytest.raises(VggcError, match=re.escape(missing[0])):
                to_onnx(case, target)
            compare.check(not target.exists(), "a file was written although weights are missing")
            return
        to_onnx(case, target)
        blobs = run(target, record.inputs(), list(record.info["blobs"]))
        compare.check(bool(blobs), "no recorded blob is in the ONNX model")
        for blob, got in blobs.items():
            record.check_blob(blob, got, compare, ONNX)
    if record.note():
        record_property("note", f"{case}: {record.note()}")


def layers_without_weights(case: Case) -> tuple[str, ...]:
    """Layers that the model lacks; Caffe runs them with what their fillers gave, a conversion refuses."""
    bound = open_net(prototxt_path(case), model_path(case), strict=False, collect=True).bound
    return bound.missing if bound else ()


def to_onnx(case: Case, target: Path) -> None:
    convert(model_path(case), [target], Options(net=prototxt_path(case)))


def run(path: Path, inputs: Mapping[str, Array], wanted: list[str]) -> dict[str, np.ndarray]:
    """The wanted tensors that the model has, intermediate ones too."""
    model = onnx.load(path)
    outputs = [value.name for value in model.graph.output]
    made = {name for node in model.graph.node for name in node.output}
    inner = [blob for blob in wanted if blob in made and blob not in outputs]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(blob) for blob in inner)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {value.name: inputs[value.name] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))
