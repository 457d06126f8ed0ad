"""InfogainLoss: the matrix from a bottom or a file, against a naive reference, under both profiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from caffe_compat.schema import pb
from tests.caffe_compat.layers.harness import Array, arrays, forward, gradients, lone


def matrix(classes: int = 3) -> Array:
    return np.random.default_rng(5).uniform(0.1, 1, (classes, classes)).astype(np.float32).astype(float)


def write(folder: Path, values: Array, **fields: list[int]) -> Path:
    blob = pb.BlobProto(data=values.ravel())
    blob.shape.dim.extend(fields.get("shape", list(values.shape)))
    path = folder / "h.binaryproto"
    path.write_bytes(blob.SerializeToString())
    return path


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def reference(x: Array, labels: Array, h: Array, ignore: int | None = None) -> tuple[float, Array, int]:
    """Summed loss, its gradient and the number of labels that count; classes on axis 1."""
    p = softmax(x, 1).reshape(len(x), x.shape[1], -1)
    flat, grad, loss, counted = labels.reshape(len(x), -1), np.zeros_like(p), 0.0, 0
    for i in range(p.shape[0]):
        for j in range(p.shape[2]):
            row = h[int(flat[i, j])] if int(flat[i, j]) != ignore else None
            if row is not None:
                loss -= (row * np.log(np.maximum(p[i, :, j], 1e-20))).sum()
                grad[i, :, j] = p[i, :, j] * row.sum() - row
                counted += 1
    return loss, grad.reshape(x.shape), counted


@pytest.mark.parametrize("fields", ["", "normalization: BATCH_SIZE", "normalization: NONE", "ignore_label: 1"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2, 2)])
def test_matrix_as_bottom(shape: tuple[int, ...], fields: str) -> None:
    (x,) = arrays(shape)
    labels = np.arange(np.prod(shape) // 3).reshape(shape[0], *shape[2:]) % 3.0
    it = lone(f'type: "InfogainLoss" loss_param {{ {fields} }}', shape, labels.shape, (1, 1, 3, 3))
    ignore = 1 if "ignore" in fields else None
    loss, grad, counted = reference(x, labels, matrix(), ignore)
    z = {"normalization: BATCH_SIZE": shape[0], "normalization: NONE": 1}.get(fields, counted)
    bottoms = [x, labels, matrix().reshape(1, 1, 3, 3)]
    np.testing.assert_allclose(forward(it, bottoms)[0], loss / z)
    (got, *none), _ = gradients(it, bottoms, [np.array(1.0)])
    np.testing.assert_allclose(got, grad / z, atol=1e-12)
    assert not any(array.any() for array in none)


def test_matrix_from_a_file_and_probabilities(tmp_path: Path) -> None:
    write(tmp_path, matrix())
    text = 'type: "InfogainLoss" loss_weight: 1 loss_weight: 0 infogain_loss_param { source: "h.binaryproto" axis: 1 }'
    it = lone(text, (4, 3), (4,), tops=2, folder=str(tmp_path))
    (x,) = arrays((4, 3))
    labels = np.array([0.0, 1, 2, 1])
    loss, p = forward(it, [x, labels])
    np.testing.assert_allclose(loss, reference(x, labels, matrix())[0] / 4)
    np.testing.assert_allclose(p, softmax(x, 1))


def test_other_axis() -> None:
    (x,) = arrays((2, 4, 3))
    labels = np.arange(8).reshape(2, 4) % 3.0
    it = lone('type: "InfogainLoss" infogain_loss_param { axis: 2 }', (2, 4, 3), (2, 4), (3, 3))
    loss = reference(x.reshape(8, 3), labels.ravel(), matrix())[0]
    np.testing.assert_allclose(forward(it, [x, labels, matrix()])[0], loss / 8)


def test_clamped_logarithms_keep_their_gradient() -> None:
    it = lone('type: "InfogainLoss"', (1, 2), (1,), (2, 2))
    bottoms = [np.array([[1000.0, 0.0]]), np.array([1.0]), np.array([[1.0, 0.0], [0.5, 2.0]])]
    np.testing.assert_allclose(forward(it, bottoms)[0], -2 * np.log(1e-20))
    (grad, *_), _ = gradients(it, bottoms, [np.array(1.0)])
    np.testing.assert_allclose(grad, [[2.5 - 0.5, -2.0]])


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ("loss_param { normalize: true }", ((2, 3), (2,), (3, 3)), "normalize is not known"),
        ("", ((2, 3), (2,)), "no infogain matrix"),
        ("", ((2, 3), (2,), (3, 2)), "3 classes need 3 x 3"),
        ("infogain_loss_param { axis: 3 }", ((2, 3), (2,), (3, 3)), "axis 3 is out of range"),
        ("", ((2, 3, 2), (2,), (3, 3)), "2 labels for 4 predictions"),
    ],
)
def test_refused(text: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "InfogainLoss" {text}', *shapes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xff\xff", "cannot be read"),
        (pb.BlobProto(data=[1, 2]).SerializeToString(), r"states shape \(0, 0, 0, 0\) and holds 2 values"),
        (
            pb.BlobProto(data=[1, 2], num=1, channels=1, height=1, width=2).SerializeToString(),
            "holds 2 values; 3 classes",
        ),
        (b"", "holds 0 values"),
    ],
)
def test_bad_matrix_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "h").write_bytes(content)
    with pytest.raises(LayerError, match=message):
        lone('type: "InfogainLoss" infogain_loss_param { source: "h" }', (2, 3), (2,), folder=str(tmp_path))


def test_a_missing_file_is_an_error_when_the_loss_is_computed(tmp_path: Path) -> None:
    text = 'type: "InfogainLoss" infogain_loss_param { source: "none.binaryproto" }'
    it = lone(text, (2, 3), (2,), folder=str(tmp_path))
    with pytest.raises(LayerError, match=r'"none\.binaryproto" does not exist'):
        forward(it, [np.zeros((2, 3)), np.zeros(2)])


def test_a_file_elsewhere_is_an_error_when_the_loss_is_computed(tmp_path: Path) -> None:
    it = lone('type: "InfogainLoss" infogain_loss_param { source: "../h" }', (2, 3), (2,), folder=str(tmp_path))
    with pytest.raises(LayerError, match="outside the folder"):
        forward(it, [np.zeros((2, 3)), np.zeros(2)])


def test_2013_takes_probabilities(tmp_path: Path) -> None:
    write(tmp_path, matrix(), shape=[1, 1, 3, 3])
    text = 'type: "InfogainLoss" infogain_loss_param { source: "h.binaryproto" }'
    it = lone(text, (2, 3, 1, 1), (2, 1, 1, 1), tops=0, profile="dec2013", folder=str(tmp_path))
    p = torch.tensor([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]], dtype=torch.double).view(2, 3, 1, 1).requires_grad_()
    loss = it.layer.loss([p, torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)])
    h, held = matrix()[[1, 2]], np.maximum(p.detach().numpy().reshape(2, 3), 1e-20)
    np.testing.assert_allclose(loss.item(), -(h * np.log(held)).sum() / 2)
    np.testing.assert_allclose(torch.autograd.grad(loss, p)[0].numpy().reshape(2, 3), -h / held / 2)
