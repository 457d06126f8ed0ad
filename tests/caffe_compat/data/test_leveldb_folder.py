"""LevelDB folders are read as LevelDB reads them, and stay as they are."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import plyvel
import pytest

from caffe_compat.data.leveldb_folder import LevelDatabase
from caffe_compat.data.records import open_records
from caffe_compat.errors import BinaryError, FormatError
from tests.caffe_compat.data.folders import RECORDED, recorded, stamps, write_leveldb

NAMES = ("leveldb_log", "leveldb_sst", "leveldb_tool", "leveldb_png", "leveldb_float_nosnappy")
HOLD = "import plyvel, sys; db = plyvel.DB(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is left in it when all databases are gone."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    gc.collect()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_recorded_databases(name: str, tmp_path: Path) -> None:
    path = recorded(name, tmp_path / "db")
    before = stamps(path)
    found = list(LevelDatabase(path).items())
    assert stamps(path) == before
    with plyvel.DB(str(path)) as database:
        assert found == list(database.iterator())
    assert len(found) == 12


def test_the_folder_may_be_read_only(tmp_path: Path) -> None:
    path = recorded("leveldb_sst", tmp_path / "db")
    path.chmod(0o555)
    assert len(list(LevelDatabase(path).items())) == 12
    path.chmod(0o755)


def test_walks_may_be_left_and_databases_dropped_in_any_order() -> None:
    for turn in range(40):
        records = [open_records(RECORDED / "leveldb_sst") for _ in range(2)]
        for each in records:
            each.take(turn % 15)
            each.me = records  # type: ignore[attr-defined]
        if turn % 3 == 0:
            gc.collect()


def test_closed_databases_give_nothing(tmp_path: Path) -> None:
    database = LevelDatabase(write_leveldb(tmp_path / "db", {b"a": b"1", b"b": b"2"}))
    walk = database.items()
    assert next(walk) == (b"a", b"1")
    database.close()
    database.close()
    with pytest.raises(RuntimeError):
        next(walk)


def test_another_process_has_it_open(tmp_path: Path) -> None:
    path = write_leveldb(tmp_path / "db", {b"a": b"1"})
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(FormatError, match="another process has this LevelDB database open; wait"):
            LevelDatabase(path)
        holder.communicate("")
    assert list(LevelDatabase(path).items()) == [(b"a", b"1")]


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("leveldb_sst", "000005.ldb", lambda data: data[:-9], "damaged|cannot be read"),
        ("leveldb_sst", "000005.ldb", lambda data: data[:50] + b"\0" * 20 + data[70:], "damaged"),
        ("leveldb_log", "000003.log", lambda data: data[:50] + b"\0" * 20 + data[70:], "damaged"),
        ("leveldb_log", "CURRENT", lambda data: data[:0], "damaged"),
        ("leveldb_log", "CURRENT", lambda data: b"MANIFEST-000009\n" + data[:0], "cannot be read|damaged"),
        ("leveldb_log", "MANIFEST-000002", lambda data: b"x" * len(data), "damaged"),
    ],
)
def test_damage(tmp_path: Path, name: str, file: str, change: object, message: str) -> None:
    path = recorded(name, tmp_path / "db") / file
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(FormatError, match=message):
        list(LevelDatabase(path.parent).items())


def test_a_table_is_missing(tmp_path: Path) -> None:
    path = recorded("leveldb_sst", tmp_path / "db")
    (path / "000005.ldb").unlink()
    with pytest.raises(BinaryError, match="missing files"):
        LevelDatabase(path)


def test_random_damage_is_found_or_harmless(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    path = recorded("leveldb_sst", tmp_path / "db")
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    found = 0
    for _ in range(60):
        for name, data in whole.items():
            (path / name).write_bytes(data)
        name = sorted(whole)[generator.integers(len(whole))]
        data = bytearray(whole[name] or b"x")
        data[generator.integers(len(data))] ^= 1 + generator.integers(255)
        (path / name).write_bytes(data)
        try:
            list(LevelDatabase(path).items())
        except FormatError:
            found += 1
    assert found > 30


def test_without_plyvel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(FormatError, match=r"plyvel, which is not installed; pip install 'vggc\[data\]'"):
        LevelDatabase(RECORDED / "leveldb_sst")
