"""Images with bars for the classes that a net thinks of first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caffe_compat.errors import VggcError
from caffe_compat.writing import new_file
from repro.image_sets import ImageSet
from repro.prediction import Prediction
from repro.rescaling import rescale

MOST = 40
"""Images of one picture."""
SIDE = 224
"""Smallest side of an image in it."""


def write_plot(path: Path, predictions: Sequence[Prediction], images: ImageSet, labels: Sequence[str]) -> None:
    """Write a picture (.png, .svg or .pdf) with a line for each image that could be read.

    Args:
        labels: names of classes; "class <n>" stands for those that are missing.

    Raises:
        VggcError: matplotlib is not installed, there is no such format, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        what = "pictures are made with matplotlib, which is not installed"
        raise VggcError(what, remedy="pip install 'vggc[repro]'") from error
    kind = path.suffix[1:].lower()
    if kind not in ("png", "svg", "pdf"):
        raise VggcError(f'no picture goes with the ending "{path.suffix}"', where=str(path), remedy="use .png")
    shown = [(index, each) for index, each in enumerate(predictions) if not each.error][:MOST]
    figure = Figure(figsize=(9, max(1, len(shown)) * 2.2), layout="constrained")
    axes = figure.subplots(max(1, len(shown)), 2, squeeze=False, width_ratios=(1, 2))
    for (picture, bars), (index, each) in zip(axes, shown, strict=False):
        picture.imshow(rescale(images.read(index), SIDE)[..., ::-1])
        picture.set_title(_short(each.name), fontsize=8, parse_math=False)
        picture.axis("off")
        places = range(len(each.classes))
        bars.barh(places, each.posteriors, color="#4477aa")
        names = [label(number, labels) for number in each.classes]
        bars.set_yticks(places, [_short(name) for name in names], fontsize=8, parse_math=False)
        bars.invert_yaxis()
        bars.set_xlim(0, 1)
        for place, posterior in zip(places, each.posteriors, strict=True):
            bars.text(min(posterior + 0.01, 0.9), place, f"{posterior:.3f}", va="center", fontsize=8)
    with new_file(path) as file:
        figure.savefig(file, format=kind, dpi=100)


def label(number: int, labels: Sequence[str]) -> str:
    """The name of a class."""
    return labels[number] if number < len(labels) and labels[number] else f"class {number}"


def _short(text: str, most: int = 48) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
