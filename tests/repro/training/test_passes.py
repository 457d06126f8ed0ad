"""The gradients of an update: the same however it is split, and what goes wrong is named."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from caffe_compat.errors import VggcError
from repro.training.passes import NotFiniteError
from repro.training.scaling import GROWTH, LossScale
from tests.repro.training.tiny import NET, Fixture


def test_micro_batches_add_up_to_the_gradient_of_the_mean(tmp_path: Path) -> None:
    whole = Fixture(tmp_path, micro=8)
    loss = whole.passes(whole.batch())
    for micro in (1, 2, 3, 4):
        cut = Fixture(tmp_path, micro=micro)
        assert cut.passes(cut.batch()) == pytest.approx(loss, rel=1e-6)
        for mine, theirs in zip(cut.gradients(), whole.gradients(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_sums_are_those_of_a_tree(tmp_path: Path) -> None:
    it = Fixture(tmp_path, micro=1)
    parts = []
    for part in it.passes.parts(it.batch()):
        it.passes._gradients.begin()
        (it.passes._loss(part) / 8).backward()
        parts.append(it.gradients())
    it.passes(it.batch())
    for index, total in enumerate(it.gradients()):
        a, b, c, d, e, f, g, h = (part[index] for part in parts)
        assert torch.equal(total, ((a + b) + (c + d)) + ((e + f) + (g + h)))


def test_the_reference_is_plain_torch(tmp_path: Path) -> None:
    """A hand-written net with the same mask."""
    it = Fixture(tmp_path, micro=8)
    batch = it.batch(3)
    loss = it.passes(batch)
    w1, b1, w2, b2, w3, b3 = (blob.detach().clone().requires_grad_() for blob in it.update.blobs)
    x = torch.nn.functional.conv2d(batch.images, w1, b1, padding=1).relu()
    x = torch.nn.functional.max_pool2d(x, 2).flatten(1) @ w2.T + b2
    x = x.relu() * it.net.graph.context.state["draws"]["drop"] * 2
    expected = torch.nn.functional.cross_entropy(x @ w3.T + b3, batch.labels)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for mine, theirs in zip(it.gradients(), (w1, b1, w2, b2, w3, b3), strict=True):
        torch.testing.assert_close(mine, theirs.grad, rtol=1e-5, atol=1e-6)


def test_the_blob_that_went_first_is_named(tmp_path: Path) -> None:
    it = Fixture(tmp_path, micro=4)
    with torch.no_grad():
        it.net.params["fc1"][0].fill_(1e38)
    with pytest.raises(NotFiniteError, match=r'the loss of iteration 7 is nan; blob "fc1" is the first') as caught:
        it.passes(it.batch(7))
    assert "--init" in caught.value.remedy


def test_a_parameter_that_went_first_is_named(tmp_path: Path) -> None:
    it = Fixture(tmp_path, micro=4)
    with torch.no_grad():
        it.net.params["fc1"][1][3] = float("inf")
    with pytest.raises(NotFiniteError, match='parameter 1 of layer "fc1" is the first'):
        it.passes(it.batch())


def test_two_losses_count_by_their_weights(tmp_path: Path) -> None:
    two = NET.replace(
        'layer { name: "prob" type: "Softmax" bottom: "fc2" top: "prob" }',
        """
        layer { name: "l" type: "Input" top: "label" input_param { shape { dim: 1 } } }
        layer { name: "side" type: "InnerProduct" bottom: "fc1" top: "side" inner_product_param { num_output: 3 } }
        layer { name: "a" type: "SoftmaxWithLoss" bottom: "side" bottom: "label" top: "a" loss_weight: 0.25 }
        layer { name: "b" type: "SoftmaxWithLoss" bottom: "fc2" bottom: "label" top: "b" }
        """,
    )
    it = Fixture(tmp_path, micro=8, text=two)
    loss = it.passes(it.batch())
    blobs = it.net.trace({"data": it.batch().images, "label": it.batch().labels}).blobs
    assert loss == pytest.approx(0.25 * blobs["a"].item() + blobs["b"].item(), rel=1e-6)


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    full, half = Fixture(tmp_path, micro=8), Fixture(tmp_path, micro=8, precision="bfloat16")
    assert half.passes(half.batch()) == pytest.approx(full.passes(full.batch()), rel=0.02)
    assert {gradient.dtype for gradient in half.gradients()} == {torch.float32}


def test_float16_overflow_leaves_the_update_out(tmp_path: Path) -> None:
    it = Fixture(tmp_path, micro=8, precision="float16")
    before = [blob.detach().clone() for blob in it.update.blobs]
    it.passes(it.batch())
    it.net.params["fc2"][0].grad[0, 0] = float("inf")  # type: ignore[index]
    assert not it.passes.update(0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, it.update.blobs, strict=True))
    assert it.passes.scale == LossScale(True, 2.0**15, 0)
    it.passes(it.batch())
    assert it.passes.update(0.1)
    assert not torch.equal(before[0], it.update.blobs[0])


def test_float16_scale_grows_and_its_gradients_are_near(tmp_path: Path) -> None:
    assert LossScale(True, 8.0, GROWTH - 1).after(True) == LossScale(True, 16.0, 0)
    assert LossScale(True, 8.0, 5).after(True) == LossScale(True, 8.0, 6)
    full, half = Fixture(tmp_path, micro=8), Fixture(tmp_path, micro=8, precision="float16")
    half.passes.scale = LossScale(True, 64.0)
    assert half.passes(half.batch()) == pytest.approx(full.passes(full.batch()), rel=0.02)
    assert half.passes._unscaled()
    for mine, theirs in zip(half.gradients(), full.gradients(), strict=True):
        assert (mine - theirs).norm() < 0.1 * theirs.norm()


def test_channels_last_computes_the_same(tmp_path: Path) -> None:
    plain, last = Fixture(tmp_path, micro=8), Fixture(tmp_path, micro=8, channels_last=True)
    last.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert last.passes(last.batch()) == pytest.approx(plain.passes(plain.batch()), rel=1e-5)
    assert next(last.passes.parts(last.batch())).images.is_contiguous(memory_format=torch.channels_last)


def saved_bytes(it: Fixture) -> int:
    """Of the values that a backward pass is kept for."""
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept[value.data_ptr()] = value.numel() * value.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        it.passes._loss(next(it.passes.parts(it.batch())))
    return sum(kept.values())


def test_checkpointing_gives_the_same_bits_for_less_memory(tmp_path: Path) -> None:
    plain, again = Fixture(tmp_path, micro=8), Fixture(tmp_path, micro=8, checkpointing=True)
    for batch in plain.batches(3):
        assert again.passes(batch) == plain.passes(batch)
        assert all(torch.equal(a, b) for a, b in zip(again.gradients(), plain.gradients(), strict=True))
        plain.passes.update(0.001), again.passes.update(0.001)
    assert saved_bytes(again) < saved_bytes(plain)


def test_what_checkpointing_cannot_do(tmp_path: Path) -> None:
    norm = 'layer { name: "bn" type: "BatchNorm" bottom: "conv1" top: "conv1" }'
    text = NET.replace('layer { name: "relu1"', norm + 'layer { name: "relu1"')
    with pytest.raises(VggcError, match="layer bn keeps statistics"):
        Fixture(tmp_path, micro=8, text=text, checkpointing=True)
    with pytest.raises(VggcError, match="do not go together"):
        Fixture(tmp_path, micro=8, checkpointing=True, compiled=True)


def test_a_compiled_net_gets_fresh_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, but not translated, which takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, fast = Fixture(tmp_path, micro=4), Fixture(tmp_path, micro=4, compiled=True)
    for batch in plain.batches(3):
        assert fast.passes(batch) == pytest.approx(plain.passes(batch), rel=1e-6)
        for mine, theirs in zip(fast.gradients(), plain.gradients(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
