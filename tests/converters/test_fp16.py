"""`--fp16` and `--fold-bn`: what becomes of weights and nets, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from caffe_compat.errors import ConversionError, VggcError
from caffe_compat.graph import ParamKey
from caffe_compat.weights import Blob
from converters.convert import Options, convert
from converters.extras import HALF_TOLERANCE, Extras
from converters.folding import folded
from converters.half import halved
from converters.model import Model
from converters.sides import model_side
from converters.verify import Options as VerifyOptions
from converters.verify import compare, verify
from repro.cli import run
from repro.demo import write_model
from tests.converters.residual import RESIDUAL, parsed, save

HALF, FOLD = Options(extras=Extras(fp16=True)), Options(extras=Extras(fold_bn=True))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "digits.caffemodel"
    write_model(path)
    return path


# -- float16 ---------------------------------------------------------------------------------------------------


def test_kernels_are_halved_and_vectors_are_not(digits: Path, tmp_path: Path) -> None:
    report = convert(digits, [tmp_path / "a.safetensors"], HALF)
    whole = convert(digits, [tmp_path / "b.safetensors"])
    found, want = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert found.keys() == want.keys()
    for name, values in found.items():
        assert values.dtype == (np.float16 if values.ndim > 1 else np.float32)
        np.testing.assert_array_equal(values, want[name].astype(values.dtype))
    assert report.results[0].bytes < 0.51 * whole.results[0].bytes
    assert report.results[0].equal_blobs == 22
    assert "11 of 22 parameter blobs are float16; vectors stay float32" in report.notes


def test_the_difference_is_measured(digits: Path, tmp_path: Path) -> None:
    report = convert(digits, [tmp_path / "a.safetensors"], HALF)
    (said,) = [note for note in report.notes if note.startswith("float16: ")]
    assert "17 blobs compared" in said
    found = verify(digits, tmp_path / "a.safetensors", VerifyOptions(tolerance=HALF_TOLERANCE))
    assert found.agrees
    assert found.worst is not None
    assert found.worst.difference is not None
    assert f"{found.worst.difference.relative:.2g} of the blob's" in said


def test_onnx_casts_back(digits: Path, tmp_path: Path) -> None:
    convert(digits, [tmp_path / "a.onnx", tmp_path / "a.safetensors"], HALF)
    model = onnx.load(str(tmp_path / "a.onnx"))
    onnx.checker.check_model(model, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["conv1_1.weight"] == onnx.TensorProto.FLOAT16
    assert types["conv1_1.bias"] == onnx.TensorProto.FLOAT
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 11
    assert {info.type.tensor_type.elem_type for info in (*model.graph.input, *model.graph.output)} == {1}
    found = verify(tmp_path / "a.safetensors", tmp_path / "a.onnx")
    assert found.agrees, "ONNX Runtime computes with the same weights in float32"
    assert found.equal_params == len(found.params) - 11
    assert all(row.difference and row.difference.absolute == 0 for row in found.params)


def test_values_beyond_the_range_stay() -> None:
    model = parsed()
    key = ParamKey(1, 0)
    values = model.arrays[key].values.copy()
    values[0] = 70000.0
    arrays = {**model.arrays, key: Blob(model.arrays[key].shape, values)}
    made = halved(Model(model.graph, arrays, model.weights))
    assert made.arrays[key].values.dtype == np.float32
    assert made.notes[1] == "these have values beyond float16's range and stay float32: conv1.weight"


def test_values_that_vanish_are_counted() -> None:
    model = parsed()
    key = ParamKey(1, 0)
    values = np.full_like(model.arrays[key].values, 1e-9)
    values[:3] = 0
    made = halved(Model(model.graph, {key: Blob(model.arrays[key].shape, values)}, model.weights))
    assert made.notes[1] == f"{values.size - 3} value(s) are too small for float16 and became 0"


@pytest.mark.parametrize("suffix", ["h5", "pt"])
def test_other_formats_are_refused(digits: Path, tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConversionError, match=f"not for {suffix}"):
        convert(digits, [tmp_path / "a.onnx", tmp_path / f"a.{suffix}"], HALF)
    assert not list(tmp_path.iterdir())


def test_results_are_verified_at_a_tolerance_of_their_own(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(digits), str(tmp_path / "a.onnx"), str(tmp_path / "a.py"), "--fp16", "--verify"]
    assert run(command) == 0
    assert capsys.readouterr().out.count("allowed: 0.01") == 3
    assert run([*command, "--force", "--tolerance", "1e-5"]) == 3
    assert "DIFFERS, first in blob conv1_1" in capsys.readouterr().out


# -- folding ---------------------------------------------------------------------------------------------------


def test_folded_net_is_the_same_in_real_arithmetic() -> None:
    model = parsed()
    made = folded(model)
    assert made.graph is not None
    assert [node.layer.name for node in made.graph.nodes if node.layer.TYPE in ("BatchNorm", "Scale")] == []
    found = compare(model_side("a", model), model_side("b", made), VerifyOptions())
    assert found.agrees
    assert found.only_a == ("2a/dw",)
    assert found.params_only_b == ("conv1.bias",)
    assert made.notes == ("folded 3 BatchNorm and Scale layer(s) into the weights before them",)


def test_folded_weights_are_computed_in_double_precision() -> None:
    model = parsed()
    made = folded(model)
    weight, mean, variance, factor, scale, bias = (
        model.arrays[ParamKey(*key)].values.astype(np.float64)
        for key in ((1, 0), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1))
    )
    gain = scale / np.sqrt(variance / factor + 1e-5)
    want = (weight.reshape(8, -1) * gain[:, None]).astype(np.float32).ravel()
    np.testing.assert_allclose(made.arrays[ParamKey(1, 0)].values, want, rtol=2e-7)
    want = (bias - mean / factor * gain).astype(np.float32)
    np.testing.assert_allclose(made.arrays[ParamKey(1, 1)].values, want, rtol=2e-6)


FORKED = RESIDUAL.replace(
    'layer { name: "relu1"', 'layer { name: "side" type: "Power" bottom: "conv1" top: "side" } layer { name: "relu1"'
)
SEEN = RESIDUAL.replace('type: "BatchNorm" bottom: "conv1" top: "conv1"', 'type: "BatchNorm" bottom: "conv1" top: "x"')
SEEN = SEEN.replace('type: "Scale" bottom: "conv1" top: "conv1"', 'type: "Scale" bottom: "x" top: "y"')
SEEN = SEEN.replace('"ReLU" bottom: "conv1" top: "conv1"', '"ReLU" bottom: "conv1" top: "z"')


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (SEEN, "bn1, scale1"),
        (
            RESIDUAL.replace(
                'bottom: "conv1" top: "conv1" }',
                'bottom: "conv1" top: "conv1" batch_norm_param { use_global_stats: false } }',
                1,
            ),
            "bn1, scale1",
        ),
        (RESIDUAL.replace("scale_param { bias_term: true }", "scale_param { axis: 0 num_axes: 2 }"), "scale1"),
    ],
)
def test_layers_that_cannot_be_folded_stay(text: str, left: str) -> None:
    model = parsed(text)
    made = folded(model)
    assert made.notes[-1] == f"not folded: {left}"
    assert made.graph is not None
    kept = [node.layer.name for node in made.graph.nodes if node.layer.TYPE in ("BatchNorm", "Scale")]
    assert ", ".join(kept) == left
    assert compare(model_side("a", model), model_side("b", made), VerifyOptions()).agrees


def test_shared_weights_stay() -> None:
    text = """
    input: "a" input: "b" input_shape { dim: 2 dim: 3 } input_shape { dim: 2 dim: 3 }
    layer { name: "one" type: "InnerProduct" bottom: "a" top: "one" param { name: "w" } param { name: "v" }
            inner_product_param { num_output: 4 } }
    layer { name: "two" type: "InnerProduct" bottom: "b" top: "two" param { name: "w" } param { name: "v" }
            inner_product_param { num_output: 4 } }
    layer { name: "bn" type: "BatchNorm" bottom: "one" top: "bn" }
    """
    made = folded(parsed(text))
    assert made.notes[-1] == "not folded: bn"


@pytest.mark.parametrize("transpose", ["true", "false"])
def test_inner_products_are_folded(transpose: str) -> None:
    text = f"""
    input: "a" input_shape {{ dim: 5 dim: 3 dim: 2 dim: 1 }}
    layer {{ name: "fc" type: "InnerProduct" bottom: "a" top: "fc"
            inner_product_param {{ num_output: 4 transpose: {transpose} bias_term: false }} }}
    layer {{ name: "bn" type: "BatchNorm" bottom: "fc" top: "fc" }}
    layer {{ name: "out" type: "ReLU" bottom: "fc" top: "out" }}
    """
    model = parsed(text)
    found = compare(model_side("a", model), model_side("b", folded(model)), VerifyOptions())
    assert found.agrees
    assert found.only_a == ()


@pytest.mark.parametrize("suffix", ["onnx", "safetensors", "h5", "pt", "py"])
def test_folded_results_agree(tmp_path: Path, suffix: str) -> None:
    source = save(parsed(), tmp_path / "net.safetensors")
    extras = Extras(fold_bn=True, verify=True)
    report = convert(source, [tmp_path / f"folded.{suffix}"], Options(extras=extras))
    assert all(result.verified is not None and result.verified.agrees for result in report.results)
    (said,) = [note for note in report.notes if note.startswith("folding: ")]
    assert "largest difference" in said
    assert report.layers == 9


def test_folded_net_travels_along(tmp_path: Path) -> None:
    source = save(parsed(), tmp_path / "net.safetensors")
    convert(source, [tmp_path / "folded.safetensors"], FOLD)
    again = convert(tmp_path / "folded.safetensors", [tmp_path / "again.onnx"])
    assert again.layers == 9
    assert verify(source, tmp_path / "again.onnx").agrees


def test_folding_needs_a_net(tmp_path: Path) -> None:
    source = save(parsed(), tmp_path / "net.safetensors")
    with pytest.raises(VggcError, match="need the net"):
        convert(source, [tmp_path / "a.h5"], Options(weights_only=True, extras=Extras(fold_bn=True)))
