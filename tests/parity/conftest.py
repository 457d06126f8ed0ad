"""Turns index files into tests, selects sections, and counts by section and by layer type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FOLDERS, chosen_sections
from tests.parity.cases import Case
from tests.parity.pending import PENDING_SECTIONS, PENDING_TYPES
from tests.parity.sections import SECTIONS, section_of

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.parent != HERE or not collection_path.name.startswith("test_"):
        return None
    return True if section_of(collection_path) not in selected(config) else None


def selected(config: pytest.Config) -> frozenset[str]:
    """The sections to run."""
    return chosen_sections(config) or frozenset(SECTIONS) - PENDING_SECTIONS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.cases(metafunc.config.stash[FOLDERS])
        metafunc.parametrize("case", cases, ids=map(str, cases), indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The case to run."""
    found: Case = request.param
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """A case that its index does not describe fails."""
    case = pyfuncitem.funcargs.get("case")
    if isinstance(case, Case) and case.broken:
        pytest.fail(case.broken, pytrace=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note section and types on each item; leave out pending types, and sections without any case."""
    kept, left = [], []
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if not item.path.is_relative_to(HERE) or "case" not in params:
            kept.append(item)
            continue
        case = params["case"]
        if not isinstance(case, Case) or (not chosen_sections(config) and PENDING_TYPES & set(case.types)):
            left.append(item)
            continue
        item.user_properties += [("section", case.section), ("types", list(case.types))]
        kept.append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes = dict(_outcomes(terminalreporter))
    if not outcomes:
        return
    terminalreporter.section("parity")
    for title, key in (("section", "section"), ("layer type", "types")):
        if counts := _counts(outcomes, key):
            terminalreporter.write_line("\n".join(_table(title, counts)))
    notes = (str(text) for _, properties in outcomes.values() for name, text in properties if name == "note")
    for line in sorted(notes):
        terminalreporter.write_line(line)
    if not chosen_sections(config):
        waiting = sorted(PENDING_SECTIONS) + sorted(PENDING_TYPES)
        terminalreporter.write_line(f"pending, not run: {', '.join(waiting) or 'nothing'}")


Properties = list[tuple[str, Any]]


def _outcomes(reporter: pytest.TerminalReporter) -> Iterator[tuple[str, tuple[bool, Properties]]]:
    """Node -> (passed, properties) of every parity test; a failing setup or teardown comes last and counts."""
    for name in ("passed", "failed", "error"):
        for report in reporter.stats.get(name, ()):
            properties = list(getattr(report, "user_properties", ()))
            if any(key == "section" for key, _ in properties):
                yield report.nodeid, (name == "passed", properties)


def _counts(outcomes: dict[str, tuple[bool, Properties]], key: str) -> dict[str, Counter[bool]]:
    counts: dict[str, Counter[bool]] = {}
    for passed, properties in outcomes.values():
        value = dict(properties)[key]
        for name in [value] if isinstance(value, str) else value:
            counts.setdefault(str(name), Counter())[passed] += 1
    return counts


def _table(title: str, counts: dict[str, Counter[bool]]) -> Iterator[str]:
    width = max(map(len, [*counts, title])) + 2
    yield f"{title:<{width}}passed failed"
    for name in sorted(counts, key=str.lower):
        yield f"{name:<{width}}{counts[name][True]:>6} {counts[name][False]:>6}"
