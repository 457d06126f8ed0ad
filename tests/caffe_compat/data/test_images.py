"""Images in files and records."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_compat.data.images import datum_image, decode_image, encode_image, planes, read_image, resize
from caffe_compat.errors import FormatError, VggcError
from caffe_compat.schema import pb
from tests.caffe_compat.data.folders import RECORDED, images, png

COLOR, GRAY = images(1, 3, 6, 5)[0], images(1, 1, 6, 5)[0]


@pytest.mark.parametrize(("image", "channels"), [(COLOR, 3), (GRAY, 1), (images(1, 4, 6, 5)[0], 4)])
def test_channels_are_the_files_own_or_those_asked_for(image: np.ndarray, channels: int) -> None:
    data = png(image)
    np.testing.assert_array_equal(planes(decode_image(data)), image)
    assert decode_image(data).shape == (6, 5, channels)
    assert decode_image(data, True).shape == (6, 5, 3)
    assert decode_image(data, False).shape == (6, 5, 1)


def test_colours_are_blue_green_red() -> None:
    red = np.zeros((3, 2, 2), np.uint8)
    red[2] = 255
    done, data = cv2.imencode(".png", red.transpose(1, 2, 0))
    assert done
    np.testing.assert_array_equal(planes(decode_image(data.tobytes()))[:, 0, 0], [0, 0, 255])


def test_grey_files_in_colour_have_three_equal_channels() -> None:
    np.testing.assert_array_equal(planes(decode_image(png(GRAY), True)), np.repeat(GRAY, 3, 0))


def png_of(width: int, height: int) -> bytes:
    """A header that claims a size, and no data."""

    def part(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", png(COLOR)[:40], (RECORDED / "img" / "p00.jpg").read_bytes()[:300], png_of(2**15, 2**15)],
    ids=["empty", "text", "cut-png", "cut-jpeg", "bomb"],
)
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(FormatError, match="cannot be decoded"):
        decode_image(data, True)


def test_more_than_eight_bits_are_refused() -> None:
    done, data = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint16))
    assert done
    with pytest.raises(FormatError, match="type uint16"):
        decode_image(data.tobytes())
    assert decode_image(data.tobytes(), True).dtype == np.uint8


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "ä b.png"
    path.write_bytes(png(COLOR))
    np.testing.assert_array_equal(planes(read_image(path)), COLOR)
    assert read_image(path, False).shape == (6, 5, 1)
    assert read_image(path, True, (4, 9)).shape == (4, 9, 3)
    path.write_bytes(b"x")
    with pytest.raises(FormatError, match=r"ä b\.png: an image cannot be decoded"):
        read_image(path)
    with pytest.raises(VggcError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(VggcError, match="this is a folder"):
        read_image(tmp_path)


def test_resizing_interpolates_bytes() -> None:
    ramp = np.array([[0, 100]], np.uint8)[:, :, None]
    assert resize(ramp, 1, 4).ravel().tolist() == [0, 25, 75, 100]
    assert resize(images(1, 2, 6, 5)[0].transpose(1, 2, 0), 3, 4).shape == (3, 4, 2)


def test_encoding() -> None:
    np.testing.assert_array_equal(planes(decode_image(encode_image(COLOR.transpose(1, 2, 0), "png"))), COLOR)
    for kind in ("xyz", ""):
        with pytest.raises(FormatError, match="cannot be encoded"):
            encode_image(COLOR.transpose(1, 2, 0), kind)


def test_records() -> None:
    raw = pb.Datum(channels=3, height=6, width=5, data=COLOR.tobytes())
    np.testing.assert_array_equal(datum_image(raw), COLOR)
    floats = pb.Datum(channels=1, height=2, width=2, float_data=[1, 2.5, -3, 4])
    np.testing.assert_array_equal(datum_image(floats), [[[1, 2.5], [-3, 4]]])
    np.testing.assert_array_equal(datum_image(pb.Datum(data=png(COLOR), encoded=True)), COLOR)
    assert datum_image(pb.Datum(data=png(COLOR), encoded=True), False).shape == (1, 6, 5)


@pytest.mark.parametrize(
    "datum",
    [
        pb.Datum(channels=3, height=6, width=6, data=COLOR.tobytes()),
        pb.Datum(channels=-3, height=-6, width=5, data=COLOR.tobytes()),
        pb.Datum(channels=1, height=1, width=1),
        pb.Datum(data=b"abc"),
        pb.Datum(channels=1, height=2, width=2, float_data=[1, 2, 3]),
    ],
)
def test_records_that_do_not_fill_their_shape(datum: pb.Datum) -> None:
    with pytest.raises(FormatError, match="a record states shape"):
        datum_image(datum)


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(FormatError, match=r"OpenCV, which is not installed; pip install 'vggc\[images\]'"):
        decode_image(png(COLOR))
