"""The bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from repro.training.trainer import Row


@contextmanager
def bar() -> Iterator[Callable[[Row], None]]:
    """A function that shows where training stands; validations stay as lines above the bar."""
    columns = (
        TextColumn("iteration"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3g}  rate {task.fields[rate]:.3g}  {task.fields[speed]:.0f} images/s"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("train", total=None, loss=0.0, rate=0.0, speed=0.0)

        def show(row: Row) -> None:
            if row.scores:
                progress.console.print(
                    f"epoch {row.epoch:.1f}: top-1 accuracy {row.scores.top1:.2%}, top-5 {row.scores.top5:.2%}, "
                    f"loss {row.scores.loss:.3g}",
                    highlight=False,
                )
            speed = row.images_per_second
            progress.update(task, completed=row.iteration, total=row.end, loss=row.loss, rate=row.rate, speed=speed)

        yield show
