"""Model cards: what a converted file is and where it comes from, as Markdown."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffe_compat.errors import ConversionError
from caffe_compat.writing import new_file
from converters.extras import apart
from converters.input_values import sizes_text
from converters.model import Model, tool_version

if TYPE_CHECKING:
    from converters.convert import Report, Result

LIBRARIES = ("numpy", "protobuf", "torch", "onnx", "onnxruntime", "h5py", "safetensors")
SUFFIX = ".card.md"


def card_path(path: Path) -> Path:
    """Where the card of a result is."""
    return path.with_name(path.name + SUFFIX)


def check_cards(targets: Sequence[Path], force: bool) -> None:
    """See to it, before any work, that no card is replaced unasked.

    Raises:
        ConversionError: one exists.
    """
    for path in map(card_path, targets):
        if path.exists() and not force:
            raise ConversionError("the card exists", where=str(path), remedy="use --force to replace it")


def write_cards(report: Report, model: Model, license_text: str, pixels: str, changed: bool) -> list[Path]:
    """Write a card beside each result; returns where.

    Args:
        report: of the conversion.
        model: what was written.
        license_text: "" when the user states none.
        pixels: how an ONNX result prepares images itself, "" when it does not.
        changed: weights were folded or rounded.

    Raises:
        VggcError: a card cannot be written.
    """
    paths = []
    for result in report.results:
        if result.format.endswith(" data"):
            continue
        path = card_path(Path(result.path))
        how = pixels if result.format == "onnx" else ""
        with new_file(path) as file:
            file.write(card(report, result, model, license_text, how, changed).encode())
        paths.append(path)
    return paths


def card(report: Report, result: Result, model: Model, license_text: str, pixels: str, changed: bool) -> str:
    """The text of a card; the same conversion always gives the same text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"text": text, "cell": cell, "base": base, "thousands": "{:,}".format, "apart": apart}
    template = environment.from_string(files("converters").joinpath("templates/card.md").read_text(encoding="utf-8"))
    graph = model.graph
    return template.render(
        report=report,
        result=result,
        parts=_parts(report, result),
        notes=report.notes,
        net=graph.name if graph else "",
        profile=graph.context.profile if graph else "bvlc",
        dialect=graph.context.dialect if graph else "",
        inputs={blob: sizes_text(shape) for blob, shape in graph.inputs.items()} if graph else {},
        outputs={blob: sizes_text(graph.shapes[blob]) for blob in graph.outputs} if graph else {},
        preprocessing=model.preprocessing,
        pixels=pixels,
        changed=changed,
        versions=versions(),
        license=license_text.strip(),
    )


def _parts(report: Report, result: Result) -> list[Result]:
    """The result, and the data beside it."""
    data = [each for each in report.results if each.path.startswith(f"{result.path}.") and " data" in each.format]
    return [result, *data]


def versions() -> Mapping[str, str]:
    """The tool, Python, and the libraries that are installed."""
    found = {"vggc": tool_version(), "Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def base(path: str) -> str:
    """The name of a file: folders are the user's own."""
    return Path(path).name


def text(value: Any) -> str:
    """Text on one line in which Markdown and HTML see nothing of their own."""
    line = re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", str(value))
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", line)


def cell(value: Any) -> str:
    """Text in a table's cell."""
    return text(value)
