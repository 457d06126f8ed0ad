"""The history of a training for TensorBoard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from caffe_compat.errors import VggcError
from repro.history import Row

TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "images_per_second": "train/images_per_second",
    "accuracy": "validation/accuracy",
    "top5": "validation/top5",
    "validation_loss": "validation/loss",
}
"""Columns of a history, and what they are called in TensorBoard."""


class Board:
    """Event files in a folder; takes the rows that a history takes.

    Args:
        folder: where TensorBoard looks.
        iteration: where training starts, or goes on from a snapshot: what was told of later iterations vanishes.

    Raises:
        VggcError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, iteration: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            what = "TensorBoard is not installed"
            raise VggcError(what, remedy="pip install 'vggc[tensorboard]', or leave it out") from error
        self._writer = SummaryWriter(str(folder), purge_step=iteration + 1)  # type: ignore[no-untyped-call]

    def append(self, row: Row) -> None:
        """Tell of a row; it is on disk within two minutes, or after `close`."""
        for name, value in asdict(row).items():
            if value is not None and name in TAGS:
                self._writer.add_scalar(TAGS[name], value, row.iteration)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write everything, and let go of the file."""
        self._writer.close()  # type: ignore[no-untyped-call]
