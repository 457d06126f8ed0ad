"""Nets that Caffe refuses: refused here too, with a place and a remedy."""

from __future__ import annotations

from dataclasses import replace

from caffe_compat.errors import VggcError
from tests.parity.cases import Case, Folders, golden_cases, guarded, read_json
from tests.parity.compare import Comparison, comparing
from tests.parity.nets import errors_in, load


def cases(folders: Folders) -> list[Case]:
    found = golden_cases(folders, "rejects")
    verdicts = folders.golden / "rejects" / "rejects.json"
    if not found or all("accepted" in case.entry for case in found):
        return found
    return guarded("rejects", verdicts, lambda: [_with(case, read_json(verdicts)) for case in found])


def _with(case: Case, verdicts: dict[str, dict[str, object]]) -> Case:
    return replace(case, entry={**verdicts.get(case.id, {}), **case.entry})


def test_rejects(case: Case) -> None:
    with comparing() as compare:
        try:
            load(case.path(f"{case.id}.prototxt"))
        except VggcError as error:
            compare.check(bool(case.entry.get("accepted")) is False, f"refused, but Caffe accepts it: {error}")
            check_message(error, compare)
        else:
            compare.check(case.entry["accepted"], f"accepted, but Caffe says: {case.entry.get('error')}")


def check_message(error: VggcError, compare: Comparison) -> None:
    """Every error has a line and a remedy."""
    for one in errors_in(error):
        compare.check(one.where.line > 0, f"no line: {one}")
        compare.check(bool(one.remedy), f"no remedy: {one}")
