"""Killed runs, full disks, folders that may not be written: the old file stays, or the new one is complete."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import converters.safetensors
from caffe_compat.errors import VggcError
from caffe_compat.schema import pb
from converters.convert import FORMATS, Options, convert
from repro.cli import run
from tests import models
from tests.shared import ROOT

VGGC = [sys.executable, "-m", "repro"]
KILLS = 18
OLD = b"what was there before"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 64 MiB: one inner product."""
    path = tmp_path_factory.mktemp("large") / "large.caffemodel"
    weights = np.random.default_rng(0).standard_normal((4096, 4096), np.float32)
    net = pb.NetParameter(name="large")
    net.layer.add(name="data", type="Input", top=["data"]).input_param.shape.add(dim=[1, 4096])
    ip = net.layer.add(name="ip", type="InnerProduct", bottom=["data"], top=["ip"])
    ip.inner_product_param.num_output, ip.inner_product_param.bias_term = 4096, False
    blob = pb.BlobProto(shape=pb.BlobShape(dim=weights.shape)).SerializeToString()
    blob += models.delimited(5, weights.tobytes())
    layer = ip.SerializeToString() + models.delimited(7, blob)
    del net.layer[1]
    path.write_bytes(net.SerializeToString() + models.delimited(100, layer))
    return path


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(".part")]


def killed(command: list[str], folder: Path, delay: float) -> bool:
    """Run, and kill a moment after a file in the making has appeared; whether it was still running."""
    before = set(parts(folder))
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not set(parts(folder)) - before:
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_killed_runs_leave_the_old_file_or_the_new_one(large: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    reference = {suffix: tmp_path / f"reference.{suffix}" for suffix in ("safetensors", "h5", "onnx")}
    convert(large, list(reference.values()))
    new = {suffix: digest(path) for suffix, path in reference.items()}
    folder = tmp_path / "out"
    folder.mkdir()
    interrupted = 0
    for turn in range(KILLS):
        suffix = list(new)[turn % len(new)]
        target = folder / f"model.{suffix}"
        target.write_bytes(OLD)
        delay = rng.uniform(0, 0.3) if turn >= len(new) else 0.0
        interrupted += killed([*VGGC, "convert", "--force", str(large), str(target)], folder, delay)
        assert digest(target) in (hashlib.sha256(OLD).hexdigest(), new[suffix])
        assert len(parts(folder)) <= len(new), "remains of the same target are removed by the next run"
    assert interrupted >= len(new)
    for suffix in new:
        assert run(["convert", "--force", str(large), str(folder / f"model.{suffix}")]) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"model.{suffix}" for suffix in new)


def test_an_interrupted_run_cleans_up(large: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.h5"
    command = [*VGGC, "convert", str(large), str(target)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not parts(tmp_path):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (0, 130), stderr
    assert "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ([] if process.returncode else [target.name])


SMALL = ("py", "prototxt")
"""Formats without weights, which fit where there is little room."""


# -- no room -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [name for name in FORMATS if name not in SMALL])
@pytest.mark.parametrize("room", [0, 4096, 40 << 20])
def test_a_file_that_cannot_grow(suffix: str, room: int, large: Path, tmp_path: Path) -> None:
    target = tmp_path / f"model.{suffix}"
    target.write_bytes(OLD)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [*VGGC, "convert", "--force", str(large), str(target)]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, preexec_fn=limit, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"vggc: error: {target}: cannot be written: File too large; ")
    assert done.stderr.count("\n") == 1
    assert target.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [target]


def failing(function: str, module: object = os) -> Callable[[pytest.MonkeyPatch], None]:
    def install(monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_args: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(module, function, fail)

    return install


@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
@pytest.mark.parametrize("suffixes", [("safetensors",), ("pt",), ("onnx",), ("h5",), ("safetensors", "h5")])
def test_a_full_disk(function: str, suffixes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if function == "write" and suffixes == ("h5",):
        function = "copy_file_range"
    models.write(tmp_path / "m.caffemodel")
    out = tmp_path / "out"
    out.mkdir()
    targets = [out / f"m.{suffix}" for suffix in suffixes]
    for target in targets:
        target.write_bytes(OLD)
    failing(function)(monkeypatch)
    if function == "copy_file_range":
        failing("write")(monkeypatch)
    with pytest.raises(VggcError, match="No space left on device; free some space; nothing was changed"):
        convert(tmp_path / "m.caffemodel", targets, Options(force=True))
    monkeypatch.undo()
    assert sorted(out.iterdir()) == sorted(targets)
    assert all(target.read_bytes() == OLD for target in targets)


def test_a_late_failure_leaves_every_target_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.write(tmp_path / "m.caffemodel")
    targets = [tmp_path / "a.onnx", tmp_path / "b.h5", tmp_path / "c.safetensors"]
    targets[0].write_bytes(OLD)

    def fault(*_args: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(converters.safetensors, "_header", fault)
    with pytest.raises(ValueError, match="a fault"):
        convert(tmp_path / "m.caffemodel", targets, Options(force=True))
    assert targets[0].read_bytes() == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "m.caffemodel", "m.prototxt"]


def test_a_source_that_is_replaced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "m.caffemodel"
    models.write(source)
    real = converters.safetensors._header

    def header(*args: object) -> bytes:
        other = tmp_path / "other"
        other.write_bytes(source.read_bytes())
        other.replace(source)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(converters.safetensors, "_header", header)
    with pytest.raises(VggcError, match="changed while it was read"):
        convert(source, [tmp_path / "m.safetensors"])
    assert not (tmp_path / "m.safetensors").exists()


# -- places that cannot be written -------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    models.write(tmp_path / "m.caffemodel")
    return tmp_path / "m.caffemodel"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written(
    code: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(VggcError, match=f"m.h5: cannot be written: {os.strerror(code)}; choose a folder that you may"):
        convert(source, [tmp_path / "m.h5"])


def test_names_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    cases = {
        tmp_path / "folder.onnx": "the target is a folder; name a file in it",
        tmp_path / "none" / "a.onnx": "there is no such folder; create it first",
        tmp_path / "file" / "a.onnx": "there is no such folder; create it first",
        source: "the target is also read from",
    }
    for target, message in cases.items():
        with pytest.raises(VggcError, match=message):
            convert(source, [target])


def test_a_target_that_is_read_from(tmp_path: Path, source: Path) -> None:
    convert(source, [tmp_path / "m.safetensors"])
    os.link(tmp_path / "m.safetensors", tmp_path / "hard.safetensors")
    (tmp_path / "soft.safetensors").symlink_to("m.safetensors")
    for name in ("m", "hard", "soft"):
        with pytest.raises(VggcError, match="also read from"):
            convert(tmp_path / "m.safetensors", [tmp_path / f"{name}.safetensors"], Options(force=True))
    options = Options(net=tmp_path / "m.safetensors", force=True)
    with pytest.raises(VggcError, match="also read from"):
        convert(source, [tmp_path / "m.safetensors"], options)


def test_targets_that_exist(source: Path, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(OLD)
    (tmp_path / "broken.onnx").symlink_to("nowhere")
    for name in ("a", "broken"):
        with pytest.raises(VggcError, match="the target exists; use --force"):
            convert(source, [tmp_path / f"{name}.onnx"])
    assert (tmp_path / "a.onnx").read_bytes() == OLD
    convert(source, [tmp_path / "a.onnx"], Options(force=True))
    assert (tmp_path / "a.onnx").read_bytes() != OLD


def test_two_targets_with_one_name(source: Path, tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(tmp_path)
    for other in (tmp_path / "a.h5", tmp_path / "again" / "a.h5", tmp_path / "again" / ".." / tmp_path.name / "a.h5"):
        with pytest.raises(VggcError, match="two targets are the same file"):
            convert(source, [tmp_path / "a.h5", other])
    assert not (tmp_path / "a.h5").exists()
