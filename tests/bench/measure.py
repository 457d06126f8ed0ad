"""Timing whole processes, and what memory they took."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        seconds: wall time.
        anonymous: peak of its own memory, MiB (RssAnon).
        mapped: peak of file pages it has mapped, MiB (RssFile).
    """

    seconds: float
    anonymous: float
    mapped: float


def run(command: Sequence[str], cwd: Path | None = None) -> Run:
    """Run to the end, sampling memory every 5 ms.

    Raises:
        RuntimeError: it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    anonymous = mapped = 0.0
    while process.poll() is None:
        now = _memory(process.pid)
        anonymous, mapped = max(anonymous, now[0]), max(mapped, now[1])
        time.sleep(0.005)
    seconds = time.perf_counter() - began
    if process.returncode:
        error = process.stderr.read().decode() if process.stderr else ""
        raise RuntimeError(f"{' '.join(command)} failed: {error}")
    return Run(seconds, anonymous, mapped)


def _memory(pid: int) -> tuple[float, float]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return tuple(int(fields.get(key, "0 kB").split()[0]) / 1024 for key in ("RssAnon", "RssFile"))  # type: ignore[return-value]


def median(runs: Sequence[Run]) -> float:
    """Median wall time."""
    return statistics.median(run.seconds for run in runs)
