"""A graph as a torch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from caffe_compat.binding import Bound, bind
from caffe_compat.dec2013 import PROFILE as DEC2013
from caffe_compat.errors import GraphError
from caffe_compat.fillers import fill
from caffe_compat.graph import Graph, Node, ParamKey, Value
from caffe_compat.layers.base import Layer, Run, Shape
from caffe_compat.steps import Action, Step, exact_plan, fast_plan, segments
from caffe_compat.weights import Weights

LINE = 64
"""Bytes."""
SMALL = 2**20
"""Bytes of an array that is copied for speed alone."""
Inputs = Mapping[str, Tensor] | Tensor | None
Watch = Callable[[int, str, int, Tensor], Tensor]


@dataclass(frozen=True)
class Trace:
    """Everything one forward pass computed; all tensors are part of autograd's graph.

    Attributes:
        blobs: blob name -> final value, as pycaffe's net.blobs holds it.
        first: blob name -> value before any in-place layer.
        loss: sum over tops of loss_weight * sum(top), a 0-d tensor (Net::Forward's loss). Under dec2013 the sum of what
            the loss layers compute in their backward pass, of those that have one (Net::Backward's return value).
    """

    blobs: dict[str, Tensor]
    first: dict[str, Tensor]
    loss: Tensor
    differentiated: dict[str, Tensor] = field(default_factory=dict)
    """Blob name -> the value whose gradient Caffe's diff finally holds: the first, unless an in-place layer passes
    none on. Only from `trace`."""


class Net(nn.Module):
    """A Caffe net that runs on torch.

    The phase is fixed when the net is built, as in Caffe; `train()` and `eval()` change nothing. Parameters have
    Caffe's order and shapes; state dict keys are `<layer>.<blob>`, e.g. `conv1_1.weight`. Under dec2013 layers without
    need of a backward pass (`graph.backward`) give no gradients; under bvlc autograd goes wherever it can.

    Args:
        graph: the net.
        arrays: values of the parameter blobs by owner; blobs not given are filled as the net's fillers say.
        seed: of the fillers' random numbers.
        parameters: parameters to use as they are, by owner, in place of new ones.

    Raises:
        GraphError: a call with missing, surplus or mis-shaped inputs.
        LayerError: sizes met at run time that a layer's rule forbids.
    """

    def __init__(
        self,
        graph: Graph,
        arrays: Mapping[ParamKey, np.ndarray] | None = None,
        seed: int = 0,
        *,
        parameters: Mapping[ParamKey, nn.Parameter] | None = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.notes: tuple[str, ...] = graph.notes
        slots = {value: slot for slot, value in enumerate(graph.values)}
        parameters = parameters or _parameters(graph, arrays or {}, np.random.default_rng(seed))
        self._learning = _learning(graph)
        marked = zip(graph.nodes, _idle(graph), _runs(graph), _lost_weights(graph), strict=True)
        steps = [self._step(node, slots, parameters, idle, run, lost) for node, idle, run, lost in marked]
        self._every = steps
        self._steps = [step for step in steps if step.layer.TYPE != "Input"]
        self._exact, self._fast = exact_plan(self._steps), fast_plan(self._steps)
        self._slots = len(slots)
        self._final = {value.blob: slot for value, slot in slots.items() if value.blob}
        self._first = {value.blob: slot for value, slot in slots.items() if value.blob and value.version == 0}
        self._inputs = {blob: slots[Value(blob)] for blob in graph.inputs}
        numbers = [number for number, step in enumerate(steps) if step.layer.TYPE != "Input"]
        self._numbered = list(zip(numbers, self._exact.steps, strict=True))
        sources = [node for node in graph.nodes if not node.bottoms and node.layer.TYPE != "Input"]
        made = {value: slots[value] for node in sources for value in node.tops}
        self._sources = {value.blob: slot for value, slot in made.items() if value.version == 0}
        self._scored = self._actions({*(self._final[name] for name in graph.outputs), *made.values()})
        self._planned: dict[tuple[str, ...], tuple[Action, ...]] = {}

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
            step.layer.name: list(step.holders[0]._parameters.values())  # type: ignore[arg-type]
            for step in self._steps
            if step.holders
        }

    @property
    def owned(self) -> dict[ParamKey, nn.Parameter]:
        """Each parameter blob once, by its owner, in Caffe's order."""
        found: dict[ParamKey, nn.Parameter] = {}
        for step, node in zip(self._every, self.graph.nodes, strict=True):
            blobs: list[Any] = [p for holder in step.holders for p in holder._parameters.values()]
            for key, blob in zip(node.params, blobs, strict=True):
                found.setdefault(key, blob)
        return found

    @torch.no_grad()
    def copy_trained(self, weights: Weights, *, strict: bool = False) -> Bound:
        """Take over the weights of layers of the same name (Net::CopyTrainedLayersFrom).

        Raises:
            WeightsError: a blob has another shape; when strict, also a layer without weights.
        """
        bound = bind(self.graph, weights, strict=strict)
        owned = self.owned
        for key, blob in bound.arrays.items():
            owned[key].copy_(_tensor(blob.values).view(owned[key].shape))
        return bound

    def share_trained(self, other: Net) -> None:
        """Use the very parameters of another net in layers of the same name (Net::ShareTrainedLayersWith).

        Raises:
            GraphError: a layer has parameters of another shape there.
        """
        theirs = {step.layer.name: step for step in reversed(other._every) if step.holders}
        for step in self._every:
            if step.holders and step.layer.name in theirs:
                _share(step, theirs[step.layer.name])

    def channels_last(self) -> Net:
        """Keep parameter blobs of four axes with channels innermost, for images that come so; values stay."""
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self

    # -- running it ----------------------------------------------------------------------------------------

    def forward(self, inputs: Inputs = None, blobs: Sequence[str] | Literal["all"] | None = None) -> dict[str, Tensor]:
        """Run the net.

        Args:
            inputs: blob -> tensor for every input; a plain tensor will do for a net with one input.
            blobs: names to return instead of the outputs, or "all".

        Returns:
            blob -> value after the pass (in-place layers included).
        """
        names = tuple(self._wanted(blobs))
        actions = self._planned.get(names)
        if actions is None:
            actions = self._planned[names] = self._actions({self._final[name] for name in names})
        values = self._start(inputs)
        for step, run, dead in actions:
            step.advance(values, run)
            if not step.bottoms:
                self._place(step, values)
            for slot in dead:
                values[slot] = None
        return {name: values[self._final[name]] for name in names}  # type: ignore[misc]

    def _actions(self, keep: Set[int]) -> tuple[Action, ...]:
        """The faster plan, unless it skips a slot that must survive."""
        plan = self._exact if keep & self._fast.hidden else self._fast
        return plan.actions(frozenset(keep))

    def checkpointed(self, inputs: Inputs, blobs: Sequence[str], parts: int) -> dict[str, Tensor]:
        """As `forward`, but of what a gradient needs only the values between `parts` parts of the net are kept.

        The rest is computed again in the backward pass, with the same random numbers. Layers that change their own
        blobs, as BatchNorm in the TRAIN phase, would do so twice.
        """
        from torch.utils.checkpoint import checkpoint

        names = self._wanted(blobs)
        keep = frozenset(self._final[name] for name in names)
        values = self._start(inputs)
        for segment in segments(self._exact, parts, keep):
            given = [values[slot] for slot in segment.bottoms]
            made = checkpoint(segment, *given, use_reentrant=False)
            for slot, value in zip(segment.tops, made, strict=True):
                values[slot] = value
        return {name: values[self._final[name]] for name in names}  # type: ignore[misc]

    def trace(
        self, inputs: Inputs = None, given: Mapping[str, Tensor] | None = None, watch: Watch | None = None
    ) -> Trace:
        """Run the net and keep every value and the loss.

        Args:
            given: tops of layers without bottoms, which are not run then: the data of an earlier pass.
            watch: called with the number of a node in the graph, "bottom", "param" or "top", the position there and the
                tensor; what it returns takes the tensor's place.
        """
        values = self._start(inputs)
        for blob, tensor in (given or {}).items():
            values[self._first[blob]] = tensor
        losses: list[Tensor] = []
        for number, step in self._numbered:
            if step.bottoms or not step.tops or any(values[slot] is None for slot in step.tops):
                bottoms = step.watched(values, partial(watch, number)) if watch else step.advance(values, step.run)
                if not step.bottoms:
                    self._place(step, values)
                losses += _losses(step, bottoms, values)
        final: dict[str, Any] = {name: values[slot] for name, slot in self._final.items()}
        first: dict[str, Any] = {name: values[slot] for name, slot in self._first.items()}
        held: dict[str, Any] = {name: values[slot] for name, slot in self._differentiated.items()}
        return Trace(final, first, sum(losses, torch.zeros(())), held)

    @cached_property
    def _differentiated(self) -> dict[str, int]:
        """Blob -> slot of the value whose gradient Caffe's diff finally holds."""
        found, backward = dict(self._first), self.graph.backward
        for node, step, runs, downs in zip(
            self.graph.nodes, self._every, backward.layers, backward.bottoms, strict=True
        ):
            for bottom, top, slot, down in zip(node.bottoms, node.tops, step.tops, downs, strict=False):
                passes = down or (runs and node.layer.HEEDLESS)
                if top.blob == bottom.blob in backward.gradients and not passes:
                    found[top.blob] = slot
        return found

    def scored(self, inputs: Inputs = None) -> Trace:
        """As `trace` with its loss, but faster, and with fewer values.

        Returns:
            `blobs` has the outputs, `first` the tops of layers without bottoms, for `trace` to be given.
        """
        values = self._start(inputs)
        losses: list[Tensor] = []
        for step, run, dead in self._scored:
            bottoms = step.advance(values, run)
            if not step.bottoms:
                self._place(step, values)
            if step.weighs:
                losses += _losses(step, bottoms, values)
            for slot in dead:
                values[slot] = None
        final: dict[str, Any] = {name: values[self._final[name]] for name in self.graph.outputs}
        first: dict[str, Any] = {name: values[slot] for name, slot in self._sources.items()}
        return Trace(final, first, sum(losses[1:], losses[0]) if losses else torch.zeros(()))

    def lean(self, trace: Trace) -> Trace:
        """A trace with no more than `scored` gives."""
        final = {name: trace.blobs[name] for name in self.graph.outputs}
        return Trace(final, {name: trace.first[name] for name in self._sources}, trace.loss)

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray, layer: str | None = None) -> None:
        """Give a MemoryData layer its arrays, as pycaffe's Net.set_input_arrays does."""
        for step in self._steps:
            if step.layer.TYPE == "MemoryData" and layer in (None, step.layer.name):
                step.layer.set_arrays(data, labels)  # type: ignore[attr-defined]
                return
        raise GraphError("the net has no MemoryData layer" + (f' called "{layer}"' if layer else ""))

    def _place(self, step: Step, values: list[Tensor | None]) -> None:
        """Bring what a layer without bottoms has made to where the parameters are."""
        if (blob := next(self.parameters(), None)) is not None:
            for slot in step.tops:
                values[slot] = values[slot].to(blob.device)  # type: ignore[union-attr]

    def _start(self, inputs: Inputs) -> list[Tensor | None]:
        """A slot for every value, those of the inputs filled."""
        values: list[Tensor | None] = [None] * self._slots
        for blob, tensor in self._checked(inputs).items():
            values[self._inputs[blob]] = tensor
        return values

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

    def _step(
        self,
        node: Node,
        slots: Mapping[Value, int],
        parameters: Mapping[ParamKey, nn.Parameter],
        idle: bool,
        run: Run,
        lost: tuple[float, ...],
    ) -> Step:
        layer = node.layer
        views: list[Shape | None] = []
        holder = nn.Module()
        for index, (key, shape) in enumerate(zip(node.params, node.blob_shapes, strict=True)):
            parameter = parameters[key]
            holder._parameters[blob_name(layer, index)] = parameter
            views.append(None if tuple(parameter.shape) == shape else shape)
        if node.params:
            self._add(layer.name, holder)
        cut = [position for position in range(len(node.bottoms)) if idle or not _goes_down(self.graph, node, position)]
        return Step(
            layer,
            run,
            tuple(slots[v] for v in node.bottoms),
            tuple(slots[v] for v in node.tops),
            (holder,) if node.params else (),
            tuple(views),
            tuple(cut),
            tuple(a - b for a, b in zip(node.loss_weights, lost, strict=True)) if lost else node.loss_weights,
            overwrite=layer.overwrite,
            idle=idle,
            lost_weights=lost,
            frozen=() if idle else _frozen(self.graph, node, self._learning),
        )

    def _add(self, name: str, holder: nn.Module) -> None:
        """Register a layer's parameters; add_module refuses names with a dot, which layers may have."""
        key, number = name, 1
        while key in self._modules:
            number += 1
            key = f"{name}#{number}"
        self._modules[key] = holder


def _goes_down(graph: Graph, node: Node, bottom: int) -> bool:
    """Whether a gradient flows to a bottom that has one; force_backward is stronger than propagate_down: false."""
    stated = node.propagate_down[bottom]
    allowed = node.layer.propagates(bottom)
    return allowed if stated is None else stated or (graph.net.force_backward and allowed)


def _learns(graph: Graph, node: Node) -> list[bool]:
    """For each parameter blob whether the layer computes its gradient."""
    whole = graph.net.force_backward or node.layer.LEARNS_WHOLE
    return [whole or spec.lr_mult != 0 for spec in node.specs]


def _learning(graph: Graph) -> dict[ParamKey, bool]:
    """Owner of a parameter blob -> whether any of the layers that share it computes a gradient."""
    found: dict[ParamKey, bool] = {}
    for node, idle in zip(graph.nodes, _idle(graph), strict=True):
        for key, learns in zip(node.params, _learns(graph, node), strict=True):
            found[key] = found.get(key, False) or (learns and not idle)
    return found


def _frozen(graph: Graph, node: Node, learning: Mapping[ParamKey, bool]) -> tuple[int, ...]:
    """Positions of parameter blobs whose gradient other layers compute, but this one does not."""
    own = enumerate(zip(node.params, _learns(graph, node), strict=True))
    return tuple(index for index, (key, learns) in own if learning[key] and not learns)


def _lost_weights(graph: Graph) -> list[tuple[float, ...]]:
    """For each node the part of each top's loss weight that gives no gradient.

    A loss layer's default weight stands in the diff of its top. If another layer reads that, it puts its own gradient
    there, or, where it has none to give, the loss layer is left out (Layer::SetLossWeights, Net::Init).
    """
    found = []
    for index, node in enumerate(graph.nodes):
        own = [loss.own if value in graph.read else 0.0 for value, loss in zip(node.tops, node.losses, strict=True)]
        if any(own):
            written, runs = graph.backward.gradients, graph.backward.layers[index]
            own = [w if value.blob in written or not runs else 0.0 for value, w in zip(node.tops, own, strict=True)]
        found.append(tuple(own) if any(own) else ())
    return found


def _idle(graph: Graph) -> list[bool]:
    """For each node whether it must give no gradient: dec2013 alone leaves layers out that could."""
    if graph.context.profile != DEC2013:
        return [False] * len(graph.nodes)
    return [not needed for needed in graph.backward.layers]


def _runs(graph: Graph) -> list[Run]:
    """What each layer runs; one in place tells the maker of its blob, if it wants to know, what it leaves there."""
    makers: dict[str, Callable[[Tensor], None]] = {}
    runs: list[Run] = []
    for node in graph.nodes:
        kept = {top.blob for top in node.tops} & {bottom.blob for bottom in node.bottoms} & makers.keys()
        runs.append(_telling(node.layer.forward, makers[min(kept)]) if kept else node.layer.forward)
        if hasattr(node.layer, "overwritten"):
            makers[node.tops[0].blob] = node.layer.overwritten
    return runs


def _telling(run: Run, maker: Callable[[Tensor], None]) -> Run:
    def told(bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        tops = run(bottoms, blobs)
        maker(tops[0])
        return tops

    return told


def _share(step: Step, other: Step) -> None:
    """Put the other's parameters into this step's holder."""
    mine, theirs = step.holders[0]._parameters, other.holders[0]._parameters
    shapes = [tuple(p.shape) for p in mine.values() if p is not None]
    wanted = [tuple(p.shape) for p in theirs.values() if p is not None]
    if shapes != wanted:
        raise GraphError(f"parameters of shape {shapes} cannot be shared with {wanted}", where=step.layer.where())
    mine.update(zip(mine, theirs.values(), strict=True))


def _losses(step: Step, bottoms: list[Tensor], values: list[Tensor | None]) -> list[Tensor]:
    """The weighted losses of a layer that has just run."""
    own = None if step.idle else getattr(step.layer, "loss", None)
    tops: list[Any] = [values[slot] for slot in step.tops]
    weighted = [w * top.sum() for w, top in zip(step.loss_weights, tops, strict=True) if w]
    weighted += [w * top.detach().sum() for w, top in zip(step.lost_weights, tops, strict=False) if w]
    return [own(bottoms), *weighted] if own else weighted


def blob_name(layer: Layer, index: int) -> str:
    """The name of a parameter blob in a state dict: the layer type's, else its index."""
    return layer.BLOBS[index] if index < len(layer.BLOBS) else str(index)


def _parameters(
    graph: Graph, arrays: Mapping[ParamKey, np.ndarray], generator: np.random.Generator
) -> dict[ParamKey, nn.Parameter]:
    """One Parameter for each owned blob: the given values, else the filler's."""
    parameters, learning = {}, _learning(graph)
    for position, node in enumerate(graph.nodes):
        fillers = node.layer.fillers()
        for index, (key, shape) in enumerate(zip(node.params, node.blob_shapes, strict=True)):
            if key != ParamKey(position, index):
                continue
            array = arrays.get(key)
            array = node.layer.initial(index) if array is None else array
            values = (
                fill(fillers[index], shape, generator, graph.context.profile) if array is None else array.reshape(shape)
            )
            parameters[key] = nn.Parameter(_tensor(values), requires_grad=learning[key])
    return parameters


def _tensor(values: np.ndarray) -> Tensor:
    """A float32 tensor of its own memory, unless the array may be written and torch can use it as it is.

    torch's own memory begins at whole cache lines, and its kernels are faster there: small arrays are copied for that.
    """
    usable = values.flags.aligned and values.flags.writeable and values.dtype == np.float32
    if usable and (values.ctypes.data % LINE == 0 or values.nbytes > SMALL):
        return torch.from_numpy(values)
    made = torch.empty(values.shape, dtype=torch.float32)
    made.numpy()[...] = values
    return made
