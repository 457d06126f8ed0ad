"""Draws, augmentation and statistics of the paper's training."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_compat.data.images import encode_image
from caffe_compat.errors import FormatError
from repro.image_sets import DataError, EncodedImages, Items
from repro.pipeline.augment import Augment, Centre, View, batch, crop_of
from repro.pipeline.colour import Statistics, cached_statistics, fingerprint, statistics
from repro.pipeline.draws import IMAGE, ORDER, Draws, epoch_order, raw
from tests.repro.pictures import smooth

MEAN = (103.939, 116.779, 123.68)


def pictures(*sizes: tuple[int, int], kind: str = "png") -> EncodedImages:
    files = [encode_image(smooth(*size, seed), kind) for seed, size in enumerate(sizes)]
    names = [f"{index}.{kind}" for index in range(len(files))]
    return EncodedImages(files, Items(names, range(len(files))), ("",) * len(files), "memory")


SET = pictures((40, 60), (60, 40), (48, 48), (41, 73))

# -- draws -----------------------------------------------------------------------------------------------------


def philox(key: tuple[int, int], counter: tuple[int, ...]) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011): four numbers."""
    mask = 2**64 - 1
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = high >> 64 ^ c1 ^ k0, high & mask, low >> 64 ^ c3 ^ k1, low & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("seed", "purpose", "epoch", "index"), [(0, 0, 0, 0), (1, 1, 2, 3), (-1, 1, 73, 1_281_166)])
def test_numbers_are_those_of_the_generator_s_definition(seed: int, purpose: int, epoch: int, index: int) -> None:
    """NumPy counts up before it makes a block."""
    key = seed % 2**64, purpose
    want = philox(key, (1, index, epoch, 0)) + philox(key, (2, index, epoch, 0))
    assert raw(seed, purpose, epoch, index, 6).tolist() == want[:6]
    assert {ORDER, IMAGE} == {0, 1}


def test_numbers_follow_from_each_of_their_names() -> None:
    seen = {tuple(raw(*names, 2).tolist()) for names in np.ndindex(3, 2, 4, 5)}
    assert len(seen) == 3 * 2 * 4 * 5


def test_draws_have_their_distributions() -> None:
    draws = Draws(0, 0, 0, 40_000)
    uniform = np.array([draws.uniform() for _ in range(10_000)])
    normal = np.array([draws.normal() for _ in range(10_000)])
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert np.abs(np.bincount((uniform * 10).astype(int)) - 1000).max() < 150
    assert abs(normal.mean()) < 0.04
    assert abs(normal.std() - 1) < 0.03
    assert abs((np.abs(normal) < 1).mean() - 0.6827) < 0.02
    assert {Draws(1, 1, i, 1).below(3) for i in range(50)} == {0, 1, 2}


def test_orders_are_permutations_of_their_own() -> None:
    orders = {epoch: epoch_order(5, epoch, 50).tolist() for epoch in range(20)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len(set(map(tuple, orders.values()))) == 20
    assert epoch_order(5, 3, 50).tolist() == orders[3] != epoch_order(6, 3, 50).tolist()


# -- views -----------------------------------------------------------------------------------------------------


def plain(image: np.ndarray, view: View, crop: int) -> np.ndarray:
    """The crop by its definition."""
    height, width = image.shape[:2]
    least = min(height, width)
    size = [round(side * view.scale / least) for side in (width, height)]
    big = cv2.resize(image, tuple(size))
    top, left = (int(share * (side - crop + 1)) for share, side in zip(view[1:3], size[::-1], strict=True))
    part = big[top : top + crop, left : left + crop].astype(np.float32)
    part = part[:, ::-1] if view.mirrored else part
    return (part - view.subtracted).transpose(2, 0, 1)


def test_a_batch_by_its_definition() -> None:
    augment = Augment(7, 32, (33, 64), MEAN, statistics(SET).colour())
    data, labels = batch(SET, augment, 5, [2, 0, 3, 1, 2])
    assert data.dtype == np.float32
    assert labels.tolist() == [2, 0, 3, 1, 2]
    for got, index in zip(data, labels, strict=True):
        np.testing.assert_array_equal(got, plain(SET.read(index), augment.view(5, index), 32))
    np.testing.assert_array_equal(data[0], data[4])


def test_views_cover_what_they_may() -> None:
    augment = Augment(0, 32, (32, 35), MEAN)
    views = [augment.view(epoch, index) for epoch in range(20) for index in range(50)]
    assert {view.scale for view in views} == {32, 33, 34, 35}
    assert abs(np.mean([view.mirrored for view in views]) - 0.5) < 0.05
    counts = np.bincount([view.scale for view in views])[32:]
    assert counts.min() > 200
    assert {int(view.top * 4) for view in views} == {int(view.left * 4) for view in views} == {0, 1, 2, 3}
    assert abs(np.corrcoef([view.top for view in views], [view.left for view in views])[0, 1]) < 0.1


def test_what_is_off_changes_no_other_draw() -> None:
    full = Augment(3, 16, (16, 32), MEAN, statistics(SET).colour()).view(1, 1)
    bare = Augment(3, 16, (16, 32), MEAN, flip=False).view(1, 1)
    assert full[:3] == bare[:3]
    assert not bare.mirrored
    np.testing.assert_array_equal(bare.subtracted, np.float32(MEAN))


def test_the_mean_pixel_is_subtracted_in_the_order_of_the_channels() -> None:
    grey = EncodedImages([encode_image(np.full((8, 8, 3), 100, np.uint8), "png")], Items(["a"], [0]), ("",), "m")
    data, _ = batch(grey, Centre(8, 8, (1, 2, 3)), 0, [0])
    assert data[0, :, 0, 0].tolist() == [99, 98, 97]


@pytest.mark.parametrize("room", range(6))
def test_the_middle(room: int) -> None:
    """As DataTransformer crops in phase TEST: (height - crop) / 2, in integers."""
    images = pictures((20, 14 + room), kind="png")
    got = crop_of(images, 0, Centre(14, 14 + room, MEAN).view(0, 0), Centre(14, 14 + room, MEAN))
    image = images.read(0)
    top, left = (20 - 14) // 2, room // 2
    np.testing.assert_array_equal(got, image[top : top + 14, left : left + 14])


@pytest.mark.parametrize(("crop", "scales"), [(32, 31), (0, 5), (5, (6, 5)), (7, (6, 9))])
def test_crops_that_do_not_fit(crop: int, scales: int | tuple[int, int]) -> None:
    with pytest.raises(DataError, match="choose crop <= least scale <= largest scale"):
        Augment(0, crop, scales, MEAN)
    if isinstance(scales, int):
        with pytest.raises(DataError, match="choose crop <= scale"):
            Centre(crop, scales, MEAN)


def test_reduced_decoding_is_close_and_never_too_small() -> None:
    images = pictures((256, 384), kind="jpg")
    for scale in (32, 33, 64, 100, 200, 256, 300):
        exact, _ = batch(images, Augment(0, 24, scale, MEAN), 0, [0])
        fast, _ = batch(images, Augment(0, 24, scale, MEAN, reduced=True), 0, [0])
        assert np.abs(exact - fast).max() < 24
        assert (scale > 128) == np.array_equal(exact, fast)


# -- colour ----------------------------------------------------------------------------------------------------


def test_statistics_by_their_definition() -> None:
    pixels = [SET.read(index).reshape(-1, 3).astype(float) for index in range(4)]
    means = [each.mean(0) for each in pixels]
    squares = [np.einsum("ni,nj->ij", each, each) / len(each) for each in pixels]
    got = statistics(SET)
    np.testing.assert_allclose(got.mean, np.mean(means, 0), rtol=1e-12)
    np.testing.assert_allclose(got.covariance, np.mean(squares, 0) - np.outer(got.mean, got.mean), rtol=1e-9)
    assert (got.images, got.unreadable) == (4, 0)


def test_statistics_do_not_depend_on_workers() -> None:
    one, many = statistics(SET, workers=1), statistics(SET, workers=3)
    assert one.mean.tolist() == many.mean.tolist()
    assert one.covariance.tolist() == many.covariance.tolist()


def test_statistics_of_some_images() -> None:
    told: list[tuple[int, int]] = []
    got = statistics(SET, most=2, progress=lambda done, total: told.append((done, total)))
    np.testing.assert_allclose(got.mean, np.mean([SET.read(i).reshape(-1, 3).mean(0) for i in (0, 2)], 0))
    assert (got.images, told) == (2, [(2, 2)])


def test_unreadable_images_are_counted_or_refused() -> None:
    images = pictures((8, 8), (9, 9))
    images.files = [b"no image", images.files[1]]
    got = statistics(images)
    assert (got.images, got.unreadable) == (1, 1)
    with pytest.raises(DataError, match=r"0\.png: an image cannot be decoded"):
        statistics(images, strict=True)
    images.files = [b"", b""]
    with pytest.raises(DataError, match=r"0\.png"):
        statistics(images)


DIRECTIONS = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
VALUES = np.array([9000.0, 800.0, 100.0])
KNOWN = Statistics(np.array(MEAN), DIRECTIONS * VALUES @ DIRECTIONS.T, 1)


def test_principal_components() -> None:
    colour = KNOWN.colour()
    np.testing.assert_allclose(np.abs((colour.directions * DIRECTIONS).sum(0)), 1, rtol=1e-9)
    assert (colour.directions[np.abs(colour.directions).argmax(0), range(3)] > 0).all()
    np.testing.assert_allclose(colour.magnitudes, VALUES / 255, rtol=1e-9)
    np.testing.assert_allclose(KNOWN.colour("deviation").magnitudes, VALUES**0.5, rtol=1e-9)
    with pytest.raises(DataError, match="magnitudes: eigenvalue, deviation"):
        KNOWN.colour("variance")


def test_shifts_are_sums_of_components() -> None:
    """Eigenvectors times alpha times eigenvalue, on pixels from 0 to 1."""
    colour, alphas = KNOWN.colour(), np.array([0.3, -1.2, 2.0])
    want = 255 * sum(colour.directions[:, i] * 0.1 * alphas[i] * VALUES[i] / 255**2 for i in range(3))
    np.testing.assert_allclose(colour.shift(alphas), want, rtol=1e-12)


def test_shifts_as_they_are_drawn() -> None:
    augment = Augment(0, 8, 8, MEAN, KNOWN.colour())
    shifts = np.array([np.float64(MEAN) - augment.view(epoch, 0).subtracted for epoch in range(4000)])
    along = shifts @ KNOWN.colour().directions / (VALUES / 255)
    assert np.abs(along.mean(0)).max() < 0.01
    np.testing.assert_allclose(along.std(0), 0.1, rtol=0.05)
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 0.06


def test_statistics_of_a_grey_set_shift_grey() -> None:
    grey = EncodedImages([encode_image(smooth(9, 9)[:, :, :1], "png")], Items(["a"], [0]), ("",), "m")
    colour = statistics(grey).colour()
    shift = colour.shift([1.0, 1.0, 1.0])
    assert np.ptp(shift) < 1e-4 < abs(shift[0])


def test_statistics_are_kept_with_all_digits(tmp_path: Path) -> None:
    path, computed = tmp_path / "statistics.json", []

    def compute(images: EncodedImages) -> Statistics:
        computed.append(1)
        return statistics(images)

    first = cached_statistics(SET, path, compute)
    again = cached_statistics(SET, path, compute)
    assert computed == [1]
    assert again.mean.tolist() == first.mean.tolist()
    assert again.covariance.tolist() == first.covariance.tolist()
    assert again.fingerprint == fingerprint(SET)
    cached_statistics(pictures((8, 8)), path, compute)
    assert computed == [1, 1]


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"mean_bgr": [1, 2]}', "[" * 100_000])
def test_what_are_no_statistics(tmp_path: Path, text: str) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"statistics\.json"):
        Statistics.load(path)


@pytest.mark.parametrize(("name", "value"), [("mean_bgr", "[1, 2]"), ("mean_bgr", "[1, 2, NaN]"), ("images", '"x"')])
def test_statistics_with_a_wrong_entry(tmp_path: Path, name: str, value: str) -> None:
    path = tmp_path / "statistics.json"
    KNOWN.write(path)
    text = path.read_text().replace(f'"{name}":', f'"{name}": {value}, "old":')
    path.write_text(text)
    with pytest.raises(FormatError, match="these are no statistics"):
        Statistics.load(path)
