"""`--card`, `--verify` and `--license` of `vggc convert`, and the check that every result goes through."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import converters.onnx
from caffe_compat.errors import ConversionError
from caffe_compat.schema import pb
from converters.card import LIBRARIES, base, card_path, cell, text
from converters.checks import equal_blobs
from converters.convert import Options, convert, prepare
from converters.extras import Extras
from converters.model import Model
from repro.cli import run
from repro.demo import write_model
from tests.converters.residual import parsed, save

EVERY = ("safetensors", "pt", "h5", "onnx", "caffemodel")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    write_model(tmp_path / "digits.caffemodel")
    return tmp_path / "digits.caffemodel"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- the card --------------------------------------------------------------------------------------------------


def test_card_says_where_a_result_comes_from(digits: Path) -> None:
    target = digits.with_name("net.onnx")
    report = convert(digits, [target], Options(extras=Extras(card=True, verify=True, license="BSD 3-clause")))
    assert report.cards == (str(card_path(target)),)
    said = card_path(target).read_text()
    assert said.startswith("# net.onnx\n")
    for line in (
        f"| source | digits.caffemodel | caffemodel V1 | {digits.stat().st_size:,} | `{sha256(digits)}` |",
        f"| result | net.onnx | onnx | {target.stat().st_size:,} | `{sha256(target)}` |",
        "- input data: 10 x 3 x 32 x 32",
        "- output prob: 10 x 10",
        "- upgraded 29 V1 layer(s) to V2",
        "- Weights: 22 parameter blobs were read back and are bit-equal to the source.",
        "Semantics: bvlc.",
        "The source does not say how images are prepared.",
        "BSD 3-clause",
    ):
        assert line in said.splitlines()
    assert re.search(r"^- Values: 17 blobs compared .*; allowed: 1e-05. They agree.$", said, re.M)
    assert all(f"\n- {name} " in said for name in ("vggc", "Python", *LIBRARIES))
    assert str(digits.parent) not in said, "folders are the user's own"


def test_card_is_deterministic(digits: Path) -> None:
    target = digits.with_name("net.h5")
    cards = []
    for _ in range(2):
        convert(digits, [target], Options(force=True, extras=Extras(card=True)))
        cards.append(card_path(target).read_bytes())
    assert cards[0] == cards[1]


def test_card_says_what_was_not_done(digits: Path) -> None:
    target = digits.with_name("net.safetensors")
    convert(digits, [target], Options(extras=Extras(card=True)))
    said = card_path(target).read_text()
    assert "- Values: not compared." in said
    assert "Not stated. Converting a model does not change its licence" in said


def test_card_tells_what_was_changed(tmp_path: Path) -> None:
    source = save(parsed(), tmp_path / "net.safetensors")
    target = tmp_path / "small.onnx"
    convert(source, [target], Options(extras=Extras(card=True, fp16=True, fold_bn=True)))
    said = card_path(target).read_text()
    assert "- folded 3 BatchNorm and Scale layer(s) into the weights before them" in said
    assert re.search(r"^- float16: \d+ blobs compared on random input", said, re.M)
    assert "bit-equal to what was made of the source as said above" in said


def test_card_of_weights_without_a_net(digits: Path) -> None:
    target = digits.with_name("net.safetensors")
    convert(digits, [target], Options(weights_only=True, extras=Extras(card=True)))
    assert "The net was not built." in card_path(target).read_text()


def test_card_carries_preprocessing(digits: Path) -> None:
    net = pb.NetParameter.FromString(digits.read_bytes())
    data = net.layers.add(name="images", top=["data", "label"])
    data.type = pb.V1LayerParameter.DATA
    data.transform_param.mean_value.extend([104, 117, 123])
    data.transform_param.scale = 0.017
    data.transform_param.crop_size = 32
    rest = [layer for layer in net.layers if layer.name != "images"]
    made = pb.NetParameter(name=net.name, layers=[data, *rest])
    digits.write_bytes(made.SerializeToString())
    target = digits.with_name("net.pt")
    convert(digits, [target], Options(extras=Extras(card=True)))
    said = card_path(target).read_text()
    assert r"- mean\_value: \[104.0, 117.0, 123.0\]" in said
    assert "- scale: 0.017" in said


def test_every_result_has_a_card(digits: Path) -> None:
    targets = [digits.with_name(name) for name in ("a.onnx", "a.py")]
    report = convert(digits, targets, Options(extras=Extras(card=True)))
    names = [Path(path).name for path in report.cards]
    assert names == ["a.onnx.card.md", "a.py.card.md", "a.safetensors.card.md"]


def test_large_onnx_lists_its_data(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters.onnx, "LARGEST", 1000)
    target = digits.with_name("a.onnx")
    report = convert(digits, [target], Options(extras=Extras(card=True)))
    assert [Path(path).name for path in report.cards] == ["a.onnx.card.md"]
    (data,) = digits.parent.glob("*.data")
    assert f"| result | {data.name} | onnx data |" in card_path(target).read_text()
    assert report.results[0].equal_blobs == 22


def test_existing_cards_are_kept(digits: Path) -> None:
    target = digits.with_name("a.onnx")
    card_path(target).write_text("mine")
    with pytest.raises(ConversionError, match="the card exists"):
        convert(digits, [target], Options(extras=Extras(card=True)))
    assert card_path(target).read_text() == "mine"
    assert not target.exists()


def test_licence_from_a_file(digits: Path) -> None:
    licence, target = digits.with_name("LICENSE"), digits.with_name("a.h5")
    licence.write_text("Do what you like.\nReally.\n")
    convert(digits, [target], Options(extras=Extras(card=True, license=str(licence))))
    assert card_path(target).read_text().endswith("## Licence\n\nDo what you like.\nReally.\n")
    licence.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConversionError, match="cannot be read as text"):
        convert(digits, [target], Options(force=True, extras=Extras(card=True, license=str(licence))))
    text_of_many_lines = "x" * 5000
    convert(digits, [target], Options(force=True, extras=Extras(card=True, license=text_of_many_lines)))
    assert text_of_many_lines in card_path(target).read_text()


@pytest.mark.parametrize("value", ["a|b", "<script>", "# x", "a\nb", "*a*", "`a`", "[a](b)", "a\\b"])
def test_names_are_no_markup(value: str) -> None:
    for made in (text(value), cell(value)):
        assert "\n" not in made
        assert not re.search(r"(?<!\\)[|<#*`\[]", made)


def test_base_drops_folders() -> None:
    assert base("/home/me/net.onnx") == "net.onnx"


@pytest.mark.parametrize(
    ("extras", "what"),
    [
        (Extras(license="MIT"), "--license goes with --card"),
        (Extras(preprocess=True), "for ONNX results"),
    ],
)
def test_options_with_nothing_to_act_on(digits: Path, extras: Extras, what: str) -> None:
    with pytest.raises(ConversionError, match=what):
        convert(digits, [digits.with_name("a.h5")], Options(extras=extras))


# -- checking what was written ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_every_result_is_read_back(digits: Path, kind: str) -> None:
    report = convert(digits, [digits.with_name(f"a.{kind}")])
    assert report.results[0].equal_blobs == 22


def flip(path: Path, values: bytes) -> None:
    """Change one bit where these bytes stand."""
    data = bytearray(path.read_bytes())
    at = data.index(values)
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind != "pt"])
def test_one_wrong_bit_is_found(digits: Path, kind: str) -> None:
    target = digits.with_name(f"a.{kind}")
    convert(digits, [target])
    model = prepare(digits, Options()).model
    flip(target, next(item for item in model.blobs() if item.name == "fc7.weight").blob.values.tobytes())
    with pytest.raises(ConversionError, match=r"fc7.weight is not in the result as it should be"):
        equal_blobs(model, target, kind)


def test_a_missing_blob_is_found(digits: Path) -> None:
    target = digits.with_name("a.safetensors")
    convert(digits, [target])
    model = prepare(digits, Options()).model
    key = next(iter(model.arrays))
    blob = model.arrays[key]
    other: Model = replace(model, renamed={key: "another.name"}, arrays={**model.arrays, key: blob})
    with pytest.raises(ConversionError, match=r"another.name is not in the result"):
        equal_blobs(other, target, "safetensors")


def test_nothing_is_left_when_a_result_is_wrong(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., int] = converters.convert.equal_blobs

    def wrong(model: Model, path: Path, kind: str, beside: Path | None = None) -> int:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return right(model, path, kind, beside)

    monkeypatch.setattr(converters.convert, "equal_blobs", wrong)
    with pytest.raises(ConversionError, match="is not in the result as it should be"):
        convert(digits, [digits.with_name("a.safetensors")])
    assert [path.name for path in digits.parent.iterdir()] == ["digits.caffemodel"]


@pytest.mark.parametrize("kind", [*EVERY, "py"])
def test_verify_runs_every_result(digits: Path, kind: str) -> None:
    report = convert(digits, [digits.with_name(f"a.{kind}")], Options(extras=Extras(verify=True)))
    found = report.results[0].verified
    assert found is not None
    assert found.agrees
    assert (found.compared, found.tolerance, found.first) == (17, 1e-5, "")


def test_verify_says_what_differs(
    digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from converters import onnx_running

    right = onnx_running.run_onnx

    def wrong(path: Path, inputs: dict[str, object], names: list[str]) -> dict[str, object]:
        return {name: value + np.float32(name == "fc6") for name, value in right(path, inputs, names).items()}

    monkeypatch.setattr(onnx_running, "run_onnx", wrong)
    assert run(["convert", str(digits), str(digits.with_name("a.onnx")), "--verify"]) == 3
    assert "DIFFERS, first in blob fc6" in capsys.readouterr().out
    assert digits.with_name("a.onnx").exists()


def test_an_onnx_source_is_run_itself(digits: Path) -> None:
    convert(digits, [digits.with_name("a.onnx")])
    target = digits.with_name("b.safetensors")
    report = convert(digits.with_name("a.onnx"), [target], Options(extras=Extras(verify=True)))
    found = report.results[0].verified
    assert found is not None
    assert found.agrees
    assert onnx.load(str(digits.with_name("a.onnx"))).graph.output[0].name == "prob"
