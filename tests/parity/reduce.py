"""Copies the small cases of recorded folders, with a reduced index: `python -m tests.parity.reduce FROM [TO]`.

FROM holds `golden` and `golden2013`. Every layer type of a section stays in at least one case; sections without small
cases, and everything of third parties, stay out.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.parity.cases import DATA

Entry = Mapping[str, Any]

LARGEST = {"layers": 12000, "forks": 9000, "data": 16000, "solvers": 24000, "solver": 30000, "upgrade": 60000}
"""Bytes that a case of a section may have; others have no limit."""
LEFT_OUT = frozenset({"models"})
SINGLE = ("layers", "rejects", "data", "forks/layers")
"""Folders whose cases share one folder; what no case's id begins is needed by all of them."""


def main(source: Path, target: Path) -> None:
    golden = reduced_index(source / "golden" / "index.json", target / "golden" / "index.json")
    forks = reduced_index(source / "golden/forks/index.json", target / "golden/forks/index.json")
    year2013 = reduced_index(source / "golden2013" / "index.json", target / "golden2013" / "index.json")
    for entry in golden:
        copy_case(source / "golden" / entry["section"], target / "golden" / entry["section"], entry)
    for entry in forks:
        copy_case(source / "golden/forks" / entry["dir"], target / "golden/forks" / entry["dir"], entry)
    for entry in year2013:
        copy_tree(source / "golden2013" / entry["dir"], target / "golden2013" / entry["dir"])
    nets = {f"weights/{entry['net']}" for entry in golden if "net" in entry}
    for extra in ("rejects/rejects.json", "weights/weights.json", "weights/loaded.npz", *nets):
        copy(source / "golden" / extra, target / "golden" / extra)
    for folder in SINGLE:
        copy_common(source / "golden" / folder, target / "golden" / folder)


def reduced_index(source: Path, target: Path) -> list[Entry]:
    """Write the index without the cases that stay out; returns those that stay."""
    index = json.loads(source.read_text())
    index["cases"] = list(chosen(source.parent, index["cases"]))
    index["counts"] = dict(sorted(Counter(section(entry) for entry in index["cases"]).items()))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(index, indent=1) + "\n")
    return list(index["cases"])


def section(entry: Entry) -> str:
    return str(entry.get("section") or entry["kind"])


def chosen(root: Path, entries: Iterable[Entry]) -> Iterable[Entry]:
    """The cases small enough, and the smallest case of every layer type that would have none."""
    sizes = {(section(entry), entry["id"]): (size(root, entry), entry) for entry in entries}
    sizes = {key: value for key, value in sizes.items() if key[0] not in LEFT_OUT}
    keep = {key for key, (bytes_, _) in sizes.items() if bytes_ <= LARGEST.get(key[0], sys.maxsize)}
    for key, (_, entry) in sorted(sizes.items(), key=lambda item: item[1][0]):
        kept = {kind for name, case in keep if name == key[0] for kind in types(sizes[name, case][1])}
        if set(types(entry)) - kept:
            keep.add(key)
    return [entry for key, (_, entry) in sizes.items() if key in keep]


def types(entry: Entry) -> list[str]:
    return list(entry.get("layer_types") or entry.get("types") or ())


def size(root: Path, entry: Entry) -> int:
    folder = case_folder(root, entry)
    files = [folder / name for name in entry["files"]] if "files" in entry else folder.rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())


def case_folder(root: Path, entry: Entry) -> Path:
    if "dir" in entry:
        return root / str(entry["dir"])
    return own_folder(root / section(entry), entry)


def own_folder(section_folder: Path, entry: Entry) -> Path:
    """A folder called like the case when its files are there, else the section's."""
    own = section_folder / str(entry["id"])
    return own if (own / entry["files"][0]).exists() else section_folder


def copy_case(source: Path, target: Path, entry: Entry) -> None:
    folder = own_folder(source, entry)
    for name in entry["files"]:
        copy(folder / name, target / folder.relative_to(source) / name)


def copy_common(source: Path, target: Path) -> None:
    """Lists, databases and modules that nets of the folder name."""
    ids = {path.stem for path in source.glob("*.prototxt")}
    for path in source.iterdir():
        if path.is_dir():
            copy_tree(path, target / path.name)
        elif not path.name.startswith("_") and path.name.split(".")[0] not in ids and path.suffix != ".json":
            copy(path, target / path.name)


def copy_tree(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            copy(path, target / path.relative_to(source))


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else DATA)
