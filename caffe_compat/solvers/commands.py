"""`vggc train SOLVER` and `vggc test NET`, as Caffe's own tool runs them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from caffe_compat.commands import dialect_option, python_layers_option

if TYPE_CHECKING:
    from caffe_compat.solvers.solver import Solver

Log = Callable[[str], None]


def glog(line: str, say: Log | None = None) -> None:
    """Say a line as glog prints it, which Caffe's log parsers read; by default on standard error."""
    now = datetime.now()
    text = f"I{now:%m%d %H:%M:%S.%f} {os.getpid():5} solver.cpp:0] {line}"
    if say:
        say(text)
    else:
        click.echo(text, err=True)


@click.command(short_help="Train a net from a solver prototxt, as `caffe train` does.")
@click.argument("solver", type=click.Path(path_type=Path))
@click.option("--weights", help="Weight file(s) to start from, separated by commas.")
@click.option("--snapshot", type=click.Path(path_type=Path), help="Solver state to go on from.")
@click.option("--profile", type=click.Choice(["bvlc", "dec2013"]), default="bvlc", show_default=True, help="Semantics.")
@dialect_option
@python_layers_option
@click.option("--device", help="cpu, cuda or cuda:N; by default as solver_mode says, where there is a GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def train(
    solver: Path,
    weights: str | None,
    snapshot: Path | None,
    profile: str,
    dialect: str,
    python_layers: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Train as SOLVER says, with Caffe's log lines on standard error.

    Ctrl-C finishes the update, writes a snapshot and stops; a second Ctrl-C stops at once. SIGHUP writes a snapshot.
    Snapshots can be exchanged with Caffe; what they lack for a run to go on bit for bit is in a .vggcstate beside them.
    """
    if weights and snapshot:
        raise click.UsageError("Give --weights or --snapshot, not both: a snapshot has its weights.")
    from caffe_compat.solvers import Solver

    with _terminal() as (say, show):

        def log(line: str) -> None:
            glog(line, say)

        made = Solver(
            solver, weights, profile=profile, dialect=dialect, python_layers=python_layers, log=log, device=device
        )
        if snapshot:
            log(f"Resuming from {snapshot}")
            made.restore(snapshot)
        log("Starting Optimization")
        began, first = time.perf_counter(), made.iter
        with interruptible() as stopped, _snapshots_on_hangup(made):
            finished = made.solve(lambda: (show(made), stopped())[1])
        seconds = time.perf_counter() - began
    _say(_summary(made, finished, made.iter - first, seconds), as_json)


def _summary(made: Solver, finished: bool, updates: int, seconds: float) -> dict[str, Any]:
    """What is told at the end."""
    return {
        "finished": finished,
        "iteration": made.iter,
        "loss": made.losses[-1] if made.losses else None,
        "rate": made.rate,
        "device": str(made.device),
        "seconds": round(seconds, 3),
        "updates_per_second": round(updates / seconds, 3) if updates else None,
        "snapshot": str(made.kept) if made.kept else None,
        "tests": made.test_scores,
    }


def _say(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    loss = "not computed" if found["loss"] is None else f"{found['loss']:g}"
    click.echo(f"{'trained' if found['finished'] else 'stopped'} at iteration {found['iteration']}, loss {loss}")
    for index, scores in enumerate(found["tests"]):
        values = ", ".join(f"{name} {' '.join(f'{value:g}' for value in each[:5])}" for name, each in scores.items())
        click.echo(f"test net #{index}: {values}")
    if found["updates_per_second"]:
        click.echo(f"{found['updates_per_second']:g} updates/s on {found['device']}, {found['seconds']:.1f} s")
    if found["snapshot"]:
        click.echo(f"snapshot: {found['snapshot']}")


@contextmanager
def _terminal() -> Iterator[tuple[Log | None, Callable[[Solver], None]]]:
    """How to say a line, and how to show how far a solver is: a bar below the lines, on a terminal."""
    if not sys.stderr.isatty():
        yield None, lambda _made: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(made: Solver) -> None:
            total, said = made.param.max_iter, f"loss {made.losses[-1]:.4g}, rate {made.rate:.3g}"
            bar.update(task, completed=made.iter, total=total, description=said)

        yield lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True), show


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C was pressed; the second press interrupts at once."""
    pressed = threading.Event()

    def press(_number: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        click.echo("vggc: stopping after this update; press Ctrl-C again to stop at once", err=True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _snapshots_on_hangup(made: Solver) -> Iterator[None]:
    """SIGHUP asks for a snapshot, unless it is ignored (nohup)."""
    before = signal.getsignal(signal.SIGHUP)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda _number, _frame: made.ask_for_snapshot())
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@click.command(short_help="Score a net over some batches, as `caffe test` does.")
@click.argument("net", type=click.Path(path_type=Path))
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="The trained weights.")
@click.option("--iterations", type=click.IntRange(1), default=50, show_default=True, help="Batches to run.")
@click.option("--stage", "stages", multiple=True, help="A stage for include and exclude rules.")
@click.option("--level", type=int, default=0, show_default=True, help="The level for include and exclude rules.")
@click.option("--profile", type=click.Choice(["bvlc", "dec2013"]), default="bvlc", show_default=True, help="Semantics.")
@dialect_option
@python_layers_option
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print the means as JSON, without the batches.")
def test(
    net: Path,
    weights: Path,
    iterations: int,
    stages: tuple[str, ...],
    level: int,
    profile: str,
    dialect: str,
    python_layers: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Run the TEST phase of NET, which has its own data layers, and print each output's mean."""
    from caffe_compat.loading import load
    from caffe_compat.schema import pb
    from caffe_compat.solvers.scoring import run_batches
    from caffe_compat.solvers.solver import chosen_device

    module = load(
        net,
        weights,
        phase="TEST",
        stages=stages,
        level=level,
        strict=False,
        profile=profile,
        dialect=dialect,
        python_layers=python_layers,
    )
    module.to(chosen_device(pb.SolverParameter(), device))
    found = run_batches(module, iterations, (lambda _line: None) if as_json else click.echo)
    if as_json:
        outputs = {name: [float(value) for value in values] for name, values in found.outputs.items()}
        click.echo(json.dumps({"iterations": found.iterations, "loss": found.loss, "outputs": outputs}, indent=2))
