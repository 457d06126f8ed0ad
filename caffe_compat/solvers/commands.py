"""`vggc train SOLVER` and `vggc test NET`, as Caffe's own tool runs them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType

import click


def glog(line: str) -> None:
    """A line as glog prints it, which Caffe's log parsers read."""
    now = datetime.now()
    click.echo(f"I{now:%m%d %H:%M:%S.%f} {os.getpid()} solver.cpp:0] {line}", err=True)


@click.command(short_help="Train a net from a solver prototxt, as `caffe train` does.")
@click.argument("solver", type=click.Path(path_type=Path))
@click.option("--weights", help="Weight file(s) to start from, separated by commas.")
@click.option("--snapshot", type=click.Path(path_type=Path), help="Solver state to go on from.")
@click.option("--profile", type=click.Choice(["bvlc", "dec2013"]), default="bvlc", show_default=True, help="Semantics.")
@click.option("--dialect", default="", help="The fork whose layers take precedence.")
def train(solver: Path, weights: str | None, snapshot: Path | None, profile: str, dialect: str) -> None:
    """Train as SOLVER says, with Caffe's log lines on standard error.

    Ctrl-C finishes the update, writes a snapshot and stops; a second Ctrl-C stops at once. Snapshots can be
    exchanged with Caffe.
    """
    if weights and snapshot:
        raise click.UsageError("Give --weights or --snapshot, not both: a snapshot has its weights.")
    from caffe_compat.solvers import Solver

    made = Solver(solver, weights, snapshot, profile=profile, dialect=dialect, log=glog)
    with interruptible() as stopped:
        finished = made.solve(stopped)
    click.echo(f"{'trained' if finished else 'stopped'} at iteration {made.iter}, loss {_latest(made.losses)}")


def _latest(losses: list[float]) -> str:
    return f"{losses[-1]:g}" if losses else "not computed"


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


@click.command(short_help="Score a net over some batches, as `caffe test` does.")
@click.argument("net", type=click.Path(path_type=Path))
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="The trained weights.")
@click.option("--iterations", type=click.IntRange(1), default=50, show_default=True, help="Batches to run.")
@click.option("--stage", "stages", multiple=True, help="A stage for include and exclude rules.")
@click.option("--level", type=int, default=0, show_default=True, help="The level for include and exclude rules.")
def test(net: Path, weights: Path, iterations: int, stages: tuple[str, ...], level: int) -> None:
    """Run the TEST phase of NET, which has its own data layers, and print each output's mean."""
    from caffe_compat.loading import load
    from caffe_compat.solvers.scoring import score

    module = load(net, weights, phase="TEST", stages=stages, level=level, strict=False)
    for line in score(module, iterations):
        click.echo(line)
