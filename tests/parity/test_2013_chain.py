"""Train, snapshot, copy into the deploy net, all of December 2013."""

from __future__ import annotations

from tests.parity.cases import Case, Folders, dec2013_cases, unsupported


def cases(folders: Folders) -> list[Case]:
    return dec2013_cases(folders, "chain")


def test_2013_chain(case: Case) -> None:
    unsupported(case, "solvers of profile dec2013")
