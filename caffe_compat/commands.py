"""Commands that need the formats alone: `vggc upgrade`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from caffe_compat.upgrade_files import UpgradedFile


def _dialect(_context: click.Context, _param: click.Parameter, name: str) -> str:
    from caffe_compat.dialects import resolve
    from caffe_compat.errors import FormatError

    try:
        return resolve(name)
    except FormatError as error:
        raise click.BadParameter(f"{error.what}; {error.remedy}") from error


dialect_option = click.option(
    "--dialect",
    default="",
    metavar="FORK",
    callback=_dialect,
    help="The fork that the net is for, by default judged by its layers; bvlc refuses what forks have added.",
)
python_layers_option = click.option(
    "--python-layers",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Run the Python layers that pycaffe code in DIR defines; give it for code that you trust.",
)


@click.command(short_help="Bring a net, its weights or a solver to the newest generation.")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="[OUT]", required=False, type=click.Path(path_type=Path))
@dialect_option
@click.option("--strict", is_flag=True, help="Refuse what would be dropped, and fields that Caffe does not have.")
@click.option("--force", is_flag=True, help="Overwrite OUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def upgrade(source: Path, target: Path | None, dialect: str, strict: bool, force: bool, as_json: bool) -> None:
    """Rewrite IN, a net or solver of any generation, text or binary, in the newest one, as Caffe's own tools do.

    Text goes to OUT, or to standard output without it. A .caffemodel keeps its weights bit by bit; with an OUT that
    ends in .prototxt its net alone is written.

    \b
    Exit codes: 0 done; 1 done, but for fields that have no place in the newest generation, or refused.
    """
    from caffe_compat.upgrade_files import upgrade_file

    result = upgrade_file(source, strict=strict, dialect=dialect)
    if target is None and result.binary:
        raise click.UsageError("IN is binary: name the OUT to write.")
    if target is not None:
        result.write(target, force=force)
    elif not as_json:
        click.echo(result.text(), nl=False)
    if as_json:
        click.echo(json.dumps(_report(result, target), indent=2))
    else:
        for line in _lines(result, target):
            click.echo(f"vggc: {line}", err=True)
    click.get_current_context().exit(1 if result.problems else 0)


def _report(result: UpgradedFile, target: Path | None) -> dict[str, object]:
    return {
        "source": result.source,
        "target": str(target) if target else None,
        "kind": "net" if result.generation else "solver",
        "format": "binary" if result.binary else "text",
        "generation": result.generation or None,
        "changed": result.changed,
        "layers": len(result.origins),
        "problems": [str(problem) for problem in result.problems],
        "notes": list(result.notes),
        "unknown": [{"where": str(unknown.where), "path": unknown.path} for unknown in result.unknown],
        "text": None if target else result.text(),
    }


def _lines(result: UpgradedFile, target: Path | None) -> list[str]:
    """What happened, for people."""
    kind = f"a net of generation {result.generation}" if result.generation else "a solver"
    done = "is brought to the newest generation" if result.changed else "is of the newest generation already"
    lines = [f"{result.source}: {kind}, {done}"]
    lines += [f"note: {note}" for note in result.notes]
    lines += [f"note: {u.where}: {u.path} is not one of Caffe's fields" for u in result.unknown]
    lines += [f"error: {problem}" for problem in result.problems]
    return lines + ([f"wrote {target}"] if target else [])


@click.command(short_help="List the layer types that are supported, and where.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table as Markdown.")
def layers(as_json: bool, as_markdown: bool) -> None:
    """List every layer type: the generations, profiles and forks that have it, gradients and ONNX."""
    from dataclasses import asdict

    from caffe_compat.support import markdown, support

    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in support()], indent=2))
    elif as_markdown:
        click.echo(markdown())
    else:
        for entry in support():
            names = zip(("forward", "backward", "ONNX out", "ONNX in"), entry.marks(), strict=True)
            marks = " ".join(f"{name if mark else '-':9}" for name, mark in names)
            click.echo(f"{entry.type:26} {entry.generations:9} {entry.scope:24} {marks}".rstrip())
