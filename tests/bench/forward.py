"""`python -m tests.bench.forward`: nets built from prototxt against the same nets written by hand in torch.

Freed memory stays with the process, for all forms alike: else chance decides which of them glibc makes pay page faults
for memory that it has just returned, up to 40% of a MobileNet's time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import caffe_compat as cc
from caffe_compat.compiling import compiled
from caffe_compat.module import Net
from tests.bench.measure import keep_memory
from tests.bench.nets import NETS, share

CASES = (("VGG-16", 1), ("VGG-16", 16), ("GoogLeNet", 1), ("ResNet-50", 1), ("MobileNet", 1))
TOLERANCE = 1e-4
"""Largest difference of the posteriors, relative: the same net in both forms."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12, help="time for each comparison")
    parser.add_argument("--compile", action="store_true", help="compare with torch.compile of our net too")
    options = parser.parse_args()
    keep_memory()
    print(f"{'net':12} {'batch':>5} {'by hand ms':>11} {'prototxt ms':>12} {'ratio':>6} {'compiled ms':>12}")
    for name, batch in CASES:
        text, make = NETS[name]
        ours = prepare(text())
        theirs = make().eval()
        share(ours, theirs)
        x = torch.rand(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        compare(name, ours, theirs, x, options.seconds, options.compile)


def prepare(text: str) -> Net:
    """Our net, with BatchNorm statistics that keep activations in range."""
    net = Net(cc.Graph.from_net(cc.parse_net(text)))
    with torch.no_grad():
        for node in net.graph.nodes:
            if node.layer.TYPE == "BatchNorm":
                mean, variance, factor = net.params[node.layer.name]
                mean.zero_(), variance.fill_(2), factor.fill_(2)
    return net


@torch.no_grad()
def compare(name: str, ours: Net, theirs: nn.Module, x: Tensor, seconds: float, with_compile: bool) -> None:
    """Check that both give the same, then time them in turns."""
    forms: dict[str, Callable[[], object]] = {"hand": lambda: theirs(x), "ours": lambda: ours({"data": x})}
    expected, got = theirs(x), next(iter(ours({"data": x}).values()))
    difference = ((got - expected).abs().max() / expected.abs().max()).item()
    if difference > TOLERANCE:
        raise SystemExit(f"{name}: the two nets differ by {difference:.1e}")
    if with_compile:
        fast = compiled(ours)
        fast({"data": x})
        forms["compiled"] = lambda: fast({"data": x})
    times = interleaved(forms, seconds)
    last = f"{times['compiled'] * 1e3:12.1f}" if with_compile else f"{'-':>12}"
    hand, prototxt = times["hand"], times["ours"]
    print(f"{name:12} {len(x):5} {hand * 1e3:11.1f} {prototxt * 1e3:12.1f} {prototxt / hand:6.3f} {last}", flush=True)


def interleaved(forms: Mapping[str, Callable[[], object]], seconds: float, least: int = 5) -> dict[str, float]:
    """Median seconds of each form, run in turns until the time is up, but at least so many times."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    end = time.perf_counter() + seconds
    for run in forms.values():
        run()
    while time.perf_counter() < end or min(map(len, times.values())) < least:
        for name, run in forms.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in times.items()}


if __name__ == "__main__":
    main()
