"""What needs no torch does not import it: an import takes longer than most of these commands."""

from __future__ import annotations

from pathlib import Path

import pytest

import prototxt
from repro import cli
from repro.demo import write_model
from tests.shared import python

SCRIPT = """
import sys
from repro.cli import run
code = run(sys.argv[1:])
assert code == 0, f"exit code {code}"
assert "torch" not in sys.modules, "torch was imported"
"""


def check(*args: str) -> None:
    done = python("-c", SCRIPT, *args)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "digits.caffemodel"
    write_model(path)
    return path


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help(name: str) -> None:
    check(*name.split(), "--help")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".h5", ".onnx"])
def test_convert(suffix: str, model: Path, tmp_path: Path) -> None:
    check("convert", str(model), str(tmp_path / f"digits{suffix}"))
    assert (tmp_path / f"digits{suffix}").stat().st_size > 0


def test_inspect(model: Path) -> None:
    check("inspect", "E")
    check("inspect", str(model))


def test_layers() -> None:
    check("layers")


def test_upgrade(model: Path, tmp_path: Path) -> None:
    check("upgrade", str(prototxt.find("E_solver")))
    check("upgrade", str(model), str(tmp_path / "v2.caffemodel"))
    check("upgrade", str(model), str(tmp_path / "v2.prototxt"))
