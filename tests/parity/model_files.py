"""Recorded runs of published models (golden/models): inputs from a formula, every value sampled or summarised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from tests.parity.cases import Case, Folders, golden_cases
from tests.parity.compare import Comparison
from tests.parity.nets import Array
from tests.parity.records import Record
from tests.tolerances import MODELS, MODELS_TIGHT, SUMMARY, Tolerance


def model_cases(folders: Folders, section: str) -> list[Case]:
    """The cases of the section "models"; none without the zoo."""
    found = golden_cases(folders, "models") if folders.zoo.is_dir() else []
    return [replace(case, section=section) for case in found]


def model_path(case: Case) -> Path:
    return in_zoo(case, case.entry["model"])


def prototxt_path(case: Case) -> Path:
    return in_zoo(case, case.entry["prototxt"])


def in_zoo(case: Case, name: str) -> Path:
    path = case.zoo / name
    if not path.exists():
        raise FileNotFoundError(f"{case}: the index names {path}")
    return path


class ModelRecord:
    """The npz of one model: sampled outputs and blobs, statistics of everything."""

    def __init__(self, case: Case) -> None:
        self.record = Record(case.path(f"{case.id}.npz"))
        self.info: Mapping[str, Any] = json.loads(str(self.record.value("info", "{}")))
        self.sampled = self.record.group("blob") | self.record.group("out")
        self.worst: dict[str, float] = {}

    def inputs(self) -> dict[str, Array]:
        """The arrays that Caffe was given; their checksums must agree."""
        arrays = {}
        for blob, how in self.info["inputs"].items():
            draws = np.random.RandomState(how["seed"]).rand(*how["shape"])
            arrays[blob] = (draws * how["A"] + how["B"]).astype(np.float32)
            if crc32(arrays[blob].tobytes()) != how["crc32"]:
                raise ValueError(f'input "{blob}": another checksum than recorded')
        for blob, stored in self.record.group("in").items():
            if not np.array_equal(arrays[blob], stored):
                raise ValueError(f'input "{blob}": the formula gives other values than recorded')
        return arrays

    def loss(self) -> Array:
        return np.asarray(self.record.value("loss", 0.0))

    def check_blob(self, blob: str, got: Array | None, compare: Comparison, tolerance: Tolerance = MODELS) -> None:
        """Shape, and values where they were stored; the distance from `MODELS_TIGHT` is remembered."""
        about = self.info["blobs"].get(blob, {})
        if got is None:
            compare.check(False, f"{blob}: missing")
            return
        if "shape" in about:
            compare.equal(f"shape of {blob}", list(got.shape), about["shape"])
        if blob in self.sampled and list(got.shape) == about.get("shape"):
            want = self.sampled[blob]
            samples = got.ravel()[:: about.get("step", 1)]
            compare.array(blob, samples, want.ravel(), scaled(tolerance, about))
            if samples.shape == want.ravel().shape:
                tight = scaled(replace(tolerance, scale=MODELS_TIGHT.scale), about)
                self.worst[blob] = MODELS_TIGHT.scale * tight.ratio(samples, want.ravel())
        if "stat" in about and np.isfinite(about["stat"]).all():
            check_extremes(f"statistics of {blob}", got, about["stat"], tolerance, compare)

    def distance(self) -> float:
        """How far the furthest blob is away, in parts of its largest magnitude."""
        return max(self.worst.values(), default=0.0)

    def note(self) -> str:
        """The furthest blob when it is above the tight bound, "" when none is."""
        blob = max(self.worst, key=self.worst.__getitem__, default="")
        return f"{self.distance():.1e} of max|ref| in {blob}" if self.distance() > MODELS_TIGHT.scale else ""


def scaled(tolerance: Tolerance, about: Mapping[str, Any]) -> Tolerance:
    """The bound in relation to the whole blob's largest magnitude, which the samples may miss."""
    low, high = about["stat"][2:] if "stat" in about else (0.0, 0.0)
    largest = float(np.nanmax(np.abs([low, high, 0.0])))
    return (
        replace(tolerance, scale=0.0, atol=tolerance.atol + tolerance.scale * largest)
        if np.isfinite(largest)
        else tolerance
    )


def check_extremes(key: str, got: Array, stat: list[float], tolerance: Tolerance, compare: Comparison) -> None:
    """Absolute sum, minimum and maximum of every value; the plain sum cancels."""
    values = got.astype(np.float64).ravel()
    bound = scaled(tolerance, {"stat": stat}).atol
    own = [np.abs(values).sum() / max(values.size, 1), values.min(initial=np.inf), values.max(initial=-np.inf)]
    want = [stat[1] / max(values.size, 1), *stat[2:]]
    compare.check(bool((np.abs(np.subtract(own, want)) <= bound).all()), f"{key}: {own}, want {want} +- {bound:.3g}")


def check_params(record: ModelRecord, own: Mapping[tuple[str, int], Any], compare: Comparison) -> None:
    """Sum, absolute sum, minimum and maximum of every parameter blob."""
    for layer, blobs in record.info["params"].items():
        for index, stat in enumerate(blobs):
            blob = own.get((layer, index))
            if blob is None:
                compare.check(False, f"param {layer}/{index}: missing")
                continue
            values = blob.detach().numpy().astype(np.float64)
            got = np.array([values.sum(), np.abs(values).sum(), values.min(), values.max()])
            slack = Tolerance(rtol=SUMMARY.rtol, atol=SUMMARY.atol + SUMMARY.rtol * abs(stat[1]))
            compare.array(f"param {layer}/{index}", got, np.array(stat), slack)
