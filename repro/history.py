"""What was measured in the course of a training, one line of a CSV file each time."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from caffe_compat.errors import FormatError, Where
from caffe_compat.mapped import read_failed
from caffe_compat.writing import new_file, write_failed


@dataclass(frozen=True)
class Row:
    """A measurement; what was not measured is None.

    Attributes:
        iteration: updates made so far.
        epoch: how often the training set was gone through.
        loss: of training, over the iterations since the row before.
        accuracy: share of right answers on the validation set, 0 to 1.
        validation_loss: on the validation set.
        lr: the rate of the latest update.
        images_per_second: over the iterations since the row before.
        top5: as the accuracy, of images whose class is among the five that the net finds likeliest.
    """

    iteration: int
    epoch: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    validation_loss: float | None = None
    lr: float | None = None
    images_per_second: float | None = None
    top5: float | None = None


COLUMNS = tuple(field.name for field in fields(Row))
_HEADER = ",".join(COLUMNS) + "\n"


class History:
    """The rows of a CSV file, in the order in which they were written.

    A row is written by one call, and a row that a killed run has left half-written is not seen and makes way for the
    next. Numbers are written so that reading gives the same floats. Only one process may write.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[Row]:
        """All rows.

        Raises:
            FormatError: the file is no history.
            VggcError: it may not be read.
        """
        text = self._text()
        lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
        header = next(lines, list(COLUMNS))
        if tuple(header) != COLUMNS:
            raise self._foreign(",".join(header))
        return [self._row(line, number) for number, line in enumerate(lines, 2)]

    def append(self, row: Row) -> None:
        """Add a row, so that it outlasts the end of this process.

        Raises:
            FormatError: the file is no history.
            VggcError: it cannot be written; the rows before are untouched.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._put(descriptor, _line(row))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise write_failed(self.path, error) from error

    def resume(self, iteration: int) -> list[Row]:
        """Drop what was measured after an iteration, when training goes on from its snapshot; gives the rows left.

        Raises:
            VggcError: see `rows` and `append`.
        """
        before = self.rows()
        kept = [row for row in before if row.iteration <= iteration]
        if len(kept) < len(before):
            self._write(kept)
        return kept

    def _write(self, rows: Iterable[Row]) -> None:
        with new_file(self.path) as file:
            file.write(_HEADER.encode())
            for row in rows:
                file.write(_line(row).encode())

    def _put(self, descriptor: int, line: str) -> None:
        """Write behind the last complete line."""
        end = _complete(descriptor)
        if end and os.pread(descriptor, len(_HEADER), 0) != _HEADER.encode():
            raise self._foreign(os.pread(descriptor, 80, 0).decode(errors="replace").partition("\n")[0])
        data = ((_HEADER if end == 0 else "") + line).encode()
        try:
            if os.pwrite(descriptor, data, end) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(descriptor, end + len(data))
        except OSError:
            os.ftruncate(descriptor, end)
            raise

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except UnicodeDecodeError as error:
            raise FormatError("this is no text", where=str(self.path), remedy="name a history (CSV)") from error
        except OSError as error:
            raise read_failed(str(self.path), error) from error

    def _foreign(self, header: str) -> FormatError:
        what = f"this is no history: its first line is {header[:80]!r}"
        return FormatError(what, where=str(self.path), remedy=f"name a file with the columns {', '.join(COLUMNS)}")

    def _row(self, line: list[str], number: int) -> Row:
        try:
            values = {name: _number(name, text) for name, text in zip(COLUMNS, line, strict=True) if text}
            return Row(**values)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            where = Where(str(self.path), number, 1)
            raise FormatError(f"not a row of a history: {','.join(line)[:80]!r}", where=where) from error


def _line(row: Row) -> str:
    return ",".join("" if value is None else repr(value) for value in asdict(row).values()) + "\n"


def _number(name: str, text: str) -> int | float:
    return int(text) if name == COLUMNS[0] else float(text)


def _complete(descriptor: int) -> int:
    """Bytes up to and with the last line feed."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 4096)
        at = os.pread(descriptor, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def best(rows: Iterable[Row]) -> Row | None:
    """The row of the highest validation accuracy, the first of equals; None where none was measured."""
    measured = [row for row in rows if row.accuracy is not None and not math.isnan(row.accuracy)]
    return max(measured, key=lambda row: row.accuracy or 0.0, default=None)
