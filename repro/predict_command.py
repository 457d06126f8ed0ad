"""`vggc predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.model_options import (
    A_PATH,
    PROTOCOLS,
    average_option,
    model_options,
    open_models,
    rescaling_options,
    running_of,
    running_options,
    scales_option,
)

if TYPE_CHECKING:
    from repro.prediction import Prediction, Predictions


@click.command(short_help="Show the classes that a net thinks of first.")
@click.argument("model", type=A_PATH)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--labels", type=A_PATH, help="Names of the classes, one a line (synset_words.txt).")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default="center", show_default=True)
@scales_option
@average_option
@click.option("--net", type=A_PATH, help="Prototxt of the model's net.")
@model_options
@rescaling_options
@running_options
@click.option("--plot", type=A_PATH, metavar="OUT.png", help="Write a picture of images and bars.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def predict(
    model: Path,
    images: tuple[str, ...],
    labels: Path | None,
    top: int,
    net: Path | None,
    plot: Path | None,
    as_json: bool,
    **how: Any,
) -> int:
    """The classes of highest posterior for each IMAGE: files, or one folder, list or database of them.

    The exit code is 1 when an image cannot be read.
    """
    from repro.collecting import images_at
    from repro.label_files import read_names
    from repro.prediction import predict as run

    names = read_names(labels) if labels else ()
    (opened,) = open_models([model], [net] if net else [], how)
    given = images_at(images)
    found = run(opened, given, how["protocol"], running_of(how), average=how["average"], top=top)
    if plot is not None:
        from repro.prediction_plot import write_plot

        write_plot(plot, found.images, given, names)
    notes = [*opened.notes, f"images: {opened.prepare.said}", f"run by {found.engine}"]
    if as_json:
        click.echo(json.dumps(_as_dict(found, names, notes), indent=2))
    else:
        _show(found, names, notes, plot)
    return 1 if any(each.error for each in found.images) else 0


def _show(found: Predictions, labels: Sequence[str], notes: Sequence[str], plot: Path | None) -> None:
    from caffe_compat.errors import one_line
    from repro.prediction_plot import label

    for each in found.images:
        if each.error:
            print(f"vggc: error: {one_line(each.error)}", file=sys.stderr)
            continue
        click.echo(one_line(each.name))
        for number, posterior in zip(each.classes, each.posteriors, strict=True):
            click.echo(f"  {posterior:.4f}  {one_line(label(number, labels))}")
    for note in notes:
        click.echo(one_line(note))
    if plot is not None:
        click.echo(f"wrote {one_line(str(plot))}")


def _as_dict(found: Predictions, labels: Sequence[str], notes: Sequence[str]) -> dict[str, object]:
    from repro.prediction_plot import label

    def one(each: Prediction) -> dict[str, object]:
        pairs = zip(each.classes, each.posteriors, strict=True)
        best = [{"class": n, "label": label(n, labels), "posterior": posterior} for n, posterior in pairs]
        return {"image": each.name, "error": each.error} if each.error else {"image": each.name, "best": best}

    return {"scales": found.scales, "images": [one(each) for each in found.images], "notes": list(notes)}
