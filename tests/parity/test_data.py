"""Data layers: databases and image lists, four batches each; `caffe.io`."""

from __future__ import annotations

from pathlib import Path

from tests.parity.cases import Case, Folders, golden_cases, unsupported
from tests.parity.compare import comparing
from tests.parity.layer_case import prototxt, run_case
from tests.parity.pixels import pixel_tolerance


def cases(folders: Folders) -> list[Case]:
    return golden_cases(folders, "data")


def test_data(case: Case, tmp_path: Path) -> None:
    if not case.files(".prototxt"):
        unsupported(case, "caffe.io")
    with comparing() as compare:
        run_case(case, tmp_path, pixel_tolerance(prototxt(case)), compare)
