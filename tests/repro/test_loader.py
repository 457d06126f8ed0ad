"""Batches made ahead by threads, for one process or for several."""

from __future__ import annotations

import threading
from itertools import islice, pairwise

import cv2
import numpy as np
import pytest

from caffe_compat.data.images import Image, encode_image
from repro.image_sets import DataError, EncodedImages, Items
from repro.pipeline.augment import Augment, Centre, batch
from repro.pipeline.colour import statistics
from repro.pipeline.draws import epoch_order
from repro.pipeline.loader import Batch, Loader
from tests.repro.pictures import smooth

COUNT = 11


def pictures(count: int = COUNT) -> EncodedImages:
    files = [encode_image(smooth(10 + index, 14, index), "png") for index in range(count)]
    items = Items([f"{index}.png" for index in range(count)], range(100, 100 + count))
    return EncodedImages(files, items, ("",) * 200, "memory")


SET = pictures()
AUGMENT = Augment(1, 8, (8, 12), (100.0, 110.0, 120.0), statistics(SET).colour())


def first(loader: Loader, count: int = 6) -> list[Batch]:
    return list(islice(loader, count))


def equal(got: list[Batch], want: list[Batch]) -> None:
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one.data, other.data)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.subtracted, other.subtracted)
        assert one.next == other.next


WANTED = first(Loader(SET, AUGMENT, 4, workers=1))


def test_batches_are_what_the_definition_says() -> None:
    row = [(epoch, index) for epoch in range(3) for index in epoch_order(1, epoch, COUNT)]
    for number, got in enumerate(WANTED):
        for (epoch, index), data, label in zip(row[4 * number :], got.data, got.labels, strict=False):
            want, labels = batch(SET, AUGMENT, epoch, [index])
            np.testing.assert_array_equal(data, want[0])
            assert label == labels[0]


def test_every_epoch_has_every_image_once() -> None:
    labels = np.concatenate([got.labels for got in first(Loader(SET, AUGMENT, 4), COUNT)])
    for epoch in labels.reshape(4, COUNT):
        assert sorted(epoch) == sorted(SET.items.labels)


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("ahead", [0, 1, 7])
def test_the_number_of_workers_changes_nothing(workers: int, ahead: int) -> None:
    equal(first(Loader(SET, AUGMENT, 4, workers=workers, ahead=ahead)), WANTED)


@pytest.mark.parametrize("world", [2, 3, 4, 6])
def test_the_parts_of_several_processes_make_up_the_batch(world: int) -> None:
    parts = [first(Loader(SET, AUGMENT, 4, rank=rank, world=world, workers=2)) for rank in range(world)]
    together = [
        Batch(*(np.concatenate(list(each)) for each in list(zip(*row, strict=True))[:3]), row[0].next)
        for row in zip(*parts, strict=True)
    ]
    equal(together, WANTED)
    assert {len(got.labels) for part in parts for got in part} <= {4 // world, -(-4 // world)}


@pytest.mark.parametrize("number", range(1, 6))
def test_going_on_from_where_a_batch_ended(number: int) -> None:
    equal(first(Loader(SET, AUGMENT, 4, start=WANTED[number - 1].next), 6 - number), WANTED[number:])


def test_batches_larger_than_the_set() -> None:
    (got,) = first(Loader(SET, AUGMENT, 16), 1)
    np.testing.assert_array_equal(got.data, np.concatenate([each.data for each in WANTED[:4]]))
    assert got.next == (1, 5)
    assert first(Loader(SET, AUGMENT, COUNT), 1)[0].next == (1, 0)


def test_pixels_give_the_same_bits_later() -> None:
    for got, want in zip(first(Loader(SET, AUGMENT, 4, pixels=True)), WANTED, strict=True):
        assert got.data.dtype == np.uint8
        floats = got.data.astype(np.float32) - got.subtracted[:, None, None]
        np.testing.assert_array_equal(floats.transpose(0, 3, 1, 2), want.data)


@pytest.mark.parametrize("world", [1, 2])
def test_one_pass_in_order(world: int) -> None:
    centre = Centre(8, 10, (1.0, 2.0, 3.0))
    parts = [list(Loader(SET, centre, 4, once=True, rank=rank, world=world)) for rank in range(world)]
    assert [sum(len(each.labels) for each in row) for row in zip(*parts, strict=True)] == [4, 4, 3]
    labels = np.concatenate([each.labels for row in zip(*parts, strict=True) for each in row])
    np.testing.assert_array_equal(labels, SET.items.labels)
    data = np.concatenate([each.data for row in zip(*parts, strict=True) for each in row])
    np.testing.assert_array_equal(data, batch(SET, centre, 0, range(COUNT))[0])
    assert [each.next for each in parts[0]] == [(0, 4), (0, 8), (1, 0)]


def test_the_last_batch_may_leave_a_process_nothing() -> None:
    parts = [list(Loader(SET, AUGMENT, 5, once=True, rank=rank, world=2)) for rank in range(2)]
    assert [len(each.labels) for each in parts[0]] == [2, 2, 0]
    assert parts[0][2].data.shape == (0, 3, 8, 8)


# -- what cannot be read ---------------------------------------------------------------------------------------


def damaged(*indices: int) -> EncodedImages:
    images = pictures()
    images.files = [b"no image" if index in indices else data for index, data in enumerate(images.files)]
    return images


@pytest.mark.parametrize("workers", [1, 4])
def test_the_next_readable_image_takes_the_place(workers: int) -> None:
    told: list[str] = []
    loader = Loader(damaged(3, 4, 10), AUGMENT, 4, workers=workers, report=lambda error: told.append(str(error)))
    got = np.concatenate([each.labels for each in first(loader, 11)])
    order = np.concatenate([epoch_order(1, epoch, COUNT) for epoch in range(4)])
    stands_for = {3: 5, 4: 5, 10: 0}
    np.testing.assert_array_equal(got, [100 + stands_for.get(index, index) for index in order])
    assert sorted(loader.unreadable) == [3, 4, 10]
    assert len(told) == 3
    assert "memory: 3.png: an image cannot be decoded" in " ".join(told)


def test_the_substitute_is_seen_as_the_missing_one_would_be() -> None:
    loader = Loader(damaged(3), AUGMENT, COUNT)
    (got,) = first(loader, 1)
    slot = epoch_order(1, 0, COUNT).tolist().index(3)
    swapped = pictures()
    swapped.files = [swapped.files[4] if index == 3 else data for index, data in enumerate(swapped.files)]
    np.testing.assert_array_equal(got.data[slot], batch(swapped, AUGMENT, 0, [3])[0][0])


def test_strict_stops_at_the_first() -> None:
    with pytest.raises(DataError, match=r"memory: 3\.png: an image cannot be decoded"):
        first(Loader(damaged(3), AUGMENT, 4, strict=True), 3)


def test_a_set_of_nothing_readable() -> None:
    with pytest.raises(DataError, match="11 images in a row cannot be read; the first: an image cannot be decoded"):
        first(Loader(damaged(*range(COUNT)), AUGMENT, 4), 1)


# -- bounds ----------------------------------------------------------------------------------------------------


class Counting(EncodedImages):
    """Counts what is read."""

    def __init__(self) -> None:
        super().__init__(SET.files, SET.items, SET.classes, SET.source)
        self.reads, self.lock = 0, threading.Lock()

    def read(self, index: int, reduce: int = 1) -> Image:
        with self.lock:
            self.reads += 1
        return super().read(index, reduce)


@pytest.mark.parametrize("ahead", [0, 2])
def test_no_more_is_made_than_was_asked_for(ahead: int) -> None:
    images = Counting()
    batches = iter(Loader(images, AUGMENT, 4, ahead=ahead, workers=2))
    for number in range(1, 5):
        next(batches)
        assert 4 * number <= images.reads <= 4 * (number + ahead)
    batches.close()  # type: ignore[attr-defined]
    stopped = images.reads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vggc-load")]
    assert images.reads == stopped


def test_opencv_gets_its_threads_back() -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        batches = iter(Loader(SET, AUGMENT, 4))
        next(batches)
        assert cv2.getNumThreads() == 1
        batches.close()  # type: ignore[attr-defined]
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


PLACES = ({"start": (0, COUNT)}, {"start": (-1, 0)})
WRONG = ({"batch_size": 0}, {"rank": 2, "world": 2}, {"rank": -1}, {"ahead": -1}, *PLACES)


@pytest.mark.parametrize("settings", WRONG)
def test_settings_that_do_not_fit(settings: dict[str, int]) -> None:
    with pytest.raises(DataError):
        Loader(SET, AUGMENT, **{"batch_size": 4, **settings})


def test_an_empty_set() -> None:
    with pytest.raises(DataError, match="there are no images"):
        Loader(pictures(0), AUGMENT, 4)


def test_places_go_up() -> None:
    assert all(one.next < other.next for one, other in pairwise(WANTED))


def test_images_that_would_become_too_large_are_replaced() -> None:
    images = pictures()
    long = encode_image(np.zeros((1, 65_000, 3), np.uint8), "png")
    images.files = [long if index == 3 else data for index, data in enumerate(images.files)]
    loader = Loader(images, Augment(1, 8, 80, (0.0, 0.0, 0.0)), COUNT)
    (got,) = first(loader, 1)
    assert sorted(got.labels) == sorted([*(label for label in SET.items.labels if label != 103), 104])
    assert "memory: 3.png: an image of 1 x 65000 rescaled to 80 would be 80 x 5200000" in str(loader.unreadable[3])
