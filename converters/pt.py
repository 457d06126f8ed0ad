"""Writing .pt: a plain state dict that `torch.load(weights_only=True)` reads."""

from __future__ import annotations

import warnings
from typing import Any, BinaryIO, cast

from converters.model import Model
from converters.streaming import Payloads, Target


class _File:
    """A file that remembers why it could not be written: torch tells something else."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._raw.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._raw.flush()


def write(model: Model, target: Target, _payloads: Payloads) -> None:
    """Write `{"<layer>.<blob>": tensor}` with Caffe's shapes. The same model always gives the same bytes."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mapped arrays are read-only; they are only read
        state = {b.name: torch.from_numpy(b.blob.values.reshape(b.shape)) for b in model.blobs()}
    with target.file() as raw:
        file = _File(raw)
        try:
            torch.save(state, cast(BinaryIO, file))
        except RuntimeError as fault:
            raise file.error or fault from fault
