"""`vggc evaluate`: errors by hand, fusion, resuming, processes, images of every kind, mistakes in preparation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import cv2
import numpy as np
import pytest

import caffe_compat as cc
from caffe_compat.errors import VggcError
from repro.cli import run
from repro.datasets import open_images
from repro.engines import TORCH, Settings
from repro.evaluation import Evaluation, Plan, about, evaluate, key
from repro.models import open_classifier
from repro.processes import Processes
from repro.protocols import ranks
from repro.run_store import HEADER, ModelStore, record
from tests.repro.nets import CROP, write_model
from tests.repro.pictures import oriented, png_16, smooth, write
from tests.shared import ROOT

CLASSES = 7
TORCH_ONLY = Settings(TORCH)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_model(folder / f"{name}.caffemodel", CLASSES, seed) for seed, name in enumerate("ab")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven classes of five pictures, most of different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(5 * CLASSES):
        write(folder / f"c{index % CLASSES}" / f"{index}.png", smooth(30 + index % 4, 24 + index % 9, index))
    return folder


def evaluated(models: list[Path], photos: Path, folder: Path, **plan: Any) -> Evaluation:
    settings = {"scales": (16, 20), "protocols": ("dense", "center"), "settings": TORCH_ONLY, **plan}
    found = evaluate([open_classifier(path) for path in models], open_images(photos), Plan(**settings), folder)
    assert found is not None
    return found


def posteriors(model: Path, photos: Path, protocol: str, scale: int) -> np.ndarray:
    """One image at a time, by pycaffe's ways."""
    net, images = cc.load(model), open_images(photos)
    import torch

    rows = []
    for index in range(len(images)):
        image = images.read(index)
        factor = scale / min(image.shape[:2])
        size = [round(side * factor) for side in image.shape[1::-1]]
        x = cv2.resize(image, size).astype(np.float32) - np.float32([103.939, 116.779, 123.68])
        if protocol == "center":
            top, left = (x.shape[0] - CROP) // 2, (x.shape[1] - CROP) // 2
            views = [x[top : top + CROP, left : left + CROP]]
        else:
            places = range(0, x.shape[1] - CROP + 1, 4) if x.shape[0] == CROP else []
            views = [flip[:CROP, left : left + CROP] for flip in (x, x[:, ::-1]) for left in places]
        with torch.no_grad():
            batch = torch.from_numpy(np.stack([view.transpose(2, 0, 1) for view in views]).astype(np.float32))
            rows.append(net(batch)["prob"].double().mean(0).numpy())
    return np.stack(rows)


def test_errors_are_counted_as_by_hand(models: list[Path], photos: Path, tmp_path: Path) -> None:
    found = evaluated(models, photos, tmp_path / "run", protocols=("center",))
    labels = open_images(photos).items.labels
    each = {(m, q): posteriors(models[m], photos, "center", q) for m in (0, 1) for q in (16, 20)}
    rows = {(row.models, row.scales): row.errors for row in found.rows}
    assert len(rows) == 9
    for members, names in (((0,), ("a",)), ((1,), ("b",)), ((0, 1), ("a", "b"))):
        for scales in ((16,), (20,), (16, 20)):
            mean = np.mean([each[m, q] for m in members for q in scales], axis=0)
            wrong = [int((ranks(mean, labels) >= k).sum()) for k in (1, 5)]
            errors = rows[names, scales]
            assert [errors.top1.wrong, errors.top5.wrong] == wrong
            assert errors.top1.count == len(labels)


def test_models_are_not_run_twice(
    models: list[Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = evaluated(models, photos, tmp_path / "all", protocols=("both", "dense"))
    evaluated(models[:1], photos, tmp_path / "run", protocols=("both",))
    evaluated(models[1:], photos, tmp_path / "run", protocols=("multicrop",), scales=(20,))
    evaluated(models[1:], photos, tmp_path / "run", protocols=("both",))
    monkeypatch.setattr("repro.evaluation.engines", None)  # nothing may be run any more
    again = evaluated(models, photos, tmp_path / "run", protocols=("both", "dense"))
    assert again.rows == want.rows
    files = [path for path in (tmp_path / "run").rglob("*-q*") if path.stat().st_size]
    sizes = {path.stat().st_size for path in files}
    assert len(files) == 8
    assert len(sizes) == 1, "a result was written twice"


def test_other_preparation_is_another_result(models: list[Path], photos: Path, tmp_path: Path) -> None:
    plain, other = (open_classifier(models[0], mean=mean) for mean in ("", "1,2,3"))
    plans = [Plan(), Plan(settings=Settings(amp=True)), Plan(scales=(999,), protocols=("center",))]
    assert len({key(model, about(model, plan)) for model in (plain, other) for plan in plans}) == 4
    assert key(plain, about(plain, plans[0])) == key(plain, about(plain, plans[2]))
    evaluated(models, photos, tmp_path / "run")
    with pytest.raises(VggcError, match="of other images"):
        evaluate([plain], open_images(photos / "..", labels=some(photos)), Plan(scales=(16,)), tmp_path / "run")


def some(photos: Path) -> Path:
    """A list of one of the pictures."""
    listed = photos.with_name("some.txt")
    listed.write_text(f"{photos.name}/c1/1.png 1\n")
    return listed


def test_some_images_stand_for_all(models: list[Path], photos: Path, tmp_path: Path) -> None:
    assert Plan(limit=3).indices(10).tolist() == [0, 3, 6]
    assert Plan(limit=30).indices(10).tolist() == list(range(10))
    assert Plan().indices(4).tolist() == [0, 1, 2, 3]
    found = evaluated(models[:1], photos, tmp_path / "run", limit=10)
    assert found.images == 10
    assert evaluated(models[:1], photos, tmp_path / "run").images == 35


@pytest.mark.parametrize("pixels", [1, 700, 10**5])
def test_figures_do_not_depend_on_the_batch_or_on_processes(
    models: list[Path], photos: Path, tmp_path: Path, pixels: int
) -> None:
    plan = Plan(("both",), (16, 20), settings=TORCH_ONLY, pixels=pixels)
    want = evaluated(models, photos, tmp_path / "one", protocols=("both",))
    nets, images, barrier = [open_classifier(path) for path in models], open_images(photos), Barrier(2)

    def share(rank: int) -> Evaluation | None:
        return evaluate(nets, images, plan, tmp_path / "two", Threads(rank, 2, barrier))

    with ThreadPoolExecutor(2) as pool:
        found, nothing = pool.map(share, (0, 1))
    assert nothing is None
    assert found is not None
    assert found.rows == want.rows
    shards = [next((tmp_path / "two").rglob(f"dense-q16.{rank}")).stat().st_size for rank in (0, 1)]
    assert max(shards) < 1.2 * min(shards)


@dataclass(frozen=True)
class Threads(Processes):
    """Threads in place of processes."""

    barrier: Barrier = field(default_factory=lambda: Barrier(1))

    def wait(self) -> None:
        self.barrier.wait(60)


# -- resuming ----------------------------------------------------------------------------------------------------


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "repro", "evaluate", *args]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_killed_and_resumed(models: list[Path], photos: Path, tmp_path: Path, capsys: Any) -> None:
    args = [str(models[0]), "--data", str(photos), "--protocol", "multicrop", "--scales", "20,28", "--json"]
    args += ["--batch-pixels", "256", "--engine", "torch"]  # one crop a batch: slow enough to be interrupted
    folder = tmp_path / "run"
    going = subprocess.Popen(command(*args, "--out", str(folder)), env=environment(), stdout=subprocess.DEVNULL)
    try:
        for _ in range(10000):
            if any(path.stat().st_size > 100 for path in folder.rglob("multicrop-q28.0")):
                break
            time.sleep(0.005)
        going.send_signal(signal.SIGKILL)
    finally:
        going.wait()
    size = HEADER.size + 35 * record(CLASSES).itemsize
    assert 100 < next(folder.rglob("multicrop-q28.0")).stat().st_size < size, "it was done before it was killed"
    resumed, whole = (json.loads(output(capsys, *args, "--out", str(place))) for place in (folder, tmp_path / "whole"))
    assert resumed["results"] == whole["results"]
    assert [path.stat().st_size for path in folder.rglob("multicrop-q*")] == [size, size]


def test_two_processes_of_torchrun(models: list[Path], photos: Path, tmp_path: Path, capfd: Any) -> None:
    args = [*map(str, models), "--data", str(photos), "--protocol", "both", "--scales", "16,20", "--json"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    two = subprocess.run(
        [*launch, "repro", "evaluate", *args, "--out", str(tmp_path / "two")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert two.returncode == 0, two.stderr
    assert run(["evaluate", *args]) == 0
    one = json.loads(capfd.readouterr().out)
    assert json.loads(two.stdout)["results"] == one["results"]
    shards = sorted(path.name for path in (tmp_path / "two").rglob("dense-q16.*"))
    assert shards == ["dense-q16.0", "dense-q16.0", "dense-q16.1", "dense-q16.1"]


# -- images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Images of every kind; two of each that must give the same."""
    folder = tmp_path / "odd"
    plain = smooth(40, 30, 1)
    grey = cv2.cvtColor(plain, cv2.COLOR_BGR2GRAY)
    write(folder / "a" / "plain.png", plain)
    write(folder / "a" / "16.png", plain)
    (folder / "a" / "16.png").write_bytes(png_16(plain.astype(np.uint16) * 257))
    write(folder / "b" / "grey1.png", grey)
    write(folder / "b" / "grey2.png", np.repeat(grey[..., None], 3, 2))
    done, data = cv2.imencode(".jpg", plain)
    assert done
    (folder / "c").mkdir()
    (folder / "c" / "straight.jpg").write_bytes(data.tobytes())
    (folder / "c" / "turned.jpg").write_bytes(oriented(data.tobytes(), 6))
    (folder / "d").mkdir()
    (folder / "d" / "cmyk.jpg").write_bytes((Path(__file__).parent / "cmyk.jpg").read_bytes())
    write(folder / "d" / "tiny.png", smooth(1, 1))
    write(folder / "e" / "wide.png", smooth(30, 20000, 2))
    (folder / "e" / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    write(folder / "f" / "sliver.png", np.zeros((1, 300000, 3), np.uint8))
    write(folder / "g" / "black.png", np.zeros((16, 16, 3), np.uint8))
    return folder


def test_images_of_every_kind(models: list[Path], odd: Path, tmp_path: Path) -> None:
    images = open_images(odd)
    names = list(images.items.names)
    model, plan = open_classifier(models[0]), Plan(("both",), (32,), settings=TORCH_ONLY)
    found = evaluate([model], images, plan, tmp_path / "run")
    assert found is not None
    assert [each.split(":")[0] for each in found.unreadable] == ["e/corrupt.png", "f/sliver.png"]
    assert "cannot be decoded" in found.unreadable[0]
    assert "would be 32 x 9600000" in found.unreadable[1]
    assert all(row.errors.top1.count == len(names) and row.errors.top1.wrong >= 2 for row in found.rows)
    store = next(path for path in (tmp_path / "run").iterdir() if path.is_dir())
    readable = np.array([i for i, name in enumerate(names) if name not in ("e/corrupt.png", "f/sliver.png")])
    results = ModelStore(store, len(names)).results("dense", 32).rows(readable)
    rows = {names[i]: row for i, row in zip(readable, results, strict=True)}
    for one, other in (("a/plain.png", "a/16.png"), ("b/grey1.png", "b/grey2.png"), ("c/straight.jpg", "c/turned.jpg")):
        np.testing.assert_allclose(rows[one], rows[other], atol=1e-6)
    np.testing.assert_allclose([row.sum() for row in rows.values()], 1, rtol=1e-5)


def test_strict_stops_at_an_image_that_cannot_be_read(models: list[Path], odd: Path, tmp_path: Path) -> None:
    with pytest.raises(VggcError, match=r"corrupt\.png"):
        evaluated(models[:1], odd, tmp_path / "run", strict=True)


def test_nothing_readable(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x" / "a").mkdir(parents=True)
    (tmp_path / "x" / "a" / "b.png").write_bytes(b"nothing")
    with pytest.raises(VggcError, match="no image could be read"):
        evaluated(models, tmp_path / "x", tmp_path / "run")


# -- what does not fit -------------------------------------------------------------------------------------------


def test_scales_below_the_crop(models: list[Path], photos: Path, tmp_path: Path) -> None:
    with pytest.raises(VggcError, match="scale 15 is smaller than the net's crops of 16"):
        evaluated(models, photos, tmp_path / "run", scales=(15, 20))
    with pytest.raises(VggcError, match="no whole images of scale 5"):
        evaluated(models, photos, tmp_path / "run", scales=(5,), protocols=("dense",))
    evaluated(models, photos, tmp_path / "run", scales=(13,), protocols=("dense",))  # four places of the last pooling


def test_labels_that_the_net_does_not_have(models: list[Path], photos: Path, tmp_path: Path) -> None:
    five = write_model(tmp_path / "five.caffemodel", 5)
    with pytest.raises(VggcError, match="label 5, where the net has 5 classes"):
        evaluated([five], photos, tmp_path / "run")
    with pytest.raises(VggcError, match="nets of 5 and 7 classes"):
        evaluated([five, models[0]], photos, tmp_path / "run")


# -- the command -------------------------------------------------------------------------------------------------


def output(capsys: Any, *args: str) -> str:
    assert run(["evaluate", *args]) == 0
    return str(capsys.readouterr().out)


def test_table(models: list[Path], photos: Path, capsys: Any) -> None:
    args = ["--data", str(photos), "--scales", "16", "--protocol", "center", "--protocol", "dense"]
    text = output(capsys, *map(str, models), *args)
    assert "a + b" in text
    assert "35 images; errors in per cent with 95% intervals" in text
    assert "of the released VGG nets; the model states none" in text
    assert text.count("center") == 3


def test_paper_rows_stand_beside(models: list[Path], photos: Path, capsys: Any) -> None:
    args = [*map(str, models), "--data", str(photos), "--scales", "384", "--limit", "2", "--paper", "D+E"]
    text = output(capsys, *args)
    assert "26.8 / 8.7 (S = 384, Table 3); 25.6 / 8.1 (S = [256;512], Table 3)" in text
    found = json.loads(output(capsys, *args, "--json"))
    assert [row["paper"][0]["top1"] for row in found["results"] if row["paper"]] == [26.8, 26.9]


def test_ablation(models: list[Path], photos: Path, capsys: Any) -> None:
    args = [str(models[0]), "--data", str(photos), "--scales", "16", "--ablate", "preprocessing"]
    text = output(capsys, *args)
    for name in ("as it should be", "red and blue exchanged", "mean not", "resized to a square", "nearest pixel"):
        assert name in text
    made = json.loads(output(capsys, *args, "--json"))["preprocessing"]
    assert len(made) == 5
    assert made[0]["top1"] == json.loads(output(capsys, *args, "--json"))["results"][0]["top1"]


def test_each_mistake_changes_posteriors(models: list[Path], photos: Path, tmp_path: Path) -> None:
    from repro.ablation import VARIANTS, ablate

    plan = Plan(scales=(20,), settings=TORCH_ONLY)
    made = ablate([open_classifier(models[0])], open_images(photos), plan, tmp_path / "run")
    assert made is not None
    folders = [path for path in (tmp_path / "run").iterdir() if path.is_dir()]
    assert len(folders) == len(VARIANTS)
    rows = [ModelStore(path, 35).results("dense", 20).rows(np.arange(35)) for path in folders]
    for i in range(len(rows)):
        for j in range(i):
            assert np.abs(rows[i] - rows[j]).max() > 1e-3


def test_a_permutation_of_labels_is_said(tmp_path: Path, capsys: Any) -> None:
    """A net that is right, because the labels are what it says; then these labels in another order."""
    model = write_model(tmp_path / "m.caffemodel", 10)
    listed = tmp_path / "list.txt"
    for index in range(120):
        write(tmp_path / f"{index}.png", np.random.default_rng(index).integers(0, 256, (16, 16, 3)).astype(np.uint8))
    listed.write_text("".join(f"{index}.png 0\n" for index in range(120)))
    images, net = open_images(listed), open_classifier(model)
    evaluate([net], images, Plan(("center",), (16,), settings=TORCH_ONLY), tmp_path / "run")
    store = next(path for path in (tmp_path / "run").iterdir() if path.is_dir())
    best = ModelStore(store, 120).results("center", 16).rows(np.arange(120)).argmax(1)
    order = np.random.default_rng(0).permutation(10)
    for labels, suspected in ((best, False), (order[best], True)):
        listed.write_text("".join(f"{index}.png {label}\n" for index, label in enumerate(labels)))
        args = [str(model), "--data", str(listed), "--scales", "16", "--protocol", "center"]
        assert ("another order" in output(capsys, *args)) is suspected


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--scales", "a"], "write numbers with commas"),
        (["--scales", "0"], "scales are at least 1"),
        (["--paper", "F"], "the paper's nets are"),
        (["--paper", "D+E"], "for 1 model(s)"),
        (["--net", "x", "--net", "y"], "2 nets for 1 models"),
    ],
)
def test_wrong_usage(models: list[Path], photos: Path, capsys: Any, args: list[str], said: str) -> None:
    assert run(["evaluate", str(models[0]), "--data", str(photos), *args]) == 2
    assert said in capsys.readouterr().err


def test_several_processes_need_a_run_folder(models: list[Path], photos: Path, monkeypatch: Any, capsys: Any) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr("repro.processes.joined", lambda: nullcontext(Processes(0, 2)))
    assert run(["evaluate", str(models[0]), "--data", str(photos)]) == 2
    assert "name it with --out" in capsys.readouterr().err
