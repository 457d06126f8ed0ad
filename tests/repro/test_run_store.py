"""Run folders: what is kept is found again, whatever ended the process that wrote it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat.errors import FormatError, VggcError
from repro.run_store import HEADER, Adding, ModelStore, Results, RunStore, record

NAMES = [f"{index}.png" for index in range(10)]


@pytest.fixture
def part(tmp_path: Path) -> ModelStore:
    return RunStore(tmp_path / "run", NAMES, "here").model("model", {"path": "m"})


def values(index: int) -> np.ndarray:
    return np.float32([index, index / 3, -index])


def add(part: ModelStore, indices: list[int], rank: int = 0) -> Path:
    adding = part.adding("dense", 256, rank, 3)
    for index in indices:
        adding.add(index, values(index))
    adding.close()
    return adding.path


def test_what_is_added_is_found(part: ModelStore) -> None:
    add(part, [3, 1])
    add(part, [7, 0], rank=1)
    add(part, [2])
    found = part.results("dense", 256)
    assert found.values == 3
    wanted = np.array([0, 1, 2, 3, 7])
    np.testing.assert_array_equal(found.rows(wanted), [values(index) for index in wanted])
    np.testing.assert_array_equal(found.missing(np.arange(10)), [4, 5, 6, 8, 9])
    assert part.results("dense", 384).missing(np.arange(10)).size == 10
    with pytest.raises(VggcError, match=r"2 image\(s\) have no result"):
        found.rows(np.arange(6))


@pytest.mark.parametrize("cut", range(1, record(3).itemsize + 1))
def test_a_record_that_was_not_completed_is_dropped(part: ModelStore, cut: int) -> None:
    path = add(part, [3, 1, 4])
    path.write_bytes(path.read_bytes()[:-cut])
    assert part.results("dense", 256).missing(np.array([3, 1, 4])).tolist() == [4]
    add(part, [4, 5])
    found = part.results("dense", 256)
    np.testing.assert_array_equal(found.rows(np.array([1, 3, 4, 5])), [values(i) for i in (1, 3, 4, 5)])


@pytest.mark.parametrize("size", range(HEADER.size))
def test_a_header_that_was_not_completed_is_written_again(part: ModelStore, size: int) -> None:
    path = add(part, [3])
    path.write_bytes(path.read_bytes()[:size])
    assert part.results("dense", 256).missing(np.array([3])).size == 1
    add(part, [3])
    assert part.results("dense", 256).missing(np.array([3])).size == 0


def test_a_damaged_record(part: ModelStore) -> None:
    path = add(part, [3, 1, 4])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert part.results("dense", 256).missing(np.array([3, 1, 4])).tolist() == [4]
    data[HEADER.size + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="record 0 is damaged"):
        part.results("dense", 256)


@pytest.mark.parametrize(
    "data",
    [b"NOTOURSX" + bytes(8), HEADER.pack(b"VGGCEVAL", 0), HEADER.pack(b"VGGCEVAL", 2**40)],
)
def test_files_that_are_no_results(part: ModelStore, data: bytes) -> None:
    (part.folder / "dense-q256.0").write_bytes(data + bytes(64))
    with pytest.raises(FormatError, match="no file of results"):
        part.results("dense", 256)


def test_records_of_other_images_or_sizes(part: ModelStore) -> None:
    adding = part.adding("dense", 256, 1, 3)
    adding.add(10, values(1))
    adding.close()
    with pytest.raises(FormatError, match="not in the set"):
        part.results("dense", 256)
    adding.path.unlink()
    add(part, [1])
    with pytest.raises(FormatError, match="does not hold records of 4 values"):
        part.adding("dense", 256, 0, 4)
    other = part.adding("dense", 256, 1, 4)
    other.add(2, np.zeros(4))
    other.close()
    with pytest.raises(FormatError, match="another number of values"):
        part.results("dense", 256)


def test_two_processes_do_not_add_to_one_file(part: ModelStore) -> None:
    adding = part.adding("dense", 256, 0, 3)
    with pytest.raises(VggcError, match="another process is adding"):
        Adding(adding.path, 3)
    adding.close()


def test_a_folder_belongs_to_its_images(tmp_path: Path) -> None:
    RunStore(tmp_path / "run", NAMES, "here").model("m", {})
    RunStore(tmp_path / "run", NAMES, "elsewhere")
    with pytest.raises(VggcError, match="of other images: 10 of here"):
        RunStore(tmp_path / "run", [*NAMES[:-1], "x.png"], "here")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(VggcError, match="not empty"):
        RunStore(tmp_path / "other", NAMES, "here")
    (tmp_path / "run" / "run.json").write_text("[")
    with pytest.raises(FormatError, match="cannot be read"):
        RunStore(tmp_path / "run", NAMES, "here")


def test_what_is_said_of_a_model_is_kept(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run", NAMES, "here")
    store.model("m", {"path": "p"}).say(engine="torch")
    assert store.model("m", {"path": "q"}).about == {"path": "p", "engine": "torch"}


def test_nothing_there_is_nothing_found() -> None:
    found = Results([], 4)
    assert found.values == 0
    assert found.missing(np.arange(4)).size == 4
