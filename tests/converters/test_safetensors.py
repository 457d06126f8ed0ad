"""Safetensors files, byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import converters.model
from caffe_compat.weights import Blob, LayerBlobs, Weights
from converters.convert import Options, convert
from converters.model import Model
from converters.safetensors import write
from converters.streaming import Payloads, Target
from tests import models

TINY = (
    b"\xb0\x00\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"format":"pt","vggc_version":"1.2.3"},'
    b'"ip.0":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
    b'"ip.1":{"dtype":"F16","shape":[1],"data_offsets":[8,10]}}      '
    b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    b"\x00\x3e"
)
"""One weight of 1 and one of -2, a bias of 1.5 in half precision."""


def written(model: Model, path: Path) -> bytes:
    with Payloads() as payloads, Target(path) as target:
        write(model, target, payloads)
        target.finish()
        target.rename()
    return path.read_bytes()


def test_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters.model, "tool_version", lambda: "1.2.3")
    blobs = Blob((1, 2), np.array([1, -2], np.float32)), Blob((1,), np.array([1.5], np.float16))
    model = Model(None, {}, Weights((LayerBlobs("ip", blobs),)))
    assert written(model, tmp_path / "tiny.safetensors") == TINY


def test_values_begin_at_a_multiple_of_eight_and_are_in_order(tmp_path: Path) -> None:
    for length in range(1, 9):
        blob = Blob((1,), np.array([7], np.float32))
        data = written(Model(None, {}, Weights((LayerBlobs("x" * length, (blob,)),))), tmp_path / "a.safetensors")
        (size,) = struct.unpack("<Q", data[:8])
        assert size % 8 == 0
        assert data[8 + size :] == b"\x00\x00\xe0\x40"


def test_metadata_has_net_preprocessing_and_versions(tmp_path: Path) -> None:
    source = tmp_path / "m.caffemodel"
    model = models.made()
    source.write_bytes(models.caffemodel(model))
    train = tmp_path / "train.prototxt"
    text = models.NETS["plain"].split("layer {", 2)[2]
    data = """
        layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "x" batch_size: 2 }
                transform_param { crop_size: 12 scale: 0.017
                                  mean_value: 103.94 mean_value: 116.78 mean_value: 123.68 } }
    """
    train.write_text(data + "layer {" + text)
    convert(source, [tmp_path / "m.safetensors"], Options(net=train))
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", "vggc_version", "caffe_net", "caffe_profile", "preprocessing"}
    assert json.loads(metadata["preprocessing"]) == {
        "channel_order": "BGR",
        "crop_size": 12,
        "mean_value": [103.94, 116.78, 123.68],
        "scale": 0.017,
    }
    assert metadata["caffe_profile"] == "bvlc"
