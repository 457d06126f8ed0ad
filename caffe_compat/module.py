"""A graph as a torch module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from caffe_compat.errors import GraphError, VggcError
from caffe_compat.fillers import fill
from caffe_compat.graph import Graph, Node, ParamKey, Value
from caffe_compat.layers.base import Layer, Shape

Inputs = Mapping[str, Tensor] | Tensor | None


@dataclass(frozen=True)
class Trace:
    """Everything one forward pass computed; all tensors are part of autograd's graph.

    Attributes:
        blobs: blob name -> final value, as pycaffe's net.blobs holds it.
        first: blob name -> value before any in-place layer; its gradient is what Caffe's diff finally holds.
        loss: sum over tops of loss_weight * sum(top), a 0-d tensor (Net::Forward's loss).
    """

    blobs: dict[str, Tensor]
    first: dict[str, Tensor]
    loss: Tensor


@dataclass
class _Step:
    """One layer, with the slots of its values."""

    layer: Layer
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]
    holder: nn.Module | None
    views: tuple[Shape | None, ...]
    detached: tuple[int, ...]
    loss_weights: tuple[float, ...]
    dead: tuple[int, ...]


class Net(nn.Module):
    """A Caffe net that runs on torch.

    The phase is fixed when the net is built, as in Caffe; `train()` and `eval()` change nothing. Parameters have
    Caffe's order and shapes; state dict keys are `<layer>.<blob>`, e.g. `conv1_1.weight`.

    Args:
        graph: the net.
        arrays: values of the parameter blobs by owner; blobs not given are filled as the net's fillers say.
        seed: of the fillers' random numbers.

    Raises:
        GraphError: a call with missing, surplus or mis-shaped inputs.
        LayerError: sizes met at run time that a layer's rule forbids.
    """

    def __init__(self, graph: Graph, arrays: Mapping[ParamKey, np.ndarray] | None = None, seed: int = 0) -> None:
        super().__init__()
        self.graph = graph
        self.notes: tuple[str, ...] = graph.notes
        slots = {value: slot for slot, value in enumerate(graph.values)}
        parameters = _parameters(graph, arrays or {}, np.random.default_rng(seed))
        self._steps = [self._step(node, slots, parameters) for node in graph.nodes]
        self._mark_dead(slots)
        self._slots = len(slots)
        self._final = {value.blob: slot for value, slot in slots.items() if value.blob}
        self._first = {value.blob: slot for value, slot in slots.items() if value.blob and value.version == 0}
        self._inputs = {blob: slots[Value(blob)] for blob in graph.inputs}

    # -- what the net is -----------------------------------------------------------------------------------

    @property
    def inputs(self) -> dict[str, Shape]:
        """Input blob -> declared shape; another batch size, and where the layers allow it another size, may be fed."""
        return dict(self.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Blobs that no layer reads, sorted by name."""
        return self.graph.outputs

    @property
    def shapes(self) -> dict[str, Shape]:
        """Every blob -> shape at the declared input shapes."""
        return dict(self.graph.shapes)

    @property
    def params(self) -> dict[str, list[nn.Parameter]]:
        """Layer -> parameter blobs in Caffe's order; shared ones are the same object under each layer."""
        return {
            step.layer.name: list(step.holder._parameters.values())  # type: ignore[arg-type]
            for step in self._steps
            if step.holder is not None
        }

    # -- running it ----------------------------------------------------------------------------------------

    def forward(self, inputs: Inputs = None, blobs: Sequence[str] | Literal["all"] | None = None) -> dict[str, Tensor]:
        """Run the net.

        Args:
            inputs: blob -> tensor for every input; a plain tensor will do for a net with one input.
            blobs: names to return instead of the outputs, or "all".

        Returns:
            blob -> value after the pass (in-place layers included).
        """
        names = self._wanted(blobs)
        values = self._run(inputs, keep={self._final[name] for name in names})[0]
        return {name: values[self._final[name]] for name in names}  # type: ignore[misc]

    def trace(self, inputs: Inputs = None) -> Trace:
        """Run the net and keep every value and the loss."""
        values, loss = self._run(inputs, keep=None)
        final: dict[str, Any] = {name: values[slot] for name, slot in self._final.items()}
        first: dict[str, Any] = {name: values[slot] for name, slot in self._first.items()}
        return Trace(final, first, loss)

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray, layer: str | None = None) -> None:
        """Give a MemoryData layer its arrays, as pycaffe's Net.set_input_arrays does."""
        for step in self._steps:
            if step.layer.TYPE == "MemoryData" and layer in (None, step.layer.name):
                step.layer.set_arrays(data, labels)  # type: ignore[attr-defined]
                return
        raise GraphError("the net has no MemoryData layer" + (f' called "{layer}"' if layer else ""))

    def _run(self, inputs: Inputs, keep: set[int] | None) -> tuple[list[Tensor | None], Tensor]:
        values: list[Tensor | None] = [None] * self._slots
        for blob, tensor in self._checked(inputs).items():
            values[self._inputs[blob]] = tensor
        losses = []
        for step in self._steps:
            if step.layer.TYPE != "Input":
                losses += self._advance(step, values)
            if keep is not None:
                for slot in step.dead:
                    if slot not in keep:
                        values[slot] = None
        return values, sum(losses, torch.zeros(()))

    def _advance(self, step: _Step, values: list[Tensor | None]) -> list[Tensor]:
        """Run one layer; returns its weighted losses."""
        bottoms: list[Any] = [values[slot] for slot in step.bottoms]
        for position in step.detached:
            bottoms[position] = bottoms[position].detach()
        tops = _call(step.layer, bottoms, _blobs(step))
        for slot, top in zip(step.tops, tops, strict=True):
            values[slot] = top
        own = getattr(step.layer, "loss", None)
        losses = [own(bottoms)] if own else []
        return losses + [w * top.sum() for w, top in zip(step.loss_weights, tops, strict=True) if w]

    def _checked(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """The inputs by name."""
        if isinstance(inputs, Tensor):
            if len(self._inputs) != 1:
                raise GraphError(f"a single tensor for the inputs {self._names()}", remedy="give a dict by blob name")
            inputs = {next(iter(self._inputs)): inputs}
        given = inputs or {}
        if given.keys() != self._inputs.keys():
            raise GraphError(f"inputs {', '.join(given) or 'none'}, but the net takes {self._names()}")
        for blob, tensor in given.items():
            shape = self.graph.inputs[blob]
            if tensor.ndim != len(shape):
                raise GraphError(f'input "{blob}" has shape {tuple(tensor.shape)}, but the net declares {shape}')
        return given

    def _names(self) -> str:
        return ", ".join(self._inputs) or "none"

    def _wanted(self, blobs: Sequence[str] | Literal["all"] | None) -> Sequence[str]:
        if blobs is None:
            return self.graph.outputs
        if blobs == "all":
            return list(self._final)
        unknown = [name for name in blobs if name not in self._final]
        if unknown:
            raise GraphError(f"no blob called {', '.join(unknown)}", remedy=f"blobs: {', '.join(self._final)}")
        return blobs

    # -- building ------------------------------------------------------------------------------------------

    def _step(self, node: Node, slots: Mapping[Value, int], parameters: Mapping[ParamKey, nn.Parameter]) -> _Step:
        layer = node.layer
        views: list[Shape | None] = []
        holder = nn.Module() if node.params else None
        for index, (key, shape) in enumerate(zip(node.params, node.blob_shapes, strict=True)):
            parameter = parameters[key]
            holder._parameters[blob_name(layer, index)] = parameter  # type: ignore[union-attr]
            views.append(None if tuple(parameter.shape) == shape else shape)
        if holder is not None:
            self._modules[layer.name] = holder  # add_module refuses names with a dot, which layers may have
        cut = [p for p, down in enumerate(node.propagate_down) if not (layer.propagates(p) if down is None else down)]
        return _Step(
            layer,
            tuple(slots[v] for v in node.bottoms),
            tuple(slots[v] for v in node.tops),
            holder,
            tuple(views),
            tuple(cut),
            node.loss_weights,
            (),
        )

    def _mark_dead(self, slots: Mapping[Value, int]) -> None:
        """Note after which layer each value may be let go."""
        last = dict.fromkeys(slots.values(), 0)
        for index, step in enumerate(self._steps):
            last.update(dict.fromkeys(step.bottoms + step.tops, index))
        for index, step in enumerate(self._steps):
            step.dead = tuple(slot for slot in step.bottoms + step.tops if last[slot] == index)


def blob_name(layer: Layer, index: int) -> str:
    """The name of a parameter blob in a state dict: the layer type's, else its index."""
    return layer.BLOBS[index] if index < len(layer.BLOBS) else str(index)


def _blobs(step: _Step) -> list[Tensor]:
    if step.holder is None:
        return []
    blobs: list[Any] = list(step.holder._parameters.values())
    return [blob if view is None else blob.view(view) for blob, view in zip(blobs, step.views, strict=True)]


def _call(layer: Layer, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
    """Run a layer; torch's complaints become errors that name it."""
    try:
        return layer.forward(bottoms, blobs)
    except VggcError:
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(str(tuple(b.shape)) for b in bottoms) or "none"
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise layer.error(
            f"{layer.TYPE} cannot run on bottoms of shape {shapes}: {first}",
            remedy=f"the net was built for {', '.join(map(str, layer.bottom_shapes)) or 'none'}",
        ) from error


def _parameters(
    graph: Graph, arrays: Mapping[ParamKey, np.ndarray], generator: np.random.Generator
) -> dict[ParamKey, nn.Parameter]:
    """One Parameter for each owned blob: the given values, else the filler's."""
    parameters = {}
    for position, node in enumerate(graph.nodes):
        fillers = node.layer.fillers()
        for index, (key, shape) in enumerate(zip(node.params, node.blob_shapes, strict=True)):
            if key != ParamKey(position, index):
                continue
            array = arrays.get(key)
            values = (
                fill(fillers[index], shape, generator, graph.context.profile) if array is None else array.reshape(shape)
            )
            trainable = node.specs[index].lr_mult != 0 or graph.net.force_backward
            parameters[key] = nn.Parameter(_tensor(values), requires_grad=trainable)
    return parameters


def _tensor(values: np.ndarray) -> Tensor:
    """A float32 tensor of its own memory, unless the array may be written and torch can use it as it is."""
    usable = values.flags.aligned and values.flags.writeable and values.dtype == np.float32
    return torch.from_numpy(values if usable else values.astype(np.float32))
