"""Python layers of published nets: their rules, their own gradients, and what comes before them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Lone, arrays, forward, gradients, lone


def build(name: str, *shapes: tuple[int, ...], tops: int = 1, folder: Path | None = None) -> Lone:
    module, _, layer = name.rpartition(".")
    text = f'type: "Python" python_param {{ module: "{module}" layer: "{layer}" }}'
    return lone(text, *shapes, tops=tops, python_layers=folder and str(folder))


@pytest.mark.parametrize("name", ["NormlizedMSE.NormlizedMSE", "python.NormlizedMSE.NormlizedMSE"])
def test_points_are_compared_in_distances_of_the_eyes(name: str) -> None:
    a, b = arrays((3, 10), (3, 10))
    it = build(name, a.shape, b.shape)
    assert it.top_shapes == [(1,)]
    apart = (a - b) / (1e-6 + np.hypot(b[:, 0] - b[:, 2], b[:, 1] - b[:, 3]))[:, None]
    np.testing.assert_allclose(forward(it, [a, b])[0], [(apart**2).sum() / 6])
    (left, right), _ = gradients(it, [a, b], [np.array([7.0])])
    np.testing.assert_allclose(left, apart / 3)
    np.testing.assert_allclose(right, -apart / 3)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1, 1)])
@pytest.mark.parametrize("counts", [True, False])
def test_regression_counts_unless_all_are_marked(shape: tuple[int, ...], counts: bool) -> None:
    a, b = arrays(shape, (3, 4))
    b[0 if counts else slice(None), 0] = -1
    it = build("pythonLayer.regression_Layer", shape, b.shape)
    apart = (a - b.reshape(shape)) * counts
    np.testing.assert_allclose(forward(it, [a, b])[0], [(apart**2).sum() / 6])
    (left, right), _ = gradients(it, [a, b], [np.array([0.5])])
    np.testing.assert_allclose(left, apart / 3)
    np.testing.assert_allclose(right, -apart.reshape(3, 4) / 3)


@pytest.mark.parametrize(("layer", "shape"), [("cls_Layer", (4, 2)), ("cls_Layer_fc", (4, 2, 1, 1))])
def test_items_with_labels_come_first(layer: str, shape: tuple[int, ...]) -> None:
    (x,), labels = arrays(shape), np.array([[-1.0], [1], [-1], [0]])
    it = build(f"pythonLayer.{layer}", shape, (4, 1), tops=2)
    scores, kept = forward(it, [x, labels])
    np.testing.assert_array_equal(scores, np.concatenate([x[[1, 3]], 0 * x[:2]]))
    np.testing.assert_array_equal(kept, [[1], [0], [0], [0]])
    given = torch.tensor(x, requires_grad=True)
    it.layer.forward([given, torch.tensor(labels)], [])[0].sum().backward()
    assert given.grad is not None
    np.testing.assert_array_equal(given.grad.reshape(4, 2), [[0, 0], [1, 1], [0, 0], [1, 1]])


@pytest.mark.parametrize(
    ("name", "shapes", "tops", "message"),
    [
        ("NormlizedMSE.NormlizedMSE", ((3, 10), (3, 8)), 1, "differ in their size"),
        ("NormlizedMSE.NormlizedMSE", ((3, 2), (3, 2)), 1, r"bottoms of shape \(3, 2\)"),
        ("pythonLayer.regression_Layer", ((3, 4), (12,)), 1, "differ in their size"),
        ("pythonLayer.cls_Layer", ((3, 3), (3, 1)), 2, "scores of shape"),
        ("pythonLayer.cls_Layer_fc", ((3, 2), (3, 1)), 2, "scores of shape"),
        ("pythonLayer.cls_Layer", ((3, 2), (3,)), 2, "labels of shape"),
    ],
)
def test_refused(name: str, shapes: tuple[tuple[int, ...], ...], tops: int, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        build(name, *shapes, tops=tops)


def test_a_folder_comes_first(tmp_path: Path) -> None:
    code = """
    import caffe

    class NormlizedMSE(caffe.Layer):
        def setup(self, bottom, top): pass
        def reshape(self, bottom, top): top[0].reshape(*bottom[0].shape)
        def forward(self, bottom, top): top[0].data[...] = 3 * bottom[0].data
        def backward(self, top, propagate_down, bottom): bottom[0].diff[...] = 3 * top[0].diff
    """
    (tmp_path / "NormlizedMSE.py").write_text("\n".join(line[4:] for line in code.splitlines()))
    (x,) = arrays((2, 3))
    it = build("NormlizedMSE.NormlizedMSE", x.shape, folder=tmp_path)
    np.testing.assert_allclose(forward(it, [x])[0], 3 * x)
