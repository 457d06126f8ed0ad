"""CTC losses: CtcLoss, CTCLoss and WarpCTCLoss of three forks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.loss import LossLayer
from caffe_compat.layers.straight_through import straight_through

if TYPE_CHECKING:
    from torch import Tensor

NEVER = -1e30
"""Stands for the logarithm of 0 where infinities would spoil the gradient."""


@dataclass(frozen=True)
class Targets:
    """What a batch should say.

    Attributes:
        labels: (N, L) int64; what lies behind a sequence's end is not read.
        counts: labels of each sequence, (N,).
        steps: time steps of each sequence, (N,).
    """

    labels: Tensor
    counts: Tensor
    steps: Tensor

    def needed(self) -> Tensor:
        """Steps without which there is no path: a blank must stand between equal labels; (N,)."""
        import torch

        place = torch.arange(1, self.labels.shape[1], device=self.labels.device)
        equal = self.labels[:, 1:] == self.labels[:, :-1]
        return self.counts + (equal & (place < self.counts.unsqueeze(1))).sum(1)


def packed(labels: Tensor, keep: Tensor, steps: Tensor) -> Targets:
    """The labels (N, L) that are kept, moved together."""
    order = (~keep).byte().argsort(dim=1, stable=True)
    return Targets(labels.gather(1, order), keep.sum(1), steps)


def ctc(scores: Tensor, targets: Targets, blank: int) -> Tensor:
    """-log p of each sequence after a softmax over the scores (T, N, C); 0 where there is no path. (N,)"""
    from torch.nn.functional import ctc_loss, log_softmax

    values = (log_softmax(scores, 2), targets.labels, targets.steps, targets.counts)
    return ctc_loss(*values, blank=blank, reduction="none", zero_infinity=True)


def ctc_of_single_steps(scores: Tensor, targets: Targets, blank: int) -> Tensor:
    """As `ctc`, but each label takes one step only and is said again if it comes again; inf without a path."""
    import torch

    labels, counts = targets.labels, targets.counts.unsqueeze(1)
    states = torch.full((len(labels), 2 * labels.shape[1] + 1), blank, device=labels.device)
    states[:, 1::2] = labels
    said = scores.log_softmax(2).gather(2, states.expand(len(scores), -1, -1))  # (T, N, 2 L + 1)
    is_blank = torch.arange(states.shape[1], device=labels.device) % 2 == 0
    start = torch.full_like(said[0], NEVER)
    start[:, :2] = 0
    paths = said[0] + start
    for step in range(1, len(scores)):
        before = torch.nn.functional.pad(paths, (2, 0), value=NEVER)
        stay, skip = paths.where(is_blank, NEVER), before[:, :-2].where(~is_blank, NEVER)
        moved = torch.stack([stay, before[:, 1:-1], skip]).logsumexp(0) + said[step]
        paths = moved.where((step < targets.steps).unsqueeze(1), paths)
    ends = torch.cat([paths.gather(1, 2 * counts), paths.gather(1, (2 * counts - 1).clamp(min=0))], 1)
    ends = ends.where(torch.cat([counts >= 0, counts > 0], 1), NEVER)
    losses = -ends.logsumexp(1)
    return losses.where(losses < -NEVER / 2, torch.inf)


def check_scores(layer: Layer, scores: Shape) -> None:
    what = f"scores of shape {scores}; they must be (T, N, C)"
    fine = len(scores) >= 3 and prod(scores[3:]) == 1
    layer.check(fine, what, field="bottom[0]", remedy="put a Reshape layer before them")


def check_labels(layer: Layer, targets: Targets, classes: int) -> None:
    """Every label is one of the classes.

    Raises:
        LayerError: one is not.
    """
    import torch

    if torch.compiler.is_compiling():
        return
    within = torch.arange(targets.labels.shape[1], device=targets.labels.device) < targets.counts.unsqueeze(1)
    wrong = targets.labels[within & ((targets.labels < 0) | (targets.labels >= classes))]
    what = f"label {int(wrong[0]) if len(wrong) else 0} is not one of the {classes} classes 0 to {classes - 1}"
    layer.check(not len(wrong), what, remedy="correct the labels")


@cache
def _with_own_gradient() -> Callable[[Tensor, Tensor], Tensor]:
    """A function (x, y): the value y; the gradient of x is 1, whatever that of the result is."""
    import torch

    class WithOwnGradient(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, _x: Tensor, y: Tensor) -> Tensor:
            return y.detach().clone()

        @staticmethod
        def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            return torch.ones_like(grad), None

    return WithOwnGradient.apply  # type: ignore[no-any-return]


@register
class CtcLoss(LossLayer):
    """loss = 1/N sum_n -log p(labels n), after a softmax over the scores (T, N, C) (ctc_loss_layer.cpp).

    Labels (N, L); those that equal `blank_label` are left out. The first `time_step` steps count, C is
    `alphabet_size`. A sequence that does not fit into the steps counts 0. The gradient is that of the sum over n, N
    times that of the loss. Source: yalecyu/crnn.caffe, with its cpu_ctc.cuh.
    """

    TYPE = "CtcLoss"
    DIALECTS = ("crnn",)
    PARAM = "ctc_loss_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for name in ("alphabet_size", "time_step"):
            value = getattr(self.p, name)
            self.check(value > 0, f"{name} is 0", field=f"ctc_loss_param.{name}", remedy="state it")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        scores, labels = bottoms
        check_scores(self, scores)
        what = f"labels of shape {labels} for scores of shape {scores}"
        fine = len(labels) >= 2 and labels[0] == scores[1] and prod(labels[2:]) == 1
        self.check(fine, what, field="bottom[1]", remedy="feed labels (N, L)")
        what = f"alphabet_size {self.p.alphabet_size} for {scores[2]} classes"
        same = self.p.alphabet_size == scores[2]
        self.check(same, what, field="ctc_loss_param.alphabet_size", remedy="state the size of axis 2")
        what = f"time_step {self.p.time_step} for {scores[0]} steps"
        enough = self.p.time_step <= scores[0]
        self.check(enough, what, field="ctc_loss_param.time_step", remedy="state at most the size of axis 0")
        return [()]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        scores = bottoms[0].flatten(2)[: self.p.time_step]
        labels = bottoms[1].detach().to(torch.int64).flatten(1)
        steps = torch.full_like(labels[:, 0], len(scores))
        targets = packed(labels, labels != self.p.blank_label, steps)
        check_labels(self, targets, scores.shape[2])
        if not torch.compiler.is_compiling():
            some = bool(targets.counts.sum() > 0)
            self.check(some, "no labels but blanks", field="bottom[1]", remedy="correct the labels or blank_label")
        total = ctc(scores, targets, self.p.blank_label).sum()
        return [straight_through()(total, total / len(labels))]


@register
class CTCLoss(LossLayer):
    """loss = 1/N sum_n -log p(labels n), after a softmax over the scores (T, N, C) (ctc_loss_layer.cpp).

    Bottoms: scores, indicators (T, N) of which a 0 behind the first step ends a sequence, labels (T, N) of which a
    negative one ends them; labels that are `blank_index` (-1: the last class) or no class may stand at their end and do
    not count. A sequence without labels does not count. The first `output_delay` steps say nothing.
    `preprocess_collapse_repeated`: equal neighbours count once. `ctc_merge_repeated` false: a label takes one step.
    The gradient is that of the sum over n, and does not know of loss_weight; a sequence that does not fit into the
    steps counts inf and gives the softmax as its gradient. Source: MhLiao/TextBoxes_plusplus.
    """

    TYPE = "CTCLoss"
    DIALECTS = ("textboxes",)
    PARAM = "ctc_loss_param"
    BOTTOMS = (3, 3)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        scores = bottoms[0]
        check_scores(self, scores)
        for position in (1, 2):
            what = f"bottom {position} has shape {bottoms[position]} for scores of shape {scores}"
            fine = bottoms[position][:2] == scores[:2] and prod(bottoms[position][2:]) == 1
            self.check(fine, what, field=f"bottom[{position}]", remedy=f"feed {scores[:2]}")
        blank, delay = self._blank(scores[2]), self.p.output_delay
        what = f"blank_index {blank} for {scores[2]} classes"
        known = blank < scores[2]
        self.check(known, what, field="ctc_loss_param.blank_index", remedy="use -1 for the last class")
        what = f"output_delay {delay} for {scores[0]} steps"
        fine = 0 <= delay < scores[0]
        self.check(fine, what, field="ctc_loss_param.output_delay", remedy="use 0 to the number of steps")
        return [()]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def _blank(self, classes: int) -> int:
        stated = int(self.p.blank_index) if self.has("blank_index") else -1
        return stated if stated >= 0 else classes - 1

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        scores = bottoms[0].flatten(2)
        blank, delay = self._blank(scores.shape[2]), self.p.output_delay
        ends, labels = (bottom.detach().flatten(1) for bottom in bottoms[1:])  # (T, N)
        targets = self._targets(ends, labels, scores.shape[2], blank)
        run, said = targets.steps > 0, scores[delay:]
        targets = Targets(targets.labels, targets.counts, (targets.steps - delay).clamp(min=0))
        if self.p.ctc_merge_repeated:
            losses, fits = ctc(said, targets, blank), targets.needed() <= targets.steps
        else:
            losses = ctc_of_single_steps(said, targets, blank)
            fits = losses.isfinite()
        step = torch.arange(len(said), device=said.device).unsqueeze(1)
        fallback = said.logsumexp(2).where(step < targets.steps, 0).sum(0)  # its gradient is the softmax
        total = losses.where(fits, fallback).where(run, 0).sum()
        value = losses.where(fits, torch.inf).where(run, 0).sum() / len(run)
        return [_with_own_gradient()(total, value)]

    def _targets(self, ends: Tensor, labels: Tensor, classes: int, blank: int) -> Targets:
        import torch

        place = torch.arange(len(labels), device=labels.device).unsqueeze(1)
        stop = ((ends + 0.5).to(torch.int64) == 0) & (place > 0)
        steps, given = (_first(flags, place) for flags in (stop, labels < 0))
        whole = (labels + 0.5).to(torch.int64)
        inside = place < given
        null = inside & ((whole >= classes) | (whole == blank))
        keep = inside & ~null
        if self.p.preprocess_collapse_repeated:
            keep[1:] &= labels[1:] != labels[:-1]
        self._check_targets(steps, given, keep & (null.cumsum(0) > 0))
        return packed(whole.t(), keep.t(), steps.where(given > 0, 0))

    def _check_targets(self, steps: Tensor, given: Tensor, late: Tensor) -> None:
        import torch

        if torch.compiler.is_compiling():
            return
        what = "a sequence of more than one step has no labels"
        none = bool(((given > 0) | (steps <= 1)).all())
        self.check(none, what, field="bottom[2]", remedy="end it after the first step")
        what = "a sequence has more labels than steps"
        enough = bool(((given <= (steps - self.p.output_delay)) | (given == 0)).all())
        self.check(enough, what, field="bottom[2]", remedy="feed longer sequences, or fewer labels")
        what = "a label stands behind one that is blank or no class"
        self.check(not bool(late.any()), what, field="bottom[2]", remedy="end the labels with -1")


def _first(flags: Tensor, place: Tensor) -> Tensor:
    """The first step at which a flag is set, else the number of steps; flags (T, N), place (T, 1)."""
    return place.where(flags, len(flags)).amin(0)
