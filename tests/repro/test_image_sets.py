"""How image sets read what is stored in them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_compat.data.images import encode_image
from repro.image_sets import DataError, EncodedImages, Items, Subset, in_colour, require_labels
from repro.image_sizes import stored_size
from repro.rescaling import rescale, rescaled_size
from tests.repro.pictures import oriented, png_16, smooth

PICTURE = smooth(20, 30)
CMYK = Path(__file__).with_name("cmyk.jpg")


def of(*files: bytes, labels: tuple[int, ...] = ()) -> EncodedImages:
    names = [f"image {index}" for index in range(len(files))]
    return EncodedImages(files, Items(names, labels or (0,) * len(files)), ("",), "memory")


def test_colours_are_blue_green_red() -> None:
    np.testing.assert_array_equal(of(encode_image(PICTURE, "png")).read(0), PICTURE)


def test_grey_is_replicated() -> None:
    grey = PICTURE[:, :, :1]
    np.testing.assert_array_equal(of(encode_image(grey, "png")).read(0), np.repeat(grey, 3, 2))
    np.testing.assert_array_equal(in_colour(grey), np.repeat(grey, 3, 2))


def test_transparency_is_dropped_not_blended() -> None:
    image = np.dstack([PICTURE, np.full((20, 30), 7, np.uint8)])
    np.testing.assert_array_equal(of(encode_image(image, "png")).read(0), PICTURE)


@pytest.mark.parametrize("channels", [1, 3])
def test_of_16_bits_the_upper_8_are_kept(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (5, 6, channels), dtype=np.uint16)
    got = of(png_16(image)).read(0)
    np.testing.assert_array_equal(got, np.broadcast_to(image >> 8, (5, 6, 3)))


def test_16_bits_of_tiff_are_rounded() -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (5, 6, 3), dtype=np.uint16)
    done, data = cv2.imencode(".tiff", image)
    assert done
    np.testing.assert_array_equal(of(data.tobytes()).read(0), np.rint(image / 257))


def test_cmyk_is_converted() -> None:
    """The file: 16 x 16, C M Y K = 155 of 255 everywhere in Adobe's inverted sense."""
    data = CMYK.read_bytes()
    image = of(data).read(0)
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - round(100 * 100 / 255)).max() <= 2
    assert stored_size(data) == (16, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_s_orientation_is_not_followed(orientation: int) -> None:
    plain = encode_image(PICTURE, "jpg")
    turned = of(oriented(plain, orientation))
    np.testing.assert_array_equal(turned.read(0), of(plain).read(0))
    assert turned.size(0) == (20, 30)
    if orientation > 4:  # it is noted: others turn this file
        assert cv2.imdecode(np.frombuffer(turned.files[0], np.uint8), cv2.IMREAD_COLOR).shape == (30, 20, 3)


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_decoding_at_a_fraction_of_the_size(reduce: int) -> None:
    image = smooth(64, 80)
    got = of(encode_image(image, "jpg")).read(0, reduce)
    assert got.shape == (64 // reduce, 80 // reduce, 3)
    assert np.abs(got.astype(int) - cv2.resize(image, got.shape[1::-1], interpolation=cv2.INTER_AREA)).max() < 16


JPEG = encode_image(PICTURE, "jpg")


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", JPEG[: len(JPEG) // 2], encode_image(PICTURE, "png")[:80]],
    ids=["", "text", "jpg", "png"],
)
def test_what_cannot_be_read_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"memory: image 1: an image cannot be decoded; replace the image"):
        of(JPEG, data).read(1)


def test_float_images_are_refused() -> None:
    done, data = cv2.imencode(".tiff", np.random.default_rng(0).random((4, 4, 3), np.float32))
    assert done
    with pytest.raises(DataError):
        of(data.tobytes()).read(0)


def test_two_channels_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(4, 5, 2\)"):
        in_colour(np.zeros((4, 5, 2), np.uint8))


# -- sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "webp", "tiff"])
def test_the_size_is_known_without_decoding_or_with(kind: str) -> None:
    assert of(encode_image(PICTURE, kind)).size(0) == (20, 30)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_cut_head_tells_the_size_or_nothing(kind: str) -> None:
    data = encode_image(PICTURE, kind)
    told = [stored_size(data[:length]) for length in range(len(data))]
    assert set(told) == {None, (20, 30)}
    assert told == sorted(told, key=lambda size: size is not None)


def test_progressive_jpegs_tell_their_size() -> None:
    done, data = cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    assert done
    assert stored_size(data.tobytes()) == (20, 30)
    assert stored_size(b"\xff\xd8\xff\xff\xd0" + data.tobytes()[2:]) == (20, 30)


def test_a_size_of_no_image() -> None:
    with pytest.raises(DataError, match="image 0"):
        of(b"no image").size(0)


# -- items and labels ------------------------------------------------------------------------------------------


def test_items_are_a_sequence() -> None:
    items = Items(("a", "b", "c"), (2, 1, 0))
    assert [(item.name, item.label) for item in items[1:]] == [("b", 1), ("c", 0)]
    assert items[-1].name == "c"
    assert len(items) == 3
    assert type(items[0].label) is int


def test_a_subset_keeps_its_order() -> None:
    whole = of(*(encode_image(smooth(4 + i, 5), "png") for i in range(4)), labels=(5, 6, 7, 8))
    part = Subset(whole, [3, 1])
    assert [item.label for item in part.items] == [8, 6]
    assert [part.read(i).shape[0] for i in range(2)] == [7, 5]
    assert [part.size(i)[0] for i in range(2)] == [7, 5]
    assert str(part.place(0)) == "memory: image 3"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((0, 1, 3, 4), r"image 2: label 3, where the net has 3 classes \(labels 0 to 2\); 2 image\(s\) like it"),
        ((0, -1), "image 1: no label"),
        ((-7, 0), "image 0: label -7"),
    ],
)
def test_labels_out_of_range(labels: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        require_labels(of(*[b""] * len(labels), labels=labels), 3)


def test_labels_in_range() -> None:
    require_labels(of(b"", b"", labels=(0, 2)), 3)


# -- rescaling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "smallest", "wanted"),
    [
        ((375, 500), 256, (256, 341)),
        ((500, 375), 256, (341, 256)),
        ((256, 300), 256, (256, 300)),
        ((2, 3), 5, (5, 8)),  # 7.5: to the even one
        ((2, 5), 5, (5, 12)),  # 12.5: to the even one
        ((1, 20_000), 224, (224, 4_480_000)),
    ],
)
def test_the_smallest_side_is_exact(size: tuple[int, int], smallest: int, wanted: tuple[int, int]) -> None:
    assert rescaled_size(*size, smallest) == wanted


def test_rescaling_is_bilinear() -> None:
    np.testing.assert_array_equal(rescale(PICTURE, 40), cv2.resize(PICTURE, (60, 40)))
    assert rescale(PICTURE, 20) is PICTURE
