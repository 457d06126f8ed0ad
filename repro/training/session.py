"""A run from its settings: data, net, folder and log put together."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from caffe_compat.errors import VggcError
from caffe_compat.schema import pb
from caffe_compat.writing import write_failed
from repro import history
from repro.board import Board
from repro.datasets import DataError, ImageSet
from repro.pipeline import Statistics, statistics
from repro.pipeline.colour import cached_statistics, fingerprint
from repro.training.feed import Images, open_sets
from repro.training.group import Group
from repro.training.log import Log
from repro.training.memory import choose_micro_batch
from repro.training.nets import TrainingNet, net_file, training_net
from repro.training.run_folder import HISTORY, LOG, RUN, RunFolder, read_json
from repro.training.settings import Settings
from repro.training.trainer import Outcome, Row, Trainer

STATISTICS, LOCK, EVENTS = "statistics.json", ".lock", "tensorboard"
SAMPLED = 20_000
"""Images of the training set that the mean pixel and the colours' directions are computed of, evenly spread over it."""
Watch = Callable[[Row], None]


@dataclass(frozen=True)
class Session:
    """A run ready to begin.

    Attributes:
        settings: what it is made of.
        info: the net.
        train, val: the images.
        group: the processes.
    """

    settings: Settings
    info: TrainingNet
    train: ImageSet
    val: ImageSet
    group: Group

    @property
    def facts(self) -> dict[str, Any]:
        """What must stay the same for a run to go on."""
        return {
            "net": hashlib.sha256(self.info.message.SerializeToString(deterministic=True)).hexdigest(),
            "classes": self.info.classes,
            "images": [len(self.train), len(self.val)],
            "names": fingerprint(self.train),
        }


def prepare(settings: Settings, group: Group) -> Session:
    """Open the data, and make the net ready.

    Raises:
        VggcError: one of them is not what it should be.
    """
    group.share(settings.batch)
    train, val = open_sets(settings)
    how = {name: getattr(settings, name) for name in ("crop", "init", "dialect", "python_layers")}
    info = training_net(settings.net, len(train.classes), **how)
    if settings.scale[0] < info.crop:
        what = f"images rescaled to a smallest side of {settings.scale[0]} for crops of {info.crop}"
        raise VggcError(what, where=settings.net, remedy=f"state --scale {info.crop} or more, or a smaller --crop")
    info.graph("TRAIN", settings.micro_batch or group.share(settings.batch))
    return Session(settings, info, train, val, group)


def run(
    session: Session,
    out: Path,
    *,
    board: bool = False,
    watch: Watch = lambda _row: None,
    note: Callable[[str], None] = lambda _line: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train, from the last snapshot in `out` where there is one.

    Args:
        board: write event files for TensorBoard too.
        watch: called after every iteration.
        note: called with what a user should know.
        stopped: asked after every iteration whether to end early.

    Raises:
        VggcError: the folder holds another run, or something goes wrong on the way; the last snapshot stays.
    """
    settings, group = session.settings, session.group
    folder = RunFolder(out, net_file(settings.net).stem.removesuffix("_train_val"))
    with _begun(session, folder) as log:
        micro = _micro_batch(session, folder)
        found = _statistics(session, out)
        unreadable = partial(_unreadable, log, note)
        feed = Images(session.train, session.val, settings, session.info.crop, found, group, unreadable)
        told = data_layer(session, found)
        record = _Record(out if group.first else None, board, settings.display, watch)
        trainer = Trainer(session.info, settings, feed, group, micro, log=log, watch=record, folder=folder, told=told)
        for line in (*session.info.notes, *trainer.notes):
            log(line)
            note(line)
        record.resume(trainer.resume())
        try:
            return replace(trainer.run(stopped), unreadable=len(feed.unreadable))
        finally:
            record.close()


@contextmanager
def _begun(session: Session, folder: RunFolder) -> Iterator[Log]:
    """The folder, for this run alone; the first process writes the log."""
    if not session.group.first:
        session.group.wait()
        yield Log(None)
        return
    folder.begin(session.settings, session.facts)
    with _alone(folder.path), Log(folder.path / LOG) as log:
        session.group.wait()
        yield log


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Refuse a folder that another process trains in."""
    try:
        with open(path / LOCK, "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                what = "another process is training in this folder"
                raise VggcError(what, where=str(path), remedy="wait for it, or choose another --out") from None
            yield
    except OSError as error:
        raise write_failed(path, error) from error


def _micro_batch(session: Session, folder: RunFolder) -> int:
    """Images of a pass: as told, as this run has begun, or by memory."""
    settings, share = session.settings, session.group.share(session.settings.batch)
    if settings.micro_batch:
        return min(settings.micro_batch, share)
    chosen = ""
    if session.group.first:
        begun = read_json(folder.path / RUN).get("micro_batch", 0)
        size = begun or choose_micro_batch(session.info, settings.batch, session.group.device)
        folder.add("micro_batch", size)
        chosen = str(size)
    return min(int(session.group.told(chosen)), share)


def _statistics(session: Session, out: Path) -> Statistics:
    """Mean and colours of the training set, computed once a run."""
    settings, text = session.settings, ""
    if session.group.first:
        compute = partial(statistics, workers=settings.workers or None, most=SAMPLED, strict=settings.strict_data)
        found = cached_statistics(session.train, out / STATISTICS, compute)
        text = json.dumps({**asdict(found), "mean": found.mean.tolist(), "covariance": found.covariance.tolist()})
    record = json.loads(session.group.told(text))
    arrays = {name: np.array(record[name]) for name in ("mean", "covariance")}
    return Statistics(**{**record, **arrays})


def data_layer(session: Session, found: Statistics) -> pb.LayerParameter:
    """The data layer that snapshots state: how the images were prepared."""
    info, settings = session.info, session.settings
    layer = pb.LayerParameter(name=info.feed, type="ImageData", top=[info.data, info.label], phase=pb.TRAIN)
    layer.transform_param.mirror = settings.flip
    layer.transform_param.crop_size = info.crop
    layer.transform_param.mean_value.extend(found.mean.tolist())
    layer.image_data_param.source = settings.data
    layer.image_data_param.batch_size = settings.batch
    return layer


def _unreadable(log: Log, note: Callable[[str], None], error: DataError) -> None:
    log(f"Could not read an image: {error}")
    note(f"passed over: {error}")


class _Record:
    """Keeps the history: a row with the mean loss since the one before, every `display` iterations and where due."""

    def __init__(self, out: Path | None, board: bool, display: int, watch: Watch) -> None:
        self._history = history.History(out / HISTORY) if out else None
        self._events = out / EVENTS if out and board else None
        self._board: Board | None = None
        self._display, self._watch = display, watch
        self._losses: list[float] = []

    def resume(self, iteration: int) -> None:
        """Forget what was measured after a snapshot."""
        if self._history:
            self._history.resume(iteration)
        if self._events:
            self._board = Board(self._events, iteration)

    def close(self) -> None:
        if self._board:
            self._board.close()

    def __call__(self, row: Row) -> None:
        self._losses.append(row.loss)
        if row.iteration % self._display == 0 or row.scores or row.kept:
            self._append(row)
        self._watch(row)

    def _append(self, row: Row) -> None:
        mean, self._losses = sum(self._losses) / len(self._losses), []
        measured: dict[str, float] = {}
        if row.scores:
            scores = row.scores
            measured = {"accuracy": scores.top1, "top5": scores.top5, "validation_loss": scores.loss}
        made = history.Row(
            row.iteration, row.epoch, mean, lr=row.rate, images_per_second=row.images_per_second, **measured
        )
        for sink in (self._history, self._board):
            if sink:
                sink.append(made)
