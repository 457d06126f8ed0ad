"""The data layer of December 2013."""

from __future__ import annotations

from tests.parity.cases import Case, Folders, dec2013_cases, unsupported


def cases(folders: Folders) -> list[Case]:
    return dec2013_cases(folders, "data")


def test_2013_data(case: Case) -> None:
    unsupported(case, "data layers of profile dec2013")
