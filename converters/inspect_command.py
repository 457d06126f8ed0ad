"""`vggc inspect`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from caffe_compat.commands import dialect_option, python_layers_option
from caffe_compat.errors import VggcError, one_line
from caffe_compat.loading import State
from converters.inspect import Inspection, Row, inspect, resolve, shapes_text


@click.command(name="inspect", short_help="Show layers, shapes, parameters and problems of a model.")
@click.argument("file")
@click.option("--phase", type=click.Choice(["TEST", "TRAIN"]), default="TEST", show_default=True)
@click.option("--stage", "stages", multiple=True, help="A stage for include and exclude rules.")
@click.option("--level", type=int, default=0, show_default=True, help="The level for include and exclude rules.")
@click.option("--profile", type=click.Choice(["bvlc", "dec2013"]), default="bvlc", show_default=True, help="Semantics.")
@dialect_option
@python_layers_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect_command(
    file: str,
    phase: str,
    stages: tuple[str, ...],
    level: int,
    profile: str,
    dialect: str,
    python_layers: str | None,
    as_json: bool,
) -> None:
    """Look at FILE: a prototxt, caffemodel, safetensors, HDF5, .pt or ONNX file, a mean image, a solver state, or a net
    that comes along ("E").

    Every unsupported or suspicious thing is listed in one pass; the exit code is 1 when there is any problem.
    """
    found = inspect(resolve(file), State(phase, stages, level, profile, dialect, python_layers=python_layers))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        _show(found)
    if found.problems:
        raise VggcError(f"{len(found.problems)} problem(s), listed above", where=file)


def _show(found: Inspection) -> None:
    """The table on standard output; as wide as the terminal, or as needed when there is none."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, emoji=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (("layer", "left"), ("type", "left"), ("top", "left"), ("params", "left")):
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("count", justify="right")
    table.add_column("MACs", justify="right")
    for row in found.rows:
        cells = row.name, row.type, _tops(row), shapes_text(row.params), _number(row.parameters), _number(row.macs)
        table.add_row(*map(one_line, cells))
    title = f"{found.path}: {found.format}" + (f", generation {found.generation}" if found.generation else "")
    title += f", {found.bytes:,} bytes" + (f', net "{found.name}"' if found.name else "")
    console.print(one_line(title), soft_wrap=True)
    console.print(table)
    for line in _totals(found):
        console.print(one_line(line), soft_wrap=True)


def _totals(found: Inspection) -> list[str]:
    lines = [f"{len(found.rows)} layers, {found.parameters:,} parameters, {found.macs:,} multiply-accumulates"]
    for title, blobs in (("inputs", found.inputs), ("outputs", found.outputs)):
        if blobs:
            lines.append(f"{title}: " + ", ".join(f"{blob} {shapes_text([shape])}" for blob, shape in blobs.items()))
    if found.dialect:
        lines.append(_dialect(found))
    if found.preprocessing:
        lines.append("preprocessing: " + ", ".join(f"{key} {value}" for key, value in found.preprocessing.items()))
    if found.metadata:
        lines.append("metadata: " + ", ".join(f"{key} {value}" for key, value in found.metadata.items()))
    lines += [f"note: {note}" for note in found.notes]
    return lines + [f"problem: {problem}" for problem in found.problems]


def _dialect(found: Inspection) -> str:
    text = f"dialect: {found.dialect} ({', '.join(found.dialect_reasons)})"
    if found.dialect_alike:
        text += f"; the same in {', '.join(found.dialect_alike)}"
    return text + (f"; not so in {', '.join(found.dialect_others)}" if found.dialect_others else "")


def _tops(row: Row) -> str:
    return ", ".join(f"{blob} {shapes_text([shape])}" for blob, shape in row.tops.items())


def _number(value: int) -> str:
    return f"{value:,}" if value else ""
