"""`python -m tests.bench.evaluate`: the paper's protocols on VGG-16, against a loop and batches by hand in torch.

By hand: one image of 384 x 512, decoded and rescaled before; 50 crops one by one, or in batches of the size that we
take; whole images with the dense layers as convolutions, image and mirror one by one, or together. All forms are
checked to give the same posteriors. Then how much of an evaluation is spent outside the net, and how much memory many
images take.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import caffe_compat as cc
from caffe_compat.data.images import Image
from caffe_compat.module import Net
from caffe_compat.weights import Blob, Weights
from converters.model import Model
from repro import evaluation
from repro.engines import ONNX, TORCH, Engine, Settings, engines
from repro.evaluation import Plan, evaluate
from repro.image_sets import EncodedImages, Items
from repro.models import Classifier, Preparation
from repro.passes import PIXELS, Reading, Runner
from repro.protocols import multicrop
from tests.bench.forward import interleaved
from tests.bench.measure import run
from tests.bench.nets import NETS, share
from tests.repro.nets import write_model
from tests.repro.pictures import smooth

MEAN = (103.939, 116.779, 123.68)
CROP, SIZE = 224, (384, 512)
TOLERANCE = 1e-5
"""Largest difference of posteriors between all forms."""
NEEDED = {TORCH: 1.0, ONNX: 1.3}
"""Times the speed of batches by hand."""
OUTSIDE = 0.05
"""Largest share of the time outside the net."""
MEMORY = 1024
"""MiB for MANY images."""
MANY = 10000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="time for each protocol")
    parser.add_argument("--many", type=int, default=MANY, help="images for the memory")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        evaluate_many(options.child, options.many)
        return
    text, make = NETS["VGG-16"]
    net = Net(cc.Graph.from_net(cc.parse_net(text())))
    hand = make().eval()
    share(net, hand)
    model = classifier(net)
    print(f"{'protocol':10} {'form':24} {'images/s':>9} {'ratio':>6}")
    multi(model, hand, options.seconds)
    dense(model, hand, options.seconds)
    outside(model)
    memory(options.many)


def classifier(net: Net) -> Classifier:
    """Our net in memory."""
    arrays = {key: Blob(tuple(p.shape), p.detach().numpy().reshape(-1)) for key, p in net.owned.items()}
    (blob,), (posteriors,) = net.inputs, net.outputs
    model = Model(net.graph, arrays, Weights(()))
    made = Classifier(Path("vgg"), model, blob, 3, CROP, "", posteriors, 1000, Preparation(MEAN))
    vars(made)["sha256"] = ""
    return made


# -- protocols ---------------------------------------------------------------------------------------------------


def multi(model: Classifier, hand: nn.Module, seconds: float) -> None:
    """50 crops of one image."""
    image = smooth(*SIZE)
    places = multicrop(*SIZE, CROP)
    size = PIXELS["cpu"] // CROP**2

    def crops() -> list[Tensor]:
        x = by_hand(image)
        cut = [x[:, y : y + CROP, left : left + CROP] for y, left, _ in places]
        return [crop.flip(-1) if place.mirrored else crop for crop, place in zip(cut, places, strict=True)]

    def one_by_one() -> Tensor:
        return torch.cat([hand(crop[None]) for crop in crops()]).mean(0)

    def batched() -> Tensor:
        cut = crops()
        return torch.cat([hand(torch.stack(cut[i : i + size])) for i in range(0, len(cut), size)]).mean(0)

    compare("multicrop", {"loop": one_by_one, "batches": batched, **ours(model, image, "multicrop")}, seconds)


def dense(model: Classifier, hand: nn.Module, seconds: float) -> None:
    """One image and its mirror as a whole."""
    image = smooth(*SIZE)
    whole = convolutional(hand)

    def one_by_one() -> Tensor:
        x = by_hand(image)
        return torch.stack([whole(flip[None])[0].mean((1, 2)) for flip in (x, x.flip(-1))]).mean(0)

    def together() -> Tensor:
        x = by_hand(image)
        return whole(torch.stack([x, x.flip(-1)])).mean((2, 3)).mean(0)

    compare("dense", {"loop": one_by_one, "batches": together, **ours(model, image, "dense")}, seconds)


def by_hand(image: Image) -> Tensor:
    return (torch.from_numpy(image).float() - torch.tensor(MEAN)).permute(2, 0, 1)


def convolutional(hand: nn.Module) -> nn.Module:
    """The net by hand with convolutions in place of dense layers, over the same weights."""
    parts: list[nn.Module] = []
    for part in hand.children():
        if isinstance(part, nn.Linear):
            side = 7 if part.in_features == 25088 else 1
            conv = nn.Conv2d(part.in_features // side**2, part.out_features, side)
            conv.weight = nn.Parameter(part.weight.view(conv.weight.shape))
            conv.bias = part.bias
            parts.append(conv)
        elif not isinstance(part, nn.Flatten):
            parts.append(part)
    return nn.Sequential(*parts).eval()


def ours(model: Classifier, image: Image, protocol: str) -> dict[str, Callable[[], Tensor]]:
    """A form for each engine."""
    return {name: _ours(model, image, protocol, name) for name in NEEDED}


def _ours(model: Classifier, image: Image, protocol: str, name: str) -> Callable[[], Tensor]:
    whole, readings = protocol == "dense", {protocol: Reading((model.posteriors,))}
    (engine,) = engines(model, Settings(name), [model.posteriors], [whole])
    found: list[NDArray[np.float64]] = []
    runner = Runner(
        engine,
        model.prepare,
        CROP,
        {} if whole else readings,
        readings if whole else {},
        lambda _index, _name, _scale, values: found.append(values),
        graph=model.dense.graph if whole else None,
    )

    def once() -> Tensor:
        runner.add(0, SIZE[0], image)
        runner.finish()
        return torch.from_numpy(found.pop())

    return once


@torch.inference_mode()
def compare(protocol: str, forms: dict[str, Callable[[], Tensor]], seconds: float) -> None:
    """See that all forms agree, then time them in turns."""
    want = forms["batches"]()
    for name, form in forms.items():
        apart = float((form() - want).abs().max())
        if apart > TOLERANCE:
            raise SystemExit(f"{protocol}: {name} differs by {apart:.1e}")
    times = interleaved(forms, seconds, 3)
    for name, each in times.items():
        ratio, needed = times["batches"] / each, NEEDED.get(name)
        told = f"  (needed: {needed:g}){'' if ratio >= needed else ' MISSED'}" if needed else ""
        print(f"{protocol:10} {name:24} {1 / each:9.3f} {ratio:6.2f}{told}", flush=True)


# -- outside the net ---------------------------------------------------------------------------------------------


class Watched:
    """An engine whose time is taken."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name, self.device, self.seconds = engine, engine.name, engine.device, 0.0

    def run(self, x: Tensor, blobs: Sequence[str], whole: bool) -> list[Tensor]:
        began = time.perf_counter()
        found = self.engine.run(x, blobs, whole)
        self.seconds += time.perf_counter() - began
        return found


def outside(model: Classifier, count: int = 3) -> None:
    """The share of an evaluation's time that is not the net's, JPEGs to errors."""
    files = [bytes(cv2.imencode(".jpg", smooth(375, 500, seed))[1].tobytes()) for seed in range(count)]
    images = EncodedImages(files, Items([f"{i}.jpg" for i in range(count)], [0] * count), ("",), "bench")
    for protocol in ("multicrop", "dense"):
        (engine,) = engines(model, Settings(ONNX), [model.posteriors], [protocol == "dense"])
        watched = Watched(engine)
        evaluation.engines = lambda *_, watched=watched: [watched]  # type: ignore[assignment]
        with tempfile.TemporaryDirectory(prefix="vggc-bench-") as folder:
            began = time.perf_counter()
            evaluate([replaced(model)], images, Plan((protocol,), (384,)), Path(folder))
            wall = time.perf_counter() - began
        evaluation.engines = engines
        part = 1 - watched.seconds / wall
        verdict = "" if part <= OUTSIDE else " MISSED"
        print(f"{protocol:10} outside the net: {part:.1%} of {wall:.1f} s (needed: {OUTSIDE:.0%}){verdict}", flush=True)


def replaced(model: Classifier) -> Classifier:
    """A copy that keeps what was computed of the model."""
    made = replace(model)
    vars(made).update({name: value for name, value in vars(model).items() if name in ("dense", "sha256")})
    return made


# -- memory ------------------------------------------------------------------------------------------------------


def memory(count: int) -> None:
    """Many images of different sizes through a small net, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="vggc-bench-") as folder:
        command = [sys.executable, "-m", "tests.bench.evaluate", "--child", folder, "--many", str(count)]
        done = run(command)
    peak = done.anonymous + done.mapped
    verdict = "" if peak <= MEMORY else " MISSED"
    print(f"{count:,} images: {peak:.0f} MiB at most, {done.seconds:.0f} s (needed: {MEMORY} MiB){verdict}")


class Drawn(EncodedImages):
    """Images that are drawn when they are read, 48 to 175 pixels a side."""

    def __init__(self, count: int) -> None:
        names = [f"{index:06d}.png" for index in range(count)]
        super().__init__((), Items(names, np.arange(count) % 7), ("",) * 7, "bench")

    def stored(self, index: int) -> bytes | Image:  # type: ignore[override]
        height, width = np.random.default_rng(index).integers(48, 176, 2)
        return smooth(int(height), int(width), index)


def evaluate_many(folder: Path, count: int) -> None:
    """What the process of its own does."""
    from repro.models import open_classifier

    model = open_classifier(write_model(folder / "small.caffemodel"))
    found = evaluate([model], Drawn(count), Plan(("dense", "center"), (16, 40)), folder / "run")
    assert found is not None
    assert found.images == count


if __name__ == "__main__":
    main()
