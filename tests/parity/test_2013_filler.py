"""Initial values of December 2013: nets filled many times, pooled statistics of each blob."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from typing import Any

import numpy as np

from tests.parity.cases import Case, Folders, dec2013_cases, read_json
from tests.parity.compare import Comparison, comparing
from tests.parity.dec2013 import load_2013
from tests.parity.nets import Array, parameters
from tests.parity.records import param_key
from tests.tolerances import EXACT, FILLER_BOUND, FILLER_SIGMAS, FILLER_STD, FILLER_SUM

MOST_SEEDS = 60


def cases(folders: Folders) -> list[Case]:
    return dec2013_cases(folders, "filler")


def test_2013_filler(case: Case) -> None:
    expected = read_json(case.path("expected.json"))
    seeds = max(ceil(blob["samples"] / np.prod(blob["shape"])) for blob in expected)
    fills = [parameters(load_2013(case, seed=seed)) for seed in range(min(seeds, MOST_SEEDS))]
    with comparing() as compare:
        for want in expected:
            key = param_key(want["blob"])
            arrays = [fill[key].detach().numpy().reshape(want["shape"]) for fill in fills]
            check_blob(want["blob"], np.stack(arrays), want, compare)


def check_blob(name: str, samples: Array, want: Mapping[str, Any], compare: Comparison) -> None:
    """`samples` has one fill after another on its first axis."""
    if "exact" in want:
        compare.array(name, samples, np.full(samples.shape, np.float32(want["exact"])), EXACT)
    if "lo" in want:
        slack = FILLER_BOUND * max(abs(want["lo"]), abs(want["hi"]))
        inside = want["lo"] - slack <= samples.min() and samples.max() <= want["hi"] + slack
        compare.check(bool(inside), f"{name}: {samples.min()} to {samples.max()}, bounds {want['lo']} to {want['hi']}")
    if "slice_sum" in want:
        sums = samples.reshape(len(samples) * want["slices"], -1).sum(axis=1, dtype=np.float64)
        compare.array(f"{name} sums", sums, np.full(sums.shape, want["slice_sum"]), FILLER_SUM)
    if "expected_mean" in want:
        check_moments(name, samples.astype(np.float64), want, compare)


def check_moments(name: str, samples: Array, want: Mapping[str, Any], compare: Comparison) -> None:
    std = want.get("expected_std", want["std"])
    slack = FILLER_SIGMAS * std / sqrt(samples.size)
    error = abs(samples.mean() - want["expected_mean"])
    compare.check(error <= slack, f"{name}: mean {samples.mean():.6g}, want {want['expected_mean']:.6g} +- {slack:.3g}")
    error = abs(samples.std() - std)
    slack = max(FILLER_STD, FILLER_SIGMAS / sqrt(2 * samples.size)) * std
    compare.check(error <= slack, f"{name}: std {samples.std():.6g}, want {std:.6g} +- {slack:.3g}")
