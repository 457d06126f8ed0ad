"""Options that `vggc evaluate`, `predict` and `extract` share: which model, how images are prepared, what runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from caffe_compat.commands import dialect_option, python_layers_option

if TYPE_CHECKING:
    from repro.collecting import Running
    from repro.engines import Settings
    from repro.feeding import Rescaling
    from repro.models import Classifier

F = TypeVar("F", bound=Callable[..., Any])
A_PATH = click.Path(path_type=Path)
ABOUT_MODELS = ("mean", "scale", "order", "output", "profile", "dialect", "python_layers")
ABOUT_RUNNING = ("engine", "device", "amp", "channels_last", "compiled")


def numbers(_context: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """ "256,384" as numbers, each once; none when there is no text."""
    if value is None:
        return ()
    try:
        found = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: write numbers with commas between them") from error
    if min(found) < 1:
        raise click.BadParameter(f"{value!r}: scales are at least 1")
    return found


PROTOCOLS = ["dense", "multicrop", "both", "tencrop", "center"]
scales_option = click.option(
    "--scales",
    callback=numbers,
    metavar="Q,...",
    help="Smallest sides, e.g. 256,384,512; by default 256 for crops of 224, and in proportion.",
)
average_option = click.option(
    "--average",
    type=click.Choice(["posteriors", "scores"]),
    default="posteriors",
    show_default=True,
    help="Over places of whole images.",
)


def model_options(command: F) -> F:
    """Which net, and how images are prepared for it."""
    options = [
        click.option("--mean", default="", metavar="B,G,R|FILE", help="Mean pixel, or a mean image."),
        click.option("--input-scale", "scale", type=float, help="Factor after the mean is subtracted."),
        click.option("--channel-order", "order", type=click.Choice(["BGR", "RGB"]), help="Of the net's channels."),
        click.option("--output", default="", metavar="BLOB", help="The posteriors, when the net has several outputs."),
        click.option("--profile", type=click.Choice(["bvlc", "dec2013"]), default="bvlc", help="Semantics."),
        dialect_option,
        python_layers_option,
    ]
    return _with(command, options)


def rescaling_options(command: F) -> F:
    """How images come to their scales."""
    options = [
        click.option(
            "--rounding",
            type=click.Choice(["even", "up", "down"]),
            default="even",
            show_default=True,
            help="Of a rescaled side that is no whole number.",
        ),
        click.option(
            "--mirror/--no-mirror",
            default=True,
            help="Without: leave out mirrors, for a net that was trained without them.",
        ),
        click.option(
            "--interpolation",
            type=click.Choice(["bilinear", "nearest", "cubic", "area"]),
            default="bilinear",
            show_default=True,
            help="OpenCV's.",
        ),
    ]
    return _with(command, options)


def running_options(command: F) -> F:
    """What runs the net."""
    options = [
        click.option(
            "--engine",
            type=click.Choice(["auto", "torch", "onnxruntime"]),
            default="auto",
            show_default=True,
            help="auto tries both on the first batch and takes the faster.",
        ),
        click.option("--device", default="", help="Of PyTorch: cpu, cuda, cuda:1, ..."),
        click.option("--amp", is_flag=True, help="PyTorch in half precision where that is safe."),
        click.option(
            "--channels-last/--no-channels-last",
            default=None,
            help="PyTorch with channels innermost, or not; by default on processors, where that is faster.",
        ),
        click.option("--compile", "compiled", is_flag=True, help="PyTorch with torch.compile."),
        click.option("--batch-pixels", "pixels", type=click.IntRange(0), default=0, help="Most pixels of a batch."),
        click.option("--workers", type=click.IntRange(0), default=0, help="Threads that decode images."),
    ]
    return _with(command, options)


def _with(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def open_models(paths: Sequence[Path], nets: Sequence[Path], how: dict[str, Any]) -> list[Classifier]:
    """The models, each with its own net, or all with the same.

    Raises:
        UsageError: the nets are neither none, nor one, nor one for each model.
    """
    from repro.models import open_classifier

    if len(nets) not in (0, 1, len(paths)):
        raise click.UsageError(f"{len(nets)} nets for {len(paths)} models: give --net once, or once for each")
    each = [*nets] if len(nets) == len(paths) else [*nets, None][:1] * len(paths)
    told = {name: how[name] for name in ABOUT_MODELS if how.get(name) is not None}
    return [open_classifier(path, net, **told) for path, net in zip(paths, each, strict=True)]


def settings_of(how: dict[str, Any]) -> Settings:
    """How nets are run; on one of several processes with the GPU of its number."""
    from repro.engines import Settings

    return Settings(**{name: how[name] for name in ABOUT_RUNNING})


def rescaling_of(how: dict[str, Any]) -> Rescaling:
    """How images come to their scales."""
    from repro.feeding import Rescaling

    return Rescaling(how["rounding"], how["interpolation"])


def running_of(how: dict[str, Any]) -> Running:
    """How images go through a net."""
    from repro.collecting import Running

    how_many = how["pixels"], how["workers"]
    return Running(how["scales"], rescaling_of(how), settings_of(how), *how_many, how["mirror"])


@contextmanager
def image_bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar of images, on a terminal."""
    with model_bars(quiet) as told:
        yield partial(told, "images") if told else None


@contextmanager
def model_bars(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar a model, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from caffe_compat.errors import one_line

    name = TextColumn("{task.description}", markup=False)
    columns = name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def told(model: str, done: int, total: int) -> None:
            if model not in tasks or done == 1:
                tasks[model] = bar.add_task(one_line(model), total=total)
            bar.update(tasks[model], completed=done)

        yield told
