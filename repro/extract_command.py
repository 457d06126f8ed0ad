"""`vggc extract`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
def extract(model: Path, images: tuple[str, ...], out: Path, force: bool, as_json: bool, **how: Any) -> None:
    """Write features of IMAGES: files, or one folder, list or database of them.

    OUT holds for each blob an array (images, features), and the images' names and labels. As with Caffe's
    extract_features a feature is what the net computes for the centre crop; with --dense it is the mean over places of
    the whole image and of its mirror.
    """
    from caffe_compat.errors import VggcError, one_line

    if how["dense"] and how["crops"]:
        raise click.UsageError("--dense and --crops: give one of them")
    if out.exists() and not force:
        raise VggcError("it exists already", where=str(out), remedy="choose another name, or use --force")
    told = _extracted(model, images, out, how, quiet=as_json)
    click.echo(json.dumps(told, indent=2) if as_json else "\n".join(map(one_line, _lines(told))))


def _extracted(path: Path, places: Sequence[str], out: Path, how: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Write the file; what there is to be told of it."""
    from repro.collecting import images_at
    from repro.feature_files import Arrays, write_features
    from repro.features import Extracted, Kind, feature_sizes
    from repro.features import extract as run

    (model,) = open_models([path], [how["net"]] if how["net"] else [], how)
    images, running = images_at(places), running_of(how)
    protocol = how["crops"] or ("dense" if how["dense"] else "center")
    kind = Kind(tuple(dict.fromkeys(how["blobs"])), protocol, how["join"], how["length"])
    scales = running.scales_for(model)
    sizes, done = feature_sizes(model, kind, len(scales)), Extracted({})

    def feed(keep: Callable[[int, Arrays], None]) -> list[int]:
        nonlocal done
        with image_bar(quiet) as told:
            done = run(model, images, kind, running, keep, strict=not how["skip_unreadable"], progress=told)
        return list(done.unreadable)

    about = {"model": str(path), "model_sha256": model.sha256, "protocol": protocol, "scales": scales}
    about |= {"join": kind.join, "l2": kind.length, "images": model.prepare.said}
    count = write_features(out, images, sizes, about, feed)
    unreadable = [f"{images.items.names[index]}: {why}" for index, why in sorted(done.unreadable.items())]
    made = {"out": str(out), "count": count, "blobs": sizes, "unreadable": unreadable, "run_by": done.engine}
    return {**about, **made, "notes": list(model.notes)}


def _lines(told: dict[str, Any]) -> list[str]:
    lines = [f"wrote {told['out']}: {told['count']:,} image(s)"]
    lines += [f"  {blob}: {size:,} features" for blob, size in told["blobs"].items()]
    lines += [f"left out {each}" for each in told["unreadable"]]
    return [*lines, *told["notes"], f"images: {told['images']}", f"run by {told['run_by']}"]
