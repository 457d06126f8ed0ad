"""`vggc extract`: features as Caffe's extract_features gives them, over whole images, over scales, in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch

import caffe_compat as cc
from converters.convert import Options, convert
from repro.cli import run
from repro.collecting import Running
from repro.datasets import open_images
from repro.engines import ONNX, TORCH, Settings
from repro.features import Kind, features
from repro.models import open_classifier
from repro.protocols import average_scales, stack_scales, unit_length
from tests.repro.nets import CROP, write_model
from tests.repro.pictures import smooth, tree, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extract")
    write_model(path / "m.caffemodel")
    for index in range(5):
        write(path / "photos" / f"{index}.png", smooth(20 + index, 30, index))
    return path


def made(folder: Path, out: Path, *args: str) -> dict[str, np.ndarray]:
    assert run(["extract", str(folder / "m.caffemodel"), str(folder / "photos"), "-o", str(out), "--force", *args]) == 0
    if out.suffix == ".npz":
        with np.load(out) as stored:
            return {name: stored[name] for name in stored.files}
    with h5py.File(out) as stored:
        return {name: stored[name][:] for name in stored}


def test_a_blob_of_the_centre_crop_is_caffes_extract_features(folder: Path, tmp_path: Path) -> None:
    found = made(folder, tmp_path / "f.h5", "--blob", "pool2", "--blob", "fc6", "--scales", "16")
    net = cc.load(folder / "m.caffemodel")
    for index in range(5):
        image = smooth(20 + index, 30, index)
        width = round(30 * 16 / (20 + index))
        x = cv2.resize(image, (width, 16))[:, (width - CROP) // 2 :][:, :CROP].astype(np.float32)
        x = (x - np.float32([103.939, 116.779, 123.68])).transpose(2, 0, 1)[None]
        with torch.no_grad():
            want = net(torch.from_numpy(x.copy()), blobs=["pool2", "fc6"])
        for blob in ("pool2", "fc6"):
            np.testing.assert_allclose(found[blob][index], want[blob].flatten(), rtol=1e-4, atol=1e-4)
    assert [name.decode() for name in found["names"]] == [f"{index}.png" for index in range(5)]
    assert found["labels"].tolist() == [-1] * 5


@pytest.mark.parametrize("engine", [TORCH, ONNX])
@pytest.mark.parametrize("protocol", ["dense", "center", "multicrop"])
def test_scales_are_averaged_or_stacked(folder: Path, protocol: str, engine: str) -> None:
    model, images = open_classifier(folder / "m.caffemodel"), open_images(tree(folder / "few", a=3))

    def of(*scales: int, join: str = "average", length: str = "raw") -> np.ndarray:
        kind = Kind(("fc6",), protocol, join, length)
        return features(model, images, kind, Running(scales, settings=Settings(engine)))

    raw = [of(16), of(24)]
    wanted = {
        ("average", "raw"): (raw[0].astype(float) + raw[1]) / 2,
        ("stack", "raw"): np.concatenate(raw, 1),
        ("average", "joined"): average_scales(raw),
        ("stack", "joined"): stack_scales(raw),
        ("average", "each"): average_scales([unit_length(each) for each in raw]),
        ("stack", "each"): stack_scales([unit_length(each) for each in raw]),
    }
    for (join, length), want in wanted.items():
        np.testing.assert_allclose(of(16, 24, join=join, length=length), want, rtol=1e-4, atol=1e-5)


def test_dense_features_are_means_over_places_and_the_mirror(folder: Path, tmp_path: Path) -> None:
    found = made(folder, tmp_path / "f.npz", "--blob", "fc6", "--dense", "--scales", "16,20", "--l2", "joined")
    assert found["fc6"].shape == (5, 10)
    np.testing.assert_allclose(np.linalg.norm(found["fc6"], axis=1), 1, rtol=1e-6)
    assert found["names"].tolist() == [f"{index}.png" for index in range(5)]
    about = json.loads(str(found["about"]))
    assert (about["protocol"], about["scales"], about["l2"]) == ("dense", [16, 20], "joined")


def test_an_onnx_file_gives_its_inner_blobs(folder: Path, tmp_path: Path) -> None:
    convert(folder / "m.caffemodel", [tmp_path / "m.onnx"], Options())
    out = tmp_path / "f.npz"
    assert run(["extract", str(tmp_path / "m.onnx"), str(folder / "photos"), "-o", str(out), "--blob", "fc6"]) == 0
    want = made(folder, tmp_path / "g.npz", "--blob", "fc6")
    np.testing.assert_allclose(np.load(out)["fc6"], want["fc6"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_images_that_cannot_be_read(folder: Path, tmp_path: Path, suffix: str, capsys: Any) -> None:
    photos, out = tmp_path / "photos", tmp_path / f"f{suffix}"
    for index in (0, 2, 3):
        write(photos / f"{index}.png", smooth(20 + index, 30, index))
    (photos / "1.png").write_bytes(b"nothing")
    args = ["extract", str(folder / "m.caffemodel"), str(photos), "-o", str(out), "--blob", "fc6"]
    assert run(args) == 1
    assert "1.png" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [photos], "something was left behind"
    assert run([*args, "--skip-unreadable", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["count"] == 3
    assert told["unreadable"][0].startswith("1.png: ")
    want = made(folder, tmp_path / "all.npz", "--blob", "fc6")["fc6"][[0, 2, 3]]
    if suffix == ".npz":
        got, names = np.load(out)["fc6"], np.load(out)["names"].tolist()
    else:
        with h5py.File(out) as stored:
            got, names = stored["fc6"][:], [name.decode() for name in stored["names"]]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert names == ["0.png", "2.png", "3.png"]
    for path in photos.iterdir():
        path.write_bytes(b"nothing")
    assert run([*args, "--skip-unreadable", "--force"]) == 1
    assert "no image could be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--blob", "fc9", "-o", "f.h5"], 1, "no blob called fc9"),
        (["--blob", "fc6", "-o", "f.csv"], 1, 'features go to .h5, .hdf5, .npz, not to ".csv"'),
        (["--blob", "fc6", "-o", "f.h5", "--dense", "--crops", "tencrop"], 2, "give one of them"),
        (["--blob", "fc6", "-o", "f.h5", "--scales", "9"], 1, "smaller than the net's crops"),
        (["-o", "f.h5"], 2, "Missing option '--blob'"),
    ],
)
def test_wrong_usage(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any, args: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["extract", str(folder / "m.caffemodel"), str(folder / "photos"), *args]) == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "f.h5"
    out.write_text("mine")
    args = ["extract", str(folder / "m.caffemodel"), str(folder / "photos"), "-o", str(out), "--blob", "fc6"]
    assert run(args) == 1
    assert "it exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
