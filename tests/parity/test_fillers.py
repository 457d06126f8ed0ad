"""Initial values: bounds, mean, standard deviation and sums of one large sample of each filler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
from google.protobuf import text_format

from caffe_compat.fillers import fill
from caffe_compat.schema import pb
from tests.parity.cases import Case, Folders, golden_cases, guarded, read_json
from tests.parity.compare import Comparison, comparing
from tests.tolerances import EXACT, FILLER_SIGMAS, FILLER_STD, FILLER_SUM

BOUNDED = frozenset({"uniform", "xavier"})
"""Fillers whose samples fill an interval evenly, so that extremes can be compared."""


def cases(folders: Folders) -> list[Case]:
    found = golden_cases(folders, "fillers")
    statistics = folders.golden / "fillers" / "fillers.json"
    return guarded(
        "fillers", statistics, lambda: [_with(case, read_json(statistics)) for case in found] if found else []
    )


def _with(case: Case, statistics: list[dict[str, Any]]) -> Case:
    known = {entry["id"]: entry for entry in statistics}
    return replace(case, entry={**case.entry, **known[case.id]}) if case.id in known and not case.broken else case


def test_fillers(case: Case) -> None:
    want = case.entry
    filler = text_format.Parse(want["filler"], pb.FillerParameter())
    values = fill(filler, want["shape"], np.random.default_rng(1)).astype(np.float64)
    with comparing() as compare:
        compare.equal("shape", list(values.shape), want["shape"])
        if "values" in want:
            compare.array("values", values.ravel(), np.float64(want["values"]), EXACT)
        check_statistics(values, want, filler.type in BOUNDED, compare)


def check_statistics(values: np.ndarray, want: Mapping[str, Any], bounded: bool, compare: Comparison) -> None:
    """Two samples of one distribution, each as large as `values`."""
    count, std = values.size, float(want["std"])
    error = FILLER_SIGMAS * sqrt(2 / count)
    near(compare, "mean", values.mean(), want["mean"], std * error + 1e-7)
    near(compare, "std", values.std(), std, FILLER_STD * std + 1e-7)
    share = want.get("nonzero_fraction", 1.0)
    near(compare, "share of non-zeros", (values != 0).mean(), share, sqrt(share * (1 - share)) * error + 1e-9)
    if bounded:
        slack = 40 * (want["max"] - want["min"]) / count
        near(compare, "min", values.min(), want["min"], slack)
        near(compare, "max", values.max(), want["max"], slack)
        near(
            compare,
            "max",
            values.max(),
            want["max"],
            slack if want["max"] < 1 or "sum_per_first_axis" not in want else 1,
        )
    if "sum_per_first_axis" in want:
        sums = values.reshape(values.shape[0], -1).sum(axis=1)
        wanted = np.float64(want["sum_per_first_axis"])
        compare.array("sums", sums[: wanted.size], wanted, FILLER_SUM)


def near(compare: Comparison, what: str, got: float, want: float, slack: float) -> None:
    compare.check(abs(got - want) <= slack, f"{what} {got:.6g}, want {want:.6g} +- {slack:.3g}")
