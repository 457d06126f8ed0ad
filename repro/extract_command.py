"""`vggc extract`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from repro.model_options import (
    A_PATH,
    image_bar,
    model_options,
    open_models,
    rescaling_options,
    running_of,
    running_options,
    scales_option,
)


@click.command(short_help="Write features of images, as Caffe's extract_features does.")
@click.argument("model", type=A_PATH)
@click.argument("images", metavar="IMAGES...", nargs=-1, required=True)
@click.option("--blob", "blobs", multiple=True, required=True, help="A blob of the net, e.g. fc7; may be repeated.")
@click.option("-o", "--out", type=A_PATH, required=True, metavar="OUT.h5|OUT.npz", help="The file to write.")
@click.option("--dense", is_flag=True, help="Over the whole image and its mirror, instead of the centre crop.")
@click.option("--crops", type=click.Choice(["tencrop", "multicrop"]), help="Mean over crops, instead of the centre.")
@scales_option
@click.option(
    "--join",
    type=click.Choice(["average", "stack"]),
    default="average",
    show_default=True,
    help="Of several scales the mean, or one behind the other.",
)
@click.option(
    "--l2",
    "length",
    type=click.Choice(["raw", "joined", "each"]),
    default="raw",
    show_default=True,
    help="Bring to length 1: nothing, what is joined, or each scale's features and what is joined.",
)
@click.option("--net", type=A_PATH, help="Prototxt of the model's net.")
@model_options
@rescaling_options
@running_options
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be read, and list them.")
@click.option("--force", is_flag=True, help="Replace OUT when it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def extract(
    model: Path,
    images: tuple[str, ...],
    blobs: tuple[str, ...],
    out: Path,
    dense: bool,
    crops: str | None,
    net: Path | None,
    skip_unreadable: bool,
    force: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Write features of IMAGES: files, or one folder, list or database of them.

    OUT holds for each blob an array (images, features), and the images' names and labels. As with Caffe's
    extract_features a feature is what the net computes for the centre crop; with --dense it is the mean over places of
    the whole image and of its mirror.
    """
    from caffe_compat.errors import VggcError, one_line
    from repro.collecting import images_at
    from repro.feature_files import Arrays, write_features
    from repro.features import Extracted, Kind, feature_sizes
    from repro.features import extract as run

    if dense and crops:
        raise click.UsageError("--dense and --crops: give one of them")
    if out.exists() and not force:
        raise VggcError("it exists already", where=str(out), remedy="choose another name, or use --force")
    (opened,) = open_models([model], [net] if net else [], how)
    given, running = images_at(images), running_of(how)
    kind = Kind(tuple(dict.fromkeys(blobs)), crops or ("dense" if dense else "center"), how["join"], how["length"])
    scales = running.scales_for(opened)
    sizes, done = feature_sizes(opened, kind, len(scales)), Extracted({})

    def feed(keep: Callable[[int, Arrays], None]) -> list[int]:
        nonlocal done
        with image_bar(as_json) as told:
            done = run(opened, given, kind, running, keep, strict=not skip_unreadable, progress=told)
        return list(done.unreadable)

    about = {
        "model": str(model),
        "model_sha256": opened.sha256,
        "protocol": kind.protocol,
        "scales": scales,
        "join": kind.join,
        "l2": kind.length,
        "images": opened.prepare.said,
    }
    count = write_features(out, given, sizes, about, feed)
    unreadable = [f"{given.items.names[index]}: {why}" for index, why in sorted(done.unreadable.items())]
    if as_json:
        told = {
            **about,
            "out": str(out),
            "count": count,
            "blobs": sizes,
            "unreadable": unreadable,
            "run_by": done.engine,
        }
        click.echo(json.dumps(told, indent=2))
        return
    lines = [f"wrote {out}: {count:,} image(s)", *(f"  {blob}: {size:,} features" for blob, size in sizes.items())]
    lines += [f"left out {each}" for each in unreadable]
    lines += [*opened.notes, f"images: {opened.prepare.said}", f"run by {done.engine}"]
    click.echo("\n".join(map(one_line, lines)))
