"""Lists of images, and folders that stand for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat.data.lists import list_folders, read_list, write_list
from caffe_compat.errors import FormatError, TextError, VggcError


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "names", "labels"),
    [
        ("a.jpg 0\nb.jpg 1\n", ("a.jpg", "b.jpg"), [0, 1]),
        ("a.jpg 0\nb.jpg 1", ("a.jpg", "b.jpg"), [0, 1]),
        ("a.jpg 0\r\n\r\n  \nb.jpg -7\r\n", ("a.jpg", "b.jpg"), [0, -7]),
        ("sub dir/v 1.jpg 12\n/abs/ä.png +3", ("sub dir/v 1.jpg", "/abs/ä.png"), [12, 3]),
        ("a  5", ("a ",), [5]),
        ("1 2147483647", ("1",), [2147483647]),
    ],
)
def test_the_label_stands_after_the_last_space(
    tmp_path: Path, text: str, names: tuple[str, ...], labels: list[int]
) -> None:
    found = read_list(write(tmp_path, text))
    assert found.names == names
    assert found.labels.tolist() == labels
    assert found.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\nb.jpg\n", r'list\.txt:2:1: no label: "b\.jpg"; write lines "file label"'),
        ("a.jpg\t3\n", "1:1: no label"),
        ("a.jpg 0.5\n", r'1:7: no label: "a\.jpg 0\.5"'),
        ("a.jpg x", "1:7: no label"),
        ("a.jpg ", "1:7: no label"),
        (" 5", "1:1: no label"),
        ("a.jpg 2147483648", "the label 2147483648 is no 32-bit integer"),
        ("a.jpg 99999999999999999999", "no label"),
        (b"a\0b.jpg 1", "zero byte"),
        (b"\xff\xfe" * 99 + b"\n", "no label"),
        ("\n\n", "names no image"),
        ("", "the file is empty"),
    ],
)
def test_malformed_lines(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_list(write(tmp_path, text))


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(VggcError, match="no such file"):
        read_list(tmp_path / "none.txt")


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    path = write(tmp_path, b"a\xff.jpg 1\n")
    write_list(read_list(path), tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == path.read_bytes()


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in (
        "b/2.png",
        "b/1.JPG",
        "a/deep/x.jpeg",
        "a/readme.txt",
        ".hidden/1.jpg",
        "a/.1.jpg",
        "c/none.md",
        "1.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list_folders(tmp_path)
    assert found.classes == ("a", "b", "c")
    assert found.images.names == ("a/deep/x.jpeg", "b/1.JPG", "b/2.png")
    assert found.images.labels.tolist() == [0, 1, 1]
    assert found.passed_over == ("a/readme.txt", "c/none.md")


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(
        FormatError, match="no images in folders of this folder; put the images into one folder a class"
    ):
        list_folders(tmp_path)
    with pytest.raises(VggcError, match="no such file"):
        list_folders(tmp_path / "none")


def test_an_error_is_a_text_error_with_a_line(tmp_path: Path) -> None:
    with pytest.raises(TextError) as error:
        read_list(write(tmp_path, "a.jpg 1\n" * 41 + "b.jpg one"))
    assert (error.value.where.line, error.value.where.column) == (42, 7)
