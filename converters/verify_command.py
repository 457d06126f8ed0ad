"""`vggc verify`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from caffe_compat.commands import dialect_option, python_layers_option
from caffe_compat.loading import State
from converters.commands import shapes_option
from converters.verify import BEST, TOLERANCE, Comparison, Options, Row
from converters.verify import verify as run_verify

DIFFERS = 3
"""Exit code when the models are not the same."""
PATH = click.Path(path_type=Path)


@click.command(short_help="Compare two models layer by layer, and their weights.")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--net-a", type=PATH, help="Prototxt of A's net, when A does not carry the right one.")
@click.option("--net-b", type=PATH, help="Prototxt of B's net.")
@click.option("--input", "values", type=PATH, help="An image, .npy or .npz in place of random values.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random values.")
@shapes_option
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=TOLERANCE,
    show_default=True,
    help="Largest difference allowed, relative to a blob's largest magnitude.",
)
@click.option("--weights-only", is_flag=True, help="Compare the weights and run nothing.")
@click.option("--opencv", is_flag=True, help="Let OpenCV 4's own importer read and run A, a .caffemodel.")
@click.option("--profile", type=click.Choice(["bvlc", "dec2013"]), default="bvlc", show_default=True, help="Semantics.")
@dialect_option
@python_layers_option
@click.option("--html", "page", type=PATH, help="Write the report as one HTML file.")
@click.option("--force", is_flag=True, help="Replace the HTML file when it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(
    a: Path,
    b: Path,
    net_a: Path | None,
    net_b: Path | None,
    values: Path | None,
    seed: int,
    shapes: dict[str, tuple[int, ...]],
    tolerance: float,
    weights_only: bool,
    opencv: bool,
    profile: str,
    dialect: str,
    python_layers: str | None,
    page: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Run models A and B on the same input and compare every blob that has the same name in both.

    Each is a .caffemodel, .safetensors, .pt, .h5, .onnx, or a .py that `vggc convert` wrote, which is executed. A file
    of weights alone is run with the other's net unless --net-a or --net-b names one. .onnx needs ONNX Runtime, images
    need OpenCV or PIL.

    The exit code is 3 when a blob differs by more than the tolerance, or has another shape.
    """
    from converters.verify_report import as_dict, check_page, write_page

    if page is not None:
        check_page(page, force)
    state = State(profile=profile, dialect=dialect, input_shapes=shapes or None, python_layers=python_layers)
    options = Options(net_a, net_b, state, values, seed, tolerance, not weights_only, opencv)
    found = run_verify(a, b, options)
    if page is not None:
        write_page(page, found)
    if as_json:
        click.echo(json.dumps(as_dict(found), indent=2))
    else:
        _show(found)
    return 0 if found.agrees else DIFFERS


def _show(found: Comparison) -> None:
    """The tables on standard output; as wide as the terminal, or as needed when there is none."""
    from rich.console import Console

    from converters.verify_report import number, verdict, weights_line

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    console.print(f"A {found.a}, run by {found.engines[0]}\nB {found.b}, run by {found.engines[1]}")
    for line in found.inputs:
        console.print(f"input {line}")
    if found.blobs:
        console.print(_table(found.blobs))
    unequal = [row for row in found.params if row.difference is None or not row.difference.equal]
    for row in unequal:
        apart = number(row.difference.relative) if row.difference else _two_shapes(row)
        console.print(f"weight {row.name} differs: {apart}")
    console.print(weights_line(found))
    for ranking in found.rankings:
        same = f"the best class of {ranking.first}, the best {ranking.count} of {ranking.best}"
        console.print(f"top-{BEST} of {ranking.blob}: {same} of {ranking.items} items agree")
    for what, names in _missing(found):
        console.print(f"{what}: {', '.join(names)}")
    for note in found.notes:
        console.print(f"note: {note}")
    console.print(verdict(found))


def _two_shapes(row: Row) -> str:
    from converters.input_values import sizes_text

    return f"{sizes_text(row.shape)} and {sizes_text(row.other)}"


def _missing(found: Comparison) -> list[tuple[str, tuple[str, ...]]]:
    """What only one side has."""
    kinds = (
        ("blobs only in A", found.only_a),
        ("blobs only in B", found.only_b),
        ("weights only in A", found.params_only_a),
        ("weights only in B", found.params_only_b),
    )
    return [(what, names) for what, names in kinds if names]


def _table(rows: tuple[Row, ...]) -> object:
    from rich.table import Table

    from converters.input_values import sizes_text
    from converters.verify_report import mark, number

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("blob", "layers", "shape"):
        table.add_column(title, overflow="fold")
    for title in ("largest value", "difference", "relative", ""):
        table.add_column(title, justify="right")
    for row in rows:
        apart = row.difference
        if apart is None:
            table.add_row(row.name, row.layers, _two_shapes(row), "", "", "", "DIFFERS")
            continue
        numbers = (number(apart.largest), number(apart.absolute), number(apart.relative))
        table.add_row(row.name, row.layers, sizes_text(row.shape), *numbers, mark(row))
    return table
