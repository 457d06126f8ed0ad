"""Lines as Caffe logs them, which Caffe's own parsers read (tools/extra/parse_log.py)."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from types import TracebackType


class Log:
    """A log file that is added to; without a path, lines go nowhere."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("a", encoding="utf-8", buffering=1)

    def __call__(self, line: str) -> None:
        """Add a line, with time and place as glog writes them."""
        if self._file:
            now = datetime.now()
            self._file.write(f"I{now:%m%d %H:%M:%S.%f} {os.getpid():5d} solver.cpp:0] {line}\n")

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()
