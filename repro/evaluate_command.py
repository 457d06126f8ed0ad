"""`vggc evaluate`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.model_options import (
    A_PATH,
    PROTOCOLS,
    average_option,
    model_bars,
    model_options,
    open_models,
    rescaling_of,
    rescaling_options,
    running_options,
    scales_option,
    settings_of,
)

if TYPE_CHECKING:
    from repro.ablation import Ablated
    from repro.evaluation import Evaluation, Plan, Row
    from repro.models import Classifier
    from repro.paper_errors import PaperRow
    from repro.scoring import Errors, Rate

SHOWN = 20
"""Images that could not be read that are named."""


@click.command(short_help="Measure top-1 and top-5 errors as the paper does.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=A_PATH)
@click.option("--data", required=True, metavar="DIR|DB|LIST|digits", help="Labelled images.")
@click.option("--labels", type=A_PATH, help="A list of lines FILE LABEL, or of labels alone, for the images in --data.")
@click.option(
    "--label-order",
    type=click.Choice(["auto", "synsets", "devkit"]),
    default="auto",
    show_default=True,
    help="What labels alone count.",
)
@click.option("--root", type=A_PATH, help="Folder that names in a list are relative to.")
@click.option("--split", type=click.Choice(["train", "val"]), help="A part of --data.")
@click.option("--protocol", "protocols", multiple=True, type=click.Choice(PROTOCOLS), help="By default dense.")
@scales_option
@average_option
@click.option("--net", "nets", multiple=True, type=A_PATH, help="Prototxt of a model's net; once, or for each.")
@model_options
@rescaling_options
@running_options
@click.option("--paper", default="", metavar="D|D+E", help="The paper's nets that these are, to show its results.")
@click.option("--ablate", type=click.Choice(["preprocessing"]), help="Show what common mistakes cost.")
@click.option("--limit", type=click.IntRange(1), help="Take so many of the images, evenly spread.")
@click.option("--out", type=A_PATH, help="Folder that keeps posteriors, for going on and for other averages.")
@click.option("--strict", is_flag=True, help="Stop at an image that cannot be read; else it counts as wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(models: tuple[Path, ...], nets: tuple[Path, ...], paper: str, as_json: bool, **how: Any) -> None:
    """Top-1 and top-5 errors of MODELs with 95% intervals; of several also with their posteriors averaged.

    Each MODEL is a .caffemodel, .safetensors or .onnx, or with --net a .pt or .h5. Images are those of one folder a
    class, of a list of lines FILE LABEL, of a database, or with --labels of a flat folder.

    An image is rescaled so that its smallest side is each of the scales. dense runs the net over the whole image and
    its mirror; multicrop over 50 crops, tencrop over 10, center over one; both averages dense and multicrop.

    An interrupted run goes on where it stopped when it is given the same --out. torchrun starts several processes:
    torchrun --nproc-per-node 2 -m repro evaluate ... --out RUN
    """
    from repro.processes import joined

    paper_nets = _paper_nets(paper, len(models))
    with joined() as processes, _folder(how["out"], processes.world) as folder:
        found = _run(models, nets, how, folder, processes, quiet=as_json or not processes.first)
        if found is None:
            return
        if as_json:
            click.echo(json.dumps(_as_dict(found, paper_nets), indent=2))
        else:
            _show(found, paper_nets)


@dataclass(frozen=True)
class _Found:
    """What there is to be shown."""

    models: list[Classifier]
    plan: Plan
    result: Evaluation
    notes: tuple[str, ...]
    ablated: list[Ablated]


def _paper_nets(text: str, models: int) -> tuple[str, ...]:
    """The letters, one a model."""
    from repro.paper_errors import NETS

    letters = tuple(text.split("+")) if text else ()
    if set(letters) - set(NETS):
        raise click.BadParameter(f"{text!r}: the paper's nets are {', '.join(NETS)}", param_hint="--paper")
    if letters and len(letters) != models:
        raise click.BadParameter(f"{text!r} for {models} model(s): name as many nets", param_hint="--paper")
    return letters


@contextmanager
def _folder(out: Path | None, world: int) -> Iterator[Path]:
    """The run folder; one for this time only when there is none."""
    if out is not None:
        yield out
        return
    if world > 1:
        raise click.UsageError("several processes meet in a run folder: name it with --out")
    with tempfile.TemporaryDirectory(prefix="vggc-") as folder:
        yield Path(folder)


def _run(
    paths: Sequence[Path], nets: Sequence[Path], how: dict[str, Any], folder: Path, processes: Any, quiet: bool
) -> _Found | None:
    from repro.ablation import ablate
    from repro.collecting import usual_scale
    from repro.evaluation import Plan
    from repro.evaluation import evaluate as run
    from repro.label_files import open_labelled

    models = open_models(paths, nets, how)
    images, said = open_labelled(how["data"], how["labels"], how["root"], how["split"], how["label_order"])
    plan = Plan(
        how["protocols"] or ("dense",),
        how["scales"] or (max(usual_scale(model.crop) for model in models),),
        how["average"],
        rescaling_of(how),
        settings_of(how),
        how["pixels"],
        how["limit"] or 0,
        how["workers"],
        how["strict"],
        how["mirror"],
    )
    with model_bars(quiet) as told:
        if how["ablate"]:
            both = ablate(models, images, plan, folder, processes, told)
            result, ablated = both if both else (None, [])
        else:
            result, ablated = run(models, images, plan, folder, processes, told), []
    return _Found(models, plan, result, said, ablated) if result else None


# -- saying ------------------------------------------------------------------------------------------------------


def _paper(row: Row, found: _Found, letters: Sequence[str]) -> list[PaperRow]:
    """The paper's rows for a line of the result."""
    from repro.evaluation import model_names
    from repro.paper_errors import paper_rows

    if not letters:
        return []
    by_name = dict(zip(model_names(found.models), letters, strict=True))
    return paper_rows([by_name[name] for name in row.models], row.protocol, row.scales)


def _notes(found: _Found) -> list[str]:
    """What a user should know, each thing once."""
    models = [note for model in found.models for note in model.notes]
    prepared = [f"images: {model.prepare.said}" for model in found.models]
    engines = [f"{name}: run by {said}" for name, said in found.result.engines.items() if said]
    return list(dict.fromkeys([*models, *prepared, *engines, *found.notes, *found.result.notes]))


def _show(found: _Found, letters: Sequence[str]) -> None:
    """Tables on standard output; as wide as the terminal, or as needed when there is none."""
    from rich.console import Console

    from caffe_compat.errors import one_line

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, emoji=False)
    console.print(_table(found, letters))
    if found.ablated:
        console.print(_ablation(found.ablated))
    console.print(f"{found.result.images:,} images; errors in per cent with 95% intervals", soft_wrap=True)
    for note in _notes(found):
        console.print(one_line(note), soft_wrap=True)
    names = found.result.unreadable
    if names:
        console.print(f"{len(names):,} image(s) could not be read and count as wrong:", soft_wrap=True)
    for name in names[:SHOWN]:
        console.print(f"  {one_line(name)}", soft_wrap=True)


def _table(found: _Found, letters: Sequence[str]) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "protocol", "Q"):
        table.add_column(title, overflow="fold")
    for title in ("top-1", "top-5"):
        table.add_column(title, justify="right", no_wrap=True)
    if letters:
        table.add_column("paper: top-1 / top-5", overflow="fold")
    for row in found.result.rows:
        paper = "; ".join(_paper_text(each) for each in _paper(row, found, letters)) or "-"
        scales = ", ".join(map(str, row.scales))
        cells = [" + ".join(row.models), row.protocol, scales, *_two(row.errors), *([paper] if letters else [])]
        table.add_row(*cells)
    return table


def _paper_text(row: PaperRow) -> str:
    return f"{row.top1:g} / {row.top5:g} (S = {row.trained}, {row.source})"


def _two(errors: Errors) -> tuple[str, str]:
    return _rate(errors.top1), _rate(errors.top5)


def _rate(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.percent:.2f} [{low:.2f}, {high:.2f}]"


def _ablation(ablated: Sequence[Ablated]) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", title="preprocessing", title_justify="left")
    table.add_column("images")
    for title in ("top-1", "change", "top-5", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    first = ablated[0].errors
    for each in ablated:
        one, five = each.errors.top1, each.errors.top5
        change = (f"{one.percent - first.top1.percent:+.2f}", f"{five.percent - first.top5.percent:+.2f}")
        table.add_row(each.name, _rate(one), change[0], _rate(five), change[1])
    return table


def _as_dict(found: _Found, letters: Sequence[str]) -> dict[str, object]:
    def both(errors: Errors) -> dict[str, object]:
        named = (("top1", errors.top1), ("top5", errors.top5))
        return {n: {"error": r.percent, "interval": r.interval, "wrong": r.wrong, "of": r.count} for n, r in named}

    def line(row: Row) -> dict[str, object]:
        told = [
            {"trained": p.trained, "top1": p.top1, "top5": p.top5, "source": p.source}
            for p in _paper(row, found, letters)
        ]
        about = {"models": row.models, "protocol": row.protocol, "scales": row.scales}
        return {**about, **both(row.errors), **({"paper": told} if letters else {})}

    made: dict[str, object] = {
        "images": found.result.images,
        "average": found.plan.average,
        "results": [line(row) for row in found.result.rows],
        "engines": dict(found.result.engines),
        "unreadable": found.result.unreadable,
        "notes": _notes(found),
    }
    if found.ablated:
        made["preprocessing"] = [{"images": each.name, **both(each.errors)} for each in found.ablated]
    return made
