"""Timing whole processes, and what memory they took."""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


@dataclass(frozen=True)
class Run:
    """One process, and those that it has started.

    Attributes:
        seconds: wall time.
        cpu: time on processors, user and system.
        anonymous: peak of its own memory, MiB (RssAnon).
        mapped: peak of file pages it has mapped, MiB (RssFile).
        code: exit code.
        stderr: what it said.
    """

    seconds: float
    cpu: float
    anonymous: float
    mapped: float
    code: int = 0
    stderr: str = ""


def run(command: Sequence[str], cwd: Path | None = None, *, check: bool = True) -> Run:
    """Run to the end, sampling memory every 5 ms.

    Raises:
        RuntimeError: it failed, and `check` is set.
    """
    before, began = _children(), time.perf_counter()
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=stderr)
        anonymous = mapped = 0.0
        while process.poll() is None:
            now = _memory(process.pid)
            anonymous, mapped = max(anonymous, now[0]), max(mapped, now[1])
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        stderr.seek(0)
        said = stderr.read().decode(errors="replace")
    if process.returncode and check:
        raise RuntimeError(f"{' '.join(command)} failed: {said}")
    return Run(seconds, _children() - before, anonymous, mapped, process.returncode, said)


def _children() -> float:
    """Seconds of processor time of the children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _memory(pid: int) -> tuple[float, float]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0, 0.0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    own = [int(fields.get(key, "0 kB").split()[0]) / 1024 for key in ("RssAnon", "RssFile")]
    each = [_memory(int(child)) for child in started]
    return own[0] + sum(a for a, _ in each), own[1] + sum(m for _, m in each)


def keep_memory() -> None:
    """Have glibc keep what this process frees, up to a GiB."""
    libc = ctypes.CDLL(None)
    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        if not libc.mallopt(threshold, 2**30):
            raise RuntimeError("this C library does not let freed memory be kept")


def median(runs: Sequence[Run]) -> float:
    """Median wall time."""
    return statistics.median(run.seconds for run in runs)
