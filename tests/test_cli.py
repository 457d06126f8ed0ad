"""The `vggc` group: what it says, and with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import click
import pytest

from caffe_compat.errors import LayerError, Problems, TextError, VggcError, Where
from repro import cli
from tests.shared import ROOT, python

ERROR = TextError("unknown field", where=Where("a.prototxt", 3, 5), remedy="check the spelling")
OTHER = LayerError("kernel_size is 0", where=Where("a.prototxt", 9, 1, layer="conv1"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Puts a function behind `vggc probe`."""

    def install(function: Callable[[], object]) -> None:
        module = ModuleType("probe_commands")
        module.probe = click.command("probe")(function)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe_commands", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", cli.Entry("probe_commands:probe", "Probe."))

    return install


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def function() -> NoReturn:
        raise error

    return function


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([option]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, entry in cli.COMMANDS.items():
        assert name in out
        assert entry.summary.split()[0] in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.split()[0] == "vggc"


def test_python_dash_m() -> None:
    done = python("-m", "repro", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: vggc [OPTIONS] COMMAND")


def test_help_imports_no_command() -> None:
    script = (
        "import sys\nfrom repro.cli import run\nassert run(['--help']) == 0\n"
        "heavy = {'caffe_compat', 'converters', 'google.protobuf', 'numpy', 'rich', 'torch', 'onnx', 'h5py'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_loads_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: vggc {name}")
    loaded = cli.cli.get_command(click.Context(cli.cli), name)
    assert loaded is not None
    assert loaded.short_help == cli.COMMANDS[name].summary


@pytest.mark.parametrize("args", [[], ["nope"], ["--nope"], ["convert", "--nope"]])
def test_wrong_usage_is_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: vggc")


@pytest.mark.parametrize(("result", "code"), [(None, 0), (3, 3), ("text", 0)])
def test_a_command_may_return_its_exit_code(
    result: object, code: int, command: Callable[[Callable[[], object]], None]
) -> None:
    command(lambda: result)
    assert cli.run(["probe"]) == code


def test_a_command_may_exit_with_a_code(command: Callable[[Callable[[], object]], None]) -> None:
    command(lambda: click.get_current_context().exit(3))
    assert cli.run(["probe"]) == 3


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ERROR, "vggc: error: a.prototxt:3:5: unknown field; check the spelling\n"),
        (
            Problems([ERROR, OTHER]),
            "vggc: error: a.prototxt:3:5: unknown field; check the spelling\n"
            'vggc: error: a.prototxt:9:1 layer "conv1": kernel_size is 0\n'
            "vggc: 2 errors\n",
        ),
        (VggcError("no net"), "vggc: error: no net\n"),
        (FileNotFoundError(2, "No such file or directory", "a.b"), "vggc: error: a.b: No such file or directory\n"),
        (OSError(28, "No space left on device"), "vggc: error: No space left on device\n"),
    ],
)
def test_errors_are_1_and_have_no_traceback(
    error: Exception,
    message: str,
    command: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(raising(error))
    assert cli.run(["--debug", "probe"]) == 1
    assert capsys.readouterr() == ("", message)


def test_a_fault_is_1_and_asks_for_a_report(
    command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(KeyError("blob")))
    assert cli.run(["probe"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "vggc: internal error: KeyError: 'blob'"
    assert "report" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_fault_shows_its_traceback_on_demand(
    how: str, command: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(raising(KeyError("blob")))
    monkeypatch.setenv("VGGC_DEBUG", "1" if how == "environment" else "0")
    with pytest.raises(KeyError, match="blob"):
        cli.run(["--debug", "probe"] if how == "option" else ["probe"])


def test_an_interrupt_is_130(
    command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(KeyboardInterrupt()))
    assert cli.run(["probe"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "repro", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
