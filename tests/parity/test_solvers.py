"""Training trajectories, snapshots and resumed runs."""

from __future__ import annotations

from tests.parity.cases import Case, Folders, golden_cases, unsupported


def cases(folders: Folders) -> list[Case]:
    return golden_cases(folders, "solvers", own_folder=True)


def test_solvers(case: Case) -> None:
    unsupported(case, "solvers")
