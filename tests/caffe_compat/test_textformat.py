"""Prototxt text: what is read, what is refused and how, what is printed.

What is accepted and refused was recorded from protobuf's C++ parser (`protoc --encode`).
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_compat.errors import TextError, Where
from caffe_compat.schema import pb
from caffe_compat.source import UnknownField
from caffe_compat.textformat import SPARE, decode, dump, parse, unknown_fields
from tests.parity.cases import Folders

ROOT = Path(__file__).resolve().parents[2]
repeatable = settings(deadline=None, derandomize=True)


def net(text: str | bytes) -> Any:
    """The net of a text without unknown fields."""
    document = parse(text, pb.NetParameter)
    assert not document.map.unknown
    return document.message


def refusal(text: str | bytes, kind: type[Message] = pb.NetParameter) -> TextError:
    with pytest.raises(TextError) as caught:
        parse(text, kind, "net.prototxt")
    assert caught.value.where.source == "net.prototxt"
    assert caught.value.where.line >= 1
    assert caught.value.where.column >= 1
    return caught.value


def bits(value: float) -> bytes:
    return struct.pack("<f", value)


# -- values ------------------------------------------------------------------------------------------------

FLOATS = {
    "1": 1.0,
    "1.": 1.0,
    ".5": 0.5,
    "1e3": 1000.0,
    "1.e5": 1e5,
    "1f": 1.0,
    "1.5F": 1.5,
    "0f": 0.0,
    "0e5": 0.0,
    "1e+5": 1e5,
    "1E-5": 1e-5,
    "- .5": -0.5,
    "-0": -0.0,
    "1e39": math.inf,
    "-1e400": -math.inf,
    "INF": math.inf,
    "-Infinity": -math.inf,
    "99999999999999999999999": 1e23,
    "0.1": 0.1,
    "3.4028234663852886e38": 3.4028234663852886e38,
}


@pytest.mark.parametrize("text", FLOATS)
def test_float(text: str) -> None:
    (value,) = net(f"layer {{ loss_weight: {text} }}").layer[0].loss_weight
    expected = FLOATS[text]
    assert bits(value) == bits(expected if abs(expected) <= 3.5e38 else math.copysign(math.inf, expected))


@pytest.mark.parametrize("text", ["nan", "NaN", "-nan"])
def test_nan(text: str) -> None:
    assert math.isnan(net(f"layer {{ loss_weight: {text} }}").layer[0].loss_weight[0])


@pytest.mark.parametrize(
    "text", ["0x10", "010", "00.5", "0.5.5", "1e", "1_0", "+1", "--1", '"1"', "1.5x", "inff", "-", "", "true", "."]
)
def test_not_a_float(text: str) -> None:
    refusal(f"layer {{ loss_weight: {text} }}")


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("- 1", -1), ("010", 8), ("0x1F", 31), ("-0x10", -16), ("0", 0), ("-2147483648", -(2**31))],
)
def test_integer(text: str, value: int) -> None:
    assert net(f"state {{ level: {text} }}").state.level == value


@pytest.mark.parametrize("text", ["1.0", "1.", "1f", "08", "0x", "1kk", "+1", '"1"', "x", "", "[1]", "{"])
def test_not_an_integer(text: str) -> None:
    assert '"level"' in str(refusal(f"state {{ level: {text} }}")) or text == "+1"


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("state {{ level: {} }}", -(2**31), 2**31 - 1),
        ("input_shape {{ dim: {} }}", -(2**63), 2**63 - 1),
        ("layer {{ pooling_param {{ pad: {} }} }}", 0, 2**32 - 1),
    ],
)
def test_integer_limits(field: str, low: int, high: int) -> None:
    assert net(field.format(low)) != net(field.format(high))
    for value in (low - 1, high + 1, "9" * 5000):
        assert f"give {low} to {high}" in refusal(field.format(value)).remedy


@pytest.mark.parametrize("text", ["true", "True", "t", "1", "01", "0x1"])
def test_true(text: str) -> None:
    assert net(f"force_backward: {text}").force_backward is True


@pytest.mark.parametrize("text", ["false", "False", "f", "0"])
def test_false(text: str) -> None:
    message = net(f"force_backward: {text}")
    assert message.HasField("force_backward")
    assert message.force_backward is False


@pytest.mark.parametrize("text", ["2", "-1", "T", "TRUE", "yes", '"true"'])
def test_not_a_bool(text: str) -> None:
    assert '"force_backward"' in refusal(f"force_backward: {text}").what


@pytest.mark.parametrize(("text", "value"), [("TEST", 1), ("1", 1), ("0x1", 1), ("TRAIN", 0)])
def test_enum(text: str, value: int) -> None:
    message = net(f"state {{ phase: {text} }}")
    assert message.state.HasField("phase")
    assert message.state.phase == value


@pytest.mark.parametrize("text", ["test", "RUN", "2", "-1", '"TEST"', "1.0", "TEST.", ""])
def test_not_an_enum_value(text: str) -> None:
    refusal(f"state {{ phase: {text} }}")


POOLS = 'layers {{ name: "{}" pooling_param {{ pool: {} }} }}'


def test_unknown_enum_values_are_named_together_with_what_there_is() -> None:
    error = refusal("\n".join(POOLS.format(*pair) for pair in (("a", "MAXIMUM"), ("x", "L2"), ("y", "L2"))))
    assert str(error.where) == 'net.prototxt:1:42 layer "a"'
    assert 'unknown value "MAXIMUM" for "pool" at 1:42' in error.what
    assert 'unknown value "L2" for "pool" at 2:42, 3:42' in error.what
    assert error.remedy.startswith("did you mean MAX? Caffe has MAX, AVE, ")


def test_the_list_of_unknown_enum_values_is_bounded() -> None:
    text = "".join(POOLS.format(i, f"X{i}") + POOLS.format(i, "Y") for i in range(1000))
    assert len(str(refusal(text))) < 4000


def test_layer_types_of_forks_are_kept() -> None:
    text = 'layers {\n  name: "a"\n  type: CROP\n}\nlayers {\n  name: "b"\n  type: RELU\n}\n'
    document = parse(text, pb.NetParameter)
    assert [layer.fork_type for layer in document.message.layers] == ["CROP", ""]  # type: ignore[attr-defined]
    assert document.map.at("layers[0]", "type").line == 3
    assert dump(document.message) == text


@pytest.mark.parametrize(
    "text", ['layers { type: "RELU" }', "layers { type: 1000 }", "layers { type: CROP type: RELU }"]
)
def test_what_is_no_layer_type(text: str) -> None:
    refusal(text)


def test_the_field_that_keeps_them_has_no_name_in_text() -> None:
    document = parse('layers { fork_type: "x" }', pb.NetParameter)
    assert [unknown.path for unknown in document.map.unknown] == ["layers[0].fork_type"]


STRINGS = {
    r'"a\tb"': "a\tb",
    r'"\x41\X42\103"': "ABC",
    r'"\400"': "\0",
    r'"\1234"': "S4",
    r'"\x414"': "A4",
    r'"\u4e2d"': "中",
    r'"\U0001f600"': "😀",
    r'"\ud83d\ude00"': "😀",
    r'"\345\205\211"': "光",
    r'"光"': "光",
    r'''"\?\a\b\f\n\r\t\v\\\'\""''': "?\a\b\f\n\r\t\v\\'\"",
    "'a\"b'": 'a"b',
    '"a" # c\n \'b\'"c"': "abc",
    '""': "",
    '"a\tb\rc\x01\x7f"': "a\tb\rc\x01\x7f",
    '"#not a comment"': "#not a comment",
}


@pytest.mark.parametrize("text", STRINGS)
def test_string(text: str) -> None:
    assert net(f"name: {text}").name == STRINGS[text]


NOT_STRINGS = [r"'\q'", r"'\8'", r"'\x'", r"'\u41'", r"'\e'", r"'\ud83d'", r"'\ude00'", r"'\U00110000'", r"'\377'"]
UNCLOSED = ["'abc", "'abc\"", "'\\", "'a\nb'", "'\\\n'", "'a\x00b'"]


@pytest.mark.parametrize("text", [*NOT_STRINGS, *UNCLOSED, "['a']", "abc", "1", "'\ud800'"])
def test_not_a_string(text: str) -> None:
    refusal(f"name: {text}")


def test_bytes() -> None:
    assert parse(r'data: "\377\000" "a"', pb.Datum).message == pb.Datum(data=b"\xff\0a")


# -- messages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "input_shape { dim: 1 dim: 2 } input_shape { dim: 3 }",
        "input_shape: { dim: [1, 2] } input_shape: < dim: 3 >",
        "input_shape: [{ dim: 1, dim: 2; }, < dim: [3] >]",
        "input_shape [{ dim: 1; dim: [2] }]; input_shape <dim: 3>,",
        "input_shape{dim:1dim:2}input_shape{dim:3}".replace("1d", "1 d"),
        "# a\r\ninput_shape { # b\r\n\tdim: 1 #\r\n dim\n:\n2}\f\vinput_shape{dim:3}# end",
        "input_shape\r{\rdim:1\rdim:2\r}\rinput_shape{dim:3}\r",
        "\ufeffinput_shape { dim: 1 dim: 2 } input_shape { dim: 3 dim: [] } input_dim: []",
    ],
)
def test_ways_to_write_one_message(text: str) -> None:
    shapes = [pb.BlobShape(dim=[1, 2]), pb.BlobShape(dim=[3])]
    assert net(text) == pb.NetParameter(input_shape=shapes)


def test_an_empty_message_is_present() -> None:
    message = net("state {} layer { relu_param < > }")
    assert message.HasField("state")
    assert message.layer[0].HasField("relu_param")
    assert net("") == pb.NetParameter()
    assert net("# only a comment") == pb.NetParameter()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer {\n  pooling_param {\n  pad: }\n}", '3:8: expected a value for "pad", got "}"; give a whole number'),
        ('name "x"', '1:6: expected ":" after "name", got "x"'),
        ("layer 3", '1:7: expected "{" after "layer", got "3"'),
        ("layer {", '1:8: expected a field name or "}", got the end of the file; "layer" at 1:1 is not closed'),
        ("layer <}", '1:8: expected a field name or ">", got "}"'),
        ("name: 'x' }", '1:11: expected a field name, got "}"; remove it, or a closing bracket too many before it'),
        ("input_dim: [1 2]", '1:15: expected "," or "]" in the list of "input_dim", got "2"'),
        ("input_dim: [1,]", '1:15: expected a value for "input_dim", got "]"; give a whole number'),
        ("input_dim: [[1]]", '1:13: expected a value for "input_dim", got "["; give a whole number'),
        ("state { level: [1] }", '1:16: "level" takes one value, got a list; give a whole number'),
        ("\n\nname: relu", '3:7: expected a string for "name", got "relu"; put it in quotes'),
        ("state { phase: 'TEST' }", "1:16: expected one of TRAIN, TEST for \"phase\", got 'TEST'; remove the quotes"),
        ("state { level: 08 }", 'number for "level", got "08"; remove the leading zero, which stands for octal'),
        ("name: 'a\n'", "1:7: the string has no closing quote on its line; close it with '"),
        ("name: 'C:\\data'", '1:10: unknown escape "\\d"; write a backslash as two, and paths with /'),
        ("// layer", '1:1: unexpected "/"; comments start with "#", and paths stand in quotes'),
        ("name = 'a'", '1:6: unexpected "="; write ":" between a field and its value'),
        ("name: \u201ca\u201d", '1:7: unexpected "\u201c"; write a plain double quote'),
        ("name:\u00a0'a'", "1:6: unexpected character U+00A0; write a plain space"),
        ("name: 'a' layer { name: 'b' top: 3 }", '1:34 layer "b": expected a string for "top", got "3"'),
        ("layers { layer { name: 'v0' pad: x } }", '1:34 layer "v0": expected a whole number for "pad", got "x"'),
        ("# c\r\nname:\r\n\t3", '3:2: expected a string for "name"'),
        ("name:\r\r3", '3:1: expected a string for "name"'),
        ("layer relu", 'expected "{" after "layer", got "relu"'),
        ("hello world", '1:7: expected "{" after "hello", got "world"; write "hello: value" or "hello { ... }"'),
        ("name: 'a';;", '1:11: expected a field name, got ";"'),
        ("name: 'a\x1b[31m", "1:7: the string has no closing quote"),
    ],
)
def test_what_an_error_says(text: str, expected: str) -> None:
    assert expected in str(refusal(text))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('name: "a"\nname: "a"', '2:1: "name" is given a second time (first at 1:1); remove one'),
        ("state {}\nstate {}", '2:1: "state" is given a second time (first at 1:1); remove one'),
        ("layer { pooling_param { pad: 1 pad: 1 } }", '1:32: "pad" is given a second time (first at 1:25)'),
    ],
)
def test_singular_fields_stand_once(text: str, what: str) -> None:
    assert what in str(refusal(text))


def test_required_fields_must_be_there() -> None:
    error = refusal('layer { name: "c"\n clip_param { min: 0 } }')
    assert str(error.where) == 'net.prototxt:2:2 layer "c"'
    assert 'required field "max" is missing in layer[0].clip_param' in error.what
    assert net("layer { clip_param { min: 0 max: 1 } }").layer[0].clip_param.max == 1


def test_generations_may_be_mixed_here() -> None:
    message = net("layer { } layers { type: RELU } layers { layer { type: 'relu' } }")
    assert (len(message.layer), len(message.layers)) == (1, 2)


# -- positions ---------------------------------------------------------------------------------------------

PLACED = """name: "n"
input_dim: [1,
  3]
input_dim: 4
layer {
  name: "pool1"
  pooling_param { pad: 1
  stride: 2 }
  permute_param { order: 0 }
}
layers { layer { name: "old" } bottom: "x" }
"""


@pytest.mark.parametrize(
    ("path", "line", "column", "layer"),
    [
        ("name", 1, 1, ""),
        ("input_dim[0]", 2, 13, ""),
        ("input_dim[1]", 3, 3, ""),
        ("input_dim[2]", 4, 1, ""),
        ("layer[0]", 5, 1, "pool1"),
        ("layer[0].name", 6, 3, "pool1"),
        ("layer[0].pooling_param", 7, 3, "pool1"),
        ("layer[0].pooling_param.pad", 7, 19, "pool1"),
        ("layer[0].pooling_param.stride", 8, 3, "pool1"),
        ("layers[0]", 11, 1, "old"),
        ("layers[0].layer.name", 11, 18, "old"),
        ("layers[0].bottom[0]", 11, 32, "old"),
    ],
)
def test_position(path: str, line: int, column: int, layer: str) -> None:
    positions = parse(PLACED, pb.NetParameter, "a.prototxt").map.positions
    assert positions[path] == Where("a.prototxt", line, column, layer=layer)


def test_every_field_has_a_position_and_nothing_else() -> None:
    document = parse(PLACED, pb.NetParameter)
    assert set(document.map.positions) == set(paths(document.message))
    assert len(document.map.positions) == len(set(paths(document.message)))
    assert "layer[1]" not in document.map.positions


def paths(message: Message, prefix: str = "") -> Iterator[str]:
    for field, value in message.ListFields():
        repeated = not field.has_presence
        for index, item in enumerate(value if repeated else [value]):
            path = f"{prefix}{field.name}[{index}]" if repeated else prefix + field.name
            yield path
            if field.message_type:
                yield from paths(item, path + ".")


def test_layers_inside_a_solver_are_named() -> None:
    document = parse('net_param { layer { name: "a" top: "t" } }', pb.SolverParameter)
    assert document.map.positions["net_param.layer[0].top[0]"].layer == "a"
    assert document.map.positions["net_param"].layer == ""


# -- unknown fields ----------------------------------------------------------------------------------------


def test_unknown_fields_are_all_kept() -> None:
    text = """engine: CAFFE
layer { name: "p"
  turn_param { order: [0, 2] order: 1; inner: < a: 'x' "y" > }
  convolution_param { num_output: 3 foo: -inf, bar: - 0.5e3 baz: [] }
  [caffe.ext] { a { } } list: [{ a: 1 }, <a: 2>]
}
"""
    document = parse(text, pb.NetParameter, "f.prototxt")
    assert document.map.unknown == (
        UnknownField(Where("f.prototxt", 1, 1), "engine", "engine: CAFFE"),
        unknown_in_p(3, 3, "turn_param", 'turn_param { order: [0, 2] order: 1 inner { a: "xy" } }'),
        unknown_in_p(4, 37, "convolution_param.foo", "foo: -inf"),
        unknown_in_p(4, 48, "convolution_param.bar", "bar: -0.5e3"),
        unknown_in_p(4, 61, "convolution_param.baz", "baz: []"),
        unknown_in_p(5, 3, "[caffe.ext]", "[caffe.ext] { a { } }"),
        unknown_in_p(5, 25, "list", "list { a: 1 }"),
        unknown_in_p(5, 25, "list", "list { a: 2 }"),
    )
    assert document.message == net('layer { name: "p" convolution_param { num_output: 3 } }')
    assert unknown_fields(document.map) == {
        "": ["engine: CAFFE"],
        "layer[0]": [u.text for u in document.map.unknown if u.path.count(".") == 1 or "[caffe" in u.path],
        "layer[0].convolution_param": ["foo: -inf", "bar: -0.5e3", "baz: []"],
    }


@pytest.mark.parametrize(
    ("field", "kept", "unknown"),
    [
        ("permute_param { order: 0 order: x order: 1 }", "permute_param { order: 0 order: 1 }", "order: x"),
        ("permute_param { order: [0, x] }", "permute_param { }", "order: [0, x]"),
        ("region_loss_param { side: 3 softmax: false }", "region_loss_param { side: 3 }", "softmax: false"),
        ("multibox_loss_param { match_type: BEST }", "multibox_loss_param { }", "match_type: BEST"),
        (
            "transform_param { crop_h: 1 resize_param { height: 2 } resize_param { height: 3 } }",
            "transform_param { crop_h: 1 resize_param { height: 2 } }",
            "resize_param { height: 3 }",
        ),
        ("permute_param: 3", "", "permute_param: 3"),
    ],
)
def test_fields_of_other_forks_are_unknown(field: str, kept: str, unknown: str) -> None:
    """A field that one fork has does not keep another fork's field of that name from being read."""
    document = parse(f'layer {{ name: "p" {field} }}', pb.NetParameter)
    assert document.message == net(f'layer {{ name: "p" {kept} }}')
    assert [entry.text for entry in document.map.unknown] == [unknown]
    assert document.map.positions.keys() == parse(f'layer {{ name: "p" {kept} }}', pb.NetParameter).map.positions.keys()


@pytest.mark.parametrize("text", ["layer { permute_param { order: } }", "layer { permute_param { order: 0 }"])
def test_fields_of_forks_are_not_forgiven_broken_text(text: str) -> None:
    with pytest.raises(TextError):
        parse(text, pb.NetParameter)


def unknown_in_p(line: int, column: int, name: str, text: str) -> UnknownField:
    return UnknownField(Where("f.prototxt", line, column, layer="p"), f"layer[0].{name}", text)


MALFORMED = """foo|foo 3|foo:|foo: }|foo: 08|foo: 1e|foo: -x|foo: [1 2]|foo: [1,]|foo: [[1]]|foo [1]|foo: [{}
foo { a }|foo { a: 1|[foo]|[foo: 1|foo { >|foo: { < }|[] { }|foo: "a" "b|foo: - """


@pytest.mark.parametrize("text", MALFORMED.replace("\n", "|").split("|"))
def test_malformed_unknown_field(text: str) -> None:
    refusal(text)


def test_unknown_fields_are_printed_again() -> None:
    text = 'layer { name: "p" foo { a: 1 b { c: "\\n" } } relu_param { slope: 2 } } bar: X'
    document = parse(text, pb.NetParameter)
    assert dump(document.message, unknown_fields(document.map)) == (
        'layer {\n  name: "p"\n  relu_param {\n    slope: 2\n  }\n'
        '  foo {\n    a: 1\n    b {\n      c: "\\n"\n    }\n  }\n}\nbar: X\n'
    )


def test_unknown_fields_for_messages_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"no message at 'layer\[1\]'"):
        dump(net("layer { }"), {"layer[1]": ["a: 1"]})
    with pytest.raises(TextError):
        dump(net("layer { }"), {"layer[0]": ["a 1"]})


# -- hostile and foreign files -----------------------------------------------------------------------------


@pytest.mark.parametrize("piece", ["layer {", "a {", "layer { a <", "layer { relu_param { a: {", "a: ["])
def test_deep_nesting(piece: str) -> None:
    assert len(str(refusal(piece * 10_000))) < 200
    assert len(str(refusal(piece * 10_000 + "}" * 10_000))) < 200


def test_nesting_within_the_limit() -> None:
    document = parse("a { " * 100 + "}" * 100, pb.NetParameter)
    assert len(dump(document.message, unknown_fields(document.map)).splitlines()) == 200


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ("<!DOCTYPE html>\n<html>", "HTML page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("404: Not Found", "download failed"),
        ('{"layer": []}', "JSON"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (pb.NetParameter(name="CaffeNet", layer=[pb.LayerParameter(name="c")] * 9).SerializeToString(), "binary file"),
        ("name: 'a'\0", "binary file"),
        (b"\xff\xfea", "save it as UTF-8"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
    ],
)
def test_files_of_another_kind(data: str | bytes, remedy: str) -> None:
    assert remedy in refusal(data).remedy


def test_a_stray_control_character_is_no_binary_file() -> None:
    assert str(refusal('name: "a"\x1a')) == "net.prototxt:1:10: unexpected character U+001A; remove it"


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6,
        'name: "\x1b[31m" 3',
        "name: \x1b",
        "name: 'a' 3 '" + "\x1b" * 10**6,
        "state { level: 'é\x1b' }",
        "state { level: " + "9" * 10**6,
        "state { phase: " + "A" * 10**6,
        "layer { name: '\x1b' top: 3 }",
    ],
    ids=range(8),
)
def test_messages_are_short_and_printable(text: str) -> None:
    message = str(refusal(text))
    assert len(message) < 400
    assert message.isprintable()


@pytest.mark.parametrize(
    ("data", "name", "warning"),
    [
        ('name: "光"'.encode(), "光", ""),
        (b'\xef\xbb\xbfname: "x"', "x", "byte-order mark"),
        ('name: "光"'.encode("utf-16"), "光", "UTF-16"),
        (b"\xfe\xff" + 'name: "光"'.encode("utf-16-be"), "光", "UTF-16"),
        ('name: "光"'.encode("utf-32"), "光", "UTF-32"),
        ('name: "x" # 原本'.encode("gbk"), "x", "f.prototxt:1:14: not UTF-8"),
        ('# 光\nname: "é"'.encode() + b"# \xe9", "é", "not UTF-8"),
        ('name: "é"'.encode("latin-1"), "é", "not UTF-8"),
        (b'# a\rname: "y"\nname: "x"', "x", "lone carriage return"),
        (b'# a\r\r\nname: "x" # b\r', "x", ""),
    ],
)
def test_decoding(data: bytes, name: str, warning: str) -> None:
    document = parse(data, pb.NetParameter, "f.prototxt")
    assert document.message == pb.NetParameter(name=name)
    assert [warning in text for text in document.map.warnings] == [True] * bool(warning)
    assert parse(decode(data), pb.NetParameter).message == document.message


WORDS = """layer layers layer{ name name: type: bottom: input_dim: phase: pooling_param loss_weight: foo foo: foo{ TEST
{ } < > [ ] , ; : - . 1 0 08 0x1F 1.5 1e-3 .5 1f inf nan "a" 'b' "\\n" "\\x" " # é $ true [a.b]"""
PIECES = [*WORDS.split(), "\n", "\r", "\t", "\0", "\ufeff", "\ud800"]


@repeatable
@given(st.text() | st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        document = parse(text, pb.NetParameter)
    except TextError as error:
        assert error.where.line  # noqa: PT017
        return
    if not document.map.unknown:
        assert parse(dump(document.message), pb.NetParameter).message.SerializeToString() == (
            document.message.SerializeToString()
        )


@repeatable
@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse(data, pb.NetParameter)
    except TextError as error:
        assert error.what  # noqa: PT017


@repeatable
@given(st.data())
def test_damaged_nets_are_read_or_refused(data: st.DataObject) -> None:
    text = (ROOT / "prototxt" / "digits.prototxt").read_text()
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 20)))
    damaged = text[:start] + data.draw(st.text(max_size=3)) + text[stop:]
    try:
        parse(damaged, pb.NetParameter)
    except TextError as error:
        assert error.remedy or error.what  # noqa: PT017


# -- printing ----------------------------------------------------------------------------------------------


def test_how_a_net_is_printed() -> None:
    text = """name: "net"
input: "data"
input_shape {
  dim: 1
  dim: 3
}
force_backward: true
layer {
  name: "conv1"
  type: "Convolution"
  bottom: "data"
  top: "conv1"
  param {
    lr_mult: 0.1
  }
  phase: TEST
  convolution_param {
    num_output: 20
    weight_filler {
      type: "gaussian"
      std: 0.01
    }
  }
}
"""
    assert dump(net(text)) == text


def test_how_an_old_net_is_printed() -> None:
    text = """name: "old"
input: "data"
input_dim: 10
layers {
  layer {
    name: "conv1"
    type: "conv"
    num_output: 96
  }
  bottom: "data"
  top: "conv1"
}
layers {
  name: "relu1"
  type: RELU
  bottom: "conv1"
  top: "conv1"
}
"""
    assert dump(net(text)) == text


def test_how_a_solver_is_printed() -> None:
    text = 'net: "a.prototxt"\ntest_iter: 100\nbase_lr: 0.01\nlr_policy: "step"\nstepsize: 10\nsolver_mode: GPU\n'
    assert dump(parse(text, pb.SolverParameter).message) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (1.0, "1"),
        (-0.0, "-0"),
        (0.0005, "0.0005"),
        (1e-5, "1e-05"),
        (104.00698793, "104.00699"),
        (0.017, "0.017"),
        (16777216.0, "16777216"),
        (1 / 3, "0.33333334"),
        (3.4028234663852886e38, "3.4028235e+38"),
        (1.401298464324817e-45, "1e-45"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
    ],
)
def test_how_a_float_is_printed(value: float, text: str) -> None:
    message = pb.LayerParameter(loss_weight=[value])
    assert dump(message) == f"loss_weight: {text}\n"
    again: Any = parse(dump(message), pb.LayerParameter).message
    assert bits(again.loss_weight[0]) == bits(value)


def test_every_float_reads_back_the_same() -> None:
    generator = random.Random(0)
    patterns = struct.pack("<20000I", *(generator.getrandbits(32) for _ in range(20000)))
    values = [v for v in struct.unpack("<20000f", patterns) if not math.isnan(v)]
    message = pb.BlobProto(data=values)
    assert parse(dump(message), pb.BlobProto).message == message


def values_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type:
        return messages(field.message_type)
    if field.enum_type:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return {
        FieldDescriptor.TYPE_BOOL: st.booleans(),
        FieldDescriptor.TYPE_BYTES: st.binary(),
        FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
        FieldDescriptor.TYPE_FLOAT: st.floats(allow_nan=False, width=32),
        FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.TYPE_STRING: st.text(),
        FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    }[field.type]


REQUIRED = {
    "ClipParameter": ("min", "max"),
    "BoxAnnotatorOHEMParameter": ("roi_per_img",),
    "PSROIPoolingParameter": ("spatial_scale", "output_dim", "group_size"),
}


def messages(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Fields of a message as keyword arguments: some required ones always, up to three others."""
    required = {name: values_of(kind.fields_by_name[name]) for name in REQUIRED.get(kind.name, ())}
    fields = [field for field in kind.fields if field.name != SPARE]
    chosen = st.lists(st.sampled_from(fields), max_size=3, unique_by=lambda field: field.name)
    return st.fixed_dictionaries(required).flatmap(
        lambda always: chosen.flatmap(
            lambda fields: st.fixed_dictionaries(
                {f.name: values_of(f) if f.has_presence else st.lists(values_of(f), max_size=2) for f in fields}
            ).map(lambda others: {**always, **others})
        )
    )


@pytest.mark.parametrize("kind", [pb.NetParameter, pb.SolverParameter, pb.BlobProto, pb.Datum, pb.SolverState])
@repeatable
@given(data=st.data())
def test_printed_messages_read_back_the_same(kind: type[Message], data: st.DataObject) -> None:
    message = kind(**data.draw(messages(kind.DESCRIPTOR)))
    text = dump(message)
    assert parse(text, kind).message == message
    assert text_format.Parse(text, kind()) == message
    assert dump(parse(text, kind).message) == text


# -- whole files -------------------------------------------------------------------------------------------


def files() -> list[Path]:
    return [*sorted((ROOT / "prototxt").glob("*.prototxt")), *sorted(Folders.default().golden.rglob("*.prototxt"))]


def peer(text: str, kind: type[Message]) -> Message | None:
    """What protobuf's own Python parser reads; None when it refuses."""
    try:
        return text_format.Parse(text, kind())
    except text_format.ParseError:
        return None


@pytest.mark.parametrize("path", files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_real_files_are_read_as_protobuf_reads_them(path: Path) -> None:
    kind = pb.SolverParameter if "solver" in path.name else pb.NetParameter
    text = path.read_bytes().decode()
    expected = peer(text, kind)
    if expected is None:
        assert may_be_refused(text, kind)
        return
    if not expected.IsInitialized():
        assert "required" in refusal(text, kind).what
        return
    document = parse(text, kind)
    assert document.message == expected
    assert not document.map.unknown
    assert set(document.map.positions) == set(paths(document.message))
    assert parse(dump(document.message), kind).message == expected


def may_be_refused(text: str, kind: type[Message]) -> bool:
    """Refused, or read with fields that the schema does not have."""
    try:
        return bool(parse(text, kind).map.unknown)
    except TextError:
        return True
