"""Test-time protocols of the paper: crops, dense evaluation, fusion, features and boxes."""

from __future__ import annotations

from tests.parity.cases import Case, Folders, guarded, read_json, unsupported

GROUPS = ("nets", "fusion", "localisation")


def cases(folders: Folders) -> list[Case]:
    index = folders.golden / "protocols" / "index.json"

    def make() -> list[Case]:
        content = read_json(index)
        return [
            Case("protocols", name, index.parent, entry, ("protocol",))
            for group in GROUPS
            for name, entry in content.get(group, {}).items()
        ]

    return guarded("protocols", index, make) if index.parent.is_dir() else []


def test_protocols(case: Case) -> None:
    unsupported(case, "test-time protocols")
