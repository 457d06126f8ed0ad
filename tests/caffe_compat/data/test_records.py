"""A place in a database: in the order of the keys, and round again."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_compat.data.records import Record, Records, is_database, open_database, open_records
from caffe_compat.errors import FormatError
from tests.caffe_compat.data.folders import write_leveldb, write_lmdb

WRITERS = {"LMDB": write_lmdb, "LevelDB": write_leveldb}
CONTENT = {b"c": b"3", b"a": b"1", b"b": b"2"}


@pytest.fixture(params=sorted(WRITERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def records(kind: str, tmp_path: Path) -> Records:
    return open_records(WRITERS[kind](tmp_path / "db", CONTENT))


def test_the_files_tell_the_kind(records: Records, kind: str) -> None:
    assert records.database.kind == kind
    assert is_database(records.database.path)


def test_records_come_by_their_keys_and_start_again(records: Records) -> None:
    assert records.peek() == records.peek() == Record(b"a", b"1")
    assert [record.value for record in records.take(7)] == [b"1", b"2", b"3"] * 2 + [b"1"]
    assert records.peek().key == b"b"


def test_skipping(records: Records) -> None:
    records.skip(5)
    assert records.take(2) == [Record(b"c", b"3"), Record(b"a", b"1")]


def test_an_empty_database(kind: str, tmp_path: Path) -> None:
    records = open_records(WRITERS[kind](tmp_path / "db", {}))
    with pytest.raises(FormatError, match="holds no record"):
        records.peek()


def test_what_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such database; check the path"):
        open_database(tmp_path / "none")
    with pytest.raises(FormatError, match="it has neither"):
        open_database(tmp_path)
    assert not is_database(tmp_path)


def test_names_of_records_can_be_shown() -> None:
    assert Record(b"00000001_a\xff.jpg", b"").name == "00000001_a\\xff.jpg"
