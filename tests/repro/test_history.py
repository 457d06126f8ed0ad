"""The history of a training: appending, interruptions, resuming."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe_compat.errors import FormatError, VggcError
from repro.history import COLUMNS, History, Row, best

ROWS = [
    Row(10, 0.1, 2.302585092994046, lr=0.01, images_per_second=123.4),
    Row(20, 0.2, 1 / 3, accuracy=0.5, validation_loss=1.5, lr=1e-05),
    Row(30, loss=float("inf")),
]


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history.csv")


def filled(history: History) -> History:
    for row in ROWS:
        history.append(row)
    return history


def test_rows_come_back_as_they_were(history: History) -> None:
    assert history.rows() == []
    assert filled(history).rows() == ROWS
    assert history.path.read_text().splitlines()[:2] == [
        "iteration,epoch,loss,accuracy,validation_loss,lr,images_per_second,top5",
        "10,0.1,2.302585092994046,,,0.01,123.4,",
    ]


@given(st.floats(allow_nan=False))
def test_every_float_comes_back(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    history = History(tmp_path_factory.mktemp("h") / "h.csv")
    history.append(Row(1, loss=value))
    assert history.rows() == [Row(1, loss=value)]


def test_a_loss_that_is_no_number(history: History) -> None:
    history.append(Row(1, loss=math.nan))
    assert math.isnan(history.rows()[0].loss or 0)


def test_a_half_written_row_is_not_seen_and_makes_way(history: History) -> None:
    whole = filled(history).path.read_bytes()
    for length in range(len(whole)):
        history.path.write_bytes(whole[:length])
        seen = max(0, whole[:length].count(b"\n") - 1)
        assert history.rows() == ROWS[:seen]
        history.append(Row(99))
        assert history.rows() == [*ROWS[:seen], Row(99)]


def test_what_comes_after_the_snapshot_is_dropped(history: History) -> None:
    filled(history)
    assert history.resume(30) == ROWS
    assert history.resume(20) == ROWS[:2] == history.rows()
    assert history.resume(0) == [] == history.rows()
    history.append(ROWS[0])
    assert history.rows() == ROWS[:1]
    assert [path.name for path in history.path.parent.iterdir()] == ["history.csv"]


def test_a_history_that_is_not_there_resumes(history: History) -> None:
    assert history.resume(5) == []
    assert not history.path.exists()


def test_a_full_disk_leaves_the_rows_before(history: History) -> None:
    filled(history)
    size, before = history.path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4, before[1]))
    try:
        with pytest.raises(VggcError, match="cannot be written"):
            history.append(Row(40))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert history.path.stat().st_size == size
    assert history.rows() == ROWS


HEADER = ",".join(COLUMNS).encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a,b\n1,2\n", "this is no history: its first line is 'a,b'"),
        (b"loss\n1\n", "this is no history"),
        (HEADER + b"\n1,2,3\n", r"history\.csv:2:1: not a row of a history: '1,2,3'"),
        (HEADER + b"\n1,,,,,,,\nx,,,,,,,\n", "csv:3:1: not a row"),
        (HEADER + b"\n,,,,,,,\n", "csv:2:1: not a row"),
        (b"iteration,loss\n\xff\n", "no text"),
    ],
)
def test_what_is_no_history(history: History, text: bytes, message: str) -> None:
    history.path.write_bytes(text)
    with pytest.raises(FormatError, match=message):
        history.rows()


def test_nothing_is_appended_to_another_file(history: History) -> None:
    history.path.write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="this is no history: its first line is 'a,b'"):
        history.append(Row(1))
    assert history.path.read_text() == "a,b\n1,2\n"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VggcError, match="create the folder first"):
        History(tmp_path / "none" / "history.csv").append(Row(1))


def test_the_best_row() -> None:
    rows = [Row(1), Row(2, accuracy=0.5), Row(3, accuracy=math.nan), Row(4, accuracy=0.9), Row(5, accuracy=0.9)]
    assert best(rows) == rows[3]
    assert best(rows[:1]) is None
    assert COLUMNS[0] == "iteration"
