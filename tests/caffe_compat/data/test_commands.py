"""`vggc data`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from repro import cli
from tests.caffe_compat.data.folders import RECORDED, images, png

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*args: object) -> tuple[int, str, str]:
        code = cli.run(["data", *map(str, args)])
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two folders of images, and a file that is none."""
    folder = tmp_path / "classes"
    for name, picture in zip(("cat/1.png", "cat/2.png", "dog/1.png"), images(3), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(picture))
    (folder / "dog" / "notes.txt").touch()
    return folder


def test_from_folders_to_a_mean(run: Run, classes: Path, tmp_path: Path) -> None:
    code, out, err = run("convert", classes, tmp_path / "db", "--write-list", tmp_path / "list.txt")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"wrote {tmp_path / 'db'}: 3 records, images of 3 x 6 x 5",
        "label 0: cat",
        "label 1: dog",
        "note: 1 files are no images by their names: dog/notes.txt",
    ]
    assert (tmp_path / "list.txt").read_text() == "cat/1.png 0\ncat/2.png 0\ndog/1.png 1\n"
    code, out, _ = run("info", tmp_path / "db", "--scan")
    assert code == 0
    assert out.splitlines()[1:] == [
        "records: 3, first 00000000_cat/1.png, last 00000002_dog/1.png",
        "first image: 3 x 6 x 5, bytes",
        "shape: 3 x 6 x 5: 3",
        "labels: 2, 0 to 1",
        "label 0: 2",
        "label 1: 1",
    ]
    code, out, _ = run("mean", tmp_path / "db", tmp_path / "mean.binaryproto")
    assert code == 0
    assert out.splitlines()[:2] == [f"wrote {tmp_path / 'mean.binaryproto'}", "3 images of 3 x 6 x 5"]
    assert out.count("mean_value: ") == 3
    assert run("mean", tmp_path / "db", tmp_path / "mean.binaryproto")[0] == 1
    assert run("mean", tmp_path / "db", tmp_path / "mean.binaryproto", "--force")[0] == 0


def test_a_list_with_all_options(run: Run, tmp_path: Path) -> None:
    options = "--backend leveldb --gray --resize-height 8 --resize-width 9 --shuffle --seed 3 --check-size --json"
    code, out, _ = run(
        "convert", RECORDED / "list_varied.txt", tmp_path / "db", "--root", RECORDED / "img", *options.split()
    )
    report = json.loads(out)
    assert code == 0
    assert (report["records"], report["shape"], report["varied"], report["skipped"]) == (7, [1, 8, 9], False, [])
    code, out, _ = run("info", tmp_path / "db", "--json")
    assert json.loads(out)["kind"] == "LevelDB"
    assert "not counted (--scan)" in run("info", tmp_path / "db")[1]


def test_images_of_several_sizes_and_damaged_ones(run: Run, classes: Path, tmp_path: Path) -> None:
    (classes / "cat" / "2.png").write_bytes(b"x")
    (classes / "dog" / "1.png").write_bytes(png(images(1, 3, 4, 4)[0]))
    code, out, err = run("convert", classes, tmp_path / "db")
    assert (code, out) == (1, "")
    assert "2.png: an image cannot be decoded" in err
    code, out, _ = run("convert", classes, tmp_path / "db", "--skip-unreadable")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].endswith("2 records, images of several sizes, the first 3 x 6 x 5")
    assert lines[1] == "1 of them were written by an interrupted run"
    assert lines[2] == "note: images of several sizes need a crop_size, or batch_size 1"
    assert lines[3].startswith("left out: ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info", "none"], "none: no such database"),
        (["info", "."], "this folder is no database"),
        (["mean", "none"], "none: no such database"),
        (["convert", "none.txt", "db"], "none.txt: no such file"),
        (["convert", ".", "db"], "no images in folders of this folder"),
    ],
)
def test_errors(run: Run, args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*args)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage(run: Run, classes: Path) -> None:
    assert run("convert", classes, "db", "--root", classes)[0] == 2
    assert run("convert", classes, "db", "--backend", "sqlite")[0] == 2
    assert run("nothing")[0] == 2
    assert run("convert", "--help")[0] == 0
