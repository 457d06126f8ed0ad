"""Every command and the Python example in the README work as they stand there; its tables are fresh."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from caffe_compat.support import markdown
from repro.demo import write_model
from repro.detector import write_detector
from tests.caffe_compat.data.folders import images, png
from tests.shared import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [line[2:].split("  #")[0].strip() for line in re.findall(r"^\$ .*$", README, re.M)]
VGGC = [command for command in COMMANDS if command.startswith("vggc ")]
FILES = re.findall(r"```prototxt\n# (\S+)\n(.*?)```", README, re.S)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with what `make demo` leaves behind, the nets, and photos of two classes."""
    path = tmp_path_factory.mktemp("readme")
    (path / "demo").mkdir()
    write_model(path / "demo" / "digits.caffemodel")
    write_detector(path / "demo")
    for index, picture in enumerate(images(4, 3, 40, 30)):
        (path / "photos" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        (path / "photos" / "ab"[index % 2] / f"{index}.png").write_bytes(png(picture))
    shutil.copytree(ROOT / "prototxt", path / "prototxt")
    for name, text in FILES:
        (path / name).write_text(text)
    return path


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_commands_in_order(folder: Path) -> None:
    assert len(VGGC) >= 9
    for command in VGGC:
        done = run(shlex.split(command), folder)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert (done.stdout + done.stderr).strip()


def test_python_example(folder: Path) -> None:
    assert PYTHON
    for text in PYTHON:
        done = run([sys.executable, "-c", text], folder)
        assert done.returncode == 0, done.stderr


def test_parity_command_is_valid() -> None:
    command = next(c for c in COMMANDS if c.startswith("pytest "))
    data = ROOT / "tests" / "data"
    words = [str(data / "golden") if word == "DIR" else word for word in shlex.split(command)]
    done = run([sys.executable, "-m", *words, "--collect-only", "-q", "--rootdir", str(ROOT)], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {c.split()[1] for c in COMMANDS if c.startswith("make ")} <= targets


def test_other_commands_are_known() -> None:
    assert {command.split()[0] for command in COMMANDS} <= {"make", "vggc", "pytest"}


def test_layer_table_is_fresh() -> None:
    table = README.split("<!-- layers -->\n")[1].split("\n<!-- /layers -->")[0]
    assert table == markdown(), "run: make tables"
