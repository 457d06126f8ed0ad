"""Nets with a reference beside them: `X.prototxt`, its output `X.npy`, its input `X.input.npy` or `blob.npy`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from caffe_compat.errors import VggcError
from caffe_compat.graph import rebuild
from caffe_compat.module import Net
from caffe_compat.weights import Blob, Weights
from converters.model import Model
from converters.onnx import Options, write
from converters.onnx_running import run_onnx
from converters.streaming import Payloads, Target
from tests.parity.cases import Case, Folders
from tests.parity.compare import comparing
from tests.parity.nets import Array, load, tensor
from tests.parity.test_layers_onnx import check_refusal
from tests.tolerances import OPENCV


def cases(folders: Folders) -> list[Case]:
    models = folders.zoo / "models"
    nets = sorted(models.rglob("*.prototxt")) if models.is_dir() else []
    return [
        Case("opencv", path.stem, path.parent, types=types(path), zoo=folders.zoo)
        for path in nets
        if path.with_suffix(".npy").exists() and input_files(path)
    ]


def types(net: Path) -> tuple[str, ...]:
    """The layer types that the text names."""
    return tuple(sorted(set(re.findall(r"""\btype\s*:\s*["']([A-Z][^"']*)["']""", net.read_text()))))


def input_files(net: Path) -> dict[str, Path]:
    """Blob -> file: `X.<blob>.npy`; without any, `blob.npy` is the only input."""
    own = {path.name[len(net.stem) + 1 : -len(".npy")]: path for path in net.parent.glob(f"{net.stem}.*.npy")}
    common = net.parent / "blob.npy"
    return own or ({"": common} if common.exists() else {})


def test_opencv(case: Case, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    path = case.path(f"{case.id}.prototxt")
    weights = path.with_suffix(".caffemodel")
    own = weights if weights.exists() else None
    want = np.load(path.with_suffix(".npy"))
    arrays: dict[str, Array] = {blob: np.load(file) for blob, file in input_files(path).items()}
    net = load(path, own)
    if len(arrays) == 1:
        arrays = dict(zip(net.inputs, arrays.values(), strict=True))
    outputs = net({blob: tensor(array) for blob, array in arrays.items()})
    with comparing() as compare:
        compare.equal("number of outputs", len(outputs), 1)
        for blob, got in outputs.items():
            compare.array(blob, got, want, OPENCV)
        try:
            model = exported(net, tmp_path / "net.onnx", arrays)
        except VggcError as error:
            record_property("note", f"{case}: no ONNX: {check_refusal(error, compare)}")
            return
        compare.array(
            "by ONNX Runtime", run_onnx(model, arrays, [next(iter(outputs))])[next(iter(outputs))], want, OPENCV
        )


def exported(net: Net, target: Path, arrays: Mapping[str, Array]) -> Path:
    """The net as ONNX, with its weights or the values of its fillers."""
    opened = rebuild(net.graph.net, net.graph.context, {blob: array.shape for blob, array in arrays.items()})
    weights = {key: value.detach().numpy() for key, value in net.owned.items()}
    arrays_of = {key: Blob(tuple(value.shape), value.ravel()) for key, value in weights.items()}
    with Payloads() as payloads, Target(target) as file:
        write(Model(opened, arrays_of, Weights(())), file, payloads, Options())
        file.finish()
        file.rename()
    return target
