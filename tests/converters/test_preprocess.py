"""`--preprocess`: pixels into the ONNX model; mean images between formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import caffe_compat as cc
from caffe_compat.errors import ConversionError, VggcError
from caffe_compat.reading import read_mean
from caffe_compat.schema import pb
from converters.convert import Options, convert
from converters.extras import Extras
from converters.image_options import stated
from converters.inspect import inspect
from converters.mean import read
from converters.onnx_pixels import read_pixels
from converters.pixels import PROPERTY, prepare
from converters.verify import Options as VerifyOptions
from converters.verify import verify
from repro.cli import run
from repro.demo import write_model
from tests.converters.residual import parsed, save

MEAN = "103.939,116.779,123.68"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "digits.caffemodel"
    write_model(path)
    return path


def pixels(shape: tuple[int, ...] = (2, 32, 32, 3), seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def in_runtime(path: Path, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.name == "image"
    assert given.type == "tensor(uint8)"
    found: NDArray[np.float32] = session.run(["prob"], {"image": image})[0]
    return found


def in_torch(path: Path, data: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(cc.load(path)({"data": torch.from_numpy(np.ascontiguousarray(data))})["prob"])


# -- in the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_model_takes_pixels(digits: Path, tmp_path: Path, order: str) -> None:
    extras = Extras(preprocess=True, mean=MEAN, scale=0.5, channel_order=order)
    report = convert(digits, [tmp_path / "a.onnx"], Options(extras=extras))
    image = pixels()
    planes = (image[..., ::-1] if order == "BGR" else image).astype(np.float32).transpose(0, 3, 1, 2)
    data = (planes - np.array([103.939, 116.779, 123.68], np.float32).reshape(3, 1, 1)) * np.float32(0.5)
    np.testing.assert_allclose(in_runtime(tmp_path / "a.onnx", image), in_torch(digits, data), rtol=0, atol=1e-5)
    onnx.checker.check_model(onnx.load(str(tmp_path / "a.onnx")), full_check=True)
    assert report.results[0].equal_blobs == 22
    assert f"uint8 N x H x W x C: {'RGB to BGR, ' if order == 'BGR' else ''}less 103.939" in report.notes[-1]


def test_mean_goes_before_the_padding(digits: Path, tmp_path: Path) -> None:
    """An image of the mean alone is all zeros behind it, at the padded edges too."""
    extras = Extras(preprocess=True, mean="50,100,150")
    convert(digits, [tmp_path / "a.onnx"], Options(extras=extras))
    image = np.broadcast_to(np.array([150, 100, 50], np.uint8), (1, 32, 32, 3))
    want = in_torch(digits, np.zeros((1, 3, 32, 32), np.float32))
    np.testing.assert_allclose(in_runtime(tmp_path / "a.onnx", np.ascontiguousarray(image)), want, rtol=0, atol=1e-6)


def test_weights_stay_as_they_are(digits: Path, tmp_path: Path) -> None:
    convert(digits, [tmp_path / "a.onnx"], Options(extras=Extras(preprocess=True, mean=MEAN)))
    found = verify(digits, tmp_path / "a.onnx")
    assert found.agrees
    assert found.equal_params == len(found.params) == 22
    assert found.inputs == ("image: 10 x 32 x 32 x 3, uniform from 0 to 255, seed 0",)
    assert found.blobs[0].name == "data", "what the model makes of pixels is compared with numpy's"
    assert found.params_only_b == ("image/mean",)
    assert verify(tmp_path / "a.onnx", digits).agrees


def test_a_wrong_mean_is_found(digits: Path, tmp_path: Path) -> None:
    for name, mean in (("a", MEAN), ("b", "104,117,123")):
        convert(digits, [tmp_path / f"{name}.onnx"], Options(extras=Extras(preprocess=True, mean=mean)))
    found = verify(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert found.first is not None
    assert found.first.name == "data"


def test_images_can_be_verified_with(digits: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is an extra")
    convert(digits, [tmp_path / "a.onnx"], Options(extras=Extras(preprocess=True, mean=MEAN)))
    cv2.imwrite(str(tmp_path / "x.png"), pixels((40, 50, 3)))
    found = verify(digits, tmp_path / "a.onnx", VerifyOptions(input=tmp_path / "x.png"))
    assert found.agrees
    assert "x.png, OpenCV, 50 x 40 resized" in found.inputs[0]


def test_model_says_what_it_does(digits: Path, tmp_path: Path) -> None:
    convert(digits, [tmp_path / "a.onnx"], Options(extras=Extras(preprocess=True, mean=MEAN, scale=0.1)))
    model = onnx.load(str(tmp_path / "a.onnx"))
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about[PROPERTY]) == {
        "blob": "data",
        "input": "image",
        "mean": "image/mean",
        "scale": float(np.float32(0.1)),
        "swap": True,
    }
    assert "preprocessing" not in about, "nobody is to do it twice"
    assert "RGB" in model.doc_string


def test_batch_stays_open_or_closed(digits: Path, tmp_path: Path) -> None:
    for name, dynamic in (("a", True), ("b", False)):
        options = Options(dynamic_batch=dynamic, extras=Extras(preprocess=True, mean=MEAN))
        convert(digits, [tmp_path / f"{name}.onnx"], options)
    dims = [onnx.load(str(tmp_path / f"{n}.onnx")).graph.input[0].type.tensor_type.shape.dim[0] for n in "ab"]
    assert (dims[0].dim_param, dims[1].dim_value) == ("N", 10)


def test_together_with_halves_and_folding(tmp_path: Path) -> None:
    source = save(parsed(), tmp_path / "net.safetensors")
    extras = Extras(preprocess=True, mean="1,2,3", fp16=True, fold_bn=True, verify=True)
    report = convert(source, [tmp_path / "a.onnx"], Options(extras=extras))
    found = report.results[0].verified
    assert found is not None
    assert found.agrees


# -- what is stated where --------------------------------------------------------------------------------------


def with_data_layer(digits: Path, path: Path, **param: Any) -> Path:
    """The model with a data layer in place of its input."""
    net = pb.NetParameter.FromString(digits.read_bytes())
    data = pb.V1LayerParameter(name="images", top=["data", "label"], type=pb.V1LayerParameter.DATA)
    data.transform_param.CopyFrom(pb.TransformationParameter(crop_size=32, **param))
    path.write_bytes(pb.NetParameter(name=net.name, layers=[data, *net.layers]).SerializeToString())
    return path


def test_what_the_data_layer_says_is_done(digits: Path, tmp_path: Path) -> None:
    source = with_data_layer(digits, tmp_path / "m.caffemodel", mean_value=[104, 117, 123], scale=0.25)
    convert(source, [tmp_path / "a.onnx"], Options(extras=Extras(preprocess=True)))
    image = pixels()
    data = prepare(image, True, np.array([104, 117, 123], np.float32), 0.25)
    np.testing.assert_allclose(in_runtime(tmp_path / "a.onnx", image), in_torch(digits, data), rtol=0, atol=1e-5)


def test_options_come_before_the_data_layer(digits: Path, tmp_path: Path) -> None:
    source = with_data_layer(digits, tmp_path / "m.caffemodel", mean_value=[104, 117, 123], scale=0.25)
    extras = Extras(preprocess=True, mean="1,2,3", scale=2.0, channel_order="RGB")
    report = convert(source, [tmp_path / "a.onnx"], Options(extras=extras))
    assert report.notes[-1].endswith("uint8 N x H x W x C: less 1, 2, 3, times 2")


def test_a_mean_file_has_to_be_given(digits: Path, tmp_path: Path) -> None:
    source = with_data_layer(digits, tmp_path / "m.caffemodel", mean_file="mean.binaryproto")
    with pytest.raises(ConversionError, match=r"is in the file mean\.binaryproto") as caught:
        convert(source, [tmp_path / "a.onnx"], Options(extras=Extras(preprocess=True)))
    assert "--mean FILE" in caught.value.remedy
    assert not (tmp_path / "a.onnx").exists()


def test_a_mean_image_is_cropped_in_the_middle(digits: Path, tmp_path: Path) -> None:
    mean = np.random.default_rng(3).uniform(0, 255, (3, 36, 40)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean)
    convert(digits, [tmp_path / "a.onnx"], Options(extras=Extras(preprocess=True, mean=str(tmp_path / "mean.npy"))))
    image = pixels()
    data = image[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - mean[:, 2:34, 4:36]
    np.testing.assert_allclose(in_runtime(tmp_path / "a.onnx", image), in_torch(digits, data), rtol=0, atol=1e-5)
    assert verify(digits, tmp_path / "a.onnx").agrees


def test_without_any_mean(digits: Path, tmp_path: Path) -> None:
    report = convert(digits, [tmp_path / "a.onnx"], Options(extras=Extras(preprocess=True)))
    assert report.notes[-1].endswith("RGB to BGR, no mean, times 1")
    assert [node.op_type for node in onnx.load(str(tmp_path / "a.onnx")).graph.node][:3] == [
        "Cast",
        "Gather",
        "Transpose",
    ]


def net(text: str) -> Any:
    return parsed(text + 'layer { name: "r" type: "ReLU" bottom: "data" top: "y" }')


GREY = 'input: "data" input_shape { dim: 1 dim: 1 dim: 4 dim: 4 }'


def test_grey_images() -> None:
    made = read_pixels(stated(net(GREY), Extras(mean="7")))
    assert (made.swap, made.scale, made.blob) == (False, 1.0, "data")
    np.testing.assert_array_equal(made.mean, [7])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "mean", "what"),
    [
        ('input: "data" input_shape { dim: 1 dim: 5 dim: 4 dim: 4 }', "", "not an image of 1 or 3 channels"),
        ('input: "data" input_shape { dim: 1 dim: 3 }', "", "not an image of 1 or 3 channels"),
        (GREY + ' input: "more" input_shape { dim: 1 }', "", "one input"),
        (GREY, "1,2", "a mean of 2 for an input of 1 x 4 x 4"),
        (GREY, "nowhere.npy", "neither numbers nor a file"),
    ],
)
def test_what_cannot_be_prepared(text: str, mean: str, what: str) -> None:
    with pytest.raises(ConversionError, match=what):
        read_pixels(stated(net(text), Extras(mean=mean)))


def test_a_mean_image_that_is_too_small(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros((1, 3, 4)) + 1)
    with pytest.raises(ConversionError, match="a mean of 1 x 3 x 4"):
        read_pixels(net(GREY), str(tmp_path / "m.npy"))


# -- in every artefact -----------------------------------------------------------------------------------------

SAID = {"channel_order": "BGR", "crop_size": 28, "mean_value": [104.0, 117.0, 123.5], "scale": 0.25}
OPTIONS = Extras(mean="104,117,123.5", scale=0.25, crop=28)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "h5", "onnx", "caffemodel", "prototxt"])
def test_every_artefact_says_how_images_are_prepared(kind: str, digits: Path, tmp_path: Path) -> None:
    target = tmp_path / f"a.{kind}"
    convert(digits, [target], Options(extras=OPTIONS))
    assert inspect(target).preprocessing == SAID


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "caffemodel"])
@pytest.mark.parametrize("again", ["safetensors", "pt", "h5", "onnx", "prototxt"])
def test_it_travels_on(kind: str, again: str, digits: Path, tmp_path: Path) -> None:
    convert(digits, [tmp_path / f"a.{kind}"], Options(extras=OPTIONS))
    convert(tmp_path / f"a.{kind}", [tmp_path / f"b.{again}"])
    assert inspect(tmp_path / f"b.{again}").preprocessing == SAID


@pytest.mark.parametrize("kind", ["pt", "h5"])
def test_weights_alone_bring_it_to_a_net(kind: str, digits: Path, tmp_path: Path) -> None:
    convert(digits, [tmp_path / f"a.{kind}"], Options(extras=OPTIONS))
    convert(tmp_path / f"a.{kind}", [tmp_path / "b.onnx"], Options(net=digits))
    assert inspect(tmp_path / "b.onnx").preprocessing == SAID


def test_source_says_it_too(digits: Path, tmp_path: Path) -> None:
    convert(digits, [tmp_path / "a.py"], Options(extras=OPTIONS))
    said = " ".join((tmp_path / "a.py").read_text().split())
    assert "Images: channel_order BGR, scale 0.25, crop_size 28, mean_value [104.0, 117.0, 123.5]." in said


def test_a_training_net_says_it(digits: Path, tmp_path: Path) -> None:
    train = tmp_path / "train_val.prototxt"
    train.write_text(
        'layer { name: "d" type: "Data" top: "data" transform_param { crop_size: 28 scale: 0.25 mean_value: 104 '
        'mean_value: 117 mean_value: 123.5 } data_param { source: "x" batch_size: 1 } }'
    )
    convert(digits, [tmp_path / "a.onnx"], Options(extras=Extras(train_val=train)))
    assert inspect(tmp_path / "a.onnx").preprocessing == SAID
    convert(digits, [tmp_path / "b.onnx"], Options(extras=Extras(train_val=train, mean="1,2,3", resize=(30, 31))))
    more = {"mean_value": [1.0, 2.0, 3.0], "resize": [30, 31]}
    assert inspect(tmp_path / "b.onnx").preprocessing == SAID | more
    train.write_text('layer { name: "r" type: "ReLU" bottom: "a" top: "b" }')
    with pytest.raises(ConversionError, match="no layer of this net says"):
        convert(digits, [tmp_path / "c.onnx"], Options(extras=Extras(train_val=train)))


@pytest.mark.parametrize(
    ("extras", "generation", "note"),
    [
        (replace(OPTIONS, channel_order="RGB"), "V2", "cannot say that it takes RGB"),
        (OPTIONS, "V1", "a net of V1 without a data layer cannot say how images are prepared: channel_order BGR"),
        (replace(OPTIONS, resize=(30, 31)), "V2", "cannot say resize [30, 31]"),
    ],
)
def test_what_a_caffe_net_cannot_say_is_told(
    extras: Extras, generation: str, note: str, digits: Path, tmp_path: Path
) -> None:
    report = convert(digits, [tmp_path / "a.caffemodel"], Options(generation=generation, extras=extras))
    assert any(note in each for each in report.notes)
    assert convert(digits, [tmp_path / "a.pt"], Options(generation=generation, extras=extras)).notes != report.notes


def test_a_mean_image_after_the_channels_were_exchanged(digits: Path, tmp_path: Path) -> None:
    """The mean is given for the net as it was."""
    mean = np.random.default_rng(3).uniform(0, 255, (3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean)
    extras = Extras(preprocess=True, rgb=True, mean=str(tmp_path / "mean.npy"))
    convert(digits, [tmp_path / "a.onnx"], Options(extras=extras))
    image = pixels()
    data = image[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - mean
    np.testing.assert_allclose(in_runtime(tmp_path / "a.onnx", image), in_torch(digits, data), rtol=0, atol=1e-5)


def test_an_image_is_given_to_each_side_in_its_own_order(digits: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "i.png"), pixels((1, 40, 50, 3))[0])
    made, plain = tmp_path / "rgb.safetensors", tmp_path / "plain.safetensors"
    convert(digits, [made], Options(extras=replace(OPTIONS, rgb=True)))
    convert(digits, [plain], Options(extras=OPTIONS))
    for a, b in ((plain, made), (made, plain), (digits, made), (made, digits)):
        found = verify(a, b, VerifyOptions(input=tmp_path / "i.png"))
        assert found.agrees, (a, b, found.notes)


def test_attributes_that_are_none_of_ours(digits: Path, tmp_path: Path) -> None:
    convert(digits, [tmp_path / "a.h5"])
    for value in (np.arange(3), "text", np.bytes_(b"\xff")):
        with h5py.File(tmp_path / "a.h5", "a") as file:
            file.attrs["preprocessing"] = value
        if isinstance(value, np.bytes_):
            with pytest.raises(VggcError):
                inspect(tmp_path / "a.h5")
        else:
            assert inspect(tmp_path / "a.h5").preprocessing == {}


# -- mean images -----------------------------------------------------------------------------------------------


def test_mean_images_go_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mean = np.random.default_rng(0).uniform(0, 255, (3, 5, 7)).astype(np.float32)
    blob = pb.BlobProto(num=1, channels=3, height=5, width=7, data=mean.ravel().tolist())
    (tmp_path / "m.binaryproto").write_bytes(blob.SerializeToString())
    assert run(["convert", str(tmp_path / "m.binaryproto"), str(tmp_path / "m.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "m.npy"), mean)
    assert run(["convert", str(tmp_path / "m.npy"), str(tmp_path / "n.binaryproto"), "--json"]) == 0
    assert (tmp_path / "n.binaryproto").read_bytes() == (tmp_path / "m.binaryproto").read_bytes()
    np.testing.assert_array_equal(read_mean(tmp_path / "n.binaryproto")[0], mean)
    assert "wrote" in capsys.readouterr().out
    for name in ("m.npy", "n.binaryproto"):
        assert run(["inspect", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert "3x5x7" in out
        assert f"highest {mean.max():g}" in out


@pytest.mark.parametrize("shape", [(3,), (3, 2, 2), (1, 3, 2, 2)])
def test_shapes_of_means(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "m.npy", np.arange(int(np.prod(shape))).reshape(shape))
    found = read(tmp_path / "m.npy")
    assert found.shape == (shape[1:] if len(shape) == 4 else shape)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "data"),
    [("m.npy", b"nothing"), ("m.npy", b""), ("m.binaryproto", b"\xff\xff\xff"), ("m.binaryproto", b"text")],
)
def test_bad_means(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VggcError):
        read(tmp_path / name)
    assert run(["convert", str(tmp_path / name), str(tmp_path / "x.npy")]) == 1
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.zeros((2, 3, 4, 5)), np.array("text"), np.zeros((0, 1, 1))])
def test_arrays_that_are_no_means(tmp_path: Path, values: NDArray[Any]) -> None:
    np.save(tmp_path / "m.npy", values)
    with pytest.raises(VggcError):
        read(tmp_path / "m.npy")


def test_means_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "m.npy", np.ones((3, 2, 2)))
    (tmp_path / "x.binaryproto").write_text("mine")
    command = ["convert", str(tmp_path / "m.npy"), str(tmp_path / "x.binaryproto")]
    assert run(command) == 1
    assert (tmp_path / "x.binaryproto").read_text() == "mine"
    assert run([*command, "--force"]) == 0
    assert run(["convert", str(tmp_path / "m.npy"), str(tmp_path / "m.npy"), "--force"]) == 1
    assert run(["convert", str(tmp_path / "m.npy"), str(tmp_path / "m.txt")]) == 1
    assert run(["convert", str(tmp_path / "m.npy")]) == 1
    capsys.readouterr()
