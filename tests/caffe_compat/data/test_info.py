"""What a database holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_compat.data.info import info_of
from caffe_compat.errors import FormatError
from tests.caffe_compat.data.folders import RECORDED, write_lmdb


@pytest.mark.parametrize(
    ("name", "kind", "image", "shape", "records"),
    [
        ("lmdb_raw", "LMDB", "bytes", (3, 14, 16), 12),
        ("lmdb_float", "LMDB", "floats", (3, 14, 16), 12),
        ("lmdb_png", "LMDB", "PNG", (3, 14, 16), 12),
        ("lmdb_jpg", "LMDB", "JPEG", (3, 14, 16), 12),
        ("leveldb_sst", "LevelDB", "bytes", (3, 14, 16), None),
    ],
)
def test_a_look(name: str, kind: str, image: str, shape: tuple[int, ...], records: int | None) -> None:
    found = info_of(RECORDED / name)
    assert (found.kind, found.image, found.shape, found.records) == (kind, image, shape, records)
    assert found.bytes == sum(path.stat().st_size for path in (RECORDED / name).iterdir())
    assert (found.last, dict(found.labels)) == ("", {})


def test_a_scan() -> None:
    found = info_of(RECORDED / "leveldb_tool", scan=True)
    assert (found.records, found.first, found.last) == (12, "00000000_img/p00.jpg", "00000011_img/p11.png")
    assert found.labels == {0: 1, 1: 2, 3: 1, 4: 1, 5: 4, 7: 1, 8: 2}
    assert found.shapes == {"3 x 14 x 16": 12}
    assert info_of(RECORDED / "lmdb_orig_encoding", scan=True).shapes == {"PNG": 8, "JPEG": 4}


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no record"):
        info_of(write_lmdb(tmp_path / "empty", {}))
    with pytest.raises(FormatError, match=r'record "a" at byte 0: this is no Datum'):
        info_of(write_lmdb(tmp_path / "other", {b"a": b"\xff"}))
