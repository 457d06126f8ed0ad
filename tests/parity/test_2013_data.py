"""The data layer of December 2013: recorded draws go in, and the C library's generator gives the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_compat.data.random_numbers import CRand
from caffe_compat.data.records import open_database
from caffe_compat.data.sources import RecordSource
from caffe_compat.reading import read_mean
from tests.parity.cases import Case, Folders, dec2013_cases
from tests.parity.compare import Comparison, comparing
from tests.parity.dec2013 import load_recorded_2013, tolerance_of
from tests.parity.records import Record


def cases(folders: Folders) -> list[Case]:
    return dec2013_cases(folders, "data")


def test_2013_data(case: Case) -> None:
    record = Record(case.path("case.npz"))
    before = stamps(case.path("db"))
    with comparing() as compare:
        check_batches(case, record, compare)
        compare.equal("the database's files", stamps(case.path("db")), before)


def check_batches(case: Case, record: Record, compare: Comparison) -> None:
    """Every batch, drawn from the recorded numbers, and that they are what rand() gives."""
    drawn = record.value("rand").tolist()
    own = CRand(case.entry.get("srand") or 1)
    compare.equal("rand()", [own() for _ in drawn], drawn)
    net, _ = load_recorded_2013(case)
    numbers = iter(drawn)
    net.graph.context.state["rand"] = lambda: next(numbers)
    outputs = record.group("out")
    for step in range(len(outputs["data"])):
        blobs = net.trace().blobs
        for name, want in outputs.items():
            compare.array(f"batch {step}: {name}", blobs[name], want[step], tolerance_of(case.entry))
    compare.equal("numbers left", list(numbers), [])
    check_records(case, record, compare)
    for key in ("offsets", "rand_used", "skip"):  # batches follow from them
        record.value(key)
    compare.equal("keys that were not compared", record.unseen(), [])


def check_records(case: Case, record: Record, compare: Comparison) -> None:
    """The database and the mean, as they were written."""
    stored = record.group("db")
    source = RecordSource(open_database(case.path("db")))
    items = [source.load(entry) for entry in source.take(len(stored["label"]))]
    compare.array("db/data", np.stack([item.image for item in items]), stored["data"])
    compare.array("db/label", np.array([item.label for item in items]), stored["label"])
    mean = record.value("mean")
    if mean is not None:
        compare.array("mean", read_mean(case.path("mean.binaryproto")), mean)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file's time of change and size."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
