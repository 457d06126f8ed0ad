"""Options of the suite.

pytest tests/parity --golden DIR --golden2013 DIR --zoo DIR --section layers,upgrade
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.parity.cases import Folders
from tests.parity.sections import SECTIONS

FOLDERS = pytest.StashKey[Folders]()
CHOSEN = pytest.StashKey[frozenset[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity", "parity with recorded Caffe")
    for name, what in (
        ("golden", "numbers recorded from the last BVLC commit and from forks"),
        ("golden2013", "numbers recorded from the commit of December 2013"),
        ("zoo", "third-party nets and models"),
    ):
        group.addoption(f"--{name}", metavar="DIR", type=Path, help=f"folder with {what}")
    group.addoption(
        "--section", metavar="NAMES", default="", help=f"run these parity sections only: {', '.join(SECTIONS)}"
    )
    group.addoption("--all-sections", action="store_true", help="run every parity section, also those still pending")


def pytest_configure(config: pytest.Config) -> None:
    given = {name: config.getoption(name) for name in ("golden", "golden2013", "zoo")}
    given = {name: path.resolve() for name, path in given.items() if path is not None}
    for name, path in given.items():
        if not path.is_dir():
            raise pytest.UsageError(f"--{name}: {path} is not a folder")
    config.stash[FOLDERS] = replace(Folders.default(), **given)
    names = {name.strip() for name in config.getoption("section").split(",") if name.strip()}
    if unknown := sorted(names - set(SECTIONS)):
        raise pytest.UsageError(f"--section: no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    everything = config.getoption("all_sections") or bool(given)
    config.stash[CHOSEN] = frozenset(names or (SECTIONS if everything else ()))


def chosen_sections(config: pytest.Config) -> frozenset[str]:
    """The sections that the command line asks for, all when it names a folder; none when it leaves the choice."""
    return config.stash[CHOSEN]
