"""Layers and small nets of December 2013: forward, backward, and each layer's part in them."""

from __future__ import annotations

from tests.parity.cases import Case, Folders, dec2013_cases
from tests.parity.compare import comparing
from tests.parity.dec2013 import check_layer_case


def cases(folders: Folders) -> list[Case]:
    return dec2013_cases(folders, "layer")


def test_2013_layer(case: Case) -> None:
    with comparing() as compare:
        check_layer_case(case, compare)
