"""The only place where the harness touches the project's own way to load and run nets."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import caffe_compat as cc
from caffe_compat.errors import Problems, VggcError
from caffe_compat.graph import Graph
from caffe_compat.layers.base import Layer
from caffe_compat.loading import State, open_net
from caffe_compat.module import Net

Array = NDArray[Any]
Key = tuple[str, int]
"""A parameter blob: layer and index."""


def load(path: Path, weights: Path | None = None, **state: Any) -> Net:
    """A net; Python layers may come from its own folder."""
    return cc.load(path, weights, python_layers=str(path.parent), **state)


def writable(folder: Path, target: Path) -> Path:
    """A copy of a folder for nets that write beside their prototxt, without the recorded numbers."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.npz"), copy_function=shutil.copyfile)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def parameters(net: Net) -> dict[Key, torch.nn.Parameter]:
    """Every parameter blob; shared ones under each layer that uses them."""
    return {(layer, index): blob for layer, blobs in net.params.items() for index, blob in enumerate(blobs)}


def set_parameters(net: Net, arrays: Mapping[Key, Array]) -> None:
    """Copy values in; a blob shared with another shape takes them in its owner's."""
    own = parameters(net)
    with torch.no_grad():
        for key, values in arrays.items():
            if key not in own:
                raise KeyError(f"the net has no parameter blob {key[1]} in layer {key[0]!r}")
            own[key].copy_(tensor(values).reshape(own[key].shape))


def tensor(array: Array) -> Tensor:
    """A float32 tensor of its own memory."""
    return torch.from_numpy(np.array(array, np.float32))


@dataclass(frozen=True)
class Call:
    """One layer's run: the tensors that it read and wrote."""

    bottoms: Sequence[Tensor]
    tops: Sequence[Tensor]


class Recorder:
    """Notes what each layer of a graph reads and writes while its net is traced.

    Attributes:
        calls: layer -> its last run.
        watched: layers whose bottoms shall have a gradient even where nothing below them is trainable.
    """

    def __init__(self, graph: Graph) -> None:
        self.calls: dict[str, Call] = {}
        self.watched: frozenset[str] = frozenset()
        for node in graph.nodes:
            vars(node.layer)["forward"] = partial(self._forward, node.layer)

    def _forward(self, layer: Layer, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        for bottom in bottoms if layer.name in self.watched else ():
            if bottom.is_floating_point() and not bottom.requires_grad:
                bottom.requires_grad_()
        tops = type(layer).forward(layer, bottoms, blobs)
        self.calls[layer.name] = Call(list(bottoms), list(tops))
        return tops


def load_recorded(path: Path, **state: Any) -> tuple[Net, Recorder]:
    """A net as `load` makes it, with a recorder on its layers."""
    graph = open_net(path, state=State(**state, python_layers=str(path.parent))).graph
    recorder = Recorder(graph)
    return Net(graph), recorder


def gradients(total: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of `total` with respect to each tensor; zeros where none flows."""
    able = [t for t in wanted if t.requires_grad]
    found = iter(
        torch.autograd.grad(total, able, allow_unused=True, retain_graph=True) if able and total.requires_grad else []
    )
    grads = [next(found, None) if t.requires_grad else None for t in wanted]
    return [torch.zeros_like(t) if grad is None else grad for t, grad in zip(wanted, grads, strict=True)]


def errors_in(error: VggcError) -> Sequence[VggcError]:
    """The single errors of one that may hold several."""
    return error.errors if isinstance(error, Problems) else (error,)
