"""Readable source: what is written, that it runs alone, and that it computes the same bits."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffe_compat.errors import ConversionError, Problems, VggcError
from caffe_compat.graph import Graph, ParamKey
from caffe_compat.layers.base import Layer
from caffe_compat.module import Net
from caffe_compat.reading import parse_net
from caffe_compat.weights import Blob, Weights
from converters import python_parts
from converters.convert import Options, convert
from converters.model import Model
from converters.python_source import OF_MODULES, PARTS, source
from converters.python_text import WIDTH, class_name, identifier, plain, quoted, statement
from converters.verify import verify
from repro.cli import run
from repro.demo import write_model
from tests import models
from tests.caffe_compat.layers.test_examples import EXAMPLES, IMAGE, Example
from tests.converters.residual import RESIDUAL, parsed, random_model, save


def write(model: Model, folder: Path) -> Path:
    """net.py and net.safetensors."""
    path = folder / "net.py"
    path.write_text(source(model, "net.safetensors"))
    save(model, folder / "net.safetensors")
    return path


def loaded(path: Path) -> Any:
    """The net of a generated file."""
    spec = importlib.util.spec_from_file_location("generated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def outputs(model: Model, path: Path, low: float = -50.0, high: float = 50.0) -> tuple[dict[str, Any], dict[str, Any]]:
    """What our module and the source give for the same inputs."""
    assert model.graph is not None
    generator = torch.Generator().manual_seed(0)
    inputs = {
        blob: torch.rand(shape, generator=generator) * (high - low) + low for blob, shape in model.graph.inputs.items()
    }
    with torch.no_grad():
        ours = Net(model.graph, {key: blob.values for key, blob in model.arrays.items()})(inputs)
        theirs = loaded(path)(*inputs.values())
    return ours, theirs if isinstance(theirs, dict) else {model.graph.outputs[0]: theirs}


def check_form(path: Path) -> None:
    """ruff has nothing to change, with its own defaults."""
    ruff("format", "--diff", str(path))
    ruff("check", "--select", "E4,E7,E9,F,I,B,UP,SIM", str(path))


def ruff(*command: str) -> None:
    words = [sys.executable, "-m", "ruff", *command, "--isolated"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# -- whole nets ------------------------------------------------------------------------------------------------


def test_source_gives_the_same_bits(tmp_path: Path) -> None:
    model = parsed(RESIDUAL)
    path = write(model, tmp_path)
    check_form(path)
    ours, theirs = outputs(model, path)
    assert ours.keys() == theirs.keys() == {"prob", "class"}
    assert all(torch.equal(ours[blob], theirs[blob]) for blob in ours)
    text = path.read_text()
    for line in (
        "class ResidualNet(nn.Module):",
        "        self.conv1 = nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1, bias=False)",
        "        self._2a_dw = nn.Conv2d(8, 8, kernel_size=(3, 1), padding=(1, 0), groups=8)",
        "        conv1 = self.bn1(conv1, self.scale1)",
        "        sum = conv1 + _2a_bn  # (2, 8, 5, 5)",
        '    "_2a_dw": "2a/dw",',
        '    "type_2": "type",',
    ):
        assert line in text.splitlines()
    assert all(len(line) <= WIDTH for line in text.splitlines())


def test_source_imports_torch_alone(tmp_path: Path) -> None:
    path = write(parsed(RESIDUAL), tmp_path)
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import net, torch
out = net.load()(torch.ones(1, 3, 9, 9))
assert out["prob"].shape == (1, 7)
assert not {{"caffe_compat", "converters", "safetensors", "numpy.testing"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imports = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert imports == {"__future__", "json", "struct", "pathlib", "torch", "torch.nn.functional"}


def test_source_is_deterministic(tmp_path: Path) -> None:
    text = source(parsed(RESIDUAL), "net.safetensors")
    assert source(parsed(RESIDUAL), "net.safetensors") == text
    assert str(tmp_path) not in text


def test_convert_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "digits.caffemodel"
    write_model(model)
    assert run(["convert", str(model), str(tmp_path / "digits.py")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.caffemodel", "digits.py", "digits.safetensors"]
    check_form(tmp_path / "digits.py")
    found = verify(model, tmp_path / "digits.py")
    assert len(found.blobs) == 17
    assert all(row.difference and row.difference.equal for row in (*found.blobs, *found.params))
    capsys.readouterr()


def changed(path: Path) -> tuple[int, int, int]:
    """What a file has as long as it is not written; reading changes the time of the last access alone."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def test_weights_of_the_source_are_not_written_again(tmp_path: Path) -> None:
    write_model(tmp_path / "a.caffemodel")
    convert(tmp_path / "a.caffemodel", [tmp_path / "a.safetensors"])
    before = changed(tmp_path / "a.safetensors")
    report = convert(tmp_path / "a.safetensors", [tmp_path / "a.py"])
    assert [result.format for result in report.results] == ["py"]
    assert changed(tmp_path / "a.safetensors") == before
    both = [tmp_path / "b.safetensors", tmp_path / "b.py"]
    assert [result.format for result in convert(tmp_path / "a.caffemodel", both).results] == ["safetensors", "py"]


def test_existing_weights_are_kept(tmp_path: Path) -> None:
    write_model(tmp_path / "a.caffemodel")
    (tmp_path / "b.safetensors").write_text("mine")
    with pytest.raises(VggcError, match="the target exists"):
        convert(tmp_path / "a.caffemodel", [tmp_path / "b.py"])
    assert (tmp_path / "b.safetensors").read_text() == "mine"
    assert not (tmp_path / "b.py").exists()


def test_names_other_than_caffes_are_refused() -> None:
    model = replace(parsed(RESIDUAL), renamed={ParamKey(1, 0): "features.0.weight"})
    with pytest.raises(ConversionError, match="Caffe's names"):
        source(model, "net.safetensors")


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (Model(None, {}, Weights(())), "cannot be built"),
        (random_model(Graph.from_net(parse_net('name: "empty"'))), "no outputs"),
    ],
)
def test_nets_that_cannot_be_written(model: Model, what: str) -> None:
    with pytest.raises(ConversionError, match=what):
        source(model, "net.safetensors")


def test_every_layer_without_source_is_named() -> None:
    text = """
    input: "data" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 }
    layer { name: "a" type: "MVN" bottom: "data" top: "a" }
    layer { name: "b" type: "ReLU" bottom: "a" top: "b" }
    layer { name: "c" type: "SPP" bottom: "b" top: "c" spp_param { pyramid_height: 1 } }
    """
    with pytest.raises(Problems) as caught:
        source(parsed(text), "net.safetensors")
    assert [error.where.layer for error in caught.value.errors] == ["a", "c"]
    assert "not written as Python source" in str(caught.value)
    assert "caffe_compat.load" in str(caught.value)


def test_a_layer_that_computes_in_its_own_way_is_refused() -> None:
    model = parsed('input: "x" input_shape { dim: 1 dim: 2 } layer { name: "r" type: "ReLU" bottom: "x" top: "y" }')
    assert model.graph is not None
    layer = model.graph.nodes[-1].layer

    class Other(type(layer)):  # type: ignore[misc]
        def forward(self, bottoms: list[torch.Tensor], blobs: list[torch.Tensor]) -> list[torch.Tensor]:
            return [bottoms[0] * 2]

    layer.__class__ = Other
    with pytest.raises(ConversionError, match="not written"):
        source(model, "net.safetensors")


SHARED = """
input: "a" input: "b"
input_shape { dim: 1 dim: 3 } input_shape { dim: 1 dim: 3 }
layer { name: "one" type: "InnerProduct" bottom: "a" top: "one" param { name: "w" } param { name: "v" }
        inner_product_param { num_output: 4 } }
layer { name: "two" type: "InnerProduct" bottom: "b" top: "two" param { name: "w" } param { name: "SECOND" }
        inner_product_param { num_output: 4 } }
"""


def test_shared_weights(tmp_path: Path) -> None:
    model = parsed(SHARED.replace("SECOND", "v"))
    path = write(model, tmp_path)
    assert "two = self.one(b)" in path.read_text()
    ours, theirs = outputs(model, path)
    assert all(torch.equal(ours[blob], theirs[blob]) for blob in ours)
    with pytest.raises(ConversionError, match="shares a part of its blobs"):
        source(parsed(SHARED.replace("SECOND", "other")), "net.safetensors")


# -- hostile names ---------------------------------------------------------------------------------------------


STRANGE = ["\\", '\\"', "'", "a'b\"c", "class", "self", "torch", "F", "1x1", "é", "", "__init__", "_", "{x}"]


@pytest.mark.parametrize("name", ['"""', "x\nimport os", *STRANGE])
def test_names_of_any_kind(name: str, tmp_path: Path) -> None:
    net = parse_net('input: "x" input_shape { dim: 1 dim: 3 }')
    net.name = name
    for index, kind in enumerate(("InnerProduct", "ReLU")):
        layer = net.layer.add(name=name or "n", type=kind)
        layer.bottom.append("x" if not index else net.layer[0].top[0])
        layer.top.append(f"{name}{index}")
    net.layer[0].inner_product_param.num_output = 2
    model = random_model(Graph.from_net(net))
    path = write(model, tmp_path)
    check_form(path)
    ours, theirs = outputs(model, path)
    assert all(torch.equal(ours[blob], theirs[blob]) for blob in ours)


def test_like_names_stay_apart(tmp_path: Path) -> None:
    text = """
    input: "a/b" input_shape { dim: 1 dim: 3 }
    layer { name: "a_b" type: "InnerProduct" bottom: "a/b" top: "a.b" inner_product_param { num_output: 3 } }
    layer { name: "a-b" type: "InnerProduct" bottom: "a.b" top: "a_b" inner_product_param { num_output: 3 } }
    """
    model = parsed(text)
    ours, theirs = outputs(model, write(model, tmp_path))
    assert torch.equal(ours["a_b"], theirs["a_b"])


@pytest.mark.parametrize(
    ("name", "want"),
    [("conv1/3x3", "conv1_3x3"), ("1x1", "_1x1"), ("class", "class_"), ("", "_"), ("__x", "_x"), ("é", "_")],
)
def test_identifier(name: str, want: str) -> None:
    assert identifier(name) == want


@pytest.mark.parametrize(
    ("name", "want"),
    [("VGG_ILSVRC_16_layers", "VGGILSVRC16Layers"), ("CaffeNet", "CaffeNet"), ("", "Net"), ("2 nets", "Net2Nets")],
)
def test_class_name(name: str, want: str) -> None:
    assert class_name(name) == want


@pytest.mark.parametrize("text", ["a", "a'b", 'a"b', "a'b\"c", '\'""', "\\", "\\'", '\\"', "\n\t\x00", "é", ""])
def test_quoted_reads_back(text: str) -> None:
    assert ast.literal_eval(quoted(text)) == text


def test_plain_text_has_no_quotes_or_lines() -> None:
    assert plain('a"""b\nc\\d\x7fé') == "a'''b?c/d??"


# -- lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "torch.cat([" + ", ".join(f"a_rather_long_name_{n}" for n in range(9)) + "], dim=1)",
        "self.conv(" + "x" * 80 + ")",
        " + ".join(f"a_rather_long_name_{n}" for n in range(3)),
        " + ".join(f"a_rather_long_name_{n}" for n in range(9)),
        " * ".join("x" * 40 for _ in range(3)),
        "F.max_pool2d(" + "x" * 50 + ", 3, 2, padding=(1, 2), ceil_mode=True)",
        "(self.conv(" + "a" * 40 + "), self.conv(" + "b" * 40 + "))",
        "some_function(another_function(" + ", ".join("y" * 20 for _ in range(6)) + "), 1)",
    ],
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_long_statements_stand_as_the_formatter_leaves_them(expression: str, depth: int, tmp_path: Path) -> None:
    lines = statement("target", expression, depth, "(1, 2, 3)")
    heads = ["def f():", "    def g():"][:depth]
    path = tmp_path / "x.py"
    path.write_text("\n".join([*heads, *lines, ""]))
    ruff("format", "--diff", str(path))
    tree = ast.parse(path.read_text())
    found = next(node.value for node in ast.walk(tree) if isinstance(node, ast.Assign))
    assert ast.unparse(found) == ast.unparse(ast.parse(expression, mode="eval"))


# -- every layer -----------------------------------------------------------------------------------------------

MORE = [
    Example(
        'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 dilation: 2 group: 2 }',
        ((2, 4, 9, 7),),
    ),
    Example('type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 stride: 2 }', ((2, 3, 9),)),
    Example('type: "Convolution" convolution_param { num_output: 2 kernel_size: 2 }', ((1, 3, 4, 5, 6),)),
    Example('type: "Convolution" convolution_param { num_output: 2 kernel_size: 1 }', (IMAGE, IMAGE), tops=2),
    Example('type: "Convolution" convolution_param { num_output: 2 kernel_size: 1 axis: 2 }'),
    Example('type: "Convolution" convolution_param { num_output: 2 kernel_size: 5 stride: 9 }'),
    Example('type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 group: 3 }'),
    *(
        Example(f'type: "{kind}3D" convolution3d_param {{ num_output: 4 {sizes} }}', ((2, 3, 5, 7, 6),), dialect="c3d")
        for kind in ("Convolution", "Deconvolution")
        for sizes in (
            "kernel_size: 3 kernel_depth: 2 stride: 2 temporal_stride: 3 pad: 1 temporal_pad: 0",
            "kernel_size: 3 kernel_depth: 3 bias_term: false",
        )
    ),
    Example('type: "InnerProduct" inner_product_param { num_output: 4 transpose: true }'),
    Example('type: "InnerProduct" inner_product_param { num_output: 4 axis: -1 bias_term: false }'),
    Example('type: "Pooling" pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 1 }'),
    Example('type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }'),
    Example('type: "Pooling" pooling_param { pool: AVE global_pooling: true }'),
    Example('type: "Pooling" pooling_param { pool: MAX global_pooling: true }'),
    Example('type: "Pooling" pooling_param { pool: MAX kernel_size: 1 stride: 3 }'),
    Example('type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 }'),
    Example('type: "LRN" lrn_param { local_size: 3 alpha: 0.7 beta: 0.6 k: 1.3 }'),
    Example('type: "LRN" lrn_param { local_size: 3 alpha: 0.7 norm_region: WITHIN_CHANNEL }'),
    Example('type: "Crop" crop_param { axis: 2 offset: 1 offset: 2 }', ((2, 3, 6, 7), (2, 3, 4, 5))),
    Example('type: "Eltwise" eltwise_param { operation: MAX }', (IMAGE, IMAGE, IMAGE)),
    Example('type: "Eltwise" eltwise_param { coeff: 0.3 coeff: -1.7 }', (IMAGE, IMAGE)),
    Example('type: "PReLU" prelu_param { channel_shared: true }'),
    Example('type: "Permute" permute_param { order: 0 order: 2 order: 3 order: 1 }'),
    Example('type: "Normalize" norm_param { across_spatial: false channel_shared: false }', dialect="ssd"),
    Example('type: "Normalize"', dialect="ssd"),
    Example('type: "Power" power_param { power: 0.3 scale: 1.1 shift: 4.7 }'),
    Example('type: "ELU" elu_param { alpha: 0.3 }'),
    Example('type: "ReLU" relu_param { negative_slope: 0.3 }'),
    Example('type: "ReLU6"', low=-9, high=9),
]
WRITTEN = [each for each in [*EXAMPLES, *MORE] if each.profile == "bvlc" and each.phase == "TEST"]


def written(example: Example) -> bool:
    return type(example.lone().layer).to_python is not Layer.to_python


@pytest.mark.parametrize("example", WRITTEN, ids=lambda each: f"{each.text} {each.shapes}")
def test_layer_gives_the_same_bits(example: Example, tmp_path: Path) -> None:
    """A layer that says how it is written either is, exactly, or refuses these parameters."""
    model, kind = random_model(example.lone().graph), example.lone().layer.TYPE
    try:
        source(model, "net.safetensors")
    except ConversionError:
        assert kind in REFUSED or not written(example)
        return
    ours, theirs = outputs(model, write(model, tmp_path), example.low, example.high)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[blob].nan_to_num(), theirs[blob].nan_to_num()) for blob in ours)


REFUSED = ("BatchNorm", "Convolution", "Deconvolution", "Dropout", "LRN", "Pooling", "Silence")
"""Types that refuse some parameters: statistics of the batch, axes, random values, masks, windows, no outputs."""


def test_most_layers_of_known_nets_are_written() -> None:
    kinds = {each.lone().layer.TYPE for each in WRITTEN if written(each)}
    assert kinds >= set(KNOWN.split())


KNOWN = """
AbsVal BNLL BatchNorm Bias Clip Concat Convolution Convolution3D Crop Deconvolution Deconvolution3D Dropout ELU Eltwise
Exp Flatten InnerProduct LRN Log Normalize PReLU Permute Pooling Power ReLU ReLU6 Reshape Scale Sigmoid Slice Softmax
Split Swish TanH
"""


# -- the parts -------------------------------------------------------------------------------------------------


def test_names_of_torchs_modules_are_reserved() -> None:
    names = {name for name in dir(torch.nn.Module()) if not name.startswith("_")}
    assert names <= OF_MODULES


def test_all_parts_are_listed_in_order() -> None:
    tree = ast.parse(Path(python_parts.__file__).read_text())
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert tuple(defined) == PARTS


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("size", [(7, 7), (8, 5), (3, 11)])
@pytest.mark.parametrize("rounding", ["CEIL", "FLOOR"])
def test_wide_padding(method: str, size: tuple[int, int], rounding: str, tmp_path: Path) -> None:
    text = f"""
    input: "x" input_shape {{ dim: 2 dim: 3 dim: {size[0]} dim: {size[1]} }}
    layer {{ name: "p" type: "Pooling" bottom: "x" top: "y" pooling_param {{
      pool: {method} kernel_h: 3 kernel_w: 4 stride_h: 2 stride_w: 3 pad_h: 2 pad_w: 1 round_mode: {rounding} }} }}
    """
    model = parsed(text)
    path = write(model, tmp_path)
    check_form(path)
    assert "wide_" in path.read_text()
    ours, theirs = outputs(model, path)
    assert torch.equal(ours["y"], theirs["y"])


def test_bias_of_five_axes(tmp_path: Path) -> None:
    text = """
    input: "x" input_shape { dim: 1 dim: 2 dim: 3 dim: 5 dim: 5 }
    layer { name: "c" type: "Convolution3D" bottom: "x" top: "c"
            convolution3d_param { num_output: 4 kernel_size: 3 kernel_depth: 2 } }
    layer { name: "d" type: "Deconvolution3D" bottom: "c" top: "d"
            convolution3d_param { num_output: 3 kernel_size: 3 kernel_depth: 2 } }
    """
    model = parsed(text)
    path = write(model, tmp_path)
    check_form(path)
    assert "c = F.conv3d(x, self.c.weight, self.c.bias.flatten())" in path.read_text()
    assert loaded(path).d.bias.shape == (1, 1, 1, 1, 3)
    ours, theirs = outputs(model, path)
    assert torch.equal(ours["d"], theirs["d"])


def test_halves_are_read(tmp_path: Path) -> None:
    model = parsed(RESIDUAL)
    halves = {key: Blob(blob.shape, blob.values.astype(np.float16)) for key, blob in model.arrays.items()}
    net = loaded(write(replace(model, arrays=halves), tmp_path))
    assert net.conv1.weight.dtype == torch.float32
    want = next(iter(halves.values())).values.astype(np.float32)
    np.testing.assert_array_equal(net.conv1.weight.detach().numpy().ravel(), want)


def test_command_names_the_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "a.caffemodel")
    assert run(["convert", str(tmp_path / "a.caffemodel"), str(tmp_path / "a.py"), "--names", "torchvision"]) == 1
    assert "vggc: error" in capsys.readouterr().err
    assert not (tmp_path / "a.py").exists()
    assert Options().names == "caffe"


def test_a_prototxt_alone_becomes_source(tmp_path: Path) -> None:
    """The weights may come later, under the name that the source looks for."""
    models.write(tmp_path / "m.caffemodel")
    report = convert(
        tmp_path / "m.prototxt", [tmp_path / "net.py", tmp_path / "old.prototxt"], Options(generation="V1")
    )
    assert (report.format, report.parameters) == ("prototxt", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.caffemodel", "m.prototxt", "net.py", "old.prototxt"]
    alone = (tmp_path / "net.py").read_text()
    convert(tmp_path / "m.caffemodel", [tmp_path / "net.py"], Options(force=True))
    assert (tmp_path / "net.py").read_text() == alone
    assert (tmp_path / "net.safetensors").exists()
