"""The same model gives the same bytes: at another time, in another folder, under another name, in another process."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

import pytest

from converters.convert import convert
from tests import models
from tests.shared import python

SCRIPT = """
import sys
from repro.cli import run
sys.exit(run(["convert", *sys.argv[1:]]))
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", models.NETS)
def test_bytes_do_not_depend_on_time_place_or_process(name: str, tmp_path: Path) -> None:
    source = tmp_path / "m.caffemodel"
    models.write(source, name)
    first = [tmp_path / f"a.{suffix}" for suffix in models.FORMATS]
    report = convert(source, first)
    assert [result.sha256 for result in report.results] == [digest(path) for path in first]
    assert [result.bytes for result in report.results] == [path.stat().st_size for path in first]
    assert report.source_sha256 == digest(source)

    other = tmp_path / "other place"
    other.mkdir()
    shutil.copy(source, other / "renamed.bin")
    time.sleep(1.1)  # formats that note the time do so in seconds
    second = [other / f"quite another name.{suffix}" for suffix in models.FORMATS]
    done = python("-c", SCRIPT, str(other / "renamed.bin"), *map(str, second), PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    assert done.returncode == 0, done.stderr
    for one, another in zip(first, second, strict=True):
        assert one.read_bytes() == another.read_bytes(), one.suffix
