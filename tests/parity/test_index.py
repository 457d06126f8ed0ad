"""The index files themselves: readable, and no entry that no section would run."""

from __future__ import annotations

from tests.parity.cases import Case, Folders, IndexProblemError, entries
from tests.parity.compare import comparing
from tests.parity.sections import SECTIONS


def cases(folders: Folders) -> list[Case]:
    places = {"golden": folders.golden, "golden-forks": folders.golden / "forks", "golden2013": folders.golden2013}
    return [Case("index", name, folder) for name, folder in places.items() if folder.is_dir()]


def test_index(case: Case) -> None:
    with comparing() as compare:
        try:
            found = entries(case.folder / "index.json")
        except IndexProblemError as error:
            compare.check(False, str(error))
            return
        for entry in found:
            section = entry.get("section") or f"2013-{entry.get('kind')}"
            compare.check(section in SECTIONS, f"no section {section!r} for {entry.get('id')!r}")
            compare.check(bool(entry.get("id")), f"an entry of {section} without an id")
        names = [(entry.get("section") or entry.get("kind"), entry.get("id")) for entry in found]
        compare.equal("entries that come twice", sorted({str(n) for n in names if names.count(n) > 1}), [])
