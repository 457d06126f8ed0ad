"""How programs become nets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from caffe_compat.errors import ConversionError

REWRITES = ("refuse", "floor", "crop", "pad")


@dataclass(frozen=True)
class ImportOptions:
    """How to make a Caffe net of an ONNX or torch model.

    Attributes:
        pool_rewrite: what to do where Caffe, which rounds sizes of pooling up, would give more than the source:
            "refuse"; "floor" states `round_mode: FLOOR`, which Caffe knows since 2018; "crop" cuts the surplus off;
            "pad" puts zeros around the input so that nothing is to be rounded. All are exact, or refused.
        fold_batch_norm: put BatchNormalization behind a layer with weights into these weights.
        batch: size of a batch that the source leaves open.
        input_shapes: input -> shape, where the source leaves more than the batch open.
    """

    pool_rewrite: str = "refuse"
    fold_batch_norm: bool = False
    batch: int = 1
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pool_rewrite not in REWRITES:
            what = f'no pool_rewrite "{self.pool_rewrite}"'
            raise ConversionError(what, remedy=f"use one of {', '.join(REWRITES)}")
        if self.batch < 1:
            raise ConversionError(f"batch {self.batch}", remedy="use 1 or more")
