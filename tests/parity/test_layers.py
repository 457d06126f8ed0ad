"""Layers and small nets: forward, backward, statistics and repeated passes, in both phases."""

from __future__ import annotations

from pathlib import Path

from tests.parity.cases import Case, Folders, golden_cases
from tests.parity.compare import comparing
from tests.parity.layer_case import run_case
from tests.tolerances import LAYERS


def cases(folders: Folders) -> list[Case]:
    return golden_cases(folders, "layers")


def test_layers(case: Case, tmp_path: Path) -> None:
    with comparing() as compare:
        run_case(case, tmp_path, LAYERS, compare)
