"""Where the last BVLC commit runs its backward pass: the blobs whose gradient it wrote, by the graph alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.cases import Case, Folders, golden_cases
from tests.parity.compare import Comparison, comparing
from tests.parity.layer_case import prototxt
from tests.parity.nets import load
from tests.parity.records import automatic_splits


def cases(folders: Folders) -> list[Case]:
    found = golden_cases(folders, "layers")
    return [replace(case, section="backward") for case in found if case.broken or case.entry.get("backward")]


def test_backward(case: Case) -> None:
    with comparing() as compare:
        for path in case.files(".npz"):
            with np.load(path) as stored:
                meta, phase = json.loads(str(stored["meta"])), str(stored["phase"])
            if meta["backward"]:
                check(prototxt(case), phase, meta, compare)


def check(net_file: Path, phase: str, meta: Mapping[str, Any], compare: Comparison) -> None:
    options = meta.get("opts", {})
    graph = load(net_file, phase=phase, stages=options.get("stages", ()), level=options.get("level", 0)).graph
    copies = automatic_splits(meta["layers"], frozenset(layer.name for layer in graph.net.layer))
    want = sorted(blob for blob in meta["diff_written"] if blob not in copies)
    compare.equal(f"{phase}: blobs with a gradient", sorted(graph.backward.gradients), want)
