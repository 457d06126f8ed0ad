"""`vggc train`: a solver as Caffe runs it, or a net as Sect. 3.1 of arXiv:1409.1556 trains it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caffe_compat.commands import dialect_option, python_layers_option
from caffe_compat.solvers.commands import interruptible
from caffe_compat.solvers.commands import train as solver_command

if TYPE_CHECKING:
    from repro.training.group import Group
    from repro.training.settings import Settings
    from repro.training.trainer import Outcome, Row

INITS = ("paper", "caffe", "glorot", "msra")
PRECISIONS = {"float32": "float32", "bf16": "bfloat16", "fp16": "float16"}
FLAGS = {"no_flip": "flip", "no_colour": "colour"}
"""Options that say what not to do -> the setting."""


def scale_sides(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """A side, or two with a hyphen between."""
    if value is None:
        return None
    parts = value.split("-")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is no side such as 256 and no range such as 256-512", ctx, param)
    return tuple(map(int, parts))


class Either(click.Command):
    """The command for nets, which hands solvers to the command for these."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        target = self._target(args, parent)
        if target and is_solver(target):
            return solver_command.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def _target(self, args: list[str], parent: click.Context | None) -> str | None:
        """What is to be trained, whichever command the options are of."""
        known = {param.name: param for param in (*solver_command.params, *self.params) if param.name != "solver"}
        both = click.Command("train", params=list(known.values()), context_settings={"ignore_unknown_options": True})
        context = click.Context(both, parent=parent, resilient_parsing=True)
        try:
            found = both.make_parser(context).parse_args(list(args))[0].get("target")
        except click.ClickException:
            return None
        return found if isinstance(found, str) else None

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Options for a solver"):
            records = [param.get_help_record(ctx) for param in solver_command.params]
            formatter.write_dl([record for record in records if record])


def is_solver(name: str) -> bool:
    """Whether a file is a solver; one that cannot be read is not."""
    from caffe_compat.errors import VggcError
    from caffe_compat.reading import read_document
    from caffe_compat.schema import pb

    try:
        return Path(name).is_file() and isinstance(read_document(name).message, pb.SolverParameter)
    except VggcError:
        return False


def list_recipes(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:
    """Print every recipe with the first line of what it says of itself, and end."""
    if asked and not ctx.resilient_parsing:
        from repro.recipes import find_recipe, recipe_names

        for name in recipe_names():
            recipe = find_recipe(name, must=True)
            assert recipe
            click.echo(f"{name:10} {recipe.about.splitlines()[0]}")
        ctx.exit()


def number(name: str, help: str, **more: Any) -> Callable[[Any], Any]:
    """An option whose default is the recipe's or the paper's."""
    return click.option(name, type=click.IntRange(0), help=help, **more)


OPTIONS = (
    click.option("--data", help='Images: a folder with one folder a class, a database, a list, or "digits".'),
    click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/NAME]"),
    click.option("--recipe", help="Take the settings of this recipe; NET's own is taken by itself."),
    click.option(
        "--recipes", is_flag=True, is_eager=True, expose_value=False, callback=list_recipes, help="List the recipes."
    ),
    click.option("--labels", type=click.Path(), help="List of the images in the folder of --data."),
    click.option("--root", type=click.Path(), help="Folder that names in a list start from."),
    number("--batch", "Images of an update.  [paper: 256]"),
    number("--micro-batch", "Images of a pass; by default as many as fit the memory."),
    click.option("--rate", type=float, help="Learning rate at the start.  [paper: 0.01]"),
    click.option("--momentum", type=float, help="[paper: 0.9]"),
    click.option("--weight-decay", type=float, help="[paper: 0.0005]"),
    number("--drops", "How often the rate is divided by 10.  [paper: 3]"),
    number("--patience", "Validations without a better accuracy after which it is.  [default: 3]"),
    click.option("--max-epochs", type=float, help="Epochs to train at most.  [paper: 74]"),
    number("--max-iter", "Iterations to train at most, instead of epochs."),
    click.option(
        "--scale", metavar="S", callback=scale_sides, help="Smallest side of the images: 256, or 256-512 for jitter."
    ),
    number("--crop", "Side of the crops; by default the net's."),
    click.option("--no-flip", is_flag=True, default=None, help="Do not mirror images."),
    click.option("--no-colour", is_flag=True, default=None, help="Do not shift colours."),
    click.option("--init", type=click.Choice(INITS), help="Rule for initial weights, in place of the net's own."),
    click.option("--init-from", metavar="RUN", help="Run whose first four convolutions and last three fc to take."),
    click.option("--weights", metavar="RUN", help="Run or file whose weights all layers start from."),
    click.option(
        "--staged", is_flag=True, help="S = 256, then 384 at a rate of 0.001, then 256-512, one after another."
    ),
    click.option("--seed", type=int, help="Of all random draws.  [default: 0]"),
    number("--validate-every", "Iterations between validations; by default once an epoch."),
    number("--snapshot-every", "Iterations between further snapshots."),
    number("--keep", "Snapshots to keep besides the best weights.  [default: 2]"),
    number("--display", "Iterations between log lines.  [default: 20]"),
    click.option(
        "--amp",
        "precision",
        type=click.Choice(list(PRECISIONS)),
        help="Precision of the passes; results differ from float32.",
    ),
    click.option(
        "--channels-last", is_flag=True, default=None, help="Keep images channels last; sums are rounded differently."
    ),
    click.option(
        "--compile",
        "compiled",
        is_flag=True,
        default=None,
        help="Compile the net (torch.compile); sums are rounded differently.",
    ),
    click.option(
        "--checkpointing", is_flag=True, default=None, help="Compute activations again to save memory; same bits."
    ),
    number("--workers", "Threads that prepare images; by default one a processor."),
    dialect_option,
    python_layers_option,
    click.option("--strict-data", is_flag=True, default=None, help="Stop at an image that cannot be read."),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), help="By default CUDA where there is one."),
    click.option("--nproc", type=click.IntRange(1), default=1, help="Processes on this machine, started by torchrun."),
    click.option("--max-restarts", type=click.IntRange(0), default=3, help="Restarts after a lost process."),
    click.option("--tensorboard", is_flag=True, help="Write event files for TensorBoard into the folder of the run."),
    click.option("--dry-run", is_flag=True, help="Show plan, memory, operations and predicted hours; write nothing."),
    click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON."),
)
OWN = ("tensorboard", "dry_run", "out", "recipe", "staged", "device", "nproc", "max_restarts", "as_json")
"""Options that are no settings of a run."""
INTERRUPTED = "interrupted"
STOP = "VGGC_STOP"
"""Names a file; when it is there, training ends after the update."""
FRONT = ("--nproc", "--max-restarts")
"""Options of the process that starts the others."""


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        function = option(function)
    return function


@click.command("train", cls=Either, short_help="Train a net as the paper did, or from a solver as Caffe does.")
@click.argument("target", metavar="NET|SOLVER")
@with_options
def train(target: str, **options: Any) -> None:
    """Train NET with the images of --data, as Sect. 3.1 of arXiv:1409.1556 describes it.

    NET is a prototxt for deployment or training, one of ours (A, A-LRN, B, C, D, E, B-shallow, digits), or a recipe
    (--recipes). The same command goes on with a run that was interrupted. Ctrl-C finishes the update, writes a
    snapshot and stops; a second Ctrl-C stops at once.

    A SOLVER is run as `caffe train` runs it, with Caffe's log lines on standard error; it has options of its own.
    """
    if options["nproc"] > 1 and "RANK" not in os.environ:
        sys.exit(_spread(options["nproc"], options["max_restarts"]))
    from repro.training.group import joined

    settings, name = _settings(target, options)
    if not settings.data:
        raise click.UsageError("Give the images: --data.")
    out = options["out"] or Path("runs") / name
    chosen = _stages(settings, out, options["staged"])
    with joined(options["device"] or "") as group:
        if options["dry_run"]:
            _plan([each for each, _ in chosen], group, options["as_json"])
            return
        done: list[tuple[Outcome, Path]] = []
        for each, folder in chosen:
            done.append(_run(each, folder, group, options))
            if done[-1][0].reason == INTERRUPTED:
                break
        if group.first:
            _say(done, options["as_json"])


def _settings(target: str, options: Mapping[str, Any]) -> tuple[Settings, str]:
    """The settings, and what to call the run: those of the recipe, and over them what was stated."""
    from caffe_compat.errors import VggcError
    from repro.recipes import find_recipe
    from repro.training.settings import Settings

    stated = {name: value for name, value in options.items() if name not in OWN and value not in (None, ())}
    for flag, setting in FLAGS.items():
        if stated.pop(flag, False):
            stated[setting] = False
    if "precision" in stated:
        stated["precision"] = PRECISIONS[stated["precision"]]
    recipe = find_recipe(options["recipe"] or target, must=bool(options["recipe"]))
    if recipe and not recipe.settings:
        what = f"recipe {recipe.name} trains nothing; it takes {', '.join(recipe.models)} together"
        raise VggcError(what, remedy="train these, then evaluate them together")
    values = {**(recipe.settings if recipe else {}), **stated}
    if not recipe or options["recipe"]:
        values["net"] = target
    return Settings(**{"data": "", **values}), Path(options["recipe"] or target).stem


def _stages(settings: Settings, out: Path, staged: bool) -> Sequence[tuple[Settings, Path]]:
    if not staged:
        return [(settings, out)]
    from repro.training.stages import stages

    return stages(settings, out)


def _plan(stages: Sequence[Settings], group: Group, as_json: bool) -> None:
    from repro.training import plan
    from repro.training.session import prepare

    plans = [plan.plan(prepare(each, group)) for each in stages]
    if not group.first:
        return
    if as_json:
        told = [plan.as_json(each) for each in plans]
        click.echo(json.dumps(told if len(told) > 1 else told[0], indent=2))
        return
    for line in (line for each in plans for line in plan.lines(each)):
        click.echo(line)


def _run(settings: Settings, out: Path, group: Group, options: Mapping[str, Any]) -> tuple[Outcome, Path]:
    from repro.training.session import prepare, run

    quiet, board = options["as_json"], options["tensorboard"]
    session = prepare(settings, group)
    with _watching(quiet or not group.first) as (watch, note), interruptible() as pressed:
        outcome = run(session, out, board=board, watch=watch, note=note, stopped=_told_to_stop(pressed))
    if outcome.reason == INTERRUPTED and group.first and not quiet:
        click.echo(f"stopped at iteration {outcome.iteration}; the same command goes on from there")
    return outcome, out


@contextmanager
def _watching(quiet: bool) -> Iterator[tuple[Callable[[Row], None], Callable[[str], None]]]:
    """What is told of each iteration, and of notes: a line a validation, with a bar on a terminal."""

    def note(line: str) -> None:
        if not quiet:
            click.echo(f"note: {line}", err=True)

    def watch(row: Row) -> None:
        if row.scores and not quiet:
            click.echo(validation_line(row))

    if quiet or not sys.stdout.isatty():
        yield watch, note
        return
    from repro.training.progress import bar

    with bar() as show:
        yield show, note


def validation_line(row: Row) -> str:
    """What a validation has found."""
    assert row.scores
    scores = row.scores
    return (
        f"epoch {row.epoch:.1f}, iteration {row.iteration}: loss {row.loss:.3g}, top-1 accuracy {scores.top1:.2%}, "
        f"top-5 {scores.top5:.2%}, rate {row.rate:.3g}, {row.images_per_second:.0f} images/s"
    )


def _say(done: Sequence[tuple[Outcome, Path]], as_json: bool) -> None:
    """The outcome."""
    if as_json:
        rows = [{"out": str(out), **asdict(outcome)} for outcome, out in done]
        click.echo(json.dumps(rows if len(rows) > 1 else rows[0], indent=2))
        return
    for outcome, out in done:
        best = outcome.best
        accuracy = f"best top-1 accuracy {best.best:.2%} at iteration {best.best_iteration}" if best.best >= 0 else ""
        click.echo(
            f"{out}: {outcome.reason} at iteration {outcome.iteration} (epoch {outcome.epoch:.1f}), "
            f"{outcome.seconds:.0f} s; {accuracy or 'not validated'}"
        )


def _spread(processes: int, restarts: int) -> int:
    """Run the same command in several processes; lost ones are started again, all from the last snapshot.

    They are in a session of their own, so that Ctrl-C comes here: a file tells them to end after the update.
    """
    from repro.training.group import FRESH_STORE

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*torchrun, f"--max-restarts={restarts}", "-m", "repro", *without(sys.argv[1:], FRONT)]
    with tempfile.TemporaryDirectory(prefix="vggc-") as folder, interruptible() as pressed:
        stop = Path(folder) / "stop"
        environment = {**os.environ, **dict([FRESH_STORE]), STOP: str(stop)}
        before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if pressed():
                    stop.touch()
        finally:
            signal.signal(signal.SIGTERM, before)
            process.terminate()  # nothing but for a second Ctrl-C, and the like
            process.wait()
        return process.returncode


def _told_to_stop(pressed: Callable[[], bool]) -> Callable[[], bool]:
    """Whether Ctrl-C was pressed, here or where the processes were started."""
    stop = os.environ.get(STOP, "")
    return lambda: pressed() or bool(stop and os.path.exists(stop))


def without(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """A command line without options that take a value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word not in options and not word.startswith(tuple(f"{option}=" for option in options)):
            kept.append(word)
        skip = not skip and word in options
    return kept
