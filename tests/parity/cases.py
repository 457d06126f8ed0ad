"""What there is to check: one `Case` for each entry of the recorded folders' index files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest

TESTS = Path(__file__).resolve().parents[1]
DATA = TESTS / "data"
SEPARATE = "quirk"
"""A tag that the summary lists like a layer type: behaviour of December 2013 that looks like a mistake."""
SHARED = TESTS.parents[1] / "shared"


@dataclass(frozen=True)
class Folders:
    """Where the recorded data lies; a folder that does not exist has no cases."""

    golden: Path
    golden2013: Path
    zoo: Path

    @classmethod
    def default(cls) -> Folders:
        """The full data beside the repository where it is there, else the copies inside it."""
        found = {name: SHARED / name for name in ("golden", "golden2013", "zoo")}
        return cls(**{name: path if path.is_dir() else DATA / name for name, path in found.items()})


@dataclass(frozen=True)
class Case:
    """One thing that the project must agree on.

    Attributes:
        section: which kind of data, the name used by `--section`.
        id: the index entry's own.
        folder: where its files lie; also what paths inside its nets are relative to.
        entry: the whole index entry.
        types: layer types, for the summary.
        tags: the index entry's.
        zoo: the folder of third-party files.
        broken: why the index entry cannot be run; such a case fails.
    """

    section: str
    id: str
    folder: Path
    entry: Mapping[str, Any] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()
    zoo: Path = DATA / "zoo"
    broken: str = ""

    def __str__(self) -> str:
        return f"{self.section}/{self.id}"

    def path(self, name: str) -> Path:
        """One of its files; the message of a missing one says what belongs there."""
        path = self.folder / name
        if not path.exists():
            raise FileNotFoundError(f"{self}: the index promises {path}")
        return path

    def files(self, suffix: str) -> list[Path]:
        """Its files with that ending, by the index or else by its id."""
        named = [self.folder / name for name in self.entry.get("files", ())]
        return sorted(path for path in named or self.folder.glob(f"{self.id}.*") if path.name.endswith(suffix))


class IndexProblemError(Exception):
    """An index file that cannot be read."""


@cache
def read_json(path: Path) -> Any:
    """The content of a JSON file, gzipped or not."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return json.loads(data)
    except (OSError, EOFError, ValueError) as error:
        raise IndexProblemError(f"{path}: {error}") from error


def entries(index: Path) -> list[dict[str, Any]]:
    """The cases of an index file; none when its folder does not exist."""
    if not index.parent.is_dir():
        return []
    content = read_json(index)
    found = content.get("cases") if isinstance(content, dict) else content
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise IndexProblemError(f'{index}: no list of "cases"')
    return found


def guarded(section: str, index: Path, make: Callable[[], Iterable[Case]]) -> list[Case]:
    """The cases; one that fails when the index cannot be read."""
    try:
        return list(make())
    except (IndexProblemError, KeyError, TypeError, ValueError, AttributeError) as error:
        return [Case(section, index.name, index.parent, broken=f"{index}: {type(error).__name__}: {error}")]


def golden_cases(folders: Folders, section: str, *, own_folder: bool = False) -> list[Case]:
    """The cases of a section of golden/index.json.

    Args:
        own_folder: each case has a folder of its own under the section's.
    """
    root = folders.golden / section

    def make() -> Iterable[Case]:
        for entry in entries(folders.golden / "index.json"):
            if entry.get("section") == section:
                yield _case(section, entry, root / str(entry.get("id")) if own_folder else root, folders)

    return guarded(section, folders.golden / "index.json", make)


def fork_cases(folders: Folders) -> list[Case]:
    """The cases of golden/forks/index.json."""
    index = folders.golden / "forks" / "index.json"

    def make() -> Iterable[Case]:
        for entry in entries(index):
            yield _case("forks", entry, index.parent / entry.get("dir", "layers"), folders)

    return guarded("forks", index, make)


def dec2013_cases(folders: Folders, kind: str) -> list[Case]:
    """The cases of one kind of golden2013/index.json."""
    index = folders.golden2013 / "index.json"

    def make() -> Iterable[Case]:
        for entry in entries(index):
            if entry.get("kind") == kind:
                yield _case(f"2013-{kind}", entry, folders.golden2013 / str(entry.get("dir", entry.get("id"))), folders)

    return guarded(f"2013-{kind}", index, make)


def _case(section: str, entry: Mapping[str, Any], folder: Path, folders: Folders) -> Case:
    tags = frozenset(map(str, entry.get("tags") or ()))
    types = [str(kind) for kind in entry.get("layer_types") or entry.get("types") or ()]
    types += [SEPARATE] if SEPARATE in tags else []
    types += ["solver"] if entry.get("stage") == "solver" else []
    kinds = tuple(f"{kind} (2013)" if section.startswith("2013") else kind for kind in types)
    name = str(entry.get("id", ""))
    broken = "" if name else f"an index entry without an id: {json.dumps(entry)[:200]}"
    return Case(section, name or "no-id", folder, entry, kinds, tags, folders.zoo, broken)


def unsupported(case: Case, what: str) -> NoReturn:
    """Fail a case that cannot run yet."""
    pytest.fail(f"{case}: not supported yet: {what}", pytrace=False)
