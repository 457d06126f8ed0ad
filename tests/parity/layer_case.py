"""A prototxt with its recorded runs, as in golden/layers, golden/forks/layers and golden/data."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from caffe_compat.dialects import resolve
from caffe_compat.module import Net
from tests.parity.cases import Case
from tests.parity.compare import Comparison
from tests.parity.nets import load_recorded, writable
from tests.parity.records import Record, Replay
from tests.tolerances import EXACT, Tolerance

WRITING = frozenset({"AnnotatedData", "Data", "HDF5Output"})
"""Layers that write files beside the prototxt, or whose databases a library may write to."""


def prototxt(case: Case) -> Path:
    """The case's net."""
    return case.path(f"{case.id}.prototxt")


def dialect(case: Case) -> str:
    """The fork that the case belongs to, "" for none; the index names its repository."""
    return resolve(case.entry.get("dialect", ""))


def run_case(case: Case, scratch: Path, tolerance: Tolerance, compare: Comparison) -> None:
    """Replay every recorded phase of a case."""
    net_file = prototxt(case)
    if WRITING & set(case.types):
        net_file = writable(case.folder, scratch / "case") / net_file.name
    records = case.files(".npz")
    compare.check(bool(records), f"{case}: no recorded run (.npz)")
    for path in records:
        run_record(case, Record(path), net_file, tolerance, compare)


def run_record(case: Case, record: Record, net_file: Path, tolerance: Tolerance, compare: Comparison) -> None:
    options = record.meta.get("opts", {})
    net, recorder = load_recorded(
        net_file,
        phase=record.phase,
        stages=options.get("stages", ()),
        level=options.get("level", 0),
        dialect=dialect(case),
    )
    as_is = "inplace_asis" in case.tags  # Caffe overwrites an operand there; reproducing that is optional
    replay = Replay(
        record,
        net,
        recorder,
        tolerance,
        forward_exact=not (as_is and "LRN" in case.types),
        backward_exact=not as_is,
        random="random" in case.tags,
    )
    written = record.group("h5out")
    replay.run(compare)
    for name, want in written.items():
        compare.array(f"h5out/{name}", written_by(net, net_file.parent, name), want, EXACT)


def written_by(net: Net, folder: Path, name: str) -> np.ndarray | None:
    """A data set that the net's HDF5Output layers wrote into its folder."""
    for node in net.graph.nodes:
        if node.layer.TYPE == "HDF5Output" and (folder / node.layer.p.file_name).exists():
            with h5py.File(folder / node.layer.p.file_name) as file:
                if name in file:
                    return np.asarray(file[name])
    return None
