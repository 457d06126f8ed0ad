"""Nets with a reference beside them: `X.prototxt`, its output `X.npy`, its input `X.input.npy` or `blob.npy`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.parity.cases import Case, Folders
from tests.parity.compare import comparing
from tests.parity.nets import Array, load, tensor
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


def test_opencv(case: Case) -> None:
    path = case.path(f"{case.id}.prototxt")
    weights = path.with_suffix(".caffemodel")
    net = load(path, weights if weights.exists() else None)
    arrays: dict[str, Array] = {blob: np.load(file) for blob, file in input_files(path).items()}
    if len(arrays) == 1:
        arrays = dict(zip(net.inputs, arrays.values(), strict=True))
    outputs = net({blob: tensor(array) for blob, array in arrays.items()})
    with comparing() as compare:
        compare.equal("number of outputs", len(outputs), 1)
        for blob, got in outputs.items():
            compare.array(blob, got, np.load(path.with_suffix(".npy")), OPENCV)
