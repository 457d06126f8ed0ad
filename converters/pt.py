"""Writing .pt: a plain state dict that `torch.load(weights_only=True)` reads."""

from __future__ import annotations

import warnings

from converters.model import Model
from converters.streaming import Payloads, Target


def write(model: Model, target: Target, _payloads: Payloads) -> None:
    """Write `{"<layer>.<blob>": tensor}` with Caffe's shapes. The same model always gives the same bytes."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mapped arrays are read-only; they are only read
        state = {b.name: torch.from_numpy(b.blob.values.reshape(b.shape)) for b in model.blobs()}
    with target.file() as file:
        torch.save(state, file)
