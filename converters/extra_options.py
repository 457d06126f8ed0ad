"""Options of `vggc convert` for what it does besides converting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_SIZE = click.IntRange(1)
OPTIONS = (
    click.option("--verify", is_flag=True, help="Run source and results on the same input."),
    click.option(
        "--tolerance",
        type=click.FloatRange(0),
        help="Of --verify, relative to a blob's largest magnitude.  [default: 1e-5; 1e-2 with --fp16]",
    ),
    click.option("--card", is_flag=True, help="Write a model card, <result>.card.md, beside each result."),
    click.option("--license", default="", metavar="FILE|TEXT", help="The licence for the card."),
    click.option(
        "--rename",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help='JSON, {"layer": "other name", ...}: names of weights, as --names.',
    ),
    click.option("--rgb", is_flag=True, help="Exchange blue and red in the weights of the first layer."),
    click.option("--fp16", is_flag=True, help="Round kernels and matrices to float16."),
    click.option(
        "--fold-bn",
        "--fold-batch-norm",
        "fold_bn",
        is_flag=True,
        help="Put BatchNorm and Scale into the weights before them.",
    ),
    click.option("--preprocess", is_flag=True, help="Let ONNX results take pixels: uint8, N x H x W x C, RGB."),
    click.option("--mean", default="", metavar="B,G,R|FILE", help="Of images: numbers, .binaryproto or .npy."),
    click.option("--scale", type=float, help="Of images: the factor after the mean."),
    click.option("--channel-order", type=click.Choice(["BGR", "RGB"]), help="Of images: what the net takes."),
    click.option("--resize", type=_SIZE, nargs=2, metavar="H W", help="Of images: the size that they are brought to."),
    click.option("--crop", type=_SIZE, help="Of images: the square that is cut from their middle."),
    click.option(
        "--train-val",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Prototxt whose data layer says all this, when SRC does not.",
    ),
)


def extra_options(command: F) -> F:
    """Add the options; a command gets them as keywords that `Extras` takes."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
