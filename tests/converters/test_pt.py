"""What torch makes of our .pt files, which are written without it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.convert import convert
from converters.pt import ALIGNMENT, payloads
from tests import models


@pytest.fixture(params=models.NETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    models.write(tmp_path / "m.caffemodel", request.param)
    convert(tmp_path / "m.caffemodel", [tmp_path / "m.pt"])
    return tmp_path / "m.pt"


@pytest.mark.parametrize("mapped", [False, True])
def test_tensors_are_as_torch_saves_them(target: Path, mapped: bool, tmp_path: Path) -> None:
    ours = torch.load(target, weights_only=True, mmap=mapped)
    torch.save({name: tensor.clone() for name, tensor in ours.items()}, tmp_path / "theirs.pt")
    theirs = torch.load(tmp_path / "theirs.pt", weights_only=True)
    assert type(ours) is dict
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])
        assert (tensor.dtype, tensor.stride()) == (theirs[name].dtype, theirs[name].stride())
        assert not tensor.requires_grad


def test_payloads_are_aligned_and_found_again(target: Path) -> None:
    mapped = torch.load(target, weights_only=True, mmap=True)
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in mapped.values())
    found = payloads(target)
    assert found.keys() == mapped.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values.view(np.float32), mapped[name].numpy().ravel())


def test_members_beyond_two_gigabytes_have_long_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.write(tmp_path / "m.caffemodel")
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    convert(tmp_path / "m.caffemodel", [tmp_path / "m.pt"])
    monkeypatch.undo()
    mapped = torch.load(tmp_path / "m.pt", weights_only=True, mmap=True)
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in mapped.values())
    assert all(torch.isfinite(tensor).all() for tensor in mapped.values())


def test_an_archive_of_torch_with_every_check(target: Path) -> None:
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
