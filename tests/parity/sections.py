"""The sections: one file `test_<section>.py` each, so that a section cannot be without its checks."""

from __future__ import annotations

from pathlib import Path


def section_of(path: Path) -> str:
    """`test_zoo_shapes.py` -> "zoo_shapes", `test_2013_layer.py` -> "2013-layer"."""
    name = path.stem.removeprefix("test_")
    return name.replace("_", "-", 1) if name.startswith("2013_") else name


SECTIONS = tuple(sorted(section_of(path) for path in Path(__file__).parent.glob("test_*.py")))
