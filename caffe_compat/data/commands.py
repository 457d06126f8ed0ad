"""Commands about databases of images: `vggc data`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from caffe_compat.data.convert import Converted
    from caffe_compat.data.info import Info
    from caffe_compat.data.lists import ImageList

SHOWN = 20
"""Lines of a long list that are shown."""
A_PATH = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")


@click.group(short_help="Make and look at databases of images (LMDB, LevelDB).")
def data() -> None:
    """Make and look at the databases of images that Caffe trains on: LMDB and LevelDB folders of Datum records."""


@data.command(short_help="Write a database of image files.")
@click.argument("source", metavar="LIST|FOLDER", type=A_PATH)
@click.argument("target", metavar="OUT", type=A_PATH)
@click.option("--root", type=A_PATH, help="Folder that names in LIST are relative to; by default LIST's own.")
@click.option("--backend", type=click.Choice(["lmdb", "leveldb"]), default="lmdb", show_default=True)
@click.option("--gray", is_flag=True, help="One channel instead of three.")
@click.option("--resize-height", "height", type=click.IntRange(0, 65535), default=0, help="Height to resize to.")
@click.option("--resize-width", "width", type=click.IntRange(0, 65535), default=0, help="Width to resize to.")
@click.option("--encoded", is_flag=True, help="Store files instead of pixels, in the formats that they have.")
@click.option("--encode-type", default="", metavar="png|jpg", help="Store files in this format.")
@click.option("--shuffle", is_flag=True, help="Put the images into another order.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order.")
@click.option("--check-size", is_flag=True, help="Refuse images of different sizes.")
@click.option("--skip-unreadable", is_flag=True, help="Go on without images that cannot be read, and list them.")
@click.option("--write-list", type=A_PATH, help="Write the list that follows from FOLDER to this file.")
@click.option("--restart", is_flag=True, help="Begin anew instead of going on where an interrupted run stopped.")
@click.option("--force", is_flag=True, help="Replace OUT if it is a database.")
@json_option
def convert(
    source: Path,
    target: Path,
    root: Path | None,
    backend: str,
    gray: bool,
    height: int,
    width: int,
    encoded: bool,
    encode_type: str,
    shuffle: bool,
    seed: int,
    check_size: bool,
    skip_unreadable: bool,
    write_list: Path | None,
    restart: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write the database OUT of images, as Caffe's convert_imageset does.

    LIST has lines "file label". A FOLDER has one folder a class; labels count the classes, sorted by name, from 0.
    Keys are the position in the list, with eight digits, "_" and the name. An interrupted run is continued by the same
    command; OUT appears when it is complete.
    """
    from caffe_compat.data.convert import Settings
    from caffe_compat.data.convert import convert as run

    images, base, notes = _listed(source, root, write_list)
    how = Settings(backend, gray, (height, width), encoded, encode_type, shuffle, seed, check_size, skip_unreadable)
    with _bar("images", quiet=as_json) as told:
        report = run(images, base, target, how, force=force, restart=restart, progress=told)
    _say({**asdict(report), "notes": notes}, [*_converted(report), *notes], as_json)


@data.command(short_help="Compute the mean image of a database.")
@click.argument("source", metavar="DB", type=A_PATH)
@click.argument("target", metavar="[OUT]", required=False, type=A_PATH)
@click.option("--force", is_flag=True, help="Overwrite OUT if it exists.")
@json_option
def mean(source: Path, target: Path | None, force: bool, as_json: bool) -> None:
    """Write the mean image of the database DB to OUT (.binaryproto), as Caffe's compute_image_mean does.

    The means of the channels, for mean_value, are printed. They alone are wanted when there is no OUT.
    """
    from caffe_compat.data.mean import mean_of
    from caffe_compat.data.records import open_database
    from caffe_compat.errors import VggcError

    if target is not None and target.exists() and not force:
        raise VggcError("it exists already", where=str(target), remedy="choose another name, or use --force")
    database = open_database(source)
    with _bar("images", quiet=as_json) as told:
        found = mean_of(database, lambda done: told(done, database.count() or 0) if told else None)
    if target is not None:
        found.write(target)
    shape = " x ".join(map(str, found.values.shape))
    lines = [f"wrote {target}"] if target else []
    lines += [f"{found.count:,} images of {shape}", *(f"mean_value: {value:.6g}" for value in found.channels)]
    report = {"target": str(target) if target else None, "count": found.count, "shape": found.values.shape}
    _say({**report, "mean_value": found.channels}, lines, as_json)


@data.command(short_help="Show what a database holds.")
@click.argument("source", metavar="DB", type=A_PATH)
@click.option("--scan", is_flag=True, help="Read all records, for their number, labels and shapes.")
@json_option
def info(source: Path, scan: bool, as_json: bool) -> None:
    """Show the kind, size, records and images of the database DB, which is not changed."""
    from caffe_compat.data.info import info_of

    with _bar("records", quiet=as_json or not scan) as told:
        found = info_of(source, scan, lambda done: told(done, 0) if told else None)
    _say(asdict(found), _described(found), as_json)


# -- what they share -------------------------------------------------------------------------------------------


def _listed(source: Path, root: Path | None, target: Path | None) -> tuple[ImageList, Path, list[str]]:
    """The images to convert, the folder that they are in, and what is to say about them."""
    from caffe_compat.data.lists import list_folders, read_list, write_list

    if not source.is_dir():
        return read_list(source), root or source.parent, []
    if root is not None:
        raise click.UsageError("--root is for a LIST.")
    found = list_folders(source)
    if target is not None:
        write_list(found.images, target)
    notes = [f"label {label}: {name}" for label, name in enumerate(found.classes)]
    notes = notes if len(notes) <= SHOWN else [*notes[:SHOWN], f"... {len(notes)} classes in all (--write-list)"]
    if found.passed_over:
        shown = ", ".join(found.passed_over[:SHOWN])
        notes.append(f"note: {len(found.passed_over)} files are no images by their names: {shown}")
    return found.images, source, notes


def _converted(report: Converted) -> list[str]:
    sizes = "images of several sizes, the first" if report.varied else "images of"
    lines = [f"wrote {report.target}: {report.records:,} records, {sizes} {' x '.join(map(str, report.shape))}"]
    if report.resumed:
        lines.append(f"{report.resumed:,} of them were written by an interrupted run")
    if report.varied:
        lines.append("note: images of several sizes need a crop_size, or batch_size 1")
    return lines + [f"left out: {why}" for why in report.skipped]


def _described(found: Info) -> list[str]:
    count = "not counted (--scan)" if found.records is None else f"{found.records:,}"
    lines = [
        f"{found.path}: {found.kind}, {found.bytes:,} bytes",
        f"records: {count}, first {found.first}" + (f", last {found.last}" if found.last else ""),
        f"first image: {' x '.join(map(str, found.shape))}, {found.image}",
    ]
    if found.shapes:
        lines += [f"shape: {shape}: {count:,}" for shape, count in list(found.shapes.items())[:SHOWN]]
        lines.append(f"labels: {len(found.labels)}, {min(found.labels)} to {max(found.labels)}")
        lines += [f"label {label}: {count:,}" for label, count in list(found.labels.items())[:SHOWN]]
    return lines


def _say(report: dict[str, object], lines: list[str], as_json: bool) -> None:
    from caffe_compat.errors import one_line

    click.echo(json.dumps(report, indent=2) if as_json else "\n".join(map(one_line, lines)))


@contextmanager
def _bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal; it is told how many are done, and of how many (0: not known)."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
