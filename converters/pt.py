"""Writing .pt: a plain state dict that `torch.load(weights_only=True)` reads."""

from __future__ import annotations

import warnings
from typing import Any

from converters.model import Model
from converters.streaming import Payloads, Target


class _File:
    """What torch.save needs of a file."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._target.write(bytes(view))  # torch reuses the buffer while the digest still reads it
        return len(view)

    def flush(self) -> None:
        """Nothing is held back here."""


def write(model: Model, target: Target, _payloads: Payloads) -> None:
    """Write `{"<layer>.<blob>": tensor}` with Caffe's shapes."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mapped arrays are read-only; they are only read
        state = {b.name: torch.from_numpy(b.blob.values.reshape(b.shape)) for b in model.blobs()}
        torch.save(state, _File(target))  # type: ignore[arg-type]
