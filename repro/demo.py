"""`make demo`: a small VGG in the old format, converted to four formats, and two engines compared blob by blob."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import caffe_compat as cc
import prototxt
from caffe_compat.schema import pb
from converters.onnx_running import run_onnx
from repro.cli import run

Array = NDArray[np.float32]

FOLDER = Path("demo")
FORMATS = ("safetensors", "pt", "onnx", "h5")
MEAN = (103.939, 116.779, 123.68)
PIXEL = 64.0
"""Scale of the images, which the first layer's weights divide by."""
TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest value of the blob."""
V1_TYPES = {
    "Convolution": "CONVOLUTION",
    "Dropout": "DROPOUT",
    "InnerProduct": "INNER_PRODUCT",
    "Pooling": "POOLING",
    "ReLU": "RELU",
    "Softmax": "SOFTMAX",
}
PARAMETERS = ("convolution_param", "dropout_param", "inner_product_param", "pooling_param")


class Row(NamedTuple):
    """One blob in both engines."""

    blob: str
    shape: tuple[int, ...]
    largest: float
    difference: float


def main(folder: Path = FOLDER) -> int:
    """Write the model, convert it, compare; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "digits.caffemodel"
    write_model(model)
    targets = [model.with_suffix(f".{name}") for name in FORMATS]
    command = ["convert", "--force", str(model), *map(str, targets)]
    console = Console()
    console.print(f"$ vggc {' '.join(command)}", highlight=False, soft_wrap=True)
    if code := run(command):
        return code
    rows = compare(model.with_suffix(".safetensors"), model.with_suffix(".onnx"))
    console.print(table(rows))
    worst = max(row.difference / row.largest for row in rows)
    agrees = worst <= TOLERANCE
    verdict = "agree" if agrees else "DIFFER"
    console.print(f"the engines {verdict}: at most {worst:.1e} of a blob's largest value (allowed: {TOLERANCE:.0e})")
    return 0 if agrees else 1


def write_model(path: Path, seed: int = 0) -> None:
    """Write `digits` with made-up weights as files of 2014 are: generation V1, blobs of four sizes, the net inside."""
    net = cc.read_net(prototxt.find("digits"))
    graph = cc.Graph.from_net(net)
    rng = np.random.default_rng(seed)
    old = pb.NetParameter(name=net.name, input=["data"], input_dim=list(graph.inputs["data"]))
    for layer in net.layer:
        if layer.type != "Input":
            old.layers.append(legacy(layer))
            old.layers[-1].blobs.extend(blob(shape, rng) for shape in graph.params.get(layer.name, ()))
    path.write_bytes(old.SerializeToString(deterministic=True))


def legacy(layer: pb.LayerParameter) -> pb.V1LayerParameter:
    """The layer in generation V1; the parameter messages are the same."""
    made = pb.V1LayerParameter(name=layer.name, bottom=layer.bottom, top=layer.top)
    made.type = getattr(pb.V1LayerParameter, V1_TYPES[layer.type])
    for field in PARAMETERS:
        if layer.HasField(field):  # type: ignore[arg-type]
            getattr(made, field).CopyFrom(getattr(layer, field))
    return made


def blob(shape: tuple[int, ...], rng: np.random.Generator) -> pb.BlobProto:
    """Weights as He et al. (2015) draw them, which keep activations in scale; small biases. Sizes are num to width."""
    std = (2 / prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.05
    std /= PIXEL if shape[1:2] == (3,) else 1
    num, channels, height, width = (1,) * (4 - len(shape)) + shape
    values = rng.normal(0, std, prod(shape))
    return pb.BlobProto(num=num, channels=channels, height=height, width=width, data=values.tolist())


def images(count: int = 10, seed: int = 1) -> Array:
    """Random pixels less the mean, (N, 3, 32, 32), BGR."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32))
    return pixels.astype(np.float32) - np.array(MEAN, np.float32).reshape(3, 1, 1)


def compare(weights: Path, model: Path) -> list[Row]:
    """Every blob of the .safetensors in PyTorch against the .onnx in ONNX Runtime, on the same images."""
    data = images()
    with torch.no_grad():
        ours = cc.load(weights)({"data": torch.from_numpy(data)}, blobs="all")
    theirs = run_onnx(model, {"data": data}, [name for name in ours if name != "data"])
    rows = []
    for name, other in theirs.items():
        mine = ours[name].numpy()
        if mine.shape != other.shape:
            raise cc.VggcError(f"{name} is {mine.shape} in PyTorch and {other.shape} in ONNX Runtime")
        rows.append(Row(name, mine.shape, float(np.abs(mine).max()), float(np.abs(mine - other).max())))
    return rows


def table(rows: list[Row]) -> Table:
    """The comparison for the terminal."""
    made = Table(title="PyTorch and ONNX Runtime on the same images")
    for heading in ("blob", "shape", "largest value", "largest difference"):
        made.add_column(heading, justify="left" if heading in ("blob", "shape") else "right", no_wrap=True)
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        made.add_row(row.blob, shape, f"{row.largest:.3g}", f"{row.difference:.1e}")
    return made


if __name__ == "__main__":
    sys.exit(main())
