"""Converting images: the records that convert_imageset writes, and nothing lost when a run is interrupted."""

from __future__ import annotations

import fcntl
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_compat.data import convert as module
from caffe_compat.data.convert import LOCK, STATE, Converted, Settings, convert
from caffe_compat.data.images import datum_image
from caffe_compat.data.lists import ImageList, read_list
from caffe_compat.data.records import open_database
from caffe_compat.errors import FormatError, Problems, VggcError
from caffe_compat.reading import parse_datum
from tests.caffe_compat.data.folders import RECORDED, images, png

COUNT = 10
LEVELDB = Settings(backend="leveldb")


def items(path: Path) -> list[tuple[bytes, bytes]]:
    return list(open_database(path).items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 0.png, 1.png, ..."""
    path = tmp_path / "images"
    path.mkdir()
    for index, picture in enumerate(images(COUNT)):
        (path / f"{index}.png").write_bytes(png(picture))
    return path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)


def listed(*names: str) -> ImageList:
    names = names or tuple(f"{index}.png" for index in range(COUNT))
    return ImageList(names, np.arange(len(names), dtype=np.int32))


def left_behind(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


# -- as Caffe writes it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "source", "root"),
    [
        ("lmdb_raw", Settings(), "list_same.txt", ""),
        ("leveldb_tool", LEVELDB, "list_same.txt", ""),
        ("lmdb_png", Settings(encode_type="png"), "list_same.txt", ""),
        ("lmdb_orig_encoding", Settings(encoded=True), "list_same.txt", ""),
        ("lmdb_gray_resized", Settings(gray=True, resize=(10, 12)), "list_varied.txt", "img"),
    ],
)
def test_recorded_databases(tmp_path: Path, name: str, settings: Settings, source: str, root: str) -> None:
    report = convert(read_list(RECORDED / source), RECORDED / root, tmp_path / "db", settings)
    found, want = items(tmp_path / "db"), items(RECORDED / name)
    assert [key for key, _ in found] == [key for key, _ in want]
    assert report.records == len(want)
    for (key, value), (_, other) in zip(found, want, strict=True):
        if b".jpg" not in key:  # the numbers of JPEG decoders differ
            assert value == other
        assert parse_datum(value).label == parse_datum(other).label
        one, two = datum_image(parse_datum(value)), datum_image(parse_datum(other))
        np.testing.assert_allclose(one, two.astype(np.int64), atol=2)


def test_keys_count_the_shuffled_list(folder: Path, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 0, 1):
        target = tmp_path / f"db{len(orders)}"
        convert(listed(), folder, target, Settings(shuffle=True, seed=seed))
        keys = [key.decode() for key, _ in items(target)]
        assert [key[:9] for key in keys] == [f"{index:08d}_" for index in range(COUNT)]
        orders.append([key[9:] for key in keys])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(listed().names)
    labels = [parse_datum(value).label for _, value in items(tmp_path / "db0")]
    assert [f"{label}.png" for label in labels] == orders[0]


def test_grey_files_stay_as_they_are_and_others_become_grey(folder: Path, tmp_path: Path) -> None:
    grey = png(images(1, 1, 6, 5)[0])
    (folder / "grey.png").write_bytes(grey)
    convert(listed("grey.png", "0.png"), folder, tmp_path / "db", Settings(gray=True, encoded=True))
    found = [parse_datum(value) for _, value in items(tmp_path / "db")]
    assert found[0].data == grey
    assert [datum_image(datum).shape for datum in found] == [(1, 6, 5)] * 2


def test_files_are_stored_in_the_format_asked_for(folder: Path, tmp_path: Path) -> None:
    convert(listed("0.png"), folder, tmp_path / "db", Settings(encode_type="jpg"))
    assert parse_datum(items(tmp_path / "db")[0][1]).data.startswith(b"\xff\xd8\xff")


def test_a_map_that_is_too_small_grows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_compat.data.writers.MAP_SIZE", 2**15)
    report = convert(listed(), folder, tmp_path / "db", Settings(resize=(100, 100)))
    assert report == Converted(str(tmp_path / "db"), COUNT, 0, (3, 100, 100), False, ())
    assert len(items(tmp_path / "db")) == COUNT


@pytest.mark.usefixtures("small_chunks")
def test_progress_is_told(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    convert(listed(), folder, tmp_path / "db", progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 10), (6, 10), (9, 10), (10, 10)]


def test_sizes_that_differ_are_told_or_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "other.png").write_bytes(png(images(1, 3, 4, 4)[0]))
    mixed = listed("0.png", "other.png")
    assert convert(mixed, folder, tmp_path / "db").varied
    assert not convert(listed(), folder, tmp_path / "same", Settings(check_size=True)).varied
    message = r'image "other\.png" has shape \(3, 4, 4\), the first one \(3, 6, 5\)'
    with pytest.raises(FormatError, match=message):
        convert(mixed, folder, tmp_path / "checked", Settings(check_size=True))
    assert not (tmp_path / "checked").exists()


# -- interrupted and continued ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("backend", ["lmdb", "leveldb"])
def test_a_damaged_image_stops_the_run_and_the_next_goes_on(folder: Path, tmp_path: Path, backend: str) -> None:
    target, whole = tmp_path / "db", (folder / "7.png").read_bytes()
    (folder / "7.png").write_bytes(whole[:-20])
    with pytest.raises(FormatError, match=r"7\.png: .* the next run goes on here, or use --skip-unreadable"):
        convert(listed(), folder, target, Settings(backend))
    assert not target.exists()
    (folder / "7.png").write_bytes(whole)
    report = convert(listed(), folder, target, Settings(backend))
    assert (report.records, report.resumed) == (COUNT, 7)
    convert(listed(), folder, tmp_path / "at once", Settings(backend))
    assert items(target) == items(tmp_path / "at once")
    assert not left_behind(target).exists()
    assert not {STATE, LOCK} & {path.name for path in target.iterdir()}


@pytest.mark.usefixtures("small_chunks")
def test_a_run_that_dies_anywhere_is_continued(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, writer = tmp_path / "db", module.WRITERS["lmdb"]

    class Dying:
        """Loses the records of its second call, after the state was written."""

        def __init__(self, path: Path) -> None:
            self.inner, self.calls = writer(path), 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def put(self, records: Any) -> None:
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            self.inner.put(records)

    (folder / "4.png").write_bytes(b"x")
    settings = Settings(skip_unreadable=True)
    monkeypatch.setitem(module.WRITERS, "lmdb", Dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            convert(listed(), folder, target, settings)
    monkeypatch.setitem(module.WRITERS, "lmdb", writer)
    report = convert(listed(), folder, target, settings)
    assert (report.records, report.resumed) == (COUNT - 1, 5)
    assert [int(key[:8]) for key, _ in items(target)] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert len(report.skipped) == 1
    assert "4.png: an image cannot be decoded" in report.skipped[0]


def test_all_damaged_images_of_a_chunk_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "3.png").write_bytes(b"x")
    (folder / "5.png").unlink()
    with pytest.raises(Problems) as problems:
        convert(listed(), folder, tmp_path / "db")
    assert [Path(each.where.source).name for each in problems.value.errors] == ["3.png", "5.png"]


def test_damaged_images_are_left_out_when_asked(folder: Path, tmp_path: Path) -> None:
    (folder / "0.png").write_bytes(b"x")
    report = convert(listed(), folder, tmp_path / "db", Settings(skip_unreadable=True))
    assert (report.records, len(report.skipped)) == (COUNT - 1, 1)
    assert items(tmp_path / "db")[0][0] == b"00000001_1.png"
    with pytest.raises(FormatError, match="no image could be read"):
        convert(listed("0.png"), folder, tmp_path / "none", Settings(skip_unreadable=True))


def test_another_list_does_not_go_on_with_what_is_there(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "db"
    with pytest.raises(FormatError):
        convert(listed("0.png", "none.png"), folder, target)
    for other, settings in ((listed("1.png"), Settings()), (listed("0.png", "none.png"), Settings(gray=True))):
        with pytest.raises(VggcError, match=r"an interrupted run of another list .* use --restart"):
            convert(other, folder, target, settings)
    (left_behind(target) / STATE).write_text("{")
    with pytest.raises(VggcError, match="interrupted run of another list"):
        convert(listed("0.png", "none.png"), folder, target)
    assert convert(listed("1.png"), folder, target, restart=True).resumed == 0
    assert [key for key, _ in items(target)] == [b"00000000_1.png"]


def test_two_runs_do_not_write_one_database(folder: Path, tmp_path: Path) -> None:
    part = left_behind(tmp_path / "db")
    part.mkdir()
    with open(part / LOCK, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(VggcError, match="another run is writing this database"):
            convert(listed(), folder, tmp_path / "db")


def test_a_folder_of_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    part = left_behind(tmp_path / "db")
    part.mkdir()
    (part / "mine").touch()
    with pytest.raises(VggcError, match="in the way"):
        convert(listed(), folder, tmp_path / "db")
    assert (part / "mine").exists()


# -- targets and settings --------------------------------------------------------------------------------------


def test_what_exists_is_replaced_only_by_force(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "db"
    convert(listed(), folder, target)
    with pytest.raises(VggcError, match="exists already"):
        convert(listed("0.png"), folder, target)
    convert(listed("0.png"), folder, target, LEVELDB, force=True)
    assert len(items(target)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db", "images"]
    with pytest.raises(VggcError, match="exists and is no database"):
        convert(listed(), folder, folder, force=True)


def test_a_target_that_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VggcError, match=r"cannot be written.*create the folder first"):
        convert(listed(), folder, tmp_path / "none" / "db")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "sqlite"}, 'no backend called "sqlite"; backends: lmdb, leveldb'),
        ({"resize": (10, 0)}, "give both, or none"),
        ({"encode_type": "x/y"}, '"x/y" is no format of images'),
        ({"encode_type": "xyz"}, 'cannot be encoded as "xyz"'),
    ],
)
def test_settings_refused(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        convert(listed("0.png"), folder, tmp_path / "db", replace(Settings(), **change))


def test_names_must_stay_in_the_root(folder: Path, tmp_path: Path) -> None:
    for name in ("../other/0.png", "/etc/hostname", "a/../../x.png"):
        with pytest.raises(FormatError, match=r"is outside the folder .*--root"):
            convert(listed(name), folder, tmp_path / "db", restart=True)
    report = convert(listed(str(folder / "0.png")), folder, tmp_path / "db", restart=True)
    assert report.records == 1


def test_names_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="longer than the 502 bytes that fit a key"):
        convert(listed("d/" * 300 + "0.png"), folder, tmp_path / "db")
    (folder / "plain").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(FormatError, match=r"no ending .*--encode-type"):
        convert(listed("plain"), folder, tmp_path / "db2", Settings(encoded=True))


def test_lmdb_of_another_format_is_not_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdb.version", lambda: (1, 0, 0))
    with pytest.raises(FormatError, match=r"LMDB 1\.0\.0, whose files Caffe cannot read"):
        convert(listed(), folder, tmp_path / "db")
