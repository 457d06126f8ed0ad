"""The memory of an evaluation; `python -m tests.bench.evaluate` takes many more images."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.bench.evaluate import MEMORY
from tests.bench.measure import run
from tests.shared import ROOT


def test_images_do_not_add_up(tmp_path: Path) -> None:
    """Images of hundreds of shapes; what was kept for each of them would be seen."""
    done = run([sys.executable, "-m", "tests.bench.evaluate", "--child", str(tmp_path), "--many", "400"], cwd=ROOT)
    assert done.anonymous + done.mapped < 0.75 * MEMORY
