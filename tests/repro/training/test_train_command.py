"""`vggc train` for nets: options, recipes, outcome, signals, and a process that is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from repro import train_command
from repro.cli import run
from repro.train_command import _settings, train, without
from tests.repro.training.tiny import write_images, write_net

BASE = ["--batch", "8", "--rate", "0.0003", "--scale", "9", "--init", "msra", "--workers", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    write_net(path)
    write_images(path)
    return path


def words(home: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(home / "tiny.prototxt"), "--data", str(home / "images"), "--out", str(out), *BASE, *more]


def settings(*args: str) -> dict[str, object]:
    context = train.make_context("train", list(args))
    options = dict(context.params)
    return vars(_settings(options.pop("target"), options)[0])


def test_outcome_as_text_and_json(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run(words(home, out, "--max-epochs", "2")) == 0
    text, notes = capsys.readouterr()
    lines = text.splitlines()
    assert re.fullmatch(
        r"epoch 1\.1, iteration 5: loss \S+, top-1 accuracy \S+%, top-5 100\.00%, rate 0\.0003, .*", lines[0]
    )
    assert re.fullmatch(rf"{out}: max_iter reached at iteration 9 \(epoch 2\.0\), \d+ s; best top-1 .*", lines[-1])
    assert 'note: layer "prob" (Softmax) is replaced by SoftmaxWithLoss' in notes
    assert run(words(home, out, "--max-epochs", "2", "--json")) == 0
    told, notes = capsys.readouterr()
    assert notes == ""
    found = json.loads(told)
    assert (found["out"], found["iteration"], found["resumed"]) == (str(out), 9, 9)
    assert set(found["last"]) == {"top1", "top5", "loss", "images"}


def test_options_over_recipe_over_paper(home: Path) -> None:
    assert settings("E", "--data", "d")["rate"] == 0.01
    digits = settings("digits", "--data", "digits")
    assert (digits["batch"], digits["flip"], digits["scale"]) == (32, False, (32, 36))
    stated = settings("digits", "--data", "x", "--batch", "64", "--scale", "40-48", "--no-colour", "--amp", "bf16")
    assert (stated["batch"], stated["scale"], stated["colour"], stated["rate"]) == (64, (40, 48), False, 0.003)
    assert stated["precision"] == "bfloat16"
    other = settings(str(home / "tiny.prototxt"), "--recipe", "digits", "--data", "x")
    assert (other["net"], other["batch"]) == (str(home / "tiny.prototxt"), 32)


def test_wrong_usage(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, code, what in (
        (["--scale", "a"], 2, "'a' is no side"),
        (["--scale", "1-2-3"], 2, "no range such as"),
        (["--recipe", "nope"], 1, 'no recipe called "nope"; recipes: '),
        (["--crop", "20"], 1, "smallest side of 9 for crops of 20"),
        (["--snapshot", "x"], 2, "No such option"),
    ):
        assert run(words(home, tmp_path / "run", *more)) == code
        assert what in capsys.readouterr().err
    assert run(["train", str(home / "tiny.prototxt")]) == 2
    assert "--data" in capsys.readouterr().err
    assert run(["train", "F", "--data", "digits"]) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_solver_goes_to_the_solver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.prototxt").write_text('net: "n.prototxt" base_lr: 1 lr_policy: "fixed" max_iter: 1')
    for args in (["s.prototxt", "--snapshot", "x"], ["--profile", "bvlc", "s.prototxt"]):
        path = [str(tmp_path / word) if word == "s.prototxt" else word for word in args]
        assert run(["train", *path]) == 1
        assert "n.prototxt" in capsys.readouterr().err
    assert run(["train", str(tmp_path / "s.prototxt"), "--data", "digits"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_help_has_both() -> None:
    text = CliRunner().invoke(train, ["--help"]).output
    assert "--init-from" in text
    assert "Options for a solver" in text
    assert "--snapshot" in text


def test_an_interrupted_stage_is_not_followed_by_the_next(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_command, "_told_to_stop", lambda _pressed: lambda: True)
    assert run(words(home, tmp_path / "run", "--staged")) == 0
    assert "stopped at iteration 1; the same command goes on" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["256"]


def test_front_options_go() -> None:
    assert without(["train", "x", "--nproc", "2", "--max-restarts=0", "--out", "y"], ("--nproc", "--max-restarts")) == [
        "train", "x", "--out", "y",
    ]  # fmt: skip


def start(home: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "repro", *words(home, out, *more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


LONG = ("--max-iter", "90", "--snapshot-every", "7", "--validate-every", "30", "--patience", "9")


def test_killed_at_any_moment_it_ends_as_if_not(home: Path, tmp_path: Path) -> None:
    assert run(words(home, tmp_path / "whole", *LONG)) == 0
    out = tmp_path / "cut"
    for pattern in ("*_iter_7.json", ".*_iter_*.part", "*_iter_84.caffemodel"):
        process = start(home, out, *LONG)
        wait_for(out, pattern, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert run(words(home, out, *LONG)) == 0
    for name in ("last.caffemodel", "best.caffemodel", "tiny_iter_90.solverstate"):
        assert (tmp_path / "whole" / name).read_bytes() == (out / name).read_bytes(), name


def test_interrupt_writes_a_snapshot(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(home, out, "--max-iter", "1000000", "--validate-every", "100000", "--snapshot-every", "3")
    wait_for(out, "*_iter_3.json", process)
    os.kill(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    stopped = int(re.findall(r"stopped at iteration (\d+); the same command goes on", text)[0])
    assert (out / f"tiny_iter_{stopped}.json").exists()


def test_staged(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = words(home, out, "--staged", "--max-epochs", "1", "--json")
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(each["out"]).name for each in found] == ["256", "384", "jitter"]
    made = [json.loads((out / name / "run.json").read_text())["settings"] for name in ("256", "384", "jitter")]
    assert [each["scale"] for each in made] == [[9], [14], [9, 18]]
    assert [each["rate"] for each in made] == [0.0003, pytest.approx(0.00003), pytest.approx(0.00003)]
    assert [each["weights"] for each in made] == ["", str(out / "256"), str(out / "384")]
    assert run(command) == 0
    assert [each["resumed"] for each in json.loads(capsys.readouterr().out)] == [5, 5, 5]
