"""`python -m tests.bench.training`: a training step of the paper's nets against a loop written by hand in torch.

Both make the same update on the same random images: forward with dropout, backward, SGD with momentum and weight decay,
and read the loss. The digits of the demonstration are trained as well. Where there is a CUDA device, images a second of
D in bfloat16 follow, the share of the card's rate in a matrix product that they need, and the same with the images
coming from JPEG files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from caffe_compat.module import Net
from repro.datasets import open_images
from repro.pipeline import statistics
from repro.training.feed import Images
from repro.training.group import Group
from repro.training.nets import TrainingNet, training_net
from repro.training.passes import Batch, Passes
from repro.training.settings import Settings
from repro.training.update import Momentum
from tests.bench.forward import interleaved
from tests.bench.pipeline import make_images

CASES = (("A", 8), ("D", 4))
NEEDED = 0.98
"""Of the speed of the loop by hand."""
ACCURACY, SECONDS = 0.97, 60
"""What the digits have to reach, and when, on two cores."""
BLOCKS = {"A": (1, 1, 2, 2, 2), "D": (2, 2, 3, 3, 3)}
MATRIX = 8192
SETTINGS = {"momentum": 0.9, "weight_decay": 0.0005, "colour": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40, help="time for each comparison")
    parser.add_argument("--no-digits", action="store_true", help="leave the digits out")
    options = parser.parse_args()
    print(f"{'net':4} {'batch':>5} {'by hand ms':>11} {'vggc ms':>9} {'speed':>6}  needed {NEEDED:g}")
    for name, batch in CASES:
        compare(name, batch, options.seconds)
    if not options.no_digits:
        digits()
    if torch.cuda.is_available():
        on_gpu()


class ByHand(nn.Module):
    """A VGG as torchvision has it."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for count, outputs in zip(blocks, (64, 128, 256, 512, 512), strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 49, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout(),
            nn.Linear(4096, 1000),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(x).flatten(1))
        return scores


class Ours:
    """The passes and the update of `vggc train`."""

    def __init__(self, name: str, batch: int, group: Group, **more: object) -> None:
        self.settings = Settings(net=name, data="", batch=batch, **{**SETTINGS, **more})  # type: ignore[arg-type]
        self.info: TrainingNet = training_net(name, 1000)
        self.net = Net(self.info.graph("TRAIN", batch)).to(group.device)
        if self.settings.channels_last:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.update = Momentum(self.net, self.settings.momentum, self.settings.weight_decay)
        self.passes = Passes(self.info, self.net, self.update, self.settings, group, batch)

    def step(self, batch: Batch) -> float:
        loss = self.passes(batch)
        self.passes.update(1e-6)
        return loss


def compare(name: str, batch: int, seconds: float) -> None:
    """Check that both are the same net, then time them in turns."""
    ours, theirs = Ours(name, batch, Group()), ByHand(BLOCKS[name])
    share(ours, theirs)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch) % 1000
    optimizer = torch.optim.SGD(theirs.parameters(), lr=1e-6, momentum=0.9, weight_decay=0.0005)

    def by_hand() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(theirs(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    forms: dict[str, Callable[[], object]] = {"hand": by_hand, "ours": lambda: ours.step(Batch(0, images, labels))}
    times = interleaved(forms, seconds)
    hand, mine = times["hand"], times["ours"]
    print(f"{name:4} {batch:5} {hand * 1e3:11.0f} {mine * 1e3:9.0f} {hand / mine:6.3f}", flush=True)


@torch.no_grad()
def share(ours: Ours, theirs: ByHand) -> None:
    """Give the net by hand our weights, and see that it computes the same scores."""
    for mine, other in zip(ours.update.blobs, theirs.parameters(), strict=True):
        other.copy_(mine)
    scoring = Net(ours.info.graph("TEST", 1))
    scoring.share_trained(ours.net)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    mine, expected = scoring({ours.info.data: x})[ours.info.scores], theirs.eval()(x)
    theirs.train()
    if (mine - expected).abs().max() > 1e-4 * expected.abs().max():
        raise SystemExit("the two nets differ")


def digits() -> None:
    """Train the demonstration's net."""
    with tempfile.TemporaryDirectory(prefix="vggc-bench-") as folder:
        command = [sys.executable, "-m", "repro", "train", "digits", "--data", "digits", "--out", folder, "--json"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        took = time.perf_counter() - began
    best = json.loads(done.stdout)["best"]["best"]
    good = best >= ACCURACY and took <= SECONDS
    needed = f"needed: {ACCURACY:.0%} in {SECONDS} s"
    print(f"digits: accuracy {best:.2%} in {took:.0f} s ({needed}){'' if good else ' FAILED'}", flush=True)


def on_gpu(micro: int = 64, updates: int = 20) -> None:
    """Images a second of D, and what that is of the card's rate."""
    device = torch.device("cuda", 0)
    group = Group(device=device)
    ours = Ours("D", micro, group, precision="bfloat16", channels_last=True)
    images = torch.randn(micro, 3, 224, 224, device=device)
    labels = torch.arange(micro, device=device) % 1000
    seconds = _timed(lambda: ours.step(Batch(0, images, labels)), updates)
    macs = sum(node.layer.macs(node.layer.bottom_shapes, node.layer.top_shapes_built) for node in ours.net.graph.nodes)
    rate, peak = 6 * macs / seconds, matrix_rate(device)
    print(f"D on {torch.cuda.get_device_name(0)}, bfloat16, passes of {micro}: {micro / seconds:.0f} images/s,")
    print(
        f"  {rate / 1e12:.0f} TFLOP/s, {rate / peak:.0%} of the {peak / 1e12:.0f} of a product of {MATRIX} x {MATRIX}"
    )
    with tempfile.TemporaryDirectory(prefix="vggc-bench-") as name:
        found = open_images(make_images(Path(name), 256), split="train")
        feed = Images(found, found, ours.settings, 224, statistics(found, most=16), group)
        batches = feed.batches(0)
        with_files = _timed(lambda: ours.step(next(batches)), updates)
        print(f"  {micro / with_files:.0f} images/s with the images from JPEG files, {seconds / with_files:.0%} busy")


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a large product in bfloat16."""
    a = torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16)
    return 2 * MATRIX**3 / _timed(lambda: a @ a, 30)


def _timed(work: Callable[[], object], count: int) -> float:
    """Seconds of one, after three that do not count."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / count


if __name__ == "__main__":
    main()
