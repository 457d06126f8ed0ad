"""`python -m tests.bench.solver`: training steps through cc.Solver against loops written by hand in torch.

Both make the same updates: SGD with momentum and weight decay, biases at twice the rate and without decay. The loop has
torch's own optimizer, in the form that its user gets by default, and in its fused form.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import caffe_compat as cc
from tests.bench.forward import interleaved
from tests.bench.nets import Conv, Text

DEPTHS = {"VGG-A": (1, 1, 2, 2, 2), "VGG-D": (2, 2, 3, 3, 3)}
WIDTHS = (64, 128, 256, 512, 512)
SOLVER = """net: "net.prototxt" base_lr: 1e-3 momentum: 0.9 weight_decay: 5e-4 lr_policy: "fixed" snapshot_prefix: "s"
solver_mode: CPU """
TWICE = "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 } "
TOLERANCE = 1e-3
"""Largest relative difference of the losses after some steps: the same net, masks of Dropout and updates in both."""


@dataclass(frozen=True)
class Case:
    """The same training in two forms.

    Attributes:
        text: the net's prototxt.
        module: the same net by hand.
        shape: of a batch.
        classes: how many.
    """

    text: str
    module: nn.Module
    shape: tuple[int, ...]
    classes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="time for each comparison")
    parser.add_argument("--batch", type=int, default=2, help="images a step of the VGG nets")
    parser.add_argument("--tiny", action="store_true", help="only the overhead on a tiny net")
    options = parser.parse_args()
    print(f"{'net':8} {'batch':>5} {'solver ms':>10} {'by hand ms':>11} {'ratio':>6} {'fused ms':>9} {'ratio':>6}")
    times = compare("tiny", tiny(), min(10, options.seconds))
    print(f"overhead of the solver on a tiny net: {(times['solver'] - times['hand']) * 1e3:.3f} ms a step")
    for name in () if options.tiny else DEPTHS:
        compare(name, vgg(name, options.batch), options.seconds)
        gc.collect()


def compare(name: str, case: Case, seconds: float) -> dict[str, float]:
    """Check that the losses are the same, then time steps in turns. Ratio: speed of the solver to that by hand."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(case.shape, generator=generator)
    y = torch.randint(case.classes, case.shape[:1], generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        solver = made_solver(Path(folder), case, x, y)
        share(solver.net, case.module)
        hand, fused = (loop(case.module, x, y, fused=kind) for kind in (False, True))
        check(name, solver, hand)
        times = interleaved({"solver": lambda: solver.step(1), "hand": hand, "fused": fused}, seconds)
    ours, theirs, best = (times[form] for form in ("solver", "hand", "fused"))
    figures = f"{ours * 1e3:10.2f} {theirs * 1e3:11.2f} {theirs / ours:6.3f} {best * 1e3:9.2f} {best / ours:6.3f}"
    print(f"{name:8} {len(x):5} {figures}", flush=True)
    return times


def made_solver(folder: Path, case: Case, x: Tensor, y: Tensor) -> cc.Solver:
    (folder / "net.prototxt").write_text(case.text)
    (folder / "solver.prototxt").write_text(SOLVER)
    solver = cc.Solver(folder / "solver.prototxt")
    solver.inputs = {"data": x, "label": y.float()}
    return solver


def loop(module: nn.Module, x: Tensor, y: Tensor, *, fused: bool) -> Callable[[], float]:
    """A step of the hand-written loop, which gives its loss."""
    weights = [p for name, p in module.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in module.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": biases, "lr": 2e-3}]
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, fused=fused)

    def step() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    return step


def check(name: str, solver: cc.Solver, hand: Callable[[], float]) -> None:
    """Some steps from the same start give the same losses; ours begin from where theirs ended afterwards."""
    torch.manual_seed(0)
    solver.step(3)
    torch.manual_seed(0)
    theirs = [hand() for _ in range(3)]
    different = max(abs(a - b) / abs(b) for a, b in zip(solver.losses, theirs, strict=True))
    if different > TOLERANCE:
        raise SystemExit(f"{name}: losses {solver.losses} and {theirs} differ by {different:.1e}")


@torch.no_grad()
def share(net: nn.Module, module: nn.Module) -> None:
    """Give the hand-written net our parameters' values; both have them in the same order."""
    for ours, theirs in zip(net.parameters(), module.parameters(), strict=True):
        theirs.copy_(ours.view(theirs.shape))


def tiny() -> Case:
    """Two layers, for which a step is all overhead."""
    t = Text()
    x = t.new("ReLU", [fc(t, inputs(t, (8, 10)), 16)])
    loss(t, fc(t, x, 4))
    module = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))
    return Case(str(t), module, (8, 10), 4)


def vgg(name: str, batch: int) -> Case:
    """A configuration of the paper with 224 x 224 images."""
    t, parts, channels = Text(), list[nn.Module](), 3
    x = inputs(t, (batch, 3, 224, 224))
    for width, depth in zip(WIDTHS, DEPTHS[name], strict=True):
        for _ in range(depth):
            body = f'num_output: {width} kernel_size: 3 pad: 1 weight_filler {{ type: "msra" }}'
            x = t.relu(t.new("Convolution", [x], TWICE + f"convolution_param {{ {body} }}"))
            parts.append(Conv(channels, width, 3, pad=1))
            channels = width
        x = t.pool(x, 2, 2)
        parts.append(nn.MaxPool2d(2, 2))
    parts.append(nn.Flatten())
    for i, o in ((25088, 4096), (4096, 4096)):
        x = t.relu(fc(t, x, o))
        t.layer("Dropout", [x], x)
        parts += [nn.Linear(i, o), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    loss(t, fc(t, x, 1000))
    return Case(str(t), nn.Sequential(*parts, nn.Linear(4096, 1000)), (batch, 3, 224, 224), 1000)


def inputs(t: Text, shape: tuple[int, ...]) -> str:
    """Images and labels; gives the images' blob."""
    shapes = " ".join(f"shape {{ {' '.join(f'dim: {size}' for size in each)} }}" for each in (shape, shape[:1]))
    t.lines.append(f'layer {{ name: "in" type: "Input" top: "data" top: "label" input_param {{ {shapes} }} }}')
    return "data"


def fc(t: Text, x: str, out: int) -> str:
    body = f'inner_product_param {{ num_output: {out} weight_filler {{ type: "msra" }} }}'
    return t.new("InnerProduct", [x], TWICE + body)


def loss(t: Text, x: str) -> None:
    t.new("SoftmaxWithLoss", [x, "label"])


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"{time.perf_counter() - began:.0f} s")
