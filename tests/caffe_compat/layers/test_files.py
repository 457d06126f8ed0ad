"""Files that a net names: never outside its folder, read whole or not at all, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Context, Layer
from caffe_compat.layers.files import inner_file, inner_name, inner_path, own_path, read_blob, replacing
from caffe_compat.schema import pb


def layer(folder: Path, *data_folders: Path) -> Layer:
    state = {"data_folders": tuple(map(str, data_folders))}
    return Layer(pb.LayerParameter(name="it"), Context(folder=str(folder), state=state))


@pytest.mark.parametrize("name", ["a", "b/../a", "./a", "sub/a"])
def test_inside(tmp_path: Path, name: str) -> None:
    assert inner_path(layer(tmp_path), name, "f").is_relative_to(tmp_path.resolve())


def test_absolute_names_may_lead_inside(tmp_path: Path) -> None:
    assert inner_path(layer(tmp_path), str(tmp_path / "a"), "f") == (tmp_path / "a").resolve()


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "sub/../../a", "", "a\0b", ".."])
def test_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(LayerError, match=r"outside the folder|no file is named|zero byte"):
        inner_path(layer(tmp_path), name, "f")


def test_inner_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert inner_file(layer(tmp_path), "a") == (tmp_path / "a").resolve()
    for name in ("b", "/etc/passwd", "", "."):
        assert inner_file(layer(tmp_path), name) is None


def test_links_do_not_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link").symlink_to(tmp_path / "outer")
    with pytest.raises(LayerError, match="outside the folder"):
        inner_path(layer(tmp_path / "inner"), "link", "f")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The net's folder and two data folders; "both" lies in all of them."""
    found = tmp_path / "net", tmp_path / "one", tmp_path / "two"
    for folder in found:
        folder.mkdir()
        (folder / "both").touch()
        (folder / folder.name).touch()
    return found


def test_data_folders_come_first_and_in_their_order(folders: tuple[Path, Path, Path]) -> None:
    net, one, two = folders
    for name, home in (("both", two), ("one", one), ("net", net), ("../two/both", two), (str(one / "both"), one)):
        assert inner_path(layer(net, two, one), name, "f") == home / Path(name).name
    assert inner_path(layer(net, one), "none", "f") == net / "none"
    assert inner_name(layer(net, one), str(one)) == one
    for name in ("../x", str(two / "both"), "../one/../two/both"):
        with pytest.raises(LayerError, match=r"outside the folder .*--data-folder"):
            inner_path(layer(net, one), name, "f")


def test_links_lead_out_of_data_folders(folders: tuple[Path, Path, Path]) -> None:
    net, one, two = folders
    (one / "link").symlink_to(two)
    assert inner_path(layer(net, one), "link/both", "f") == one / "link" / "both"


def test_nothing_is_written_into_data_folders(folders: tuple[Path, Path, Path]) -> None:
    net, one, _ = folders
    assert own_path(layer(net, one), "one", "f") == net / "one"
    with pytest.raises(LayerError, match="outside the folder"):
        own_path(layer(net, one), str(one / "one"), "f")


@pytest.mark.parametrize("field", ["data", "double_data"])
def test_blob(tmp_path: Path, field: str) -> None:
    blob = pb.BlobProto(**{field: [1, 2, 3, 4, 5, 6]})  # type: ignore[arg-type]
    blob.shape.dim.extend([2, 3])
    (tmp_path / "b").write_bytes(blob.SerializeToString())
    shape, values = read_blob(layer(tmp_path), tmp_path / "b", "f")
    assert shape == (2, 3)
    np.testing.assert_array_equal(values, np.arange(1, 7, dtype=np.float32))


@pytest.mark.parametrize(
    "blob",
    [
        pb.BlobProto(),
        pb.BlobProto(data=[1]),
        pb.BlobProto(data=[1, 2], num=-1, channels=-1, height=1, width=2),
        pb.BlobProto(num=2**31 - 1, channels=2**31 - 1, height=2**31 - 1, width=2**31 - 1),
    ],
)
def test_blob_whose_values_do_not_fill_its_shape(tmp_path: Path, blob: pb.BlobProto) -> None:
    (tmp_path / "b").write_bytes(blob.SerializeToString())
    with pytest.raises(LayerError, match="states shape"):
        read_blob(layer(tmp_path), tmp_path / "b", "f")


def test_replacing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
