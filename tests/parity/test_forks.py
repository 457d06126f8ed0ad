"""Layers of Caffe's forks, each under its dialect."""

from __future__ import annotations

from pathlib import Path

from tests.parity.cases import Case, Folders, fork_cases
from tests.parity.compare import Comparison, comparing
from tests.parity.layer_case import dialect, prototxt, run_case
from tests.parity.nets import load, parameters
from tests.parity.pixels import pixel_tolerance
from tests.parity.records import Record
from tests.tolerances import EXACT, FORKS


def cases(folders: Folders) -> list[Case]:
    return fork_cases(folders)


def test_forks(case: Case, tmp_path: Path) -> None:
    with comparing() as compare:
        tolerance = pixel_tolerance(prototxt(case)) if "AnnotatedData" in case.types else FORKS
        run_case(case, tmp_path, tolerance, compare)
        for weights in case.files(".caffemodel"):
            check_weights(case, weights, compare)


def check_weights(case: Case, weights: Path, compare: Comparison) -> None:
    """The same parameters as in the records, read from the fork's binary file."""
    net = load(prototxt(case), weights, dialect=dialect(case), strict=False)
    own = parameters(net)
    for key, want in Record(case.files(".npz")[0]).params("param").items():
        got = own[key].reshape(want.shape) if key in own else None
        compare.array(f"{weights.name}/{key[0]}/{key[1]}", got, want, EXACT)
