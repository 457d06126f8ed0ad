"""How images are prepared for a net, as its user states it: options, or the data layer of another prototxt."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import ConversionError
from caffe_compat.preprocessing import color_channels, preprocessing
from caffe_compat.reading import read_net
from converters.model import Model

if TYPE_CHECKING:
    from converters.extras import Extras

Mean = NDArray[np.float32]

REMEDY = "give --mean B,G,R or --mean FILE (.binaryproto, .npy)"
COLORS = 3


def stated(model: Model, extras: Extras) -> Model:
    """The model with what the user says of its images in place of what its source says.

    Raises:
        VggcError: the prototxt or the mean cannot be read.
        ConversionError: the prototxt has no data layer that prepares images, or a number makes no sense.
    """
    channels = color_channels(model.graph.shapes) if model.graph else COLORS
    said: dict[str, Any] = dict(model.preprocessing)
    if extras.train_val is not None:
        said = preprocessing(read_net(extras.train_val), channels)
        if not said:
            what = "no layer of this net says how images are prepared (transform_param)"
            raise ConversionError(what, where=str(extras.train_val), remedy="give the net that was trained")
    own = _options(extras)
    if own and channels == COLORS:
        said.setdefault("channel_order", "BGR")
    if "mean_value" in own or "mean_file" in own:
        said = {key: value for key, value in said.items() if key not in ("mean_value", "mean_file")}
    return replace(model, preprocessing={**said, **own})


def _options(extras: Extras) -> dict[str, Any]:
    """The entries that the options give."""
    found: dict[str, Any] = {}
    if extras.channel_order:
        found["channel_order"] = extras.channel_order
    if extras.scale is not None:
        found["scale"] = extras.scale
    if extras.resize:
        found["resize"] = list(extras.resize)
    if extras.crop is not None:
        found["crop_size"] = extras.crop
    if extras.mean:
        values = read_mean(extras.mean)
        numbers = _numbers(extras.mean)
        found |= {"mean_value": numbers} if numbers else {"mean_file": Path(extras.mean).name}
        if not np.isfinite(values).all():
            raise ConversionError(f"--mean {extras.mean} is not finite", remedy=REMEDY)
    return found


def read_mean(text: str) -> Mean:
    """Numbers, or the contents of a file: (C,) or (C, H, W).

    Raises:
        ConversionError: it is neither.
    """
    if numbers := _numbers(text):
        return np.array(numbers, np.float32)
    if not os.path.exists(text):
        raise ConversionError(f"--mean {text} is neither numbers nor a file", remedy=REMEDY)
    from converters.mean import read

    return read(Path(text))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def unsaid(ready: Mapping[str, Any], generation: str) -> str:
    """What a Caffe net of that generation cannot say of its images, as a note; "" when it can say all."""
    if not ready:
        return ""
    if generation != "V2":
        return f"a net of {generation} without a data layer cannot say how images are prepared: {told(ready)}"
    if ready.get("channel_order") == "RGB":
        return f"a Caffe net cannot say that it takes RGB, so it does not say how images are prepared: {told(ready)}"
    return f"a Caffe net cannot say resize {ready['resize']}" if "resize" in ready else ""


def told(ready: Mapping[str, Any]) -> str:
    """What is known about images, in words."""
    return ", ".join(f"{key} {value}" for key, value in ready.items())
