"""How data layers prepare images."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format

import caffe_compat as cc
import prototxt
from caffe_compat.errors import FormatError
from caffe_compat.preprocessing import carried, color_channels, preprocessing
from caffe_compat.schema import pb


def data(param: str, kind: str = "Data", rest: str = "") -> str:
    return f'layer {{ name: "data" type: "{kind}" top: "data" transform_param {{ {param} }} {rest} }}'


def of(text: str, channels: int = 3) -> dict[str, Any]:
    return preprocessing(text_format.Parse(text, pb.NetParameter()), channels)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (data("crop_size: 224"), {"channel_order": "BGR", "crop_size": 224}),
        (data("scale: 0.017 mean_value: 103.94"), {"channel_order": "BGR", "scale": 0.017, "mean_value": [103.94]}),
        (data("scale: 0.00390625"), {"channel_order": "BGR", "scale": 0.00390625}),
        (data("crop_size: 0 mirror: true"), {"channel_order": "BGR"}),
        (data('mean_file: "mean.binaryproto"'), {"channel_order": "BGR", "mean_file": "mean.binaryproto"}),
        (data("force_gray: true scale: 1"), {"scale": 1.0}),
        (data("scale: 2", "HDF5Data"), {"scale": 2.0}),
        (data("scale: 2", "MemoryData"), {"scale": 2.0}),
        (
            data("crop_size: 227", "ImageData", "image_data_param { new_height: 256 new_width: 250 }"),
            {"channel_order": "BGR", "crop_size": 227, "resize": [256, 250]},
        ),
        (
            data("resize_param { height: 300 width: 301 resize_mode: WARP }", "AnnotatedData"),
            {"channel_order": "BGR", "resize": [300, 301]},
        ),
        ('layer { name: "data" type: "Input" top: "data" }', {}),
        ("", {}),
    ],
)
def test_what_a_layer_states(text: str, expected: dict[str, Any]) -> None:
    assert of(text) == expected


def test_the_test_phase_comes_first() -> None:
    train = data("crop_size: 1", rest="include { phase: TRAIN }")
    test = data("crop_size: 2", rest="include { phase: TEST }")
    assert of(train + test)["crop_size"] == of(test + train)["crop_size"] == 2
    assert of(train)["crop_size"] == 1


def test_grey_images_have_no_channel_order() -> None:
    assert of(data("scale: 0.5"), channels=1) == {"scale": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        'layers { name: "d" type: DATA top: "data" data_param { crop_size: 9 mean_file: "m" scale: 0.5 } }',
        'layers { layer { name: "d" type: "data" cropsize: 9 meanfile: "m" scale: 0.5 } top: "data" top: "label" }',
    ],
)
def test_older_generations(text: str) -> None:
    assert of(text) == {"channel_order": "BGR", "crop_size": 9, "mean_file": "m", "scale": 0.5}


@pytest.mark.parametrize("name", [name for name in prototxt.names() if name.endswith("_train_val")])
def test_nets_of_the_paper(name: str) -> None:
    mean = [103.939, 116.779, 123.68]
    expected = {"channel_order": "BGR", "crop_size": 224, "mean_value": mean}
    assert preprocessing(cc.read_net(prototxt.find(name))) == expected


def test_colour_channels() -> None:
    assert color_channels({"data": (1, 3, 224, 224), "label": (1,)}) == 3
    assert color_channels({"label": (1,), "gray": (1, 1, 28, 28)}) == 1
    assert color_channels({"label": (1,)}) == 0


def test_carried_along() -> None:
    assert carried({"preprocessing": '{"scale": 0.5}'}) == {"scale": 0.5}
    assert carried({}) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "[" * 100_000])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="no JSON table"):
        carried({"preprocessing": text})
