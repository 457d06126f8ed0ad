"""Whole runs: what they leave behind, and that they go on as if nothing had happened."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import caffe_compat as cc
from caffe_compat.errors import VggcError
from caffe_compat.preprocessing import preprocessing
from caffe_compat.schema import pb
from caffe_compat.solvers import Solver
from caffe_compat.solvers.snapshot import read_state
from repro.training import session as sessions
from repro.training.group import Group
from repro.training.passes import NotFiniteError
from repro.training.settings import Settings
from repro.training.trainer import Outcome
from tests.repro.training.tiny import NET, settings, write_images, write_net


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net and images."""
    path = tmp_path_factory.mktemp("home")
    write_net(path)
    write_images(path)
    return path


def go(made: Settings, out: Path, **more: object) -> Outcome:
    return sessions.run(sessions.prepare(made, Group()), out, **more)  # type: ignore[arg-type]


def after(count: int) -> Callable[[], bool]:
    """Stops after so many iterations."""
    left = iter([False] * (count - 1))
    return lambda: next(left, True)


def rows(out: Path) -> list[dict[str, str]]:
    """The history without speeds."""
    with open(out / "history.csv") as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


def test_what_a_run_leaves_behind(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = go(settings(home), out)
    assert (outcome.reason, outcome.iteration) == ("max_iter reached", 14)
    assert {path.name for path in out.iterdir()} == {
        *(".lock", "run.json", "train.log", "history.csv", "statistics.json", "best.caffemodel", "last.caffemodel"),
        *(f"tiny_iter_{n}.{kind}" for n in (9, 14) for kind in ("caffemodel", "solverstate", "json")),
    }
    assert (out / "last.caffemodel").read_bytes() == (out / "tiny_iter_14.caffemodel").read_bytes()
    assert json.loads((out / "run.json").read_text())["settings"] == settings(home).as_json()
    measured = [row for row in rows(out) if row["accuracy"]]
    assert [row["iteration"] for row in measured] == ["5", "9", "14"]
    assert float(measured[-1]["accuracy"]) == outcome.last.top1  # type: ignore[union-attr]
    log = (out / "train.log").read_text().splitlines()
    texts = [line.split("] ", 1)[1] for line in log]
    assert all(line.startswith("I") and " solver.cpp:0] " in line for line in log)
    assert "Iteration 5, Testing net (#0)" in texts
    assert any(text.startswith("Iteration 2 (") and ", loss = " in text for text in texts)
    assert any(text.startswith("    Test net output #0: accuracy_top1 = ") for text in texts)
    assert "Iteration 4, lr = 0.002" in texts


def test_it_learns(home: Path, tmp_path: Path) -> None:
    outcome = go(settings(home, max_epochs=25, patience=100, rate=0.0003), tmp_path / "run")
    assert outcome.best.best > 0.9
    measured = [float(row["accuracy"]) for row in rows(tmp_path / "run") if row["accuracy"]]
    assert outcome.best.best == max(measured)


def test_snapshots_are_caffe_s(home: Path, tmp_path: Path) -> None:
    """They carry the net and how images are prepared; Caffe's own solver goes on from them."""
    out = tmp_path / "run"
    go(settings(home), out)
    model = pb.NetParameter.FromString((out / "last.caffemodel").read_bytes())
    assert [layer.type for layer in model.layer][:2] == ["ImageData", "Convolution"]
    assert model.layer[-1].type == "SoftmaxWithLoss"
    mean = json.loads((out / "statistics.json").read_text())["mean_bgr"]
    told = preprocessing(model)
    assert (told["crop_size"], told["channel_order"]) == (8, "BGR")
    np.testing.assert_allclose(told["mean_value"], mean, rtol=1e-6)
    net = cc.load(out / "best.caffemodel")
    assert net.outputs == ("prob",)
    assert net.inputs == {"data": (1, 3, 8, 8)}
    state = read_state(out / "tiny_iter_14.solverstate")
    assert (state.iteration, state.learned_net, len(state.history)) == (14, "tiny_iter_14.caffemodel", 6)
    text = NET.replace('layer { name: "prob" type: "Softmax" bottom: "fc2" top: "prob" }', "")
    (tmp_path / "net.prototxt").write_text(text)
    (tmp_path / "s.prototxt").write_text('net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 20')
    solver = Solver(tmp_path / "s.prototxt", restore=out / "tiny_iter_14.solverstate")
    assert solver.iter == 14


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_an_interrupted_run_ends_as_one_that_was_not(count: int, home: Path, tmp_path: Path) -> None:
    made = settings(home, snapshot_every=3)
    whole = go(made, tmp_path / "whole")
    first = go(made, tmp_path / "cut", stopped=after(count))
    assert (first.reason, first.iteration) == ("interrupted", count)
    second = go(made, tmp_path / "cut")
    assert second.resumed == count
    assert (second.iteration, second.best, second.last) == (whole.iteration, whole.best, whole.last)
    for name in ("last.caffemodel", "best.caffemodel", "tiny_iter_14.solverstate"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name
    theirs = {row["iteration"]: row for row in rows(tmp_path / "cut")}
    for row in rows(tmp_path / "whole"):
        mine = theirs[row["iteration"]]
        assert {k: v for k, v in mine.items() if k != "loss"} == {k: v for k, v in row.items() if k != "loss"}


def test_a_snapshot_without_its_description_is_none(home: Path, tmp_path: Path) -> None:
    out, made = tmp_path / "run", settings(home)
    go(made, out)
    kept = (out / "last.caffemodel").read_bytes()
    (out / "tiny_iter_14.json").unlink()
    (out / ".tiny_iter_14.caffemodel.0123abcd.part").write_bytes(b"half")
    outcome = go(made, out)
    assert outcome.resumed == 9
    assert (out / "last.caffemodel").read_bytes() == kept
    assert not list(out.glob(".*.part"))


def test_a_truncated_snapshot_is_none(home: Path, tmp_path: Path) -> None:
    out, made = tmp_path / "run", settings(home)
    go(made, out)
    kept = (out / "last.caffemodel").read_bytes()
    state = out / "tiny_iter_14.solverstate"
    state.write_bytes(state.read_bytes()[:-1])
    assert go(made, out).resumed == 9
    assert (out / "tiny_iter_14.caffemodel").read_bytes() == kept


def test_a_run_that_is_done_stays_as_it_is(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = go(settings(home), out)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*iter*")}
    again = go(settings(home), out)
    assert (again.reason, again.resumed, again.last) == (first.reason, 14, first.last)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*iter*")} == before
    longer = go(settings(home, max_epochs=4), out)
    assert (longer.resumed, longer.iteration) == (14, 18)


def test_another_run_in_the_folder_is_refused(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    go(settings(home), out)
    with pytest.raises(VggcError, match=r"another run: rate: 0.002 then, 0.01 now; seed: 0 then, 1 now"):
        go(settings(home, rate=0.01, seed=1), out)
    (home / "tiny2.prototxt").write_text(NET.replace("num_output: 16", "num_output: 17"))
    before = (out / "last.caffemodel").read_bytes()
    with pytest.raises(VggcError, match=r"net: .* then, .* now"):
        go(replace(settings(home), net=str(home / "tiny2.prototxt")), out)
    assert (out / "last.caffemodel").read_bytes() == before


def test_a_snapshot_of_another_net_is_refused(home: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    go(settings(home), out)
    wide = tmp_path / "tiny.prototxt"
    wide.write_text(NET.replace("num_output: 16", "num_output: 17"))
    go(replace(settings(home), net=str(wide)), other)
    for name in ("tiny_iter_14.solverstate", "tiny_iter_14.json", "tiny_iter_14.caffemodel"):
        os.replace(other / name, out / name)
    with pytest.raises(VggcError, match=r"the first that differs \(17, 64\) for \(16, 64\)") as caught:
        go(settings(home, max_epochs=4), out)
    assert caught.value.where.source.endswith("tiny_iter_14.solverstate")


def test_nan_stops_and_keeps_the_snapshot(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(NotFiniteError, match="is the first that is not finite"):
        go(settings(home, rate=1e6, snapshot_every=1, validate_every=100), out)
    model = cc.load(next(out.glob("tiny_iter_*.caffemodel")))
    assert all(np.isfinite(blob.detach().numpy()).all() for blobs in model.params.values() for blob in blobs)


def test_a_full_disk_loses_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, made = tmp_path / "run", settings(home)
    go(made, out, stopped=after(5))
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if "iter_9" in name:
            calls.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VggcError, match="No space left on device; free some space"):
        go(made, out)
    assert calls
    assert {path.name for path in out.glob("*iter*")} == {
        f"tiny_iter_5.{kind}" for kind in ("caffemodel", "solverstate", "json")
    }
    monkeypatch.undo()
    assert go(made, out).resumed == 5


def test_two_at_once_are_refused(home: Path, tmp_path: Path) -> None:
    out, made = tmp_path / "run", settings(home)
    refused: list[str] = []

    def stopped() -> bool:
        with pytest.raises(VggcError, match="another process is training in this folder") as caught:
            go(made, out)
        refused.append(str(caught.value))
        return True

    go(made, out, stopped=stopped)
    assert len(refused) == 1


def test_unreadable_images_are_named_and_counted(tmp_path: Path) -> None:
    write_net(tmp_path)
    data = write_images(tmp_path)
    (data / "train" / "c1" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    notes: list[str] = []
    outcome = go(settings(tmp_path), tmp_path / "run", note=notes.append)
    assert outcome.unreadable == 1
    assert any("c1/3.png" in line for line in notes)
    assert "c1/3.png" in (tmp_path / "run" / "train.log").read_text()
    with pytest.raises(VggcError, match=r"c1/3\.png"):
        go(settings(tmp_path, strict_data=True), tmp_path / "strict")


def test_settings_that_cannot_be(home: Path) -> None:
    for change, what in (
        ({"scale": (7,)}, "smallest side of 7 for crops of 8"),
        ({"batch": 0}, "batch is 0"),
        ({"scale": (20, 10)}, "scale"),
        ({"precision": "int8"}, "precision int8"),
        ({"rate": -1.0}, "rate -1"),
        ({"data": str(home / "nowhere")}, "no such images"),
    ):
        with pytest.raises(VggcError, match=what):
            sessions.prepare(settings(home, **change), Group())


def test_tensorboard_is_told(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="an extra")
    go(settings(home), tmp_path / "run", board=True)
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))) == 1
    measured = [row for row in rows(tmp_path / "run") if row["accuracy"]]
    assert all(row["top5"] == "1.0" for row in measured)
