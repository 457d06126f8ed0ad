"""`vggc plot`: the curves of trainings."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(short_help="Draw loss, accuracy and learning rate of trainings.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to; RUN/plots, or LOG-plots."
)
@click.option("--json", "as_json", is_flag=True, help="Print figures and files as JSON.")
def plot(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Draw loss, accuracy and learning rate of trainings as PNG files, and write a page (HTML) that holds them.

    RUN is a folder that `vggc train --out` wrote, its history.csv, or a log as `caffe train` prints it. Several are
    drawn into the same pictures, and go to the folder of the first.
    """
    from caffe_compat.errors import one_line
    from caffe_compat.writing import write_failed
    from repro.plots import read_curves, told_apart, write_plots

    curves = told_apart([read_curves(run) for run in runs])
    first = runs[0]
    folder = out or (first / "plots" if first.is_dir() else first.with_name(f"{first.stem}-plots"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failed(folder, error) from error
    files = write_plots(curves, folder)
    summaries = [run.summary() for run in curves]
    if as_json:
        click.echo(json.dumps({"runs": summaries, "files": [str(path) for path in files]}, indent=2))
        return
    for line in [*map(described, summaries), *(f"wrote {path}" for path in files)]:
        click.echo(one_line(line))


def described(summary: dict[str, object]) -> str:
    """A run in one line."""
    parts = [f"iteration {summary['iteration']:,}"]
    if summary["loss"] is not None:
        parts.append(f"loss {summary['loss']:.4g}")
    if summary["best_accuracy"] is not None:
        parts.append(f"best accuracy {summary['best_accuracy']:.2%} at iteration {summary['best_iteration']:,}")
    if summary["not_finite_from"] is not None:
        parts.append(f"loss not finite at iteration {summary['not_finite_from']:,}")
    return f"{summary['name']}: {', '.join(parts)}"
