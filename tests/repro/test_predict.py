"""`vggc predict`: the classes of highest posterior, with names and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from repro.cli import run
from repro.collecting import Running, images_at, usual_scale
from repro.engines import TORCH, Settings
from repro.models import open_classifier
from repro.prediction import predict
from repro.prediction_plot import label
from tests.repro.nets import write_model
from tests.repro.pictures import smooth, tree, write

NAMES = tuple(f"n{number} kind {number}" for number in range(7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict")
    write_model(path / "m.caffemodel")
    for index in range(3):
        write(path / "photos" / f"{index}.png", smooth(20, 30, index))
    (path / "photos" / "bad.png").write_bytes(b"nothing")
    (path / "words.txt").write_text("\n".join(NAMES))
    return path


def said(capsys: Any, folder: Path, *args: str, code: int = 0) -> str:
    assert run(["predict", str(folder / "m.caffemodel"), *args]) == code
    return str(capsys.readouterr().out)


def test_the_best_classes_by_hand(folder: Path) -> None:
    model, images = open_classifier(folder / "m.caffemodel"), images_at([str(folder / "photos" / "1.png")])
    found = predict(model, images, "center", Running((16,), settings=Settings(TORCH)), top=3)
    import torch

    import caffe_compat as cc

    x = cv2.resize(smooth(20, 30, 1), (24, 16)).astype(np.float32)[:, 4:20] - np.float32([103.939, 116.779, 123.68])
    with torch.no_grad():
        prob = cc.load(folder / "m.caffemodel")(torch.from_numpy(x.transpose(2, 0, 1)[None].copy()))["prob"][0]
    want = prob.sort(descending=True)
    assert found.images[0].classes == tuple(want.indices[:3].tolist())
    np.testing.assert_allclose(found.images[0].posteriors, want.values[:3], atol=1e-6)
    assert found.scales == (16,)


def test_labels_and_json(folder: Path, capsys: Any) -> None:
    photos = [str(folder / "photos" / f"{index}.png") for index in range(3)]
    text = said(capsys, folder, *photos, "--labels", str(folder / "words.txt"), "--top", "2")
    assert text.count(" kind ") == 6
    assert "mean 103.939,116.779,123.68 (of the released VGG nets; the model states none)" in text
    found = json.loads(said(capsys, folder, *photos, "--protocol", "both", "--scales", "16,24", "--json"))
    assert [each["image"] for each in found["images"]] == photos
    posteriors = [best["posterior"] for best in found["images"][0]["best"]]
    assert len(posteriors) == 5
    assert posteriors == sorted(posteriors, reverse=True)
    assert found["images"][0]["best"][0]["label"].startswith("class ")
    assert found["scales"] == [16, 24]


def test_an_image_that_cannot_be_read_is_told(folder: Path, capsys: Any) -> None:
    found = json.loads(said(capsys, folder, str(folder / "photos"), "--json", code=1))
    assert [list(each) for each in found["images"]] == [["image", "best"]] * 3 + [["image", "error"]]
    assert run(["predict", str(folder / "m.caffemodel"), str(folder / "photos")]) == 1
    captured = capsys.readouterr()
    assert "bad.png" in captured.err
    assert captured.out.count("class") == 15


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures(folder: Path, tmp_path: Path, capsys: Any, kind: str) -> None:
    path = tmp_path / f"plot.{kind}"
    said(capsys, folder, str(folder / "photos"), "--plot", str(path), "--labels", str(folder / "words.txt"), code=1)
    assert path.stat().st_size > 5000
    if kind == "png":
        assert cv2.imread(str(path)).shape[1] == 900


def test_other_endings_of_pictures(folder: Path, capsys: Any) -> None:
    args = ["predict", str(folder / "m.caffemodel"), str(folder / "photos" / "1.png"), "--plot", "x.gif"]
    assert run(args) == 1
    assert 'no picture goes with the ending ".gif"' in capsys.readouterr().err
    assert label(2, NAMES) == "n2 kind 2"
    assert label(9, NAMES) == "class 9"


def test_which_images(folder: Path, tmp_path: Path) -> None:
    tree(tmp_path / "classes", a=1, b=2)
    (tmp_path / "list.txt").write_text("classes/a/0.png 3\n")
    assert list(images_at([str(folder / "photos")]).items.names) == ["0.png", "1.png", "2.png", "bad.png"]
    assert images_at([str(tmp_path / "classes")]).items.labels.tolist() == [0, 1, 1]
    assert images_at([str(tmp_path / "list.txt")]).items.labels.tolist() == [3]
    assert len(images_at(["digits"])) == 1797
    assert run(["predict", str(folder / "m.caffemodel"), "nowhere.png"]) == 1


def test_the_usual_scale() -> None:
    assert usual_scale(224) == 256
    assert usual_scale(32) == 37
