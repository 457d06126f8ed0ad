"""Evaluating nets on labelled images: posteriors of every image into a run folder, errors out of it.

Each process takes every so manieth of the images that lack a result, so that a run can be interrupted at any time and
continued by any number of processes. Protocols, scales and nets are averaged when errors are counted, from what the
folder holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import GraphError, VggcError
from caffe_compat.graph import rebuild
from repro.collecting import runner_of
from repro.engines import AUTO, Choice, Engine, Settings, choose, engines, only
from repro.feeding import Rescaling, feed
from repro.image_sets import DataError, ImageSet, Subset, require_labels
from repro.models import Classifier
from repro.passes import Reading, Runner, blobs_of, posterior_reading, score_reading
from repro.processes import Processes
from repro.protocols import CROPS, POSTERIORS, Floats, mean, passes, ranks
from repro.run_store import Adding, ModelStore, Results, RunStore, read_table, write_table
from repro.scoring import Errors, errors_of, suspicion

ROWS = 1024
"""Images whose posteriors are averaged at once."""
Ints = NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Takes (model, images done, images to do), of this process."""


@dataclass(frozen=True)
class Plan:
    """What is to be evaluated, and how.

    Attributes:
        protocols: of `repro.protocols.PROTOCOLS`.
        scales: smallest sides Q.
        average: what is averaged over the places of whole images, "posteriors" or "scores".
        rescaling: how images come to a scale.
        settings: how nets are run.
        pixels: limit of a batch; 0 for the device's own.
        limit: so many images, evenly spread over the set; 0 for all.
        workers: threads that decode; 0 for one a processor.
        strict: an image that cannot be read is an error; else it counts as wrong.
        mirror: average with mirrors.
    """

    protocols: tuple[str, ...] = ("dense",)
    scales: tuple[int, ...] = (256,)
    average: str = POSTERIORS
    rescaling: Rescaling = field(default_factory=Rescaling)
    settings: Settings = field(default_factory=Settings)
    pixels: int = 0
    limit: int = 0
    workers: int = 0
    strict: bool = False
    mirror: bool = True

    @property
    def passes(self) -> tuple[str, ...]:
        """Every pass that is needed, once."""
        return tuple(dict.fromkeys(name for each in self.protocols for name in passes(each, self.average)))

    def indices(self, count: int) -> Ints:
        """The images to take of a set of so many."""
        wanted = min(self.limit or count, count)
        return np.arange(wanted, dtype=np.int64) * count // wanted


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        models: names; posteriors of several are averaged.
        protocol, scales: what was averaged.
        errors: top-1 and top-5.
    """

    models: tuple[str, ...]
    protocol: str
    scales: tuple[int, ...]
    errors: Errors


@dataclass(frozen=True)
class Evaluation:
    """The result.

    Attributes:
        images: evaluated, those that could not be read included.
        rows: under each protocol, at each scale and then at all, each net and then all together.
        unreadable: names, with the reason.
        notes: what a user should know.
        engines: model -> what ran it, and why.
    """

    images: int
    rows: tuple[Row, ...]
    unreadable: tuple[str, ...]
    notes: tuple[str, ...]
    engines: Mapping[str, str]


def evaluate(
    models: Sequence[Classifier],
    images: ImageSet,
    plan: Plan,
    folder: Path,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> Evaluation | None:
    """Run what the folder does not hold yet, and count the errors.

    Args:
        models: nets of the same classes.
        images: labelled.
        folder: the run folder.
        processes: this process among all; every one of them calls this.

    Returns:
        The result in the first process, None in the others.

    Raises:
        VggcError: a net cannot be run so, a scale is too small, labels do not fit, or the folder holds another run.
    """
    processes = processes or Processes()
    check(models, images, plan)
    store = processes.in_turn(lambda: RunStore(folder, images.items.names, images.source))
    job = _Job(images, plan, store, processes, progress)
    parts = [job.run(name, model) for name, model in zip(model_names(models), models, strict=True)]
    failed = job.all_failed()
    return _counted(model_names(models), parts, images, plan, failed) if processes.first else None


def check(models: Sequence[Classifier], images: ImageSet, plan: Plan) -> None:
    """See that every net can be run under the plan.

    Raises:
        VggcError: it cannot.
    """
    classes = {model.classes for model in models if model.classes}
    if len(classes) > 1:
        what = f"nets of {' and '.join(map(str, sorted(classes)))} classes"
        raise GraphError(what, remedy="evaluate them one by one")
    if classes:
        require_labels(Subset(images, plan.indices(len(images))), classes.pop())
    for model in models:
        check_scales(model, plan.passes, plan.scales)
        if "dense_scores" in plan.passes and not model.scores:
            what = "the net's Softmax leaves no scores"
            raise GraphError(what, where=str(model.path), remedy="average posteriors")


def check_scales(model: Classifier, wanted: Sequence[str], scales: Sequence[int]) -> None:
    """See that crops fit into the smallest scale, and that the net takes whole images of it.

    Raises:
        VggcError: they do not.
    """
    side = min(scales)
    if side < model.crop and any(name in CROPS for name in wanted):
        what = f"scale {side} is smaller than the net's crops of {model.crop}"
        raise VggcError(what, where=str(model.path), remedy=f"give scales of at least {model.crop}")
    if any(name not in CROPS for name in wanted):
        graph = model.dense.graph
        assert graph is not None
        problems = rebuild(graph.net, graph.context, {model.blob: (1, model.channels, side, side)}).problems
        if problems:
            what = f"the net takes no whole images of scale {side}: {problems[0].where}: {problems[0].what}"
            raise GraphError(what, where=str(model.path), remedy="give larger scales")


def model_names(models: Sequence[Classifier]) -> list[str]:
    """Short names of models: of their files, with their folders where these are alike."""
    stems = [model.path.stem for model in models]
    return [stem if stems.count(stem) == 1 else str(model.path) for stem, model in zip(stems, models, strict=True)]


# -- running -----------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """This process's share of the work."""

    images: ImageSet
    plan: Plan
    store: RunStore
    processes: Processes
    progress: Progress | None
    failed: dict[int, str] = field(default_factory=dict)

    def run(self, name: str, model: Classifier) -> ModelStore:
        """Let every image have its results for a model."""
        told = about(model, self.plan)
        part = self.processes.in_turn(lambda: self.store.model(key(model, told), told))
        lacking = self._lacking(part)
        self.processes.wait()  # nobody adds before everybody has seen what is there
        pending = np.flatnonzero(np.any(list(lacking.values()), axis=0))
        if pending.size:
            readings = readings_of(model, self.plan.passes)
            mine = pending[self.processes.rank :: self.processes.world]
            runner = self._runner(model, readings, self._chosen(model, readings, part, mine))
            self._feed(runner, part, mine, lacking, lambda done: self._tell(name, done, len(mine)))
        self.processes.wait()
        return part

    def _lacking(self, part: ModelStore) -> dict[tuple[str, int], NDArray[np.bool_]]:
        """(pass, scale) -> for every image of the set whether it still needs it."""
        count = len(self.images)
        wanted = np.zeros(count, bool)
        wanted[self.plan.indices(count)] = True
        places = {(name, q): part.results(name, q).places for name in self.plan.passes for q in self.plan.scales}
        return {which: wanted & (found < 0) for which, found in places.items()}

    def _chosen(self, model: Classifier, readings: Mapping[str, Reading], part: ModelStore, mine: Ints) -> Choice:
        """The engine: that of the run so far, else the first process tries and the others do as it does."""
        if not self.processes.first:
            self.processes.wait()
        settings, before = self.plan.settings, str(part.about.get("engine", AUTO))
        settings = replace(settings, engine=before) if settings.engine == AUTO else settings
        blobs = blobs_of(readings.values())
        found = engines(model, settings, blobs, sorted({name not in CROPS for name in readings}))
        choice = only(found[0]) if len(found) == 1 else self._tried(model, readings, found, mine)
        if self.processes.first:
            if before != choice.engine.name:
                part.say(engine=choice.engine.name, engine_said=choice.said)
            self.processes.wait()
        return choice

    def _tried(self, model: Classifier, readings: Mapping[str, Reading], found: list[Engine], mine: Ints) -> Choice:
        """The faster engine on a batch of the first image that can be read."""
        scale = self.plan.scales[0]
        for fed in feed(self.images, mine.tolist(), lambda _: [scale], self.plan.rescaling, 1):
            if fed.views:
                runner = self._runner(model, readings, only(found[0]))
                x, reading, whole = runner.first_batch(fed.views[scale])
                return choose(found, x, reading.blobs[0], whole)
        return only(found[0])

    def _runner(self, model: Classifier, readings: Mapping[str, Reading], choice: Choice) -> Runner:
        return runner_of(model, readings, choice, self.plan.pixels, self.plan.mirror)

    def _feed(
        self,
        runner: Runner,
        part: ModelStore,
        mine: Ints,
        lacking: Mapping[tuple[str, int], NDArray[np.bool_]],
        tell: Callable[[int], None],
    ) -> None:
        """Decode, run, keep."""
        with ExitStack() as stack:
            files: dict[tuple[str, int], Adding] = {}

            def keep(index: int, name: str, scale: int, values: Floats) -> None:
                if (name, scale) not in files:
                    made = part.adding(name, scale, self.processes.rank, len(values))
                    files[name, scale] = stack.enter_context(closing(made))
                files[name, scale].add(index, values)

            runner.sink = keep

            def needs(index: int) -> dict[int, list[str]]:
                found = {q: [n for n in self.plan.passes if lacking[n, q][index]] for q in self.plan.scales}
                return {q: names for q, names in found.items() if names}

            fed = feed(self.images, mine.tolist(), lambda i: list(needs(i)), self.plan.rescaling, self.plan.workers)
            for done, one in enumerate(fed, 1):
                if one.error is not None:
                    self._note(one.index, one.error)
                for scale, image in one.views.items():
                    runner.add(one.index, scale, image, needs(one.index)[scale])
                tell(done)
            runner.finish()

    def _note(self, index: int, error: VggcError) -> None:
        if self.plan.strict:
            raise error
        self.failed[index] = str(error)

    def _tell(self, name: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(name, done, total)

    def all_failed(self) -> dict[int, str]:
        """The images that no process could read, in the first process; {} in the others."""
        folder, rank = self.store.folder, self.processes.rank
        write_table(folder / f"failed.{rank}.json", {str(index): why for index, why in self.failed.items()})
        self.processes.wait()
        if not self.processes.first:
            return {}
        tables = [read_table(folder / f"failed.{each}.json") for each in range(self.processes.world)]
        return {int(index): str(why) for table in tables for index, why in table.items()}


def key(model: Classifier, told: Mapping[str, object]) -> str:
    """The name of a model's part of a run folder."""
    text = json.dumps({**told, "path": ""}, sort_keys=True)
    return f"{model.path.stem[:40]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def about(model: Classifier, plan: Plan) -> dict[str, object]:
    """What decides a model's posteriors, but for the engine, on which they do not depend beyond 1e-5."""
    net = model.model.graph.net if model.model and model.model.graph else None
    prepared = asdict(model.prepare)
    del prepared["said"]
    return {
        "path": str(model.path),
        "sha256": model.sha256,
        "net_sha256": hashlib.sha256(net.SerializeToString(deterministic=True)).hexdigest() if net else "",
        "crop": model.crop,
        "blobs": [model.scores, model.posteriors],
        "prepare": prepared,
        "rescaling": asdict(plan.rescaling),
        "amp": plan.settings.amp,
        "mirror": plan.mirror,
    }


def readings_of(model: Classifier, wanted: Sequence[str]) -> dict[str, Reading]:
    """What each pass reads of a classification net."""
    posteriors = posterior_reading(model.scores, model.posteriors)
    return {name: score_reading(model.scores) if name == "dense_scores" else posteriors for name in wanted}


# -- counting ----------------------------------------------------------------------------------------------------


def _counted(
    names: Sequence[str], parts: Sequence[ModelStore], images: ImageSet, plan: Plan, failed: Mapping[int, str]
) -> Evaluation:
    """The errors from what the folder holds."""
    indices = plan.indices(len(images))
    readable = indices[~np.isin(indices, list(failed))]
    if not readable.size:
        raise DataError("no image could be read", where=images.source, remedy=next(iter(failed.values()), ""))
    labels = images.items.labels
    results = [{(name, q): part.results(name, q) for name in plan.passes for q in plan.scales} for part in parts]
    rows, best = [], np.zeros(0, np.int64)
    for protocol in plan.protocols:
        wanted = passes(protocol, plan.average)
        for scales in [*([(q,) for q in plan.scales] if len(plan.scales) > 1 else []), plan.scales]:
            for members in _members(len(parts)):
                read = [[results[m][name, q] for name in wanted for q in scales] for m in members]
                found, best = _judged(read, readable, labels)
                errors = errors_of(found, len(indices) - len(readable))
                rows.append(Row(tuple(names[m] for m in members), protocol, scales, errors))
    classes = next(iter(results[0].values())).values
    doubt = suspicion(best, labels[readable], classes)
    unreadable = tuple(f"{images.items.names[index]}: {why}" for index, why in sorted(failed.items()))
    engines = {name: str(part.about.get("engine_said", "")) for name, part in zip(names, parts, strict=True)}
    return Evaluation(len(indices), tuple(rows), unreadable, (doubt,) if doubt else (), engines)


def _members(count: int) -> list[tuple[int, ...]]:
    """Each net alone, then all together."""
    alone: list[tuple[int, ...]] = [(each,) for each in range(count)]
    return [*alone, tuple(range(count))] if count > 1 else alone


def _judged(read: Sequence[Sequence[Results]], indices: Ints, labels: Ints) -> tuple[Ints, Ints]:
    """For each image the rank of its label, and the class thought of first."""
    found, best = [], []
    for start in range(0, len(indices), ROWS):
        some = indices[start : start + ROWS]
        posteriors = mean([mean([part.rows(some) for part in parts]) for parts in read])
        found.append(ranks(posteriors, labels[some]))
        best.append(posteriors.argmax(axis=1))
    return np.concatenate(found), np.concatenate(best)
