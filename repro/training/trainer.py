"""The training loop of Sect. 3.1."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from caffe_compat.module import Net
from caffe_compat.schema import pb
from repro.training.feed import Feed
from repro.training.group import Group
from repro.training.nets import TrainingNet
from repro.training.passes import Batch, NotFiniteError, Passes, autocast
from repro.training.plateau import Plateau
from repro.training.run_folder import RunFolder, Snapshot
from repro.training.scaling import LossScale
from repro.training.settings import Settings
from repro.training.start import start_from
from repro.training.update import Momentum

TOP = 5
"""The paper's second measure counts an image right when its class is among so many."""


@dataclass(frozen=True)
class Scores:
    """A validation: shares of images that are right, from 0 to 1, and the mean loss."""

    top1: float
    top5: float
    loss: float
    images: int


@dataclass(frozen=True)
class Row:
    """What is known after an iteration.

    Attributes:
        iteration, end, epoch: updates made, those at most, and how often the training set was gone through.
        loss, rate: of the update.
        images_per_second: since the last log line, validation or snapshot.
        scores: of the validation that followed.
        kept: a snapshot follows.
    """

    iteration: int
    end: int
    epoch: float
    loss: float
    rate: float
    images_per_second: float
    scores: Scores | None = None
    kept: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run has ended.

    Attributes:
        reason: "accuracy stopped improving", "max_iter reached" or "interrupted".
        iteration, epoch: where.
        best: where the policy stands, with the best accuracy.
        last: the last validation.
        seconds: of this call.
        resumed: the iteration that it went on from, 0 for a new run.
        skipped: updates left out because float16 gradients overflowed.
        unreadable: images that this process could not read, each counted once.
    """

    reason: str
    iteration: int
    epoch: float
    best: Plateau
    last: Scores | None
    seconds: float
    resumed: int
    skipped: int = 0
    unreadable: int = 0


class Trainer:
    """A run: the net, the policy, and where both stand.

    Args:
        info: the net.
        settings: of the run.
        feed: the images.
        group: the processes.
        micro: images of a pass.
        log: called with each line that Caffe would log.
        watch: called after every iteration.
        folder: where snapshots go; None for a run that leaves nothing behind.
        told: the data layer that snapshots state.
    """

    def __init__(
        self,
        info: TrainingNet,
        settings: Settings,
        feed: Feed,
        group: Group,
        micro: int,
        *,
        log: Callable[[str], None] = lambda _line: None,
        watch: Callable[[Row], None] = lambda _row: None,
        folder: RunFolder | None = None,
        told: pb.LayerParameter | None = None,
    ) -> None:
        self.info, self.settings, self.feed, self.group = info, settings, feed, group
        self.log, self.watch, self.folder = log, watch, folder
        self.told = told or info.message.layer[0]
        self.net = Net(info.graph("TRAIN", micro), seed=settings.seed).to(group.device)
        self.scoring = Net(info.graph("TEST", micro), seed=settings.seed)
        self.scoring.share_trained(self.net)
        self.notes = list(start_from(self.net, settings))
        if settings.channels_last:
            self.net.channels_last()
        self.update = Momentum(self.net, settings.momentum, settings.weight_decay)
        self.passes = Passes(info, self.net, self.update, settings, group, micro)
        self.iteration, self.plateau = 0, Plateau()
        self.last: Scores | None = None
        self.skipped = 0
        self.end = settings.iterations(feed.count)

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return self.plateau.rate(self.settings.rate)

    @property
    def epoch(self) -> float:
        return self.iteration * self.settings.batch / self.feed.count

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self, stopped: Callable[[], bool] = lambda: False) -> Outcome:
        """Train to the end, from the last snapshot where there is one.

        `stopped` is asked after each update whether to end early; a snapshot is written then.

        Raises:
            NotFiniteError: the loss is no number any more; the last snapshot stays.
            VggcError: images cannot be read, or a snapshot cannot be written.
        """
        began = time.perf_counter()
        resumed = self.resume()
        self.log(f"Solving {self.net.graph.name}")
        reason = self._reason() or self._loop(stopped)
        self.log("Optimization Done." if reason != "interrupted" else "Optimization stopped early.")
        seconds = time.perf_counter() - began
        return Outcome(reason, self.iteration, self.epoch, self.plateau, self.last, seconds, resumed, self.skipped)

    def _loop(self, stopped: Callable[[], bool]) -> str:
        pace, every = _Pace(self), self.settings.snapshot_every
        for batch in self.feed.batches(self.iteration):
            row = pace.row(self.train(batch))
            scores = self.validate() if self._validation_due() else None
            reason = self._reason() or ("interrupted" if self.group.any(stopped()) else "")
            kept = bool(scores or reason or (every and self.iteration % every == 0))
            self.watch(replace(row, scores=scores, kept=kept))
            if kept:
                self.snapshot()
                pace.restart()
            if reason:
                return reason
        raise AssertionError("a feed has no end")

    def train(self, batch: Batch) -> float:
        """One update; returns the loss before it."""
        loss, rate = self.passes(batch), self.rate
        self.skipped += not self.passes.update(rate)
        self.iteration += 1
        return loss

    def _reason(self) -> str:
        if self.plateau.done:
            return "accuracy stopped improving"
        return "max_iter reached" if self.iteration >= self.end else ""

    def _validation_due(self) -> bool:
        """At the end of an epoch, or as often as asked for; and at the end."""
        every, batch = self.settings.validate_every, self.settings.batch
        if every or self.iteration >= self.end:
            return self.iteration >= self.end or self.iteration % every == 0
        return self.iteration * batch // self.feed.count > (self.iteration - 1) * batch // self.feed.count

    # -- validation ----------------------------------------------------------------------------------------

    def validate(self) -> Scores:
        """Score the net on the centre crops of the images for validation, and tell the rate policy."""
        self._mean_statistics()
        self.log(f"Iteration {self.iteration}, Testing net (#0)")
        scores = self.last = score(self.info, self.scoring, self.feed, self.group, self.settings.precision)
        for number, (name, value) in enumerate((("accuracy_top1", scores.top1), ("accuracy_top5", scores.top5))):
            self.log(f"    Test net output #{number}: {name} = {value:g}")
        self.log(f"    Test net output #2: loss = {scores.loss:g} (* 1 = {scores.loss:g} loss)")
        before = self.plateau
        policy = {"patience": self.settings.patience, "drops": self.settings.drops}
        self.plateau = before.after(scores.top1, self.iteration, **policy)
        if self.plateau.drops > before.drops:
            self.log(f"Iteration {self.iteration}, accuracy has stopped improving; lr = {self.rate:g}")
        return scores

    def _mean_statistics(self) -> None:
        """Blobs that are not learnt, as BatchNorm's, have seen other images in each process."""
        self.group.mean([blob for blob in self.update.blobs if not blob.requires_grad])

    # -- snapshots -----------------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Write a snapshot.

        Raises:
            NotFiniteError: a parameter is no number any more.
        """
        self._mean_statistics()
        if bad := self.passes.check():
            what = f"after iteration {self.iteration - 1}, {bad} is not finite"
            raise NotFiniteError(what, remedy="lower the rate; the last snapshot is whole")
        if self.folder and self.group.first:
            extra = {
                "plateau": asdict(self.plateau),
                "scale": asdict(self.passes.scale),
                "skipped": self.skipped,
                "scores": asdict(self.last) if self.last else None,
            }
            made = self.folder.write(self.iteration, self.net, self.told, self.update, extra)
            self.log(f"Snapshotting to binary proto file {made.model}")
            self.log(f"Snapshotting solver state to binary proto file {made.state}")
            self._mark_best(made)
            self.folder.keep(self.settings.keep)
        self.group.wait()

    def _mark_best(self, made: Snapshot) -> None:
        if self.folder and self.plateau.best_iteration == made.iteration:
            self.folder.best(made)

    def resume(self) -> int:
        """Go on from the last snapshot, if there is one; returns its iteration, else 0.

        The first process reads it and tells the others, which need not see the folder.
        """
        found = self.folder.latest() if self.folder and self.group.first else None
        if self.folder and found:
            self.folder.tidy()
            self.folder.restore(found, self.net, self.update)
            self._mark_best(found)
            self.log(f"Restoring previous solver status from {found.state}")
        extra = json.loads(self.group.told(json.dumps({**found.extra, "iteration": found.iteration} if found else {})))
        self.group.alike([*self.update.blobs, *self.update.history])
        if not extra:
            return 0
        self.iteration, self.skipped = extra["iteration"], extra["skipped"]
        self.plateau, self.passes.scale = Plateau(**extra["plateau"]), LossScale(**extra["scale"])
        self.last = Scores(**extra["scores"]) if extra["scores"] else None
        return self.iteration


@torch.no_grad()
def score(info: TrainingNet, net: Net, feed: Feed, group: Group, precision: str) -> Scores:
    """Accuracy and loss over the images for validation, in all processes together."""
    right1 = right5 = images = 0
    loss = 0.0
    for pixels, labels in feed.validation():
        labels = labels.to(group.device, non_blocking=True)
        with autocast(precision, group.device):
            scores = net({info.data: pixels.to(group.device, non_blocking=True)}, blobs=[info.scores])[info.scores]
        scores = scores.flatten(1).float()
        best = scores.topk(min(TOP, scores.shape[1])).indices == labels[:, None]
        right1 += int(best[:, 0].sum())
        right5 += int(best.any(1).sum())
        loss += float(torch.nn.functional.cross_entropy(scores.double(), labels, reduction="sum"))
        images += len(labels)
    right1, right5, loss, total = group.sum([right1, right5, loss, images])  # type: ignore[assignment]
    return Scores(right1 / total, right5 / total, loss / total, int(total))


class _Pace:
    """Speed and the lines of `display`."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.restart()

    def restart(self) -> None:
        """Forget the time that validation and snapshots took."""
        self._began, self._from = time.perf_counter(), self._trainer.iteration

    def row(self, loss: float) -> Row:
        trainer, settings = self._trainer, self._trainer.settings
        made, passed = trainer.iteration - self._from, time.perf_counter() - self._began
        speed = made / (passed or 1)
        shown = trainer.iteration - 1
        if shown % settings.display == 0:
            trainer.log(f"Iteration {shown} ({speed:g} iter/s, {passed:g}s/{made} iters), loss = {loss:g}")
            trainer.log(f"    Train net output #0: loss = {loss:g} (* 1 = {loss:g} loss)")
            trainer.log(f"Iteration {shown}, lr = {trainer.rate:g}")
            self.restart()
        return Row(trainer.iteration, trainer.end, trainer.epoch, loss, trainer.rate, speed * settings.batch)
