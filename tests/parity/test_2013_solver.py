"""Training of December 2013: trajectories and resumed runs."""

from __future__ import annotations

from tests.parity.cases import Case, Folders, dec2013_cases, unsupported


def cases(folders: Folders) -> list[Case]:
    return dec2013_cases(folders, "solver")


def test_2013_solver(case: Case) -> None:
    unsupported(case, "solvers of profile dec2013")
