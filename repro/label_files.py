"""Labels of ILSVRC-2012's validation images in the forms that they come in.

- A list of lines "file label", as Caffe's val.txt: labels count the classes in the order of synsets.txt, which is that
  of their WordNet numbers, from 0. This is the order of the released nets, and of one folder a class.
- The development kit's ILSVRC2012_validation_ground_truth.txt: one number a line, for the images in the order of their
  names, in the kit's own order of classes, from 1. The kit's data/meta.mat, or map_clsloc.txt of later kits, tells
  which class a number is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.lists import ENDINGS, ImageList
from caffe_compat.errors import FormatError, VggcError
from caffe_compat.mapped import map_file
from repro.datasets import listed_images, open_images
from repro.image_sets import DataError, ImageSet

AUTO, SYNSETS, DEVKIT = "auto", "synsets", "devkit"
ORDERS = (AUTO, SYNSETS, DEVKIT)
CLASSES = 1000
"""Of the classification task; the kit's further numbers are of inner nodes."""
META, MAP = "meta.mat", "map_clsloc.txt"

Ints = NDArray[np.int64]


def open_labelled(
    source: str, labels: Path | None = None, root: Path | None = None, split: str | None = None, order: str = AUTO
) -> tuple[ImageSet, tuple[str, ...]]:
    """The images of a source, and what a user should know of their labels.

    Args:
        source: see `repro.datasets.open_images`; with `labels` of single numbers a folder of images.
        labels: a list of lines "file label", or of single numbers.
        order: what single numbers count: "synsets" (from 0, or from 1 when there is no 0), "devkit", or "auto": the
            kit's when its table of classes is beside `labels`.

    Raises:
        DataError: the images are not there, or are not as many as labels.
        VggcError: the labels cannot be read, or it cannot be told what they count.
    """
    numbers = _numbers(labels) if labels else None
    if numbers is None or labels is None:
        if order == DEVKIT:
            what = "the development kit's order is that of its file of single numbers"
            raise VggcError(what, where=source, remedy="give ILSVRC2012_validation_ground_truth.txt with --labels")
        return open_images(source, labels=labels, root=root, split=split), ()
    names = _flat(Path(source))
    if len(names) != len(numbers):
        what = f"{len(numbers):,} labels for {len(names):,} images in {source}"
        raise DataError(what, where=str(labels), remedy="give the labels of these images")
    table = _table(labels) if order in (AUTO, DEVKIT) else None
    if order == DEVKIT and table is None:
        what = f"the kit's table of classes, {META} or {MAP}, is not beside its labels"
        raise VggcError(what, where=str(labels), remedy="copy it there")
    found, said = _kit(numbers, table, labels) if table else _counted(numbers, labels, order)
    return listed_images(ImageList(names, found.astype(np.int32), str(labels)), Path(source)), (said,)


def _numbers(path: Path) -> Ints | None:
    """The numbers of a file with one a line; None when it has lines of another kind."""
    data = map_file(path)
    try:
        lines = data[:].split()
    finally:
        data.close()
    first = data_line(path)
    if len(first.split()) != 1 or not lines:
        return None
    try:
        return np.array([int(line) for line in lines], np.int64)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"a line is no number: {error}", where=str(path), remedy="write one label a line") from error


def data_line(path: Path) -> bytes:
    """The first line."""
    with open(path, "rb") as file:
        return file.readline(4096)


def _flat(folder: Path) -> tuple[str, ...]:
    """The images of a folder, by name."""
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), remedy="name the folder with the images of these labels")
    found = sorted(entry.name for entry in folder.iterdir() if entry.name.lower().endswith(ENDINGS))
    if not found:
        raise DataError("no images in this folder", where=str(folder), remedy="name the folder with the images")
    return tuple(found)


def _counted(numbers: Ints, path: Path, order: str) -> tuple[Ints, str]:
    """Labels that count the classes by their WordNet numbers."""
    least, most = int(numbers.min()), int(numbers.max())
    if order == AUTO and least > 0:
        what = f"numbers from {least} to {most}, which may count classes by WordNet number or as the development kit"
        remedy = f"say --label-order synsets, or put the kit's {META} or {MAP} beside this file"
        raise VggcError(what, where=str(path), remedy=remedy)
    start = 1 if least > 0 else 0
    return numbers - start, f"{path.name}: classes by WordNet number, counted from {start}"


def _kit(numbers: Ints, table: dict[int, str], path: Path) -> tuple[Ints, str]:
    """Labels that count the classes as the kit does, as places among the WordNet numbers."""
    places = {number: place for place, number in enumerate(sorted(table, key=lambda each: table[each]))}
    strange = sorted(set(numbers.tolist()) - set(places))
    if strange:
        what = f"{len(strange)} number(s) that the kit's table does not have, {strange[0]}"
        raise FormatError(what, where=str(path), remedy="give the table of the same kit")
    made = np.array([places[number] for number in numbers.tolist()], np.int64)
    return made, f"{path.name}: the development kit's order, brought to that of WordNet numbers"


def _table(labels: Path) -> dict[int, str] | None:
    """The kit's number of each class -> its WordNet number; None where there is no table."""
    text, binary = labels.with_name(MAP), labels.with_name(META)
    if text.is_file():
        return _map_clsloc(text)
    return _meta(binary) if binary.is_file() else None


def _map_clsloc(path: Path) -> dict[int, str]:
    """Lines "n02119789 1 kit_fox"."""
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {int(number): wnid for wnid, number, *_ in rows}
    except (ValueError, UnicodeDecodeError) as error:
        raise FormatError(f"no table of classes: {error}", where=str(path), remedy="take the kit's own") from error


def _meta(path: Path) -> dict[int, str]:
    """The kit's table for MATLAB: ILSVRC2012_ID and WNID of its first thousand synsets."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        what = f"{META} is read with SciPy, which is not installed"
        raise VggcError(what, where=str(path), remedy="pip install 'vggc[repro]'") from error
    try:
        synsets = loadmat(path, squeeze_me=True, struct_as_record=True)["synsets"]
        pairs = zip(synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist(), strict=True)
        return {int(number): str(wnid) for number, wnid in pairs if int(number) <= CLASSES}
    except Exception as error:  # SciPy's readers raise whatever the damage leads to
        raise FormatError(f"no table of classes: {error}", where=str(path), remedy="take the kit's own") from error


def read_names(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line, in the order of the labels (synset_words.txt).

    Raises:
        VggcError: it cannot be read.
    """
    data = map_file(path)
    try:
        text = data[:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("names of classes are not UTF-8", where=str(path), remedy="save it as UTF-8") from error
    finally:
        data.close()
    return tuple(line.strip() for line in text.splitlines() if line.strip())
