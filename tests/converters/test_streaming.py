"""Targets, hashes and sources."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from caffe_compat.errors import VggcError
from caffe_compat.weights import Blob
from caffe_compat.writing import create_part, remove_remains
from converters.streaming import Digest, Payloads, Target
from tests.shared import ROOT

DATA = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def complete(target: Target) -> None:
    target.finish()
    target.rename()


def parts(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


# -- hashes ------------------------------------------------------------------------------------------------


def test_digest_of_memory_and_files(source: Path) -> None:
    digest = Digest()
    with source.open("rb") as file:
        digest.update(memoryview(b"begin"))
        digest.read(file.fileno(), 1000, 299_000)
        digest.update(memoryview(b"end"))
        assert digest.hexdigest() == hashlib.sha256(b"begin" + DATA[1000:] + b"end").hexdigest()


def test_digest_of_a_file_that_became_shorter(source: Path) -> None:
    digest = Digest()
    with source.open("rb") as file:
        digest.read(file.fileno(), 0, len(DATA) + 1)
        with pytest.raises(OSError, match="shorter"):
            digest.hexdigest()


# -- targets -----------------------------------------------------------------------------------------------


def test_write_and_copy(source: Path, tmp_path: Path) -> None:
    counted: list[int] = []
    with Target(tmp_path / "out", counted.append) as target, source.open("rb") as file:
        target.write(b"head")
        target.copy(file.fileno(), 17, 250_000)
        target.write(memoryview(np.arange(100_000, dtype="<u4")))
        assert not (tmp_path / "out").exists()
        complete(target)
    want = b"head" + DATA[17:250_017] + np.arange(100_000, dtype="<u4").tobytes()
    assert (tmp_path / "out").read_bytes() == want
    assert (target.size, target.sha256) == (len(want), hashlib.sha256(want).hexdigest())
    assert sum(counted) == len(want)


def test_other_libraries_and_places(source: Path, tmp_path: Path) -> None:
    with Target(tmp_path / "out") as target, source.open("rb") as file:
        with target.file() as raw:
            raw.write(b"x" * 100)
        target.place(10)
        target.copy(file.fileno(), 0, 20)
        target.place(50)
        target.write(b"yy")
        complete(target)
    want = b"x" * 10 + DATA[:20] + b"x" * 20 + b"yy" + b"x" * 48
    assert (tmp_path / "out").read_bytes() == want
    assert (target.size, target.sha256) == (100, hashlib.sha256(want).hexdigest())


@pytest.mark.parametrize("missing", ["absent", "refusing"])
def test_copying_without_help_of_the_kernel(
    missing: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if missing == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    with Target(tmp_path / "out") as target, source.open("rb") as file:
        target.copy(file.fileno(), 3, 299_000)
        complete(target)
    assert (tmp_path / "out").read_bytes() == DATA[3:299_003]
    assert target.sha256 == hashlib.sha256(DATA[3:299_003]).hexdigest()


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")

    def fail() -> None:
        with Target(tmp_path / "out") as target:
            target.write(b"new")
            target.finish()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "out").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_operating_system_error_names_the_target(tmp_path: Path) -> None:
    def fail() -> None:
        with Target(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(VggcError, match=r"out: cannot be written: No space left on device; free some space"):
        fail()
    assert not list(tmp_path.iterdir())


def test_permissions_are_those_of_other_new_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with Target(tmp_path / "out") as target:
        complete(target)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("kept")
    (tmp_path / "link").symlink_to("real")
    with Target(tmp_path / "link") as target:
        target.write(b"new")
        complete(target)
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "kept"


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "日" * 85])
def test_the_longest_names_can_be_written(name: str, tmp_path: Path) -> None:
    with Target(tmp_path / name) as target:
        complete(target)
    assert (tmp_path / name).exists()
    with pytest.raises(VggcError, match="name too long"), Target(tmp_path / (name + "xx")) as target:
        complete(target)


# -- what killed runs leave --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from caffe_compat.writing import create_part
create_part(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_one(path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False, timeout=60)


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    kill_one(tmp_path / "out.h5")
    assert len(parts(tmp_path)) == 1
    with Target(tmp_path / "out.h5") as target:
        assert len(parts(tmp_path)) == 1
        complete(target)
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]


def test_other_runs_other_targets_and_other_files_are_left_alone(tmp_path: Path) -> None:
    kill_one(tmp_path / "other.h5")
    others = [".out.h5.part", ".out.h5.0123.part", "out.h5.01234567.part", ".out.h5.0123456g.part", ".out.h5.01234567"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".out.h5.89abcdef.part").mkdir()
    (tmp_path / ".out.h5.01234567.part").symlink_to("elsewhere")
    before = set(parts(tmp_path))
    descriptor, alive = create_part(tmp_path / "out.h5")
    remove_remains(tmp_path / "out.h5")
    assert set(parts(tmp_path)) == before | {alive.name}
    os.close(descriptor)
    remove_remains(tmp_path / "out.h5")
    assert set(parts(tmp_path)) == before


def test_a_file_taken_for_remains_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    real = os.open

    def stolen(path: Path, *args: int) -> int:
        descriptor = real(path, *args)
        if not removed:
            removed.append(str(path))
            os.unlink(path)
        return descriptor

    monkeypatch.setattr(os, "open", stolen)
    descriptor, name = create_part(tmp_path / "out")
    os.close(descriptor)
    assert name.exists()
    assert str(name) not in removed


# -- payloads ----------------------------------------------------------------------------------------------


def in_file(source: Path) -> Blob:
    values = np.frombuffer(DATA, "<f4", 1000, 8)
    return Blob((1000,), values, path=str(source), offset=8)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(10, dtype="<f4"),
        np.arange(10, dtype=">f4"),
        np.arange(20, dtype="<f8")[::2],
        np.arange(6, dtype="<f2"),
        np.arange(5_000_000, dtype="<f4"),
        np.zeros(0, np.float32),
    ],
    ids=lambda values: f"{values.dtype.str}-{values.size}",
)
def test_blobs_from_memory_are_little_endian(values: np.ndarray, tmp_path: Path) -> None:
    with Payloads() as payloads, Target(tmp_path / "out") as target:
        payloads.send(Blob(values.shape, values), target)
        complete(target)
    want = values.astype(values.dtype.newbyteorder("<")).tobytes()
    assert (tmp_path / "out").read_bytes() == want
    assert target.sha256 == hashlib.sha256(want).hexdigest()


def test_blobs_from_files(source: Path, tmp_path: Path) -> None:
    with Payloads() as payloads, Target(tmp_path / "out") as target:
        payloads.send(in_file(source), target)
        complete(target)
    assert (tmp_path / "out").read_bytes() == DATA[8:4008]


def _rewrite(path: Path) -> None:
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(1, 1))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(DATA)
    other.replace(path)


@pytest.mark.parametrize("change", [_rewrite, _replace, Path.unlink, lambda path: os.truncate(path, 10)])
def test_a_source_that_changes_is_noticed(change: Callable[[Path], None], source: Path) -> None:
    with Payloads() as payloads:
        payloads.source(str(source)).hash()
        payloads.check()
        change(source)
        with pytest.raises(VggcError, match="changed while it was read"):
            payloads.check()


def test_no_descriptor_stays_open(source: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with Payloads() as payloads, Target(tmp_path / "out") as target:
            payloads.source(str(source)).hash()
            payloads.send(in_file(source), target)
            complete(target)
    assert len(os.listdir("/dev/fd")) == before
