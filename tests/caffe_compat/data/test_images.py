"""Images in records."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.data.images import decode_image, raw_planes
from caffe_compat.errors import FormatError
from caffe_compat.schema import pb

cv2 = pytest.importorskip("cv2", reason="OpenCV is an extra")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PNG = cv2.imencode(".png", PIXELS)[1].tobytes()
GRAY = cv2.imencode(".png", PIXELS[..., 0])[1].tobytes()


def test_decoding_keeps_the_channels_unless_told() -> None:
    np.testing.assert_array_equal(decode_image(PNG), PIXELS)
    np.testing.assert_array_equal(decode_image(GRAY), PIXELS[..., :1])
    np.testing.assert_array_equal(decode_image(GRAY, color=True), PIXELS[..., [0, 0, 0]])
    assert decode_image(PNG, color=False).shape == (6, 8, 1)


@pytest.mark.parametrize("data", [b"", b"nothing", PNG[:50], b"\x89PNG\r\n\x1a\n" + b"\xff" * 60])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(FormatError, match="cannot be decoded"):
        decode_image(data)


def test_images_of_16_bits_are_refused() -> None:
    deep = cv2.imencode(".png", PIXELS.astype(np.uint16) * 256)[1].tobytes()
    with pytest.raises(FormatError, match="values of type uint16"):
        decode_image(deep)


def test_raw_planes() -> None:
    datum = pb.Datum(channels=2, height=1, width=3, data=bytes([0, 1, 2, 253, 254, 255]))
    assert raw_planes(datum).tolist() == [[[0, 1, 2]], [[253, 254, 255]]]
    datum = pb.Datum(channels=1, height=1, width=2, float_data=[0.5, -3])
    assert raw_planes(datum).tolist() == [[[0.5, -3]]]
    for broken in (
        pb.Datum(channels=1, height=1, width=3, data=b"ab"),
        pb.Datum(data=b""),
        pb.Datum(channels=-1, height=-1, width=2, data=b"ab"),
    ):
        with pytest.raises(FormatError, match="states shape"):
            raw_planes(broken)
