"""Data layers: databases and image lists, four batches each; `caffe.io`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_compat.data.caffe_io import Transformer, oversample, resize_image
from tests.parity.cases import Case, Folders, golden_cases
from tests.parity.compare import Comparison, comparing
from tests.parity.layer_case import prototxt, run_case
from tests.parity.pixels import pixel_tolerance
from tests.parity.records import Record
from tests.tolerances import LAYERS

MEAN = np.array([104.0, 117.0, 123.0])
"""What the Transformer was given when it was recorded, with the numbers below."""


def cases(folders: Folders) -> list[Case]:
    return golden_cases(folders, "data")


def test_data(case: Case, tmp_path: Path) -> None:
    with comparing() as compare:
        if not case.files(".prototxt"):
            check_caffe_io(Record(case.path("caffe_io.npz")), compare)
            return
        run_case(case, tmp_path, pixel_tolerance(prototxt(case)), compare)


def check_caffe_io(record: Record, compare: Comparison) -> None:
    """Every array, from the same image."""
    image = record.value("image")
    for kind in ("transformer_same", "transformer_resize"):
        want = record.group(kind)
        io = transformer(want["out"].shape)
        made = io.preprocess("data", image)
        compare.array(f"{kind}/out", made, want["out"], LAYERS)
        compare.array(f"{kind}/deprocess", io.deprocess("data", made), want["deprocess"], LAYERS)
    crops = record.group("oversample")
    compare.array("oversample", oversample(crops["in"], crops["crop"]), crops["out"])
    for kind in ("resize_image_up", "resize_image_down", "resize_image_2ch"):
        want = record.group(kind)
        compare.array(kind, resize_image(want.get("in", image), want["out"].shape[:2]), want["out"], LAYERS)
    compare.equal("keys that were not compared", record.unseen(), [])


def transformer(shape: tuple[int, ...]) -> Transformer:
    io = Transformer({"data": (1, *shape)})
    io.set_transpose("data", (2, 0, 1))
    io.set_channel_swap("data", (2, 1, 0))
    io.set_raw_scale("data", 255)
    io.set_mean("data", MEAN)
    io.set_input_scale("data", 0.017)
    return io
