"""A comparison as text, as JSON, and as one HTML page."""

from __future__ import annotations

import math
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from caffe_compat.errors import VggcError
from caffe_compat.writing import new_file
from converters.input_values import sizes_text
from converters.model import tool_version
from converters.verify import Comparison, Row

FLOOR = 1e-9
"""Relative difference at which a bar begins; it is full at 1. Bars are logarithmic."""


def number(value: float) -> str:
    """Three digits; 0 stands for no difference at all."""
    return "0" if value == 0 else f"{value:.3g}"


def mark(row: Row) -> str:
    """What stands behind a blob."""
    if not row.agrees:
        return "DIFFERS"
    explains = row.difference is not None and row.explained and row.difference.relative > row.beyond
    return "from its bottom" if explains else ""


def verdict(found: Comparison) -> str:
    """One sentence: whether they agree, how well, and where not."""
    rule = f"allowed: {found.tolerance:g} of a blob's largest magnitude"
    rows = found.blobs or found.params
    worst = max((row.beyond for row in rows), default=0.0)
    if found.agrees:
        return f"the models agree: at most {number(worst)} ({rule})"
    first = found.first
    place = f"; first in {_place(first)}" if first else ""
    return f"the models DIFFER: {_extent(found)} ({rule}){place}"


def _extent(found: Comparison) -> str:
    rows = found.blobs or found.params
    over = [row for row in rows if not row.agrees]
    apart = [row.beyond for row in over if row.difference]
    shapes = len(over) - len(apart)
    parts = [f"by up to {number(max(apart))} in {len(apart)} of {len(rows)}"] if apart else []
    return " and ".join([*parts, f"{shapes} of other shapes"] if shapes else parts)


def _place(row: Row) -> str:
    return f"blob {row.name}" + (f" (layer {row.layers})" if row.layers and row.layers != row.name else "")


def weights_line(found: Comparison) -> str:
    """How many parameter blobs are the same, and how far the others are apart."""
    if not found.params:
        return "weights: none have the same name on both sides"
    line = f"weights: {found.equal_params} of {len(found.params)} parameter blobs are bit-equal"
    apart = [row.difference.relative for row in found.params if row.difference and not row.difference.equal]
    return f"{line}, the others differ by up to {number(max(apart))} of a blob's largest magnitude" if apart else line


def as_dict(found: Comparison) -> dict[str, Any]:
    """Everything, for JSON, which has no infinities: they become strings."""
    summary = {"agrees": found.agrees, "equal_params": found.equal_params}
    ends = {name: row.name if row else None for name, row in (("first", found.first), ("worst", found.worst))}
    made: dict[str, Any] = plain({**summary, **ends, **asdict(found)})
    return made


def plain(value: Any) -> Any:
    """The value for JSON, which has no infinities."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# -- HTML ------------------------------------------------------------------------------------------------------


def check_page(path: Path, force: bool) -> None:
    """See to it, before any work, that the page may be written.

    Raises:
        VggcError: it exists, or is a folder.
    """
    if path.is_dir():
        raise VggcError("this is a folder", where=str(path), remedy="name a file in it")
    if path.exists() and not force:
        raise VggcError("the file exists", where=str(path), remedy="use --force to replace it")


def write_page(path: Path, found: Comparison) -> None:
    """Write the comparison as one HTML file, which needs nothing else.

    Raises:
        VggcError: it cannot be written.
    """
    with new_file(path) as file:
        file.write(page(found).encode())


def page(found: Comparison) -> str:
    """The comparison as an HTML document; names from the models are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "sizes": sizes_text, "bar": bar, "note": mark}
    text = files("converters").joinpath("templates/verify.html").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        found=found,
        verdict=verdict(found),
        weights=weights_line(found),
        version=tool_version(),
        mark=bar(found.tolerance),
        unequal=[row for row in found.params if row.difference is None or not row.difference.equal],
    )


def bar(relative: float) -> float:
    """The length of a bar in percent: 0 at FLOOR and below, 100 at 1 and above."""
    if not relative > FLOOR:
        return 0.0
    return min(100.0, round(100 * (1 - math.log10(relative) / math.log10(FLOOR)), 1)) if relative < 1 else 100.0
