"""Weight files of every kind and defect against one net: what Caffe copies, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from caffe_compat.errors import VggcError
from tests.parity.cases import Case, Folders, golden_cases
from tests.parity.compare import Comparison, comparing
from tests.parity.nets import Array, Key, errors_in, load, parameters
from tests.parity.records import Record
from tests.tolerances import EXACT


def cases(folders: Folders) -> list[Case]:
    return golden_cases(folders, "weights")


def test_weights(case: Case) -> None:
    net_file, weights = case.path(case.entry.get("net", "net.prototxt")), case.path(case.id)
    with comparing() as compare:
        if not case.entry["ok"]:
            check_refused(net_file, weights, compare, strict=False)
            return
        want = Record(case.path("loaded.npz")).params(case.id)
        untouched = layers_left_alone(net_file, want)
        if untouched == {layer for layer, _ in want}:
            # Caffe takes any bytes that parse as unknown fields for a model without layers; refusing is right.
            check_refused(net_file, weights, compare, strict=False)
            return
        own = parameters(load(net_file, weights, strict=False))
        compare.equal("parameter blobs", sorted(own), sorted(want))
        for key, values in want.items():
            compare.array(f"{key[0]}/{key[1]}", own.get(key), values, EXACT)
        if untouched:
            check_refused(net_file, weights, compare, strict=True)


def layers_left_alone(net_file: Path, want: Mapping[Key, Array]) -> set[str]:
    """Layers whose recorded values are those of the net's fillers: the file did not have them."""
    filled = {key: blob.detach().numpy() for key, blob in parameters(load(net_file)).items()}
    changed = {key[0] for key, values in want.items() if key not in filled or not np.array_equal(filled[key], values)}
    return {layer for layer, _ in want} - changed


def check_refused(net_file: Path, weights: Path, compare: Comparison, *, strict: bool) -> None:
    try:
        load(net_file, weights, strict=strict)
    except VggcError as error:
        for one in errors_in(error):
            compare.check(bool(str(one.where)), f"no place: {one}")
    else:
        compare.check(False, f"{weights.name} was accepted with strict={strict}")
