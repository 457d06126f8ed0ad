"""One net in two engines: PyTorch and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

import caffe_compat as cc
from tests.tolerances import ENGINES

Array = NDArray[np.float32]
Arrays = Mapping[str, Array]


def inputs(shapes: Mapping[str, Sequence[Any]], batch: int | None = None, seed: int = 0) -> dict[str, Array]:
    """Random inputs; `batch` replaces the first size."""
    rng = np.random.default_rng(seed)
    sizes = {name: (batch, *shape[1:]) if batch else tuple(shape) for name, shape in shapes.items()}
    return {name: rng.normal(0, 1, size).astype(np.float32) for name, size in sizes.items()}


def in_torch(weights: Path, arrays: Arrays) -> dict[str, Array]:
    """The outputs of a .safetensors that carries its net."""
    with torch.no_grad():
        tops = cc.load(weights)({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    return {name: top.numpy() for name, top in tops.items()}


def in_ort(model: Path, arrays: Arrays) -> dict[str, Array]:
    """The outputs of an .onnx, with its external data."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(arrays)), strict=True))


def check(got: Arrays, want: Arrays) -> None:
    """The same blobs, of the same shapes, with the same values within the engines' tolerance."""
    assert got.keys() == want.keys()
    for name, values in want.items():
        assert got[name].shape == values.shape, name
        assert ENGINES.ratio(got[name], values) <= 1, name
