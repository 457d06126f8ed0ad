"""Curves of trainings: pictures, and a page that holds them."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from caffe_compat.errors import VggcError
from caffe_compat.writing import new_file
from repro.caffe_log import read_log
from repro.history import History, Row, best

HISTORY, LOG = "history.csv", "train.log"
"""Names in the folder of a run."""
REPORT = "report.html"
COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#b35806", "#01665e", "#8c510a", "#4d4d4d")
"""One a run, distinct also in grey and for the colour-blind; the first again after the last."""
SIZE, DPI = (7.2, 4.2), 110


@dataclass(frozen=True)
class Curves:
    """The course of one training.

    Attributes:
        name: of the run.
        source: what it was read from.
        rows: in the order of iterations.
    """

    name: str
    source: Path
    rows: Sequence[Row]

    def points(self, column: str, scale: float = 1.0) -> tuple[list[int], list[float]]:
        """Iterations and values of a column, where it was measured and is a finite number."""
        values = [(row.iteration, getattr(row, column)) for row in self.rows]
        finite = [(at, value * scale) for at, value in values if value is not None and math.isfinite(value)]
        return [at for at, _ in finite], [value for _, value in finite]

    def drops(self) -> list[int]:
        """Iterations at which the rate is a tenth of what it was, or less."""
        iterations, rates = self.points("lr")
        steps = zip(iterations[1:], rates[1:], rates, strict=False)
        return [at for at, rate, before in steps if rate <= before * 0.11]

    def summary(self) -> dict[str, Any]:
        """Figures to print; what was not measured is None."""
        losses, accuracies = self.points("loss")[1], best(self.rows)
        speeds = sorted(self.points("images_per_second")[1])
        broken = (row.iteration for row in self.rows if row.loss is not None and not math.isfinite(row.loss))
        return {
            "name": self.name,
            "source": str(self.source),
            "iteration": self.rows[-1].iteration,
            "epoch": self.rows[-1].epoch,
            "loss": losses[-1] if losses else None,
            "best_accuracy": accuracies.accuracy if accuracies else None,
            "best_iteration": accuracies.iteration if accuracies else None,
            "lr": next(reversed(self.points("lr")[1]), None),
            "images_per_second": speeds[len(speeds) // 2] if speeds else None,
            "not_finite_from": next(broken, None),
        }


def read_curves(path: Path) -> Curves:
    """The curves of a run's folder, of a history, or of a log as `caffe train` prints it.

    Raises:
        VggcError: there are none.
    """
    source = path
    if path.is_dir():
        source = next((path / name for name in (HISTORY, LOG) if (path / name).exists()), path)
        if source == path:
            what = f"this folder has neither {HISTORY} nor {LOG}"
            raise VggcError(what, where=str(path), remedy="name the folder that `vggc train --out` wrote, or a log")
    rows = History(source).rows() if source.suffix == ".csv" and source.exists() else read_log(source)
    if not rows:
        raise VggcError("nothing was measured yet", where=str(source), remedy="train on, then plot again")
    return Curves(path.resolve().name, source, rows)


def told_apart(runs: Sequence[Curves]) -> list[Curves]:
    """The runs, with their paths as names where names would be the same."""
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else replace(run, name=str(run.source)) for run in runs]


# -- pictures --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
        name: of the file, without its ending.
        title, unit: what is drawn; the unit stands at the axis.
        columns: (column of a history, label of the line, style); the first are drawn strongest.
        scale: what values are multiplied by.
        logarithmic: the axis of values is.
    """

    name: str
    title: str
    unit: str
    columns: tuple[tuple[str, str, str], ...]
    scale: float = 1.0
    logarithmic: bool = False


CHARTS = (
    Chart("loss", "Loss", "nats", (("loss", "training", "-"), ("validation_loss", "validation", "o--"))),
    Chart(
        "accuracy", "Accuracy on the validation set", "%", (("accuracy", "top-1", "o-"), ("top5", "top-5", "^--")), 100
    ),
    Chart("lr", "Learning rate", "rate", (("lr", "", "-"),), logarithmic=True),
)


def pictures(runs: Sequence[Curves]) -> dict[str, bytes]:
    """PNG files of those charts that there are measurements for; equal runs give equal bytes.

    Raises:
        VggcError: matplotlib is not installed.
    """
    return {
        chart.name: _picture(chart, runs)
        for chart in CHARTS
        if any(run.points(column)[0] for run in runs for column, _, _ in chart.columns)
    }


def _picture(chart: Chart, runs: Sequence[Curves]) -> bytes:
    figure = _figure()
    axes = figure.subplots()
    for number, run in enumerate(runs):
        _draw(axes, chart, run, COLOURS[number % len(COLOURS)], run.name if len(runs) > 1 else "")
    for at in runs[0].drops() if len(runs) == 1 and chart.name != "lr" else ():
        axes.axvline(at, color="0.75", linestyle=":", linewidth=1, zorder=0)
    axes.set(title=chart.title, xlabel="iteration", ylabel=chart.unit)
    axes.set_yscale("log" if chart.logarithmic else "linear")
    axes.grid(True, color="0.92", zorder=-1)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()


def _draw(axes: Any, chart: Chart, run: Curves, colour: str, prefix: str) -> None:
    """The lines of one run; markers only where few values would be a thin line."""
    for strength, (column, label, style) in zip((1.0, 0.65), chart.columns, strict=False):
        iterations, values = run.points(column, chart.scale)
        if not iterations:
            continue
        style = style if len(iterations) <= 100 else style.lstrip("o^")
        named = " ".join(filter(None, (prefix, label if len(chart.columns) > 1 else "")))
        kind: Callable[..., Any] = axes.step if column == "lr" else axes.plot
        extra = {"where": "post"} if column == "lr" else {}
        kind(iterations, values, style, color=colour, alpha=strength, markersize=3, linewidth=1.3, label=named, **extra)


def _figure() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise VggcError("pictures need matplotlib", remedy="pip install 'vggc[repro]'") from error
    figure = Figure(figsize=SIZE, layout="tight")
    FigureCanvasAgg(figure)
    return figure


# -- files -----------------------------------------------------------------------------------------------------


def write_plots(runs: Sequence[Curves], folder: Path) -> list[Path]:
    """Write the pictures and a page that holds them; returns the files.

    Raises:
        VggcError: they cannot be written.
    """
    made = pictures(runs)
    contents = {folder / f"{name}.png": data for name, data in made.items()}
    contents[folder / REPORT] = report(runs, made).encode()
    for path, data in contents.items():
        with new_file(path) as file:
            file.write(data)
    return list(contents)


def report(runs: Sequence[Curves], made: dict[str, bytes]) -> str:
    """An HTML page that needs no other file."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = files("repro").joinpath("templates/curves.html").read_text(encoding="utf-8")
    embedded = {name: f"data:image/png;base64,{b64encode(data).decode()}" for name, data in made.items()}
    titles = {chart.name: chart.title for chart in CHARTS}
    runs_told = [run.summary() for run in runs]
    return environment.from_string(text).render(runs=runs_told, pictures=embedded, titles=titles)
