"""What `vggc convert` does besides converting, when asked: fold, round, prepare images, verify, describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from caffe_compat.errors import ConversionError, VggcError
from converters.checks import Verified, summary
from converters.image_options import stated
from converters.model import Model
from converters.verify import TOLERANCE

if TYPE_CHECKING:
    from converters.onnx_pixels import Pixels

HALF_TOLERANCE = 1e-2
"""Of results in float16, whose weights differ from the source by up to 2^-11 of each value."""
HALVES = ("safetensors", "onnx", "py")
"""Formats that `--fp16` is for."""


@dataclass(frozen=True)
class Extras:
    """What to do besides.

    Attributes:
        verify: run source and results on the same input.
        tolerance: of that, relative to a blob's largest magnitude; None for TOLERANCE, or HALF_TOLERANCE with `fp16`.
        card: write a model card, <result>.card.md, beside each result.
        license: the licence's text, or a file that has it; for the card.
        fp16: round kernels and matrices to float16.
        fold_bn: put BatchNorm and Scale into the weights before them.
        rgb: exchange blue and red in the weights of the first layer.
        rename: a JSON table of names, see renaming.read_table.
        preprocess: let ONNX results take pixels.
        mean, scale, channel_order, resize, crop: of images, in place of what the net's data layer says: numbers or a
            file, a factor, "BGR" or "RGB", (height, width), a size.
        train_val: prototxt whose data layer says it.
    """

    verify: bool = False
    tolerance: float | None = None
    card: bool = False
    license: str = ""
    fp16: bool = False
    fold_bn: bool = False
    rgb: bool = False
    rename: Path | None = None
    preprocess: bool = False
    mean: str = ""
    scale: float | None = None
    channel_order: str = ""
    resize: tuple[int, int] | None = None
    crop: int | None = None
    train_val: Path | None = None

    @property
    def allowed(self) -> float:
        """The tolerance that holds."""
        usual = HALF_TOLERANCE if self.fp16 else TOLERANCE
        return usual if self.tolerance is None else self.tolerance


def check_extras(extras: Extras, kinds: Sequence[str], weights_only: bool = False) -> None:
    """Refuse what does not go together.

    Raises:
        ConversionError: an option has nothing to act on.
    """
    if weights_only and (extras.verify or extras.fold_bn or extras.rgb):
        raise ConversionError("--verify, --fold-bn and --rgb need the net", remedy="leave out --weights-only")
    if extras.preprocess and "onnx" not in kinds:
        raise ConversionError("--preprocess is for ONNX results", remedy="name one, or leave it out")
    if extras.license and not extras.card:
        raise ConversionError("--license goes with --card", remedy="add --card")
    others = [kind for kind in kinds if kind not in HALVES]
    if extras.fp16 and others:
        what = f"--fp16 is for {', '.join(HALVES)}, not for {', '.join(others)}"
        raise ConversionError(what, remedy="convert those by themselves")


def transformed(model: Model, extras: Extras) -> Model:
    """The model folded and rounded as asked, with notes that say by how much values change, and what pixels it takes.

    Raises:
        ConversionError: its net cannot be folded, or images cannot be prepared for it.
    """
    model = stated(model, extras)
    if extras.rgb:
        from converters.channels import exchanged

        model = exchanged(model)
    if extras.fold_bn:
        from converters.folding import folded

        made = folded(model)
        model = replace(made, notes=(*made.notes, _measured("folding", model, made)))
    if extras.fp16:
        from converters.half import halved

        made = halved(model)
        model = replace(made, notes=(*made.notes, _measured("float16", model, made)))
    if extras.preprocess:
        model = replace(model, notes=(*model.notes, sentence(model, extras)))
    return model


def _measured(what: str, before: Model, after: Model) -> str:
    """How far apart two models are, in a sentence."""
    from converters.sides import model_side

    try:
        found = summary(model_side("before", before), model_side("after", after), inf)
    except VggcError as error:
        return f"{what}: the difference could not be measured: {error}"
    return f"{what}: {apart(found)}"


def apart(found: Verified) -> str:
    """The numbers of a comparison, in words."""
    if not found.relative:
        return f"{found.compared} blobs compared on random input, all are equal"
    return (
        f"{found.compared} blobs compared on random input, largest difference {found.relative:.2g} of the blob's "
        f"largest magnitude ({found.blob}), {found.outputs:.2g} among the outputs"
    )


def pixels_for(model: Model, extras: Extras) -> Pixels | None:
    """How an ONNX result prepares pixels; None when it does not.

    Raises:
        ConversionError: see read_pixels.
    """
    if not extras.preprocess:
        return None
    from converters.onnx_pixels import read_pixels

    return read_pixels(model, extras.mean, turned=extras.rgb)


def sentence(model: Model, extras: Extras) -> str:
    """How an ONNX result prepares pixels, in words; "" when it does not."""
    from converters.onnx_pixels import sentence as told

    pixels = pixels_for(model, extras)
    return told(pixels) if pixels else ""


def license_text(extras: Extras) -> str:
    """The licence: the text of the file of that name, or the text itself.

    Raises:
        ConversionError: the file is not text.
    """
    path = Path(extras.license)
    try:
        there = bool(extras.license) and path.is_file()
    except OSError:  # too long for a name
        there = False
    try:
        return path.read_text(encoding="utf-8") if there else extras.license
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"cannot be read as text: {error}", where=str(path), remedy="save it as UTF-8") from error
