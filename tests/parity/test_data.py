"""Data layers: databases and image lists, four batches each."""

from __future__ import annotations

from tests.parity.cases import Case, Folders, golden_cases, unsupported


def cases(folders: Folders) -> list[Case]:
    return golden_cases(folders, "data")


def test_data(case: Case) -> None:
    unsupported(case, "databases and image lists")
