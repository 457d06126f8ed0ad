"""Crops and whole images through a net: batches, buckets, parts of large images, engines."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import caffe_compat as cc
from caffe_compat.data.images import Image
from caffe_compat.errors import VggcError
from converters.convert import Options, convert
from repro import engines as engines_module
from repro.engines import ENGINES, NAMES, ONNX, TORCH, Settings, choose, engines
from repro.models import Classifier, open_classifier, preparation
from repro.passes import Reading, Runner, Tiles, posterior_reading, score_reading
from repro.protocols import CROPS, softmax
from tests.repro.nets import CROP, write_model
from tests.repro.pictures import smooth

Found = Mapping[tuple[int, str, int], NDArray[np.float64]]
Kept = dict[tuple[int, str, int], NDArray[np.float64]]
SAME = 1e-6
SIZES = ((16, 23), (20, 16), (16, 16), (16, 23), (37, 24), (16, 23))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return open_classifier(write_model(tmp_path_factory.mktemp("model") / "small.caffemodel"))


def runner(
    model: Classifier, found: dict[tuple[int, str, int], NDArray[np.float64]], engine: str, pixels: int
) -> Runner:
    crops = dict.fromkeys(CROPS, posterior_reading(model.scores, model.posteriors))
    whole = {
        "dense": posterior_reading(model.scores, model.posteriors),
        "dense_scores": score_reading(model.scores),
        "features": Reading(("fc6",)),
    }
    (one,) = engines(model, Settings(engine), ["fc6", "fc8", "prob"], [False, True])

    def sink(index: int, name: str, scale: int, values: NDArray[np.float64]) -> None:
        assert (index, name, scale) not in found
        found[index, name, scale] = values

    graph = model.dense.graph
    return Runner(one, model.prepare, model.crop, crops, whole, sink, pixels=pixels, graph=graph)


def everything(model: Classifier, engine: str = TORCH, pixels: int = 0) -> Found:
    found: Kept = {}
    run = runner(model, found, engine, pixels)
    for index, (height, width) in enumerate(SIZES):
        run.add(index, 16, smooth(height, width, index))
    run.finish()
    return found


def by_hand(model: Classifier, image: Image) -> dict[str, NDArray[np.float64]]:
    """One crop, one flip, one place at a time, by the definitions."""
    net = cc.load(model.path)
    x = torch.from_numpy((image.astype(np.float32) - np.float32([103.939, 116.779, 123.68])).transpose(2, 0, 1).copy())

    def run(values: torch.Tensor) -> tuple[NDArray[np.float64], ...]:
        with torch.no_grad():
            blobs = net(values[None], blobs=["prob", "fc8", "fc6"])
        return tuple(blobs[name][0].double().numpy() for name in ("prob", "fc8", "fc6"))

    made = {}
    for name, make in CROPS.items():
        rows = []
        for y, left, mirrored in make(*image.shape[:2], CROP):
            crop = x[:, y : y + CROP, left : left + CROP]
            rows.append(run(crop.flip(-1) if mirrored else crop)[0])
        made[name] = np.mean(rows, axis=0)
    return made


def test_crops_are_those_of_the_definition(model: Classifier) -> None:
    found = everything(model)
    for index, (height, width) in enumerate(SIZES):
        for name, want in by_hand(model, smooth(height, width, index)).items():
            np.testing.assert_allclose(found[index, name, 16], want, atol=SAME)


def test_whole_images_are_averaged_over_places_and_with_their_mirrors(model: Classifier) -> None:
    found = everything(model)
    (engine,) = engines(model, Settings(TORCH), ["prob"], [True])
    for index, (height, width) in enumerate(SIZES):
        x = torch.from_numpy(model.prepare(smooth(height, width, index)))[None]
        maps = [engine.run(flip, ["prob", "fc8", "fc6"], True) for flip in (x, x.flip(-1))]
        prob, scores, features = (
            np.stack([each[k][0].double().mean((1, 2)).numpy() for each in maps]) for k in range(3)
        )
        np.testing.assert_allclose(found[index, "dense", 16], prob.mean(0), atol=SAME)
        np.testing.assert_allclose(found[index, "dense_scores", 16], softmax(scores).mean(0), atol=SAME)
        np.testing.assert_allclose(found[index, "features", 16], features.mean(0), rtol=1e-5)


def test_without_mirrors(model: Classifier) -> None:
    found: Kept = {}
    run = runner(model, found, TORCH, 0)
    run.mirror = False
    image = smooth(20, 32, 1)  # a grid that is its own mirror
    run.add(0, 16, image)
    large = smooth(30, 200, 2)
    run.limit = 3000
    run.add(1, 16, large)
    run.finish()
    flipped = [np.ascontiguousarray(each[:, ::-1]) for each in (image, large)]
    both, other = everything_of(model, [image, large]), everything_of(model, flipped, mirror=False)
    for key, values in found.items():
        if key[1] not in ("center", "dense_scores"):
            np.testing.assert_allclose((values + other[key]) / 2, both[key], rtol=1e-4, atol=SAME)
    np.testing.assert_allclose(found[0, "center", 16], both[0, "center", 16], atol=SAME)


def everything_of(model: Classifier, images: list[Image], mirror: bool = True) -> Found:
    """Without "center", which has no mirror."""
    found: Kept = {}
    run = runner(model, found, TORCH, 0)
    run.mirror = mirror
    for index, image in enumerate(images):
        run.add(index, 16, image)
    run.finish()
    return found


def test_an_image_of_the_nets_size_is_the_centre_crop_and_its_mirror(model: Classifier) -> None:
    found, position = everything(model), SIZES.index((16, 16))
    crop = by_hand(model, smooth(16, 16, position))["tencrop"]  # five times the image, five times its mirror
    np.testing.assert_allclose(found[position, "dense", 16], crop, atol=SAME)


@pytest.mark.parametrize(("engine", "pixels"), list(product((TORCH, ONNX), (1, 600, 1700, 10**6))))
def test_results_do_not_depend_on_the_batch_or_the_engine(model: Classifier, engine: str, pixels: int) -> None:
    want, got = everything(model), everything(model, engine, pixels)
    assert got.keys() == want.keys()
    assert len(want) == len(SIZES) * 6
    for key, values in want.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-5, atol=SAME, err_msg=str(key))


@pytest.mark.parametrize(("height", "width"), [(20, 900), (900, 17), (61, 333)])
def test_parts_of_a_large_image_are_the_whole(model: Classifier, height: int, width: int) -> None:
    found: Kept = {}
    parts, whole = (runner(model, found, TORCH, pixels) for pixels in (2000, 10**6))
    sizes: list[int] = []
    run = parts.engine.run
    parts.engine.run = lambda x, blobs, dense: sizes.append(x[0, 0].numel()) or run(x, blobs, dense)  # type: ignore
    image = smooth(height, width, 5)
    for got, want in zip(parts.means([image]), whole.means([image]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=SAME)
    assert len(sizes) > 8
    assert max(sizes) <= 2000


def test_parts_cover_every_place_once(model: Classifier) -> None:
    tiles = Tiles.of(model.dense.graph, {"prob"})  # type: ignore[arg-type]
    assert tiles is not None
    for size, most in product((16, 17, 64, 301), (1, 30, 50, 1000)):
        parts = list(tiles.cut(size, most, 1))
        assert sum(part.count for part in parts) == tiles.sizes(size, 1)
        assert all(part.start % 4 == 0 for part in parts)
        assert parts[-1].stop == size
        assert max(part.stop - part.start for part in parts) <= max(most, tiles.fields[1].size + 3)


def test_a_net_without_windows_is_not_cut() -> None:
    text = """
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
        layer { name: "mvn" type: "MVN" bottom: "data" top: "mvn" }
    """
    assert Tiles.of(cc.Graph.from_net(cc.parse_net(text)), {"mvn"}) is None


# -- engines -----------------------------------------------------------------------------------------------------


def test_auto_takes_the_faster_engine_that_agrees(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    both = engines(model, Settings(), ["prob"], [False, True])
    assert [engine.name for engine in both] == [TORCH, ONNX]
    x = torch.from_numpy(model.prepare(smooth(16, 16)))[None]
    seconds = {TORCH: 0.2, ONNX: 0.1}
    monkeypatch.setattr(engines_module, "_timed", lambda run: seconds[run.func.__self__.name])
    assert choose(both, x, "prob", False).engine.name == ONNX
    assert "ONNX Runtime: 100 ms for a batch of 1 against 200 ms in PyTorch" in choose(both, x, "prob", False).said
    seconds[ONNX] = 0.3
    assert choose(both, x, "prob", False).engine.name == TORCH
    monkeypatch.setattr(engines_module, "AGREE", -1.0)
    seconds[ONNX] = 0.1
    choice = choose(both, x, "prob", False)
    assert choice.engine.name == TORCH
    assert "as ONNX Runtime differs by" in choice.said


def test_options_of_pytorch_leave_it_alone(model: Classifier) -> None:
    for settings in (Settings(amp=True), Settings(channels_last=True), Settings(compiled=True)):
        assert [engine.name for engine in engines(model, settings, ["prob"], [True])] == [TORCH]
    assert set(NAMES) <= set(ENGINES)


def test_channels_last_and_half_precision(model: Classifier) -> None:
    x = torch.from_numpy(model.prepare(smooth(20, 28)))[None]
    (plain,), (last,), (half,) = (
        engines(model, settings, ["prob"], [False, True])
        for settings in (Settings(TORCH, channels_last=False), Settings(TORCH), Settings(TORCH, amp=True))
    )
    for whole in (False, True):
        part = x if whole else x[..., :16, :16]
        want = plain.run(part, ["prob"], whole)[0]
        torch.testing.assert_close(last.run(part, ["prob"], whole)[0], want, rtol=1e-5, atol=1e-6)
        got = half.run(part, ["prob"], whole)[0]
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0, atol=0.05)


def test_onnx_runtime_takes_few_pixels_at_once(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (engine,) = engines(model, Settings(ONNX), ["prob"], [False, True])
    for whole in (False, True):
        want = engine.run(x, ["prob"], whole)[0]
        for pixels in (1, 3 * 16 * 16 + 5):
            monkeypatch.setattr(engines_module, "AT_ONCE", pixels)
            got = engine.run(x, ["prob"], whole)[0]
            assert len(got) == 7
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_an_unknown_device() -> None:
    with pytest.raises(VggcError, match='no device "quantum"'):
        Settings(device="quantum").place()


# -- models ------------------------------------------------------------------------------------------------------


def test_every_format_is_the_same_net(model: Classifier, tmp_path: Path) -> None:
    targets = [tmp_path / f"small.{kind}" for kind in ("safetensors", "onnx", "pt", "h5")]
    convert(model.path, targets, Options())
    net = model.path.with_suffix(".prototxt")
    x = torch.from_numpy(model.prepare(smooth(16, 16)))[None].repeat(3, 1, 1, 1)
    want = engines(model, Settings(TORCH), ["prob"], [False])[0].run(x, ["prob"], False)[0]
    for target in targets:
        other = open_classifier(target, net if target.suffix in (".pt", ".h5") else None)
        (engine, *_) = engines(other, Settings(), ["prob"], [False])
        assert (engine.name == ONNX) is (target.suffix == ".onnx")
        torch.testing.assert_close(engine.run(x, [other.posteriors], False)[0], want, rtol=1e-5, atol=1e-6)
        assert other.prepare == model.prepare
        assert other.sha256 != model.sha256


def test_an_onnx_file_of_one_batch_size_on_crops_and_whole_images(model: Classifier, tmp_path: Path) -> None:
    target = tmp_path / "four.onnx"
    convert(model.path, [target], Options(dynamic_batch=False, state=state(4)))
    other = open_classifier(target)
    assert other.batch == 4
    (file, *_) = engines(other, Settings(ONNX), ["prob"], [False, True])
    (own,) = engines(model, Settings(TORCH), ["prob"], [False, True])
    x = torch.from_numpy(np.stack([model.prepare(smooth(16, 16, seed)) for seed in range(6)]))
    for count, whole in product((1, 4, 6), (False, True)):
        got, want = (e.run(x[:count], ["prob"], whole)[0] for e in (file, own))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def state(batch: int) -> object:
    from caffe_compat.loading import State

    return State(input_shapes={"data": (batch, 3, CROP, CROP)})


def test_a_net_without_softmax_gives_scores(model: Classifier, tmp_path: Path) -> None:
    net = tmp_path / "scores.prototxt"
    text = model.path.with_suffix(".prototxt").read_text()
    net.write_text(text[: text.rindex("layer {")])
    other = open_classifier(model.path, net)
    assert (other.scores, other.posteriors) == ("fc8", "")
    assert any("no Softmax" in note for note in other.notes)
    found: dict[str, NDArray[np.float64]] = {}
    readings = posterior_reading(other.scores, other.posteriors)
    (engine,) = engines(other, Settings(TORCH), ["fc8"], [False, True])

    def sink(_index: int, name: str, _scale: int, values: NDArray[np.float64]) -> None:
        found[name] = values

    whole = {"dense": readings, "dense_scores": score_reading("fc8")}
    run = Runner(engine, other.prepare, CROP, {"tencrop": readings}, whole, sink)
    run.add(0, 16, smooth(20, 24))
    run.finish()
    want: Kept = {}
    own = runner(model, want, TORCH, 0)
    own.add(0, 16, smooth(20, 24))
    own.finish()
    for name, values in found.items():
        np.testing.assert_allclose(values, want[0, name, 16], atol=SAME)


# -- preparation -------------------------------------------------------------------------------------------------


def test_preparation_follows_the_user_then_the_model_then_the_paper(tmp_path: Path) -> None:
    stated = {"mean_value": [1, 2, 3], "scale": 0.5, "channel_order": "RGB"}
    assert preparation({}, 3, tmp_path).mean == (103.939, 116.779, 123.68)
    assert "released VGG nets" in preparation({}, 3, tmp_path).said
    own = preparation(stated, 3, tmp_path)
    assert (own.mean, own.scale, own.order) == ((1, 2, 3), 0.5, "RGB")
    given = preparation(stated, 3, tmp_path, mean="9", scale=2, order="BGR")
    assert (given.mean, given.scale, given.order) == ((9, 9, 9), 2, "BGR")
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(given(image), (image.transpose(2, 0, 1).astype(np.float32) - 9) * 2)
    np.testing.assert_array_equal(
        own(image), (image[..., ::-1].transpose(2, 0, 1) - np.float32([1, 2, 3]).reshape(3, 1, 1)) / 2
    )


def test_mean_images_give_their_mean_pixel(tmp_path: Path) -> None:
    mean = np.random.default_rng(0).uniform(0, 255, (3, 4, 5)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean)
    want = mean.mean((1, 2))
    np.testing.assert_allclose(preparation({}, 3, tmp_path, mean=str(tmp_path / "mean.npy")).mean, want, rtol=1e-6)
    stated = {"mean_file": "far/away/mean.npy"}
    np.testing.assert_allclose(preparation(stated, 3, tmp_path).mean, want, rtol=1e-6)
    with pytest.raises(VggcError, match="which is not beside it"):
        preparation({"mean_file": "other.npy"}, 3, tmp_path)
    with pytest.raises(VggcError, match="2 values for images of 3"):
        preparation({}, 3, tmp_path, mean="1,2")


def test_grey_nets() -> None:
    prepare = preparation({}, 1, Path())
    assert prepare(np.full((2, 2, 3), 7, np.uint8)).tolist() == [[[7, 7], [7, 7]]]
