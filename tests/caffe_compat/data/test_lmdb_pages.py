"""LMDB folders: everything that the lmdb package wrote is read, nothing is changed, damage is an error."""

from __future__ import annotations

import struct
from pathlib import Path

import lmdb
import numpy as np
import pytest

from caffe_compat.data.lmdb_pages import LmdbDatabase
from caffe_compat.errors import BinaryError, FormatError
from tests.caffe_compat.data.folders import RECORDED, stamps, write_lmdb

FUZZED = 300


def by_library(path: Path) -> list[tuple[bytes, bytes]]:
    with lmdb.open(str(path), readonly=True, lock=False) as database, database.begin() as view:
        return [(bytes(key), bytes(value)) for key, value in view.cursor()]


def values(count: int, largest: int, seed: int = 0) -> dict[bytes, bytes]:
    """Records whose keys and values have all sorts of sizes."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(0, largest, count)
    return {b"%08d" % i + b"k" * (i % 300): generator.bytes(int(size)) for i, size in enumerate(sizes)}


@pytest.mark.parametrize(
    ("count", "largest"),
    [(0, 1), (1, 10), (1, 200_000), (2000, 40), (300, 9000), (3000, 2100)],
    ids=["empty", "one", "one-large", "small", "overflow", "deep"],
)
def test_reads_what_was_written(tmp_path: Path, count: int, largest: int) -> None:
    path = write_lmdb(tmp_path / "db", values(count, largest))
    before = stamps(path)
    database = LmdbDatabase(path)
    assert list(database.items()) == by_library(path) == sorted(values(count, largest).items())
    assert database.count() == count
    database.close()
    assert stamps(path) == before


def test_reads_on_after_deleting_and_overwriting(tmp_path: Path) -> None:
    records = values(2000, 3000)
    path = write_lmdb(tmp_path / "db", records)
    with lmdb.open(str(path), map_size=2**26) as database:
        for start in (0, 1, 2):
            with database.begin(write=True) as view:
                for key in list(records)[start::5]:
                    view.delete(key)
            with database.begin(write=True) as view:
                for key in list(records)[start::7]:
                    view.put(key, b"new" * start)
    database = LmdbDatabase(path)
    assert list(database.items()) == by_library(path)
    assert database.count() == len(by_library(path))


def test_the_data_file_itself_and_several_readers(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "db", values(50, 100))
    one, other = LmdbDatabase(path), LmdbDatabase(path / "data.mdb")
    assert list(zip(one.items(), other.items(), strict=True)) == [
        (item, item) for item in sorted(values(50, 100).items())
    ]


@pytest.mark.parametrize("name", ["lmdb_raw", "lmdb_float", "lmdb_jpg"])
def test_recorded_databases(name: str) -> None:
    assert list(LmdbDatabase(RECORDED / name).items()) == by_library(RECORDED / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:0], "the file is empty"),
        (lambda data: data[:100], "this is no LMDB database"),
        (lambda data: b"x" * len(data), "this is no LMDB database"),
        (lambda data: data[:4200], "this is no LMDB database"),
        (lambda data: data[: len(data) // 2], r"cut off: [\d,]+ of [\d,]+ bytes"),
        (lambda data: data[:20] + struct.pack("<I", 2) + data[24:], "LMDB's data format 2, Caffe's has 1"),
        (lambda data: data[:40] + struct.pack("<I", 1000) + data[44:], "pages of 1000 bytes"),
    ],
)
def test_what_is_no_database(tmp_path: Path, change: object, message: str) -> None:
    path = write_lmdb(tmp_path / "db", values(50, 500)) / "data.mdb"
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(FormatError, match=message):
        LmdbDatabase(path.parent)


def test_sub_databases_are_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "db"), max_dbs=2) as database:
        part = database.open_db(b"part")
        with database.begin(write=True, db=part) as view:
            view.put(b"a", b"b")
    with pytest.raises(FormatError, match="sub-databases"):
        list(LmdbDatabase(tmp_path / "db").items())


def test_a_tree_that_goes_round_in_circles(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "db", values(2000, 40))
    database = LmdbDatabase(path)
    root, size = database.meta.root, database.meta.page_size
    data = bytearray((path / "data.mdb").read_bytes())
    (first,) = struct.unpack_from("<H", data, root * size + 16)
    struct.pack_into("<HHH", data, root * size + first, root & 0xFFFF, root >> 16, 0)
    (path / "data.mdb").write_bytes(data)
    with pytest.raises(BinaryError, match="damaged"):
        list(LmdbDatabase(path).items())


def test_damage_is_found_or_harmless(tmp_path: Path) -> None:
    """Bytes changed at random, most of them where pages say what they hold."""
    path = write_lmdb(tmp_path / "db", values(200, 3000)) / "data.mdb"
    whole, generator = path.read_bytes(), np.random.default_rng(1)
    found = 0
    for _ in range(FUZZED):
        data = bytearray(whole)
        for _ in range(generator.integers(1, 8)):
            page = int(generator.integers(len(data) // 4096))
            data[page * 4096 + int(generator.integers(60))] = int(generator.integers(256))
        path.write_bytes(data)
        try:
            for _, value in LmdbDatabase(path.parent).items():
                assert len(value) <= len(whole)
        except FormatError:
            found += 1
    assert found > FUZZED // 4
