"""What several test files need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The repository."""


def python(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter in the repository."""
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120
    )
