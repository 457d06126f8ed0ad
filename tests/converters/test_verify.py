"""`vggc verify`: what it finds, what it says, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from caffe_compat.errors import VggcError
from caffe_compat.loading import State
from caffe_compat.schema import pb
from converters.convert import Options as ConvertOptions
from converters.convert import convert
from converters.input_values import random_inputs, read_inputs
from converters.sides import Side, open_side
from converters.verify import TOLERANCE, Options, compare, difference, verify
from converters.verify_report import as_dict, bar, page, verdict
from repro.cli import run
from repro.demo import write_model
from repro.detector import write_detector
from tests import models

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's model in every format."""
    path = tmp_path_factory.mktemp("models")
    write_model(path / "a.caffemodel")
    convert(path / "a.caffemodel", [path / f"a.{name}" for name in ("safetensors", "pt", "onnx", "h5")])
    write_model(path / "other.caffemodel", seed=1)
    return path


def changed(source: Path, target: Path, layer: str, add: float) -> Path:
    """The model with one bias of a layer moved."""
    net = pb.NetParameter.FromString(source.read_bytes())
    next(each for each in net.layers if each.name == layer).blobs[1].data[0] += add
    target.write_bytes(net.SerializeToString())
    return target


# -- every format ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.caffemodel", "a.safetensors", "a.pt", "a.h5"])
def test_formats_of_one_model_are_equal(folder: Path, name: str) -> None:
    found = verify(folder / "a.caffemodel", folder / name)
    assert found.agrees
    assert len(found.blobs) == 17
    assert all(row.difference is not None and row.difference.equal for row in (*found.blobs, *found.params))
    assert (found.equal_params, len(found.params)) == (22, 22)
    assert not any((found.only_a, found.only_b, found.params_only_a, found.params_only_b))


def test_onnx_agrees(folder: Path) -> None:
    found = verify(folder / "a.caffemodel", folder / "a.onnx")
    assert found.agrees
    assert found.engines == ("PyTorch", "ONNX Runtime")
    assert [row.name for row in found.blobs][:2] == ["conv1_1", "pool1"]
    assert found.blobs[0].layers == "conv1_1, relu1_1"
    assert found.equal_params == 22
    assert not any((found.only_a, found.only_b, found.params_only_a, found.params_only_b))
    assert found.rankings[0].first == found.rankings[0].best == found.rankings[0].items == 10
    back = verify(folder / "a.onnx", folder / "a.caffemodel")
    assert back.blobs[0].layers == "conv1_1, relu1_1"


def test_weights_borrow_the_other_net(folder: Path) -> None:
    found = verify(folder / "a.h5", folder / "a.caffemodel")
    assert found.notes == (
        f"{folder / 'a.h5'} holds weights alone: it was run with the net of {folder / 'a.caffemodel'}",
    )


@pytest.mark.parametrize("other", ["a.pt", "a.onnx"])
def test_weights_without_any_net(folder: Path, other: str) -> None:
    with pytest.raises(VggcError, match="holds weights without a net") as caught:
        verify(folder / "a.h5", folder / other)
    assert "--net-a" in caught.value.remedy


def test_named_nets(folder: Path) -> None:
    import prototxt

    net = prototxt.find("digits")
    assert verify(folder / "a.h5", folder / "a.pt", Options(net_a=net)).agrees
    assert verify(folder / "a.h5", folder / "a.pt", Options(net_b=net)).agrees
    with pytest.raises(VggcError, match="has its own net"):
        verify(folder / "a.h5", folder / "a.onnx", Options(net_b=net))
    with pytest.raises(VggcError, match="net without weights"):
        verify(net, folder / "a.onnx")


def test_a_dtype_is_a_difference_of_weights_but_not_of_values() -> None:
    halves = np.arange(4, dtype=np.float16)
    found = difference(halves.astype(np.float32), halves)
    assert (found.equal, found.absolute, found.relative) == (False, 0.0, 0.0)


# -- differences -----------------------------------------------------------------------------------------------


def test_first_layer_that_differs(folder: Path, tmp_path: Path) -> None:
    other = changed(folder / "a.caffemodel", tmp_path / "b.caffemodel", "conv3_1", 0.01)
    found = verify(folder / "a.caffemodel", other)
    assert not found.agrees
    assert found.first is not None
    assert (found.first.name, found.first.layers) == ("conv3_1", "conv3_1, relu3_1")
    assert all(row.agrees for row in found.blobs[:4])
    assert "DIFFER" in verdict(found)
    assert "blob conv3_1 (layer conv3_1, relu3_1)" in verdict(found)
    unequal = [row for row in found.params if row.difference and not row.difference.equal]
    assert [row.name for row in unequal] == ["conv3_1.bias"]
    assert unequal[0].difference is not None
    assert unequal[0].difference.absolute == pytest.approx(0.01, rel=1e-4)


def test_tolerance_decides(folder: Path) -> None:
    pair = folder / "a.caffemodel", folder / "a.onnx"
    assert not verify(*pair, Options(tolerance=1e-9)).agrees
    assert verify(*pair, Options(tolerance=1e-4)).agrees


def test_weights_only(folder: Path, tmp_path: Path) -> None:
    other = changed(folder / "a.caffemodel", tmp_path / "b.caffemodel", "fc8", 1.0)
    found = verify(folder / "a.caffemodel", other, Options(run=False))
    assert not found.blobs
    assert not found.agrees
    assert verify(folder / "a.caffemodel", folder / "a.h5", Options(run=False)).agrees


def test_an_onnx_model_with_other_names(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(str(folder / "a.onnx"))
    rename = {"data": "x", "prob": "y"}
    for node in model.graph.node:
        node.input[:] = [rename.get(name, name) for name in node.input]
        node.output[:] = [rename.get(name, f"t_{name}" if name == "fc8" else name) for name in node.output]
    last = model.graph.node[-1]
    last.input[:] = ["t_fc8"]
    model.graph.input[0].name, model.graph.output[0].name = "x", "y"
    model.producer_name = "another"
    onnx.save(model, str(tmp_path / "b.onnx"))
    found = verify(folder / "a.caffemodel", tmp_path / "b.onnx")
    assert found.agrees
    assert "the inputs data and x were taken for the same" in found.notes
    assert found.only_a == ("fc8", "prob")
    assert {"t_fc8", "y"} <= set(found.only_b)


def side(blobs: dict[str, Array], outputs: Sequence[str] = (), weights: dict[str, Array] | None = None) -> Side:
    """A side that gives these blobs."""

    def compute(_inputs: object) -> dict[str, Array]:
        return blobs

    return Side("made up", "numpy", {"data": (2, 3)}, tuple(outputs), weights or {}, compute)


def test_only_outputs_without_common_names() -> None:
    y = np.eye(2, 7, dtype=np.float32)
    found = compare(side({"a": y, "p": y}, ["p"]), side({"b": y, "q": y}, ["q"]), Options())
    assert [row.name for row in found.blobs] == ["p"]
    assert found.notes == ("the outputs p and q were taken for the same",)
    assert (found.only_a, found.only_b) == (("a",), ("b",))
    assert found.rankings[0].count == 5


def test_nothing_in_common() -> None:
    y = np.zeros((2, 7), np.float32)
    with pytest.raises(VggcError, match="nothing in common"):
        compare(side({"a": y}), side({"b": y}), Options())
    with pytest.raises(VggcError, match="nothing in common"):
        compare(side({"a": y}, weights={"w": y}), side({"a": y}, weights={"v": y}), Options(run=False))


def test_only_weights_in_common_is_said() -> None:
    y = np.ones((2, 7), np.float32)
    found = compare(side({"a": y}, weights={"w": y}), side({"b": y}, weights={"w": y}), Options())
    assert found.notes == ("no blob has the same name on both sides",)
    assert found.agrees


def test_shapes_that_differ() -> None:
    a, b = np.ones((2, 7), np.float32), np.ones((2, 8), np.float32)
    found = compare(side({"a": a, "z": a}), side({"a": b, "z": a}), Options())
    assert not found.agrees
    assert found.first is found.blobs[0]
    assert found.worst is found.blobs[1]
    assert "1 of other shapes" in verdict(found)
    assert "2 x 7 in A, 2 x 8 in B" in page(found)


def test_other_inputs_are_refused() -> None:
    y = np.ones((2, 7), np.float32)
    two = replace(side({"a": y}), inputs={"data": (2, 3), "more": (2, 3)})
    with pytest.raises(VggcError, match="takes data, more"):
        compare(side({"a": y}), two, Options())


def test_open_shapes() -> None:
    given: list[tuple[int, ...]] = []

    def compute(inputs: dict[str, Array]) -> dict[str, Array]:
        given.append(inputs["data"].shape)
        return {"y": inputs["data"] * 2}

    def opened(*shape: int) -> Side:
        return replace(side({}), inputs={"data": shape}, run=compute)

    compare(opened(0, 3), opened(0, 3), Options())
    compare(opened(0, 3), opened(4, 3), Options())
    compare(opened(0, 0), opened(), Options(state=State(input_shapes={"data": (5, 6)})))
    assert given == [(1, 3), (1, 3), (4, 3), (4, 3), (5, 6), (5, 6)]
    with pytest.raises(VggcError, match="no shape is known"):
        compare(opened(0, 0), opened(), Options())


# -- numbers ---------------------------------------------------------------------------------------------------

INF, NAN, LOWEST = float("inf"), float("nan"), -3.4028235e38


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ([1, -4], [1, -4], (True, 4.0, 0.0, 0.0)),
        ([1, -4], [1.5, -4], (False, 4.0, 0.5, 0.125)),
        ([NAN, 2], [NAN, 2], (True, 2.0, 0.0, 0.0)),
        ([INF, 2], [INF, 1], (False, 2.0, 1.0, 0.5)),
        ([LOWEST, 2], [LOWEST, 1], (False, 2.0, 1.0, 0.5)),
        ([NAN, 2], [1, 2], (False, 2.0, INF, INF)),
        ([1, 2], [NAN, 2], (False, 2.0, INF, INF)),
        ([LOWEST, 2], [0, 2], (False, 2.0, INF, INF)),
        ([INF, 2], [-INF, 2], (False, 2.0, INF, INF)),
        ([0, 0], [0, 1e-9], (False, 0.0, 1e-9, INF)),
        ([], [], (True, 0.0, 0.0, 0.0)),
    ],
)
def test_difference(a: list[float], b: list[float], want: tuple[bool, float, float, float]) -> None:
    found = difference(np.array(a, np.float32), np.array(b, np.float32))
    assert (found.equal, found.largest) == want[:2]
    assert (found.absolute, found.relative) == pytest.approx(want[2:])


def test_small_results_of_saturated_layers() -> None:
    """sigmoid(-36) is 2e-16, and 0 in other libraries: no more than the difference of the bottom."""
    logits, other = np.array([[-36.0, 5.0]], np.float32), np.array([[-36.00002, 5.0]], np.float32)
    p, q = np.array([[2e-16]], np.float32), np.array([[0.0]], np.float32)
    a = replace(side({"x": logits, "p": p}), contracts={"p": "x"})
    found = compare(a, side({"x": other, "p": q}), Options())
    assert found.agrees
    assert found.blobs[1].explained == pytest.approx(2e-5, rel=0.1)
    assert found.blobs[1].difference is not None
    assert found.blobs[1].difference.relative == 1
    assert "from its bottom" in page(found)
    assert not compare(a, side({"x": logits, "p": q}), Options()).agrees, "equal bottoms explain nothing"
    worse = compare(a, side({"x": other, "p": p + 1}), Options())
    assert worse.first is worse.blobs[1]


def test_contracting_layers_are_known(folder: Path) -> None:
    assert open_side(folder / "a.caffemodel").contracts == {"prob": "fc8"}


def test_rankings() -> None:
    a = np.array([[5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0]], np.float32)
    b = np.array([[5, 4, 3, 2, 1, 0], [4, 5, 3, 2, 1, 0], [5, 4, 3, 2, 0, 1]], np.float32)
    shape = (3, 6, 1, 1)
    found = compare(side({"p": a.reshape(shape)}, ["p"]), side({"p": b.reshape(shape)}, ["p"]), Options())
    ranking = found.rankings[0]
    assert (ranking.items, ranking.count, ranking.first, ranking.best) == (3, 5, 2, 2)


# -- inputs ----------------------------------------------------------------------------------------------------


def test_random_inputs_are_reproducible() -> None:
    shapes = {"data": (2, 3, 4, 5), "rois": (7, 5)}
    a, b, c = (random_inputs(shapes, seed).values for seed in (0, 0, 1))
    assert all(np.array_equal(a[blob], b[blob]) and not np.array_equal(a[blob], c[blob]) for blob in shapes)
    assert {blob: x.dtype for blob, x in a.items()} == {"data": np.float32, "rois": np.float32}
    assert a["data"].min() < -50
    assert 0 <= a["rois"].min() < a["rois"].max() < 1


def test_arrays_are_read(tmp_path: Path) -> None:
    x, y = np.arange(12.0).reshape(2, 6), np.ones((3, 2))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    one = read_inputs(tmp_path / "x.npy", {"data": (10, 6)}, {})
    np.testing.assert_array_equal(one.values["data"], x.astype(np.float32))
    assert one.said == ("data: 2 x 6 from x.npy",)
    two = read_inputs(tmp_path / "xy.npz", {"x": (2, 6), "y": (3, 2)}, {})
    np.testing.assert_array_equal(two.values["y"], y)


def huge_header(path: Path) -> None:
    """An .npy that claims far more than it has."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (9, 1 << 40)})


def pickled(path: Path) -> None:
    np.save(path, np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("x.npy", lambda path: np.save(path, np.ones((2, 7))), "the net takes 10 x 6"),
        ("x.npy", lambda path: np.save(path, np.ones((2, 6, 1))), "the net takes 10 x 6"),
        ("x.npy", lambda path: path.write_bytes(b"nothing"), "cannot be read as arrays"),
        ("x.npy", huge_header, "cannot be read as arrays"),
        ("x.npy", pickled, "cannot be read as arrays"),
        ("x.npz", lambda path: np.savez(path, other=np.ones(3)), "it has the arrays other"),
        ("x.npz", lambda path: path.write_bytes(b"PK"), "cannot be read as arrays"),
        ("x.png", lambda path: path.write_bytes(b"nothing"), "give an .npy or .npz"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, name: str, make: Callable[[Path], object], what: str) -> None:
    make(tmp_path / name)
    with pytest.raises(VggcError) as caught:
        read_inputs(tmp_path / name, {"data": (10, 6)}, {})
    assert what in str(caught.value)


def test_an_npz_member_that_claims_too_much(tmp_path: Path) -> None:
    import zipfile

    huge_header(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "data.npy")
    with pytest.raises(VggcError, match="the net takes"):
        read_inputs(tmp_path / "x.npz", {"data": (10, 6)}, {})


def test_images(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is an extra")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "x.png"), pixels)
    prepares = {"mean_value": [1.0, 2.0, 3.0], "scale": 0.5}
    found = read_inputs(tmp_path / "x.png", {"data": (2, 3, 4, 5)}, prepares)
    want = (pixels.astype(np.float32) - [1, 2, 3]).transpose(2, 0, 1) * 0.5
    np.testing.assert_array_equal(found.values["data"], np.stack([want, want]))
    assert found.said == ("data: 2 x 3 x 4 x 5 from x.png, OpenCV, 5 x 4 resized, less 1, 2, 3, times 0.5",)
    (tmp_path / "y.png").write_bytes(b"nothing")
    with pytest.raises(VggcError, match="not an image"):
        read_inputs(tmp_path / "y.png", {"data": (2, 3, 4, 5)}, {})


# -- the command -----------------------------------------------------------------------------------------------


def test_command_agrees(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(folder / "a.caffemodel"), str(folder / "a.onnx")]) == 0
    out = capsys.readouterr().out
    assert "the models agree" in out
    assert f"allowed: {TOLERANCE:g} of a blob's largest magnitude" in out
    assert "22 of 22 parameter blobs are bit-equal" in out
    assert "top-5 of prob" in out


def test_command_differs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(folder / "a.caffemodel"), str(folder / "other.caffemodel")]) == 3
    out = capsys.readouterr().out
    assert "the models DIFFER" in out
    assert "first in blob conv1_1" in out
    assert "weight conv1_1.weight differs" in out


def test_command_prints_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--json", str(folder / "a.caffemodel"), str(folder / "other.caffemodel")]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["first"] == "conv1_1"
    assert found["agrees"] is False
    assert len(found["blobs"]) == 17


def test_json_has_no_infinities() -> None:
    a, b = np.zeros((2, 7), np.float32), np.ones((2, 7), np.float32)
    found = as_dict(compare(side({"a": a}), side({"a": b}), Options()))
    assert found["blobs"][0]["difference"]["relative"] == "inf"
    json.dumps(found, allow_nan=False)


def test_command_takes_arrays(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 32, 32), np.float32))
    command = ["verify", str(folder / "a.caffemodel"), str(folder / "a.onnx"), "--input", str(tmp_path / "x.npy")]
    assert run(command) == 0
    assert "input data: 2 x 3 x 32 x 32 from x.npy" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["a", "b"])
def test_missing_files(folder: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = str(folder / "a.caffemodel")
    assert run(["verify", *(["nowhere.onnx", there] if missing == "a" else [there, "nowhere.pt"])]) == 1
    assert "no such file" in capsys.readouterr().err


# -- the page --------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Tags with their attributes; nesting is checked."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def elements(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(text)
    assert not parser.open
    return parser.found


def test_page_stands_alone(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    command = ["verify", str(folder / "a.caffemodel"), str(folder / "other.caffemodel"), "--html", str(target)]
    assert run(command) == 3
    found = elements(target.read_text())
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in found}
    links = [attributes["href"] or "" for tag, attributes in found if tag == "a"]
    ids = {attributes["id"] for _, attributes in found if "id" in attributes}
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert sum(attributes.get("class") == "fill" for _, attributes in found) == 17
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert run(command) == 1, "an existing file is kept"
    assert run([*command, "--force"]) == 3


def test_page_escapes_names() -> None:
    y = np.ones((2, 7), np.float32)
    text = page(compare(side({"<b>&": y}, weights={"<i>": y}), side({"<b>&": y}), Options()))
    assert "<b>&" not in text
    assert "&lt;b&gt;&amp;" in text
    assert "<i>" not in text
    elements(text)


@pytest.mark.parametrize(
    ("relative", "length"), [(0, 0), (1e-10, 0), (1e-9, 0), (1e-6, 33.3), (1, 100), (7, 100), (float("inf"), 100)]
)
def test_bars(relative: float, length: float) -> None:
    assert bar(relative) == pytest.approx(length)


def test_bar_of_nothing() -> None:
    assert bar(float("nan")) == 0


def test_open_side_names_what_is_wrong(tmp_path: Path) -> None:
    for name, text in (("a.py", "1 / 0"), ("b.py", "x = 1"), ("c.py", "def load():\n    raise OSError('gone')")):
        (tmp_path / name).write_text(text)
        with pytest.raises(VggcError, match=r"does not run|has no load|fails: gone"):
            open_side(tmp_path / name)
    with pytest.raises(VggcError, match="no such Python source"):
        open_side(tmp_path / "d.py")


# -- OpenCV ----------------------------------------------------------------------------------------------------


def test_opencv_runs_a_caffe_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A detector, whose rows OpenCV has in another order, with its own prototxt and with the net that it carries."""
    net, weights, image = write_detector(tmp_path)
    convert(weights, [tmp_path / "face.onnx"], ConvertOptions(net=net))
    for lent in (net, None):
        options = Options(net_a=lent, input=image, tolerance=1e-4, opencv=True)
        found = verify(weights, tmp_path / "face.onnx", options)
        assert found.agrees, found.first
        assert found.engines[0].startswith("OpenCV 4")
        assert {"conv1", "conv4_mbox_priorbox", "detection_out"} <= {row.name for row in found.blobs}
    command = ["verify", str(weights), str(tmp_path / "face.onnx"), "--opencv", "--net-a", str(net)]
    assert run([*command, "--input", str(image), "--tolerance", "1e-4"]) == 0
    assert "run by OpenCV 4" in capsys.readouterr().out


def test_opencv_says_what_it_does_not_know(tmp_path: Path) -> None:
    source = tmp_path / "m.caffemodel"
    models.write(source, "normalised")
    with pytest.raises(VggcError, match="OpenCV refuses it"):
        verify(source, source, Options(opencv=True))
    convert(source, [tmp_path / "m.onnx"])
    with pytest.raises(VggcError, match=r"reads \.caffemodel files"):
        verify(tmp_path / "m.onnx", source, Options(opencv=True))


def test_opencv_without_the_importer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.write(tmp_path / "m.caffemodel")
    monkeypatch.delattr(cv2.dnn, "readNetFromCaffe")
    with pytest.raises(VggcError, match="does not read Caffe's nets any more"):
        verify(tmp_path / "m.caffemodel", tmp_path / "m.caffemodel", Options(opencv=True))
