"""How a module runs a graph: one step a layer, and a faster plan that computes the same.

The faster plan joins layers that torch has one kernel for (`Layer.fused`) and lets layers overwrite a bottom that
nothing else reads (`Layer.overwrite`). It is used when no value that it skips is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from caffe_compat.errors import VggcError
from caffe_compat.layers.base import Layer, Run, Shape

if TYPE_CHECKING:
    from torch import Tensor, nn


Action = tuple["Step", Run, tuple[int, ...]]
"""A step, how to run it, and the slots to let go after it."""


@dataclass(frozen=True)
class Step:
    """One layer, or several joined, with the slots of the values that it reads and writes.

    Attributes:
        layer: the layer; of joined ones the last.
        run: from bottoms and parameter blobs to tops.
        overwrite: the same, destroying bottom 0; None when it must stay, or where that gains nothing.
        bottoms, tops: slots.
        holders: modules with the parameters, in order.
        views: for each parameter the shape to see it in, None for its own.
        detached: positions of bottoms that get no gradient.
        loss_weights: one a top.
        lost_weights: one a top, or none; what these add to the loss gives no gradient.
        frozen: positions of parameters whose gradient is that of other layers alone.
        dead: slots that no later step reads.
        plain: the layer takes its parameters as they are.
        idle: the profile runs no backward pass for the layer, so a loss of its own does not count either.
    """

    layer: Layer
    run: Run
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]
    holders: tuple[nn.Module, ...] = ()
    views: tuple[Shape | None, ...] = ()
    detached: tuple[int, ...] = ()
    loss_weights: tuple[float, ...] = ()
    dead: tuple[int, ...] = ()
    overwrite: Run | None = None
    idle: bool = False
    lost_weights: tuple[float, ...] = ()
    frozen: tuple[int, ...] = ()
    plain: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", not (any(self.views) or self.frozen))

    @cached_property
    def weighs(self) -> bool:
        """Whether it may add to the loss."""
        return any(self.loss_weights + self.lost_weights) or (not self.idle and hasattr(self.layer, "loss"))

    def blobs(self) -> list[Tensor]:
        """The parameters."""
        if not self.holders:
            return []
        found: list[Any] = [p for holder in self.holders for p in holder._parameters.values()]
        if self.plain:
            return found
        found = [p if view is None else p.view(view) for p, view in zip(found, self.views, strict=True)]
        return [p.detach() if index in self.frozen else p for index, p in enumerate(found)]

    def advance(self, values: list[Tensor | None], run: Run) -> list[Tensor]:
        """Compute the tops and put them into their slots; returns the bottoms.

        Args:
            values: by slot.
            run: `run` or `overwrite`.
        """
        bottoms: list[Any] = [values[slot] for slot in self.bottoms]
        for position in self.detached:
            bottoms[position] = bottoms[position].detach()
        for slot, top in zip(self.tops, self.call(run, bottoms), strict=True):
            values[slot] = top
        return bottoms

    def action(self, keep: frozenset[int]) -> Action:
        """What to do when these slots must survive."""
        spare = self.overwrite is not None and self.bottoms[0] not in keep
        run = self.overwrite if spare else self.run
        return self, run, tuple(slot for slot in self.dead if slot not in keep)  # type: ignore[return-value]

    def watched(self, values: list[Tensor | None], watch: Callable[[str, int, Tensor], Tensor]) -> list[Tensor]:
        """As `advance`, keeping all; `watch` may put another tensor in the place of each that is read or written."""
        bottoms: list[Any] = [values[slot] for slot in self.bottoms]
        for position in self.detached:
            bottoms[position] = bottoms[position].detach()
        bottoms = [watch("bottom", position, bottom) for position, bottom in enumerate(bottoms)]
        blobs = [watch("param", position, blob) for position, blob in enumerate(self.blobs())]
        tops = self.call(lambda given, _blobs: self.run(given, blobs), bottoms)
        for position, (slot, top) in enumerate(zip(self.tops, tops, strict=True)):
            values[slot] = watch("top", position, top)
        return bottoms

    def call(self, run: Run, bottoms: list[Tensor]) -> list[Tensor]:
        """Run; torch's complaints become errors that name the layer."""
        try:
            return run(bottoms, self.blobs())
        except VggcError:
            raise
        except (RuntimeError, IndexError, ValueError) as error:
            raise _complaint(self.layer, bottoms, error) from error


def _complaint(layer: Layer, bottoms: list[Tensor], error: Exception) -> VggcError:
    shapes = ", ".join(str(tuple(b.shape)) for b in bottoms) or "none"
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return layer.error(
        f"{layer.TYPE} cannot run on bottoms of shape {shapes}: {first}",
        remedy=f"the net was built for {', '.join(map(str, layer.bottom_shapes)) or 'none'}",
    )


@dataclass(frozen=True)
class Plan:
    """Steps in order.

    Attributes:
        hidden: slots that these steps never fill.
    """

    steps: tuple[Step, ...]
    hidden: frozenset[int] = frozenset()

    def actions(self, keep: frozenset[int]) -> tuple[Action, ...]:
        """What to do when these slots must survive."""
        return tuple(step.action(keep) for step in self.steps)


def exact_plan(steps: Sequence[Step]) -> Plan:
    """Every layer by itself, with a top of its own."""
    return Plan(_with_dead([replace(step, overwrite=None) for step in steps]))


def fast_plan(steps: Sequence[Step]) -> Plan:
    """Layers joined and bottoms overwritten where the results are the same."""
    readers = Counter(slot for step in steps for slot in step.bottoms)
    joined: list[Step] = []
    hidden: set[int] = set()
    for step in steps:
        last = joined[-1] if joined else None
        both = _join(last, step) if last and step.bottoms == last.tops and readers[last.tops[0]] == 1 else None
        if last is None or both is None:
            joined.append(step)
        else:
            hidden.update(last.tops)
            joined[-1] = both
    makers = {slot: step for step in joined for slot in step.tops}
    lean = [_overwriting(step, makers, readers) for step in joined]
    return Plan(_with_dead(lean), frozenset(hidden))


def _join(first: Step, second: Step) -> Step | None:
    """One step for two, when the first layer knows how."""
    runs = None if first.weighs else first.layer.fused(second.layer)
    if runs is None:
        return None
    return replace(
        second,
        run=runs[0],
        overwrite=runs[1],
        bottoms=first.bottoms,
        holders=first.holders + second.holders,
        views=first.views + second.views,
        detached=first.detached,
        frozen=first.frozen + tuple(len(first.views) + index for index in second.frozen),
    )


def _overwriting(step: Step, makers: dict[int, Step], readers: Counter[int]) -> Step:
    """The step with leave to overwrite its bottom: new memory that its maker does not need for its gradient."""
    symmetric = step.layer.symmetric and not step.detached
    if step.overwrite is None or (len(step.bottoms) != 1 and not symmetric):
        return replace(step, overwrite=None)
    for slot in step.bottoms:
        maker = makers.get(slot)
        if readers[slot] == 1 and maker is not None and maker.layer.OUTPUT_FREE and not maker.weighs:
            others = list(step.bottoms)
            others.remove(slot)
            return replace(step, bottoms=(slot, *others))
    return replace(step, overwrite=None)


def _with_dead(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Note after which step each value may be let go."""
    last = {slot: index for index, step in enumerate(steps) for slot in step.bottoms + step.tops}
    return tuple(
        replace(step, dead=tuple(slot for slot in {*step.bottoms, *step.tops} if last[slot] == index))
        for index, step in enumerate(steps)
    )


@dataclass(frozen=True)
class Segment:
    """Some steps in a row, as one function of the values that come from before.

    Attributes:
        steps: in order; they overwrite nothing.
        bottoms: slots of values from before.
        tops: slots of values that are read later, or kept.
    """

    steps: tuple[Step, ...]
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        slots = max(slot for step in self.steps for slot in (*step.bottoms, *step.tops)) + 1
        values: list[Tensor | None] = [None] * slots
        for slot, value in zip(self.bottoms, given, strict=True):
            values[slot] = value
        for step in self.steps:
            step.advance(values, step.run)
        return tuple(values[slot] for slot in self.tops)  # type: ignore[misc]


def segments(plan: Plan, parts: int, keep: frozenset[int]) -> list[Segment]:
    """A plan that overwrites nothing, cut into parts of about equal numbers of steps."""
    size = -(-len(plan.steps) // max(1, parts))
    made: list[Segment] = []
    for start in range(0, len(plan.steps), size):
        steps, later = plan.steps[start : start + size], plan.steps[start + size :]
        own = [slot for step in steps for slot in step.tops]
        read = {slot for step in later for slot in step.bottoms} | keep
        before = dict.fromkeys(slot for step in steps for slot in step.bottoms if slot not in own)
        made.append(Segment(steps, tuple(before), tuple(slot for slot in dict.fromkeys(own) if slot in read)))
    return made
