"""The curves in a training's log, as `caffe train` prints them (solver.cpp, sgd_solver.cpp) and glog writes them.

Also those of December 2013, and of `vggc train`. Loss and rate stand beside the iteration that Caffe names, accuracy
and loss of the first test net beside the iteration of its test.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from caffe_compat.errors import FormatError
from caffe_compat.mapped import read_failed
from repro.history import Row

_NUMBER = r"([-+0-9.eE]+|[-+]?(?:nan|inf)\w*)"
_LOSS = re.compile(rf"Iteration (\d+)(?: \(.*?\))?, loss = {_NUMBER}$")
_RATE = re.compile(rf"Iteration (\d+), lr = {_NUMBER}$")
_TEST = re.compile(r"Iteration (\d+), Testing net(?: \(#(\d+)\))?$")
_OUTPUT = re.compile(rf"Test net output #\d+: (\S+) = {_NUMBER}( \(\* .* loss\))?$")
_SCORE = re.compile(rf"Test score #(\d): {_NUMBER}$")
_FIVE = re.compile(r"(top|@)[-_ ]?5|5$", re.IGNORECASE)
_ACCURACY = re.compile(r"acc|top|prec", re.IGNORECASE)


def read_log(path: Path) -> list[Row]:
    """The rows of a log. Where a resumed training goes back, what it repeats counts.

    Raises:
        FormatError: it tells of no iteration.
        VggcError: it may not be read.
    """
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise read_failed(str(path), error) from error
    found = _Reader()
    for line in text.splitlines():
        found.take(line)
    if not found.rows:
        remedy = "name the standard error of `caffe train`, or a run's folder"
        raise FormatError("no line of this log tells of an iteration", where=str(path), remedy=remedy)
    return [Row(iteration, **found.rows[iteration]) for iteration in sorted(found.rows)]  # type: ignore[arg-type]


class _Reader:
    """Goes through a log.

    Attributes:
        rows: iteration -> column -> value.
        latest: the iteration named last.
        test: the iteration of the test that is being told of; None outside, and for other nets than the first.
    """

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.latest = 0
        self.test: int | None = None
        self.rules: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], None]], ...] = (
            (_LOSS, lambda match: self._at(match, loss=_value(match[2]))),
            (_RATE, lambda match: self._at(match, lr=_value(match[2]))),
            (_TEST, self._begin_test),
            (_OUTPUT, self._output),
            (_SCORE, self._score),
        )

    def take(self, line: str) -> None:
        """Take note of a line, if it says something."""
        for pattern, note in self.rules:
            if match := pattern.search(line.rstrip()):
                note(match)
                return

    def _at(self, match: re.Match[str], **values: float) -> None:
        iteration = self._go(int(match[1]))
        self.rows.setdefault(iteration, {}).update(values)

    def _go(self, iteration: int) -> int:
        if iteration < self.latest:
            self.rows = {number: row for number, row in self.rows.items() if number < iteration}
        self.latest = iteration
        return iteration

    def _begin_test(self, match: re.Match[str]) -> None:
        iteration = self._go(int(match[1]))
        self.test = iteration if match[2] in (None, "0") else None

    def _output(self, match: re.Match[str]) -> None:
        name, value, weighted = match.groups()
        if weighted:
            self._tested(validation_loss=_value(value))
        elif _FIVE.search(name):
            self._tested(top5=_value(value))
        elif _ACCURACY.search(name):
            self._tested(accuracy=_value(value))

    def _score(self, match: re.Match[str]) -> None:
        """Of 2013: the accuracy layer gives the share of right answers, and the loss."""
        if match[1] in "01":
            self._tested(**{("accuracy", "validation_loss")[int(match[1])]: _value(match[2])})

    def _tested(self, **values: float) -> None:
        if self.test is not None:
            self.rows.setdefault(self.test, {}).update(values)


def _value(text: str) -> float:
    """A number as the C++ library prints it, also "nan", "-nan" and "1.#INF"."""
    try:
        return float(text)
    except ValueError:
        return float("inf") if "inf" in text.lower() else float("nan")
