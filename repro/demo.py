"""`make demo`: a small VGG is trained, evaluated and converted, and two engines are compared blob by blob."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
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
from caffe_compat.preprocessing import preprocessing
from caffe_compat.schema import pb
from caffe_compat.weight_files import read_weights
from caffe_compat.weights import Weights
from caffe_compat.writing import new_file
from converters.onnx_running import run_onnx
from repro.cli import run
from repro.datasets import open_images
from repro.detector import write_detector
from repro.pipeline import Centre
from repro.pipeline.augment import batch
from repro.training.run_folder import BEST

Array = NDArray[np.float32]

FOLDER = Path("demo")
FORMATS = ("safetensors", "pt", "onnx", "h5")
SHOWN, COLUMNS = 40, 10
"""Digits in the picture of predictions."""
PROTOCOLS = ("center", "dense", "multicrop", "both")
EVALUATION = (
    *("--data", "digits", "--split", "val", "--scales", "32,36", "--no-mirror"),
    *(word for protocol in PROTOCOLS for word in ("--protocol", protocol)),
)
"""The protocols of the paper at the scales of training, without the mirrors that training leaves out."""
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


def main(folder: Path = FOLDER, options: Sequence[str] = ()) -> int:
    """Train, convert, upgrade, evaluate, compare, draw; returns the exit code. `options` are more ones for training."""
    folder.mkdir(parents=True, exist_ok=True)
    write_detector(folder)
    runs, model, old = folder / "run", folder / "digits.caffemodel", folder / "digits_2014.caffemodel"
    shutil.rmtree(runs, ignore_errors=True)
    console = Console()
    if code := _call(console, "train", "digits", "--data", "digits", "--out", str(runs), *options):
        return code
    shutil.copyfile(runs / BEST, model)
    write_model(old, weights=read_weights(model))
    targets = [str(model.with_suffix(f".{name}")) for name in FORMATS]
    for command in (
        ("convert", "--force", str(model), *targets),
        ("upgrade", "--force", str(old), str(folder / "digits_2014_v2.prototxt")),
        ("plot", str(runs), "--out", str(folder)),
        ("evaluate", str(model), *EVALUATION),
    ):
        if code := _call(console, *command):
            return code
    console.print(f"wrote {draw_predictions(model, folder / 'predictions.png')}", highlight=False, soft_wrap=True)
    return judge(console, compare(model.with_suffix(".safetensors"), model.with_suffix(".onnx")))


def _call(console: Console, *command: str) -> int:
    console.print(f"$ vggc {' '.join(command)}", highlight=False, soft_wrap=True)
    return run(command)


def judge(console: Console, rows: list[Row]) -> int:
    """Show the comparison; 0 when the engines agree, else 1."""
    console.print(table(rows))
    worst = max(row.difference / row.largest for row in rows)
    agrees = worst <= TOLERANCE
    verdict = "agree" if agrees else "DIFFER"
    console.print(f"the engines {verdict}: at most {worst:.1e} of a blob's largest value (allowed: {TOLERANCE:.0e})")
    return 0 if agrees else 1


def draw_predictions(model: Path, target: Path) -> Path:
    """Some digits of the validation set with what the model takes them for, the wrong ones in red."""
    from matplotlib.figure import Figure

    val = open_images("digits", split="val")
    told = preprocessing(cc.read_net(model))
    centre = Centre(told["crop_size"], val.read(0).shape[0], told["mean_value"])
    chosen = [position * len(val) // SHOWN for position in range(SHOWN)]
    data, labels = batch(val, centre, 0, chosen)
    with torch.no_grad():
        posteriors = cc.load(model)({"data": torch.from_numpy(data)})["prob"].flatten(1)
    rows, columns = SHOWN // COLUMNS, COLUMNS
    figure = Figure(figsize=(columns * 0.9, rows * 1.1), dpi=110, layout="constrained")
    for axes, index, label, row in zip(figure.subplots(rows, columns).flat, chosen, labels, posteriors, strict=True):
        best = int(row.argmax())
        axes.imshow(val.read(index)[..., ::-1])
        axes.set_title(f"{best}: {float(row[best]):.0%}", fontsize=8, color="black" if best == label else "red")
        axes.set_axis_off()
    with new_file(target) as file:
        figure.savefig(file, format="png")
    return target


def write_model(path: Path, seed: int = 0, weights: Weights | None = None) -> None:
    """Write `digits` as files of 2014 are: generation V1, blobs of four sizes, the net inside.

    Its weights are those given, else made up.
    """
    net = cc.read_net(prototxt.find("digits"))
    graph = cc.Graph.from_net(net)
    rng = np.random.default_rng(seed)
    old = pb.NetParameter(name=net.name, input=["data"], input_dim=list(graph.inputs["data"]))
    trained = {layer.name: layer.blobs for layer in weights or ()}
    for layer in net.layer:
        if layer.type != "Input":
            old.layers.append(legacy(layer))
            made = [made_up(shape, rng) for shape in graph.params.get(layer.name, ())]
            values = [each.array for each in trained[layer.name]] if weights and made else made
            old.layers[-1].blobs.extend(map(blob, values))
    path.write_bytes(old.SerializeToString(deterministic=True))


def legacy(layer: pb.LayerParameter) -> pb.V1LayerParameter:
    """The layer in generation V1; the parameter messages are the same."""
    made = pb.V1LayerParameter(name=layer.name, bottom=layer.bottom, top=layer.top)
    made.type = getattr(pb.V1LayerParameter, V1_TYPES[layer.type])
    for field in PARAMETERS:
        if layer.HasField(field):  # type: ignore[arg-type]
            getattr(made, field).CopyFrom(getattr(layer, field))
    return made


def made_up(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Weights as He et al. (2015) draw them, which keep activations in scale; small biases."""
    std = (2 / prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.05
    std /= PIXEL if shape[1:2] == (3,) else 1
    return rng.normal(0, std, shape).astype(np.float32)


def blob(values: Array) -> pb.BlobProto:
    """A blob whose sizes are num to width."""
    num, channels, height, width = (1,) * (4 - values.ndim) + values.shape
    return pb.BlobProto(num=num, channels=channels, height=height, width=width, data=values.ravel().tolist())


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
