"""Labels of flat folders: by WordNet number, or in the order of the development kit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from caffe_compat.errors import VggcError
from repro.image_sets import DataError
from repro.label_files import open_labelled, read_names
from tests.repro.pictures import smooth, tree, write

KIT = {1: "n03", 2: "n01", 3: "n02", 1001: "n00"}
"""The kit's own numbers; n01, n02, n03 are labels 0, 1, 2, and 1001 is no class of the task."""


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for index in range(4):
        write(tmp_path / "val" / f"ILSVRC2012_val_{index:08d}.png", smooth(9, 8, index))
    (tmp_path / "val" / "readme.txt").touch()
    return tmp_path / "val"


def labels(folder: Path, *numbers: int) -> Path:
    path = folder / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("".join(f"{number}\n" for number in numbers))
    return path


def test_the_kits_order_by_its_text_table(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "map_clsloc.txt").write_text("".join(f"{w} {n} some_name\n" for n, w in KIT.items() if n < 1000))
    images, said = open_labelled(str(flat), labels(tmp_path, 1, 2, 3, 1))
    assert images.items.labels.tolist() == [2, 0, 1, 2]
    assert images.items.names[0] == "ILSVRC2012_val_00000000.png"
    assert images.read(1).shape == (9, 8, 3)
    assert "development kit's order" in said[0]


def test_the_kits_order_by_its_table_for_matlab(flat: Path, tmp_path: Path) -> None:
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    synsets = np.array([(number, wnid, "x") for number, wnid in KIT.items()], dtype=kind).reshape(-1, 1)
    savemat(tmp_path / "meta.mat", {"synsets": synsets})
    images, _said = open_labelled(str(flat), labels(tmp_path, 3, 3, 2, 1), order="devkit")
    assert images.items.labels.tolist() == [1, 1, 0, 2]


def test_numbers_from_zero_count_by_wordnet_number(flat: Path, tmp_path: Path) -> None:
    images, said = open_labelled(str(flat), labels(tmp_path, 0, 2, 1, 0))
    assert images.items.labels.tolist() == [0, 2, 1, 0]
    assert "counted from 0" in said[0]


def test_numbers_from_one_need_to_be_explained(flat: Path, tmp_path: Path) -> None:
    path = labels(tmp_path, 1, 2, 3, 1)
    with pytest.raises(VggcError, match="may count classes by WordNet number or as the development kit"):
        open_labelled(str(flat), path)
    assert open_labelled(str(flat), path, order="synsets")[0].items.labels.tolist() == [0, 1, 2, 0]
    with pytest.raises(VggcError, match="is not beside its labels"):
        open_labelled(str(flat), path, order="devkit")


def test_lists_and_class_folders_are_as_ever(tmp_path: Path) -> None:
    tree(tmp_path / "photos", cat=2, dog=1)
    images, said = open_labelled(str(tmp_path / "photos"))
    assert (images.items.labels.tolist(), images.classes, said) == ([0, 0, 1], ("cat", "dog"), ())
    listed = tmp_path / "val.txt"
    listed.write_text("cat/1.png 4\ndog/0.png 2\n")
    images, said = open_labelled(str(tmp_path / "photos"), listed)
    assert (images.items.labels.tolist(), said) == ([4, 2], ())
    with pytest.raises(VggcError, match="file of single numbers"):
        open_labelled(str(tmp_path / "photos"), order="devkit")


def test_what_does_not_fit(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 labels for 4 images"):
        open_labelled(str(flat), labels(tmp_path, 0, 1, 2))
    with pytest.raises(DataError, match="no such folder"):
        open_labelled(str(tmp_path / "nowhere"), labels(tmp_path, 0, 1, 2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in this folder"):
        open_labelled(str(tmp_path / "empty"), labels(tmp_path, 0))
    (tmp_path / "map_clsloc.txt").write_text("n01 1 a\n")
    with pytest.raises(VggcError, match="that the kit's table does not have, 2"):
        open_labelled(str(flat), labels(tmp_path, 1, 1, 2, 1))
    (tmp_path / "map_clsloc.txt").write_text("one two\n")
    with pytest.raises(VggcError, match="no table of classes"):
        open_labelled(str(flat), labels(tmp_path, 1, 1, 2, 1))
    (tmp_path / "map_clsloc.txt").unlink()
    (tmp_path / "meta.mat").write_bytes(b"no MATLAB" * 40)
    with pytest.raises(VggcError, match="no table of classes"):
        open_labelled(str(flat), labels(tmp_path, 1, 1, 2, 1))
    path = tmp_path / "words"
    path.write_text("1\ntwo\n")
    with pytest.raises(VggcError, match="a line is no number"):
        open_labelled(str(flat), path)


def test_names_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "synset_words.txt"
    path.write_text("n01440764 tench, Tinca tinca\n\nn01443537 goldfish\n")
    assert read_names(path) == ("n01440764 tench, Tinca tinca", "n01443537 goldfish")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(VggcError, match="not UTF-8"):
        read_names(path)
