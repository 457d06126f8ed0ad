"""ONNX files: the same numbers in ONNX Runtime at every operator set and batch size, names, metadata, external data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import numpy_helper

import converters.onnx
from caffe_compat.errors import ConversionError, Problems
from caffe_compat.schema import pb
from converters.convert import Options, convert
from converters.onnx import OPSETS
from tests import models
from tests.converters.engines import check, in_ort, in_torch, inputs


def converted(tmp_path: Path, name: str, options: Options | None = None) -> tuple[Path, Path]:
    """The .safetensors and the .onnx of one of the small nets."""
    models.write(tmp_path / "m.caffemodel", name)
    weights, model = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    convert(tmp_path / "m.caffemodel", [weights, model], options)
    return weights, model


def declared(model: Path) -> dict[str, list[int | str]]:
    """Input -> sizes, names for open ones."""
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.load(model).graph.input
    }


@pytest.mark.parametrize("name", models.NETS)
@pytest.mark.parametrize("opset", [13, 17, 18, 20, 23])
def test_both_engines_agree_at_any_batch_size(name: str, opset: int, tmp_path: Path) -> None:
    weights, model = converted(tmp_path, name, Options(opset=opset))
    onnx.checker.check_model(str(model), full_check=True)
    assert onnx.load(model).opset_import[0].version == opset
    shapes = declared(model)
    assert all(shape[0] == "N" for shape in shapes.values())
    for batch in (1, 3):
        arrays = inputs(shapes, batch)
        check(in_ort(model, arrays), in_torch(weights, arrays))


@pytest.mark.parametrize("name", models.NETS)
def test_a_static_batch_is_kept(name: str, tmp_path: Path) -> None:
    weights, model = converted(tmp_path, name, Options(dynamic_batch=False))
    net = models.made(name).net
    want = [list(shape.dim) for shape in net.layer[0].input_param.shape] * len(net.layer[0].top)
    assert list(declared(model).values()) == want[: len(net.layer[0].top)]
    arrays = inputs(declared(model))
    check(in_ort(model, arrays), in_torch(weights, arrays))


def test_every_opset_is_written(tmp_path: Path) -> None:
    models.write(tmp_path / "m.caffemodel")
    for opset in OPSETS:
        convert(tmp_path / "m.caffemodel", [tmp_path / "m.onnx"], Options(opset=opset, force=True))
        onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    for opset in (OPSETS[0] - 1, OPSETS[-1] + 1):
        with pytest.raises(ConversionError, match=f"opset {opset}"):
            convert(tmp_path / "m.caffemodel", [tmp_path / "m.onnx"], Options(opset=opset, force=True))


def test_tensors_are_called_as_blobs(tmp_path: Path) -> None:
    _, path = converted(tmp_path, "in place")
    graph = onnx.load(path).graph
    made = [name for node in graph.node for name in node.output]
    assert made[-1] == "x", "the final value has the blob's name"
    assert sum(name.startswith("x@") for name in made) >= 3, "earlier ones have the version too"
    assert [value.name for value in graph.output] == ["x"]
    assert {"ip.weight", "ip.bias", "scale.weight"} <= {tensor.name for tensor in graph.initializer}
    assert len(set(made)) == len(made)
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_it_says_where_it_comes_from(tmp_path: Path) -> None:
    source = tmp_path / "m.caffemodel"
    model = models.made()
    text = text_format.MessageToString(model.net)
    data = text_format.Parse(
        'name: "data" type: "Data" top: "data" include { phase: TEST } data_param { source: "x" batch_size: 2 }'
        "transform_param { mean_value: 104 crop_size: 12 }",
        pb.LayerParameter(),
    )
    net = text_format.Parse(text, pb.NetParameter())
    net.layer[0].CopyFrom(data)
    source.write_bytes(models.caffemodel(model))
    (tmp_path / "train_val.prototxt").write_text(text_format.MessageToString(net))
    convert(source, [tmp_path / "m.onnx"], Options(net=tmp_path / "train_val.prototxt"))
    found = onnx.load(tmp_path / "m.onnx")
    props = {entry.key: entry.value for entry in found.metadata_props}
    assert json.loads(props["preprocessing"]) == {"channel_order": "BGR", "mean_value": [104.0], "crop_size": 12}
    assert props["caffe_profile"] == "bvlc"
    assert found.producer_name == "vggc"
    assert found.graph.name == "plain"
    assert '"plain"' in found.doc_string


def test_a_weight_called_as_a_blob_gets_another_name(tmp_path: Path) -> None:
    model = models.made()
    for layer in model.net.layer:
        for blobs in (layer.bottom, layer.top):
            blobs[:] = ["ip.weight" if blob == "pool1" else blob for blob in blobs]
    source = tmp_path / "m.caffemodel"
    source.write_bytes(models.caffemodel(model))
    convert(source, [tmp_path / "m.onnx", tmp_path / "m.safetensors"])
    arrays = inputs({"data": (2, 3, 12, 12)})
    check(in_ort(tmp_path / "m.onnx", arrays), in_torch(tmp_path / "m.safetensors", arrays))


def test_every_layer_without_a_form_is_named(tmp_path: Path) -> None:
    net = text_format.Parse(
        """
        layer { name: "data" type: "Input" top: "data"
                input_param { shape { dim: 1 dim: 2 dim: 3 dim: 3 dim: 3 dim: 3 } } }
        layer { name: "first" type: "Convolution" bottom: "data" top: "p"
                convolution_param { num_output: 2 kernel_size: 2 } }
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 5 } }
        layer { name: "second" type: "Convolution" bottom: "p" top: "q"
                convolution_param { num_output: 2 kernel_size: 1 } }
        """,
        pb.NetParameter(),
    )
    source = tmp_path / "m.caffemodel"
    source.write_bytes(models.caffemodel(models.with_weights(net)))
    with pytest.raises(Problems) as caught:
        convert(source, [tmp_path / "m.safetensors", tmp_path / "m.onnx"])
    assert [error.where.layer for error in caught.value.errors] == ["first", "second"]
    assert all(isinstance(error, ConversionError) and error.remedy for error in caught.value.errors)
    assert [path.name for path in tmp_path.iterdir()] == ["m.caffemodel"], "nor was the other target written"


# -- external data -----------------------------------------------------------------------------------------


@pytest.fixture
def external(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models are too large for one file."""
    monkeypatch.setattr(converters.onnx, "LARGEST", 1000)


@pytest.mark.usefixtures("external")
@pytest.mark.parametrize("name", models.NETS)
def test_external_data_computes_the_same(name: str, tmp_path: Path) -> None:
    weights, model = converted(tmp_path, name)
    onnx.checker.check_model(str(model), full_check=True)
    arrays = inputs(declared(model), 2)
    check(in_ort(model, arrays), in_torch(weights, arrays))


@pytest.mark.usefixtures("external")
def test_external_data_is_called_after_its_content(tmp_path: Path) -> None:
    models.write(tmp_path / "m.caffemodel")
    report = convert(tmp_path / "m.caffemodel", [tmp_path / "m.onnx"])
    model, data = report.results
    assert (model.format, data.format) == ("onnx", "onnx data")
    assert data.path == str(tmp_path / f"m.onnx.{data.sha256[:12]}.data")
    assert Path(data.path).stat().st_size == data.bytes == sum(a.nbytes for a in models.made().arrays.values())
    locations = {e.value for t in onnx.load(model.path, load_external_data=False).graph.initializer
                 for e in t.external_data if e.key == "location"}  # fmt: skip
    assert locations == {Path(data.path).name}
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(model.path).graph.initializer}
    np.testing.assert_array_equal(found["conv1.weight"], models.made().arrays["conv1", 0])


@pytest.mark.usefixtures("external")
def test_replacing_leaves_no_moment_with_a_model_and_another_models_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "m.caffemodel"
    arrays = inputs({"data": (2, 3, 12, 12)})
    want = []
    for seed in (0, 1):
        source.write_bytes(models.caffemodel(models.made(seed=seed)))
        convert(source, [tmp_path / "m.onnx"], Options(force=True))
        want.append(in_ort(tmp_path / "m.onnx", arrays))

    seen = []
    replace = converters.streaming.os.replace

    def watched(one: Path, other: Path) -> None:
        replace(one, other)
        seen.append(in_ort(tmp_path / "m.onnx", arrays))

    monkeypatch.setattr(converters.streaming.os, "replace", watched)
    source.write_bytes(models.caffemodel(models.made(seed=0)))
    convert(source, [tmp_path / "m.onnx"], Options(force=True))
    check(seen[0], want[1])
    check(seen[1], want[0])


# -- nets that are hard to say in ONNX ---------------------------------------------------------------------


def of_text(text: str, tmp_path: Path) -> tuple[Path, Path]:
    net = text_format.Parse(text, pb.NetParameter())
    (tmp_path / "m.caffemodel").write_bytes(models.caffemodel(models.with_weights(net)))
    targets = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    convert(tmp_path / "m.caffemodel", targets)
    return targets


def test_a_blob_shared_with_another_shape(tmp_path: Path) -> None:
    shared = 'param { name: "w" share_mode: PERMISSIVE } inner_product_param { bias_term: false num_output:'
    text = f"""
        layer {{ name: "a" type: "Input" top: "a" input_param {{ shape {{ dim: 2 dim: 6 }} }} }}
        layer {{ name: "b" type: "Input" top: "b" input_param {{ shape {{ dim: 2 dim: 4 }} }} }}
        layer {{ name: "one" type: "InnerProduct" bottom: "a" top: "one" {shared} 2 }} }}
        layer {{ name: "two" type: "InnerProduct" bottom: "b" top: "two" {shared} 3 }} }}
    """
    weights, model = of_text(text, tmp_path)
    arrays = inputs({"a": (2, 6), "b": (2, 4)})
    check(in_ort(model, arrays), in_torch(weights, arrays))


def test_sizes_that_depend_on_values_are_open(tmp_path: Path) -> None:
    text = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 } } }
        layer { name: "keep" type: "Input" top: "keep" input_param { shape { dim: 4 dim: 1 } } }
        layer { name: "gate" type: "Filter" bottom: "x" bottom: "keep" top: "kept" }
        layer { name: "ip" type: "InnerProduct" bottom: "kept" top: "ip" inner_product_param { num_output: 2 } }
    """
    weights, model = of_text(text, tmp_path)
    (output,) = onnx.load(model).graph.output
    assert [dim.WhichOneof("value") for dim in output.type.tensor_type.shape.dim] == [None, None]
    for keep in ([1, 0, 1, 1], [0, 0, 1, 0]):
        arrays = inputs({"x": (4, 3)}) | {"keep": np.array(keep, np.float32).reshape(4, 1)}
        check(in_ort(model, arrays), in_torch(weights, arrays))


def test_blobs_without_axes(tmp_path: Path) -> None:
    text = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 } } }
        layer { name: "sum" type: "Reduction" bottom: "x" top: "sum" reduction_param { coeff: 0.5 } }
        layer { name: "exp" type: "Exp" bottom: "sum" top: "exp" exp_param { scale: 0.1 } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 2 } }
    """
    weights, model = of_text(text, tmp_path)
    arrays = inputs({"x": (4, 3)})
    check(in_ort(model, arrays), in_torch(weights, arrays))


def test_a_net_without_outputs_is_refused(tmp_path: Path) -> None:
    text = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 } } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 2 } }
        layer { name: "hush" type: "Silence" bottom: "ip" }
    """
    with pytest.raises(ConversionError, match="no outputs"):
        of_text(text, tmp_path)
