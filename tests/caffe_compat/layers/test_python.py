"""Python layers: registered ones, pycaffe's own from a folder, and none by themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffe_compat.errors import GraphError, LayerError
from caffe_compat.layers import base, python
from caffe_compat.layers.base import Layer, Shape, registered
from caffe_compat.layers.python import Python, register_layer
from tests.caffe_compat.layers.harness import Lone, arrays, check_gradients, forward, gradients, lone

MODULE = '''
import numpy as np
import caffe

PHASES = (caffe.TRAIN, caffe.TEST)


class Scaled(caffe.Layer):
    """top = factor * weight * bottom, with a learned weight"""

    def setup(self, bottom, top):
        self.factor = float(self.param_str)
        self.blobs.add_blob(1)
        self.blobs[0].data[0] = 3

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.factor * self.blobs[0].data[0] * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = self.factor * self.blobs[0].data[0] * top[0].diff
        self.blobs[0].diff[0] += self.factor * (bottom[0].data * top[0].diff).sum()


class InPlace(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        top[0].data[bottom[0].data < 0] = 0

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[bottom[0].data <= 0] = 0


class Varying(caffe.Layer):
    """As many rows as are positive, and the phase."""

    def setup(self, bottom, top):
        top[0].reshape(1, 2)
        top[1].reshape(1)

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        rows = bottom[0].data[bottom[0].data[:, 0] > 0]
        top[0].reshape(*rows.shape)
        top[0].data[...] = rows
        top[1].data[...] = self.phase

    def backward(self, top, propagate_down, bottom):
        raise NotImplementedError("a selection of rows has no gradient here")


class Counter(caffe.Layer):
    def setup(self, bottom, top):
        self.count = 0

    def reshape(self, bottom, top):
        top[0].reshape(2)

    def forward(self, bottom, top):
        self.count += 1
        top[0].data[...] = self.count


class Legacy(caffe.Layer):
    def __init__(self, param):
        caffe.Layer.__init__(self, param)
        self.said = param.name

    def setup(self, bottom, top):
        b = bottom[0]
        self.sizes = b.num, b.channels, b.height, b.width, b.count

    def reshape(self, bottom, top):
        top[0].reshape(len(self.sizes))

    def forward(self, bottom, top):
        top[0].data[...] = self.sizes


class NoShape(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        pass


class Failing(caffe.Layer):
    def setup(self, bottom, top):
        raise KeyError("not there")


class Uneven(Scaled):
    def setup(self, bottom, top):
        self.blobs.add_blob(2)
        self.blobs[0].data[...] = 1, 2
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "py_example.py").write_text(MODULE)
    return tmp_path


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registrations end with the test, and imports leave nothing behind."""
    monkeypatch.setattr(python, "_REGISTERED", {})
    modules, path = set(sys.modules), list(sys.path)
    yield
    monkeypatch.undo()
    assert not {name for name in set(sys.modules) - modules if name.startswith(("py_example", "caffe."))}
    assert "caffe" not in sys.modules
    assert sys.path == path


def build(
    folder: Path | None, layer: str, *shapes: Shape, module: str = "py_example", param: str = "", **rest: Any
) -> Lone:
    text = f'type: "Python" python_param {{ module: "{module}" layer: "{layer}" param_str: "{param}" }}'
    return lone(text, *shapes, python_layers=None if folder is None else str(folder), **rest)


# -- code is never run because a file names it -----------------------------------------------------------------


def test_nothing_is_run_unasked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "py_example.py").write_text("raise SystemExit('it was run')")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(LayerError) as caught:
        build(None, "Scaled", (2, 3))
    text = str(caught.value)
    assert '@caffe_compat.register_layer("py_example.Scaled")' in text
    assert '--python-layers DIR (python_layers="DIR" in Python)' in text
    assert "DIR/py_example.py" in text


@pytest.mark.parametrize(("text", "message"), [("", "module is not stated"), ('module: "m"', "layer is not stated")])
def test_module_and_layer_must_be_stated(text: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "Python" python_param {{ {text} }}', (2, 3))


# -- registered layers -----------------------------------------------------------------------------------------


def test_registered_layer() -> None:
    @register_layer("zoo_layers.Double")
    class Double(Layer):
        """y = 2 x."""

        def setup(self, bottoms: Any) -> None:
            self.check(self.p.param_str == "two", "wrong param_str", field="python_param.param_str")

        def forward(self, bottoms: list[torch.Tensor], blobs: list[torch.Tensor]) -> list[torch.Tensor]:
            return [2 * bottoms[0]]

    it = build(None, "Double", (2, 3), module="zoo_layers", param="two")
    (x,) = arrays((2, 3))
    assert it.top_shapes == [(2, 3)]
    assert it.layer.TYPE == "Python"
    assert isinstance(it.layer, (Double, Python))
    np.testing.assert_array_equal(forward(it, [x])[0], 2 * x)
    check_gradients(it, [x])
    with pytest.raises(LayerError, match="wrong param_str"):
        build(None, "Double", (2, 3), module="zoo_layers")


def test_registered_layer_may_have_blobs_and_count_its_bottoms() -> None:
    @register_layer("zoo_layers.Sum")
    class Sum(Layer):
        """y = w (a + b)."""

        BOTTOMS = (2, 2)
        BLOBS = ("scale",)

        def blob_shapes(self, bottoms: Any) -> list[Shape]:
            return [(1,)]

        def forward(self, bottoms: list[torch.Tensor], blobs: list[torch.Tensor]) -> list[torch.Tensor]:
            return [blobs[0] * (bottoms[0] + bottoms[1])]

    a, b = arrays((2, 3), (2, 3))
    it = build(None, "Sum", (2, 3), (2, 3), module="zoo_layers")
    np.testing.assert_allclose(forward(it, [a, b], [np.array([3.0])])[0], 3 * (a + b))
    with pytest.raises(LayerError, match="takes 2 bottom"):
        build(None, "Sum", (2, 3), module="zoo_layers")


def test_registered_code_comes_before_the_folder(folder: Path) -> None:
    @register_layer("py_example.Scaled")
    class Mine(Layer):
        """y = 0."""

        def forward(self, bottoms: list[torch.Tensor], blobs: list[torch.Tensor]) -> list[torch.Tensor]:
            return [bottoms[0] * 0]

    assert not forward(build(folder, "Scaled", (2, 3)), arrays((2, 3)))[0].any()


def test_a_name_is_registered_once() -> None:
    @register_layer("m.A")
    class One(Layer):
        """The first."""

    register_layer("m.A")(One)
    with pytest.raises(ValueError, match=r"Python layer m\.A is already registered"):

        @register_layer("m.A")
        class Two(Layer):
            """The second."""


def test_layers_of_a_type_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    registered()
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    @register_layer
    class Halve(Layer):
        """y = x / 2."""

        TYPE = "Halve"

        def forward(self, bottoms: list[torch.Tensor], blobs: list[torch.Tensor]) -> list[torch.Tensor]:
            return [bottoms[0] / 2]

    (x,) = arrays((2, 3))
    np.testing.assert_array_equal(forward(lone('type: "Halve"', (2, 3)), [x])[0], x / 2)


def test_a_type_is_registered_once() -> None:
    with pytest.raises(ValueError, match="Softmax is already registered for bvlc"):

        @register_layer
        class Softmax(Layer):
            """Not Caffe's."""

            TYPE = "Softmax"


# -- pycaffe's layers ------------------------------------------------------------------------------------------


def test_pycaffe_layer_with_a_parameter(folder: Path) -> None:
    it = build(folder, "Scaled", (2, 3), param="0.5")
    (x,) = arrays((2, 3))
    weight = np.array([4.0])
    assert list(it.node.blob_shapes) == [(1,)]
    assert [(filler.type, filler.value) for filler in it.layer.fillers()] == [("constant", 3.0)]
    np.testing.assert_allclose(forward(it, [x], [weight])[0], 2 * x)
    (grad,), (weight_grad,) = gradients(it, [x], [np.ones((2, 3))], [weight])
    np.testing.assert_allclose(grad, np.full((2, 3), 2.0))
    np.testing.assert_allclose(weight_grad, [0.5 * x.sum()])


def test_pycaffe_layer_at_another_size(folder: Path) -> None:
    it = build(folder, "Scaled", (2, 3), param="1")
    (x,) = arrays((5, 3))
    np.testing.assert_allclose(forward(it, [x], [np.ones(1)])[0], x)


def test_pycaffe_layer_in_place(folder: Path) -> None:
    it = build(folder, "InPlace", (2, 3), inplace=True)
    (x,) = arrays((2, 3))
    np.testing.assert_array_equal(forward(it, [x])[0], np.maximum(x, 0))
    (grad,), _ = gradients(it, [x], [np.ones((2, 3))])
    np.testing.assert_array_equal(grad, x > 0)


@pytest.mark.parametrize(("phase", "number"), [("TRAIN", 0), ("TEST", 1)])
def test_pycaffe_layer_that_reshapes_while_it_runs(folder: Path, phase: str, number: int) -> None:
    it = build(folder, "Varying", (3, 2), tops=2, phase=phase)
    rows, seen = forward(it, [np.array([[1.0, 2], [-1, 0], [3, 4]])])
    np.testing.assert_array_equal(rows, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(seen, [number])


def test_pycaffe_layer_without_bottoms(folder: Path) -> None:
    it = build(folder, "Counter")
    assert [forward(it, [])[0].tolist() for _ in range(2)] == [[1, 1], [2, 2]]


def test_legacy_sizes_and_a_constructor(folder: Path) -> None:
    it = build(folder, "Legacy", (2, 3))
    np.testing.assert_array_equal(forward(it, arrays((2, 3)))[0], [2, 3, 1, 1, 6])
    assert it.layer.user.said == "it"  # type: ignore[attr-defined]


def test_backward_belongs_to_the_latest_forward(folder: Path) -> None:
    it = build(folder, "Scaled", (2, 3), param="1")
    x, weight = torch.ones(2, 3, requires_grad=True), torch.ones(1)
    (first,), (second,) = it.layer.forward([x], [weight]), it.layer.forward([x], [weight])
    second.sum().backward()
    with pytest.raises(LayerError, match="after another forward pass"):
        first.sum().backward()


def test_modules_of_one_name_in_two_folders(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "py_example.py").write_text(MODULE.replace("self.factor *", "10 * self.factor *"))
    (x,) = arrays((2, 3))
    for place, factor in ((folder, 1), (other, 10), (folder, 1)):
        np.testing.assert_allclose(forward(build(place, "Scaled", (2, 3), param="1"), [x], [np.ones(1)])[0], factor * x)


def test_packages_and_siblings(tmp_path: Path) -> None:
    package = tmp_path / "py_example_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "factor.py").write_text("FACTOR = 7\n")
    (package / "inner" / "__init__.py").write_text(
        "import caffe\nfrom py_example_package.factor import FACTOR\n" + MODULE.replace("self.factor *", "FACTOR *")
    )
    it = build(tmp_path, "Scaled", (2, 3), module="py_example_package.inner", param="1")
    (x,) = arrays((2, 3))
    np.testing.assert_allclose(forward(it, [x], [np.ones(1)])[0], 7 * x)
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("module", "layer", "message"),
    [
        ("absent", "Scaled", "no module absent in"),
        ("py_example", "Absent", 'has no class "Absent"'),
        ("py_example", "PHASES", 'has no class "PHASES"'),
        ("../py_example", "Scaled", "not the name of a module"),
        ("/etc/x", "Scaled", "not the name of a module"),
        ("json", "JSONDecoder", "no module json in"),
        ("broken", "Scaled", r"cannot be imported: SyntaxError"),
        ("asks", "Scaled", r"cannot be imported: ModuleNotFoundError: No module named 'caffe\.proto'"),
        ("py_example", "NoShape", "gives top 0 no shape"),
        ("py_example", "Failing", r"setup of py_example\.Failing raised KeyError: 'not there'"),
        ("py_example", "Uneven", "values that are not all equal"),
        ("py_example", "Scaled", "could not convert string to float"),
    ],
)
def test_refused(folder: Path, module: str, layer: str, message: str) -> None:
    (folder / "broken.py").write_text("def\n")
    (folder / "asks.py").write_text("from caffe.proto import caffe_pb2\n")
    with pytest.raises(GraphError, match=message):
        build(folder, layer, (2, 3), module=module).layer.fillers()


def test_a_name_that_is_in_use(folder: Path) -> None:
    (folder / "numpy.py").write_text(MODULE)
    with pytest.raises(LayerError, match="already in use"):
        build(folder, "Scaled", (2, 3), module="numpy", param="1")


def test_links_do_not_lead_outside_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "linked.py"
    outside.write_text(MODULE)
    (folder / "linked.py").symlink_to(outside)
    with pytest.raises(LayerError, match="no module linked in"):
        build(folder, "Scaled", (2, 3), module="linked")


def test_errors_while_it_runs_name_the_layer(folder: Path) -> None:
    it = build(folder, "Varying", (3, 2), tops=2)
    x = torch.ones(3, 2, requires_grad=True)
    tops = it.layer.forward([x], [])
    with pytest.raises(LayerError, match=r'layer "it": backward of py_example\.Varying raised NotImplementedError'):
        tops[0].sum().backward()


def test_what_may_read_data_is_told_to_become_an_input() -> None:
    fields = 'type: "Python" python_param { module: "voc_layers" layer: "VOCSegDataLayer" }'
    with pytest.raises(LayerError, match="replace it by an Input layer with top out0, out1") as caught:
        lone(fields, tops=2)
    assert "VOCSegDataLayer is Python code" in caught.value.what
