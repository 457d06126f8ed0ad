"""Logs and histories read as curves, drawn, and put into a page; TensorBoard's files."""

from __future__ import annotations

import json
import math
import re
import sys
from base64 import b64decode
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from caffe_compat.errors import FormatError, VggcError
from repro.board import TAGS, Board
from repro.caffe_log import read_log
from repro.cli import cli
from repro.history import History, Row
from repro.plots import Curves, pictures, read_curves, report, told_apart, write_plots

BVLC = """\
I0601 10:00:00.000000  4242 solver.cpp:45] Initializing solver from parameters:
I0601 10:00:00.100000  4242 solver.cpp:347] Iteration 0, Testing net (#0)
I0601 10:00:00.100000  4242 solver.cpp:401] Test loss: 2.3
I0601 10:00:00.200000  4242 solver.cpp:414]     Test net output #0: accuracy = 0.1
I0601 10:00:00.200000  4242 solver.cpp:414]     Test net output #1: accuracy_5 = 0.5
I0601 10:00:00.200000  4242 solver.cpp:414]     Test net output #2: loss = 2.31 (* 1 = 2.31 loss)
I0601 10:00:00.300000  4242 solver.cpp:239] Iteration 0 (-1.4013e-45 iter/s, 0.2s/20 iters), loss = 2.302
I0601 10:00:00.300000  4242 solver.cpp:258]     Train net output #0: loss = 9.9 (* 1 = 9.9 loss)
I0601 10:00:00.300000  4242 sgd_solver.cpp:112] Iteration 0, lr = 0.01
I0601 10:00:01.300000  4242 solver.cpp:239] Iteration 20 (97.3 iter/s, 0.2s/20 iters), loss = 1.5e-05
I0601 10:00:01.300000  4242 sgd_solver.cpp:112] Iteration 20, lr = 1e-05
I0601 10:00:01.300000  4242 solver.cpp:347] Iteration 40, Testing net (#0)
I0601 10:00:01.300000  4242 solver.cpp:414]     Test net output #0: accuracy = 0.9
I0601 10:00:01.300000  4242 solver.cpp:347] Iteration 40, Testing net (#1)
I0601 10:00:01.300000  4242 solver.cpp:414]     Test net output #0: accuracy = 0.3
I0601 10:00:01.300000  4242 solver.cpp:239] Iteration 40, loss = -nan
"""
OLD = """\
I1222 10:00:00.000000  4242 solver.cpp:60] Solving CIFAR
I1222 10:00:00.000000  4242 solver.cpp:105] Iteration 100, Testing net
I1222 10:00:00.000000  4242 solver.cpp:141] Test score #0: 0.75
I1222 10:00:00.000000  4242 solver.cpp:141] Test score #1: 0.8
I1222 10:00:00.000000  4242 solver.cpp:78] Iteration 200, lr = 0.001
I1222 10:00:00.000000  4242 solver.cpp:87] Iteration 200, loss = 0.7
"""
GOOGLENET = """\
Iteration 4000, Testing net (#0)
    Test net output #0: loss1/loss1 = 2 (* 0.3 = 0.6 loss)
    Test net output #1: loss1/top-1 = 0.5
    Test net output #2: loss1/top-5 = 0.7
    Test net output #3: loss3/loss3 = 1.5 (* 1 = 1.5 loss)
    Test net output #4: loss3/top-1 = 0.6
    Test net output #5: loss3/top-5 = 0.8
"""


def log(folder: Path, text: str, name: str = "caffe.log") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# -- logs ------------------------------------------------------------------------------------------------------


def test_a_log_of_caffe(tmp_path: Path) -> None:
    first, second, third = read_log(log(tmp_path, BVLC))
    assert first == Row(0, loss=2.302, accuracy=0.1, top5=0.5, validation_loss=2.31, lr=0.01)
    assert second == Row(20, loss=1.5e-05, lr=1e-05)
    assert third.accuracy == 0.9
    assert math.isnan(third.loss or 0)


def test_a_log_of_2013(tmp_path: Path) -> None:
    assert read_log(log(tmp_path, OLD)) == [
        Row(100, accuracy=0.75, validation_loss=0.8),
        Row(200, loss=0.7, lr=0.001),
    ]


def test_of_several_losses_the_last_counts(tmp_path: Path) -> None:
    assert read_log(log(tmp_path, GOOGLENET)) == [Row(4000, accuracy=0.6, top5=0.8, validation_loss=1.5)]


def test_a_resumed_training_goes_back(tmp_path: Path) -> None:
    lines = [f"Iteration {at}, loss = {loss}" for at, loss in ((0, 3), (20, 2), (40, 1), (60, 9), (20, 2.5), (40, 1.5))]
    rows = read_log(log(tmp_path, "\r\n".join(lines)))
    assert [(row.iteration, row.loss) for row in rows] == [(0, 3), (20, 2.5), (40, 1.5)]


def test_what_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"x\.log: no line of this log tells of an iteration"):
        read_log(log(tmp_path, "nothing\n\xff", "x.log"))
    with pytest.raises(VggcError, match="no such file"):
        read_log(tmp_path / "none.log")


# -- curves ----------------------------------------------------------------------------------------------------

ROWS = [
    Row(
        iteration,
        iteration / 100,
        math.exp(-iteration / 100),
        accuracy=iteration / 400 if iteration % 100 == 0 else None,
        lr=0.01 if iteration <= 200 else 0.001,
        images_per_second=100.0 + iteration,
    )
    for iteration in range(20, 301, 20)
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run <1>"
    folder.mkdir()
    history = History(folder / "history.csv")
    for row in ROWS:
        history.append(row)
    return folder


def test_a_run_s_folder_is_read_by_its_history_else_its_log(run: Path) -> None:
    assert read_curves(run) == Curves("run <1>", run / "history.csv", ROWS)
    assert list(read_curves(run / "history.csv").rows) == ROWS
    log(run, BVLC, "train.log")
    (run / "history.csv").unlink()
    assert read_curves(run).source.name == "train.log"
    (run / "train.log").unlink()
    with pytest.raises(VggcError, match=r"neither history\.csv nor train\.log"):
        read_curves(run)


def test_an_empty_history(tmp_path: Path) -> None:
    History(tmp_path / "history.csv").append(Row(1))
    History(tmp_path / "history.csv").resume(0)
    with pytest.raises(VggcError, match="nothing was measured yet"):
        read_curves(tmp_path)
    with pytest.raises(VggcError, match="no such file"):
        read_curves(tmp_path / "none.csv")


def test_the_summary(run: Path) -> None:
    found = read_curves(run).summary()
    assert found["iteration"] == 300
    assert found["loss"] == math.exp(-3)
    assert (found["best_accuracy"], found["best_iteration"]) == (0.75, 300)
    assert (found["lr"], found["images_per_second"], found["not_finite_from"]) == (0.001, 260.0, None)
    broken = Curves("b", run, [Row(1, loss=1.0), Row(2, loss=math.inf), Row(3, loss=math.nan)])
    assert broken.summary()["not_finite_from"] == 2
    assert broken.points("loss") == ([1], [1.0])


def test_where_the_rate_drops(run: Path) -> None:
    assert read_curves(run).drops() == [220]


def test_pictures_are_of_what_was_measured(run: Path) -> None:
    made = pictures([read_curves(run)])
    assert list(made) == ["loss", "accuracy", "lr"]
    for data in made.values():
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape[0] > 300
        assert image.shape[1] > 600
        blue = (image[..., 0] > 140) & (image[..., 2] < 90)
        assert blue.sum() > 300
    assert made == pictures([read_curves(run)])
    assert list(pictures([Curves("a", run, [Row(1, loss=0.5)])])) == ["loss"]


def test_the_curve_is_where_its_values_are() -> None:
    """A falling line: the blue pixels of the left end are above those of the right."""
    rows = [Row(at, loss=1.0 - at / 100) for at in range(101)]
    image = cv2.imdecode(np.frombuffer(pictures([Curves("a", Path("a"), rows)])["loss"], np.uint8), cv2.IMREAD_COLOR)
    rows_at, columns_at = np.nonzero((image[..., 0] > 140) & (image[..., 2] < 90))
    left, right = rows_at[columns_at < 150].mean(), rows_at[columns_at > 600].mean()
    assert left < 120
    assert right > 250


def test_the_page_needs_no_other_file(run: Path) -> None:
    made = pictures([read_curves(run)])
    page = report([read_curves(run)], made)
    assert "run &lt;1&gt;" in page
    assert "<td>75.00 %</td>" in page
    embedded = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert [b64decode(text) for text in embedded] == list(made.values())
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "no finite number" not in page
    bare = Curves("b", run, [Row(7, loss=math.nan)])
    assert "the loss is no finite number at iteration 7" in report([bare], pictures([bare]))


def test_runs_of_one_name_are_told_apart() -> None:
    runs = [Curves("a", Path("x/a"), ROWS), Curves("a", Path("y/a"), ROWS), Curves("b", Path("b"), ROWS)]
    assert [run.name for run in told_apart(runs)] == ["x/a", "y/a", "b"]


# -- command ---------------------------------------------------------------------------------------------------


def test_plot_writes_beside_the_run(run: Path) -> None:
    result = CliRunner().invoke(cli, ["plot", str(run)], catch_exceptions=False)
    assert (
        result.output.splitlines()[0] == "run <1>: iteration 300, loss 0.04979, best accuracy 75.00% at iteration 300"
    )
    names = ["accuracy.png", "loss.png", "lr.png", "report.html"]
    assert sorted(path.name for path in (run / "plots").iterdir()) == names
    assert f"wrote {run / 'plots' / 'report.html'}" in result.output


def test_plot_of_logs_and_runs_together(run: Path, tmp_path: Path) -> None:
    args = ["plot", str(log(tmp_path, BVLC)), str(run), "--json"]
    told = json.loads(CliRunner().invoke(cli, args, catch_exceptions=False).output)
    assert [each["name"] for each in told["runs"]] == ["caffe.log", "run <1>"]
    assert told["runs"][0]["not_finite_from"] == 40
    assert [Path(name).parent for name in told["files"]] == [tmp_path / "caffe-plots"] * 4


def test_plot_into_a_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert CliRunner().invoke(cli, ["plot", str(run), "--out", str(out)]).exit_code == 0
    assert (out / "report.html").exists()
    result = CliRunner().invoke(cli, ["plot", str(run), "--out", str(run / "history.csv" / "x")])
    assert isinstance(result.exception, VggcError)


def test_without_matplotlib(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(VggcError, match=r"pictures need matplotlib; pip install 'vggc\[repro\]'"):
        write_plots([read_curves(run)], run)


# -- TensorBoard -----------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_the_history(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for row in ROWS:
        board.append(row)
    board.close()
    found = scalars(tmp_path)
    assert set(found) == {TAGS[name] for name in ("loss", "lr", "images_per_second", "accuracy")}
    assert [step for step, _ in found["train/loss"]] == [row.iteration for row in ROWS]
    np.testing.assert_allclose([value for _, value in found["train/loss"]], [row.loss for row in ROWS], rtol=1e-6)
    assert found["validation/accuracy"] == [(100, 0.25), (200, 0.5), (300, 0.75)]


def test_tensorboard_forgets_what_a_resumed_training_repeats(tmp_path: Path) -> None:
    for start, losses in ((0, (1.0, 0.5, 0.25)), (10, (0.75,))):
        board = Board(tmp_path, start)
        for number, loss in enumerate(losses, 1):
            board.append(Row(start + 10 * number, loss=loss))
        board.close()
    assert scalars(tmp_path)["train/loss"] == [(10, 1.0), (20, 0.75)]


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(VggcError, match=r"pip install 'vggc\[tensorboard\]'"):
        Board(tmp_path)
