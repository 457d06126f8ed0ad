"""The folder of a run: what it was made of, and its snapshots, each of which is there whole or not at all.

A snapshot is `<name>_iter_N.caffemodel` and `<name>_iter_N.solverstate` as Caffe writes them, and
`<name>_iter_N.json` with what Caffe does not keep. The last one is written last and says how long the others are.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe_compat.errors import VggcError
from caffe_compat.module import Net
from caffe_compat.schema import pb
from caffe_compat.solvers import snapshot
from caffe_compat.weight_files import read_weights
from caffe_compat.writing import new_file, remove_remains, write_failed
from repro.training.settings import Settings, differences, from_json
from repro.training.update import Momentum

RUN = "run.json"
LOG = "train.log"
HISTORY = "history.csv"
BEST, LAST = "best.caffemodel", "last.caffemodel"


@dataclass(frozen=True)
class Snapshot:
    """A whole snapshot.

    Attributes:
        iteration: updates made.
        model, state: the files.
        extra: what else was kept.
    """

    iteration: int
    model: Path
    state: Path
    extra: Mapping[str, Any]


class RunFolder:
    """A folder that a run writes to.

    Args:
        path: the folder; it is made when something is written.
        name: what snapshots are called.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)

    # -- what the run is -----------------------------------------------------------------------------------

    def begin(self, settings: Settings, facts: Mapping[str, Any]) -> None:
        """Note what the run is made of, or see that it is what was noted.

        Args:
            settings: of the run.
            facts: what else must be the same for it to go on: the net, the data.

        Raises:
            VggcError: the folder holds another run, or cannot be written.
        """
        file = self.path / RUN
        if file.exists():
            before = read_json(file)
            changed = differences(from_json(before.get("settings", {}), str(file)), settings)
            changed += [
                f"{name}: {before.get('facts', {}).get(name)} then, {value} now"
                for name, value in facts.items()
                if before.get("facts", {}).get(name) != value
            ]
            if changed:
                what = f"this is another run: {'; '.join(changed)}"
                raise VggcError(what, where=str(file), remedy="repeat its command, or choose another folder (--out)")
        else:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise write_failed(self.path, error) from error
        kept = read_json(file) if file.exists() else {}
        write_json(file, {**kept, "settings": settings.as_json(), "facts": dict(facts)})

    def add(self, name: str, value: Any) -> None:
        """Note something that the run itself has chosen."""
        file = self.path / RUN
        write_json(file, {**read_json(file), name: value})

    # -- snapshots -----------------------------------------------------------------------------------------

    def write(
        self,
        iteration: int,
        net: Net,
        feed: pb.LayerParameter,
        update: Momentum,
        extra: Mapping[str, Any],
    ) -> Snapshot:
        """Write a snapshot; `feed` is the data layer that is told of, `extra` what Caffe does not keep."""
        made = self._files(iteration, extra)
        write_net(made.model, net, feed)
        history = [tensor.detach().cpu().numpy() for tensor in update.history]
        snapshot.write_state(made.state, snapshot.State(iteration, 0, made.model.name, history))
        sizes = {path.name: path.stat().st_size for path in (made.model, made.state)}
        write_json(made.model.with_suffix(".json"), {"iteration": iteration, "bytes": sizes, **extra})
        self._link(made.model, LAST)
        return made

    def latest(self) -> Snapshot | None:
        """The last whole snapshot."""
        return next((found for found in self.snapshots()), None)

    def snapshots(self) -> Iterator[Snapshot]:
        """The whole snapshots, the last one first."""
        if not self.path.is_dir():
            return
        pattern = re.compile(rf"{re.escape(self.name)}_iter_(\d+)\.json")
        found = [match for match in map(pattern.fullmatch, os.listdir(self.path)) if match]
        for match in sorted(found, key=lambda match: -int(match[1])):
            extra = read_json(self.path / match[0])
            made = self._files(int(match[1]), extra)
            sizes = {path.name: path.stat().st_size for path in (made.model, made.state) if path.exists()}
            if sizes and sizes == extra.get("bytes"):
                yield made

    def restore(self, found: Snapshot, net: Net, update: Momentum) -> None:
        """Put a snapshot into a net and its history.

        Raises:
            VggcError: it does not fit.
        """
        state = snapshot.read_state(found.state)
        shapes = [tuple(blob.shape) for blob in state.history]
        wanted = [tuple(blob.shape) for blob in update.blobs]
        if shapes != wanted or state.iteration != found.iteration:
            what = f"a state of iteration {state.iteration} with {len(shapes)} blobs, for a net with {len(wanted)}"
            different = [f"{a} for {b}" for a, b in zip(shapes, wanted, strict=False) if a != b][:1]
            what += f", the first that differs {different[0]}" if different else ""
            raise VggcError(what, where=str(found.state), remedy="train the net that wrote it, or use another --out")
        net.copy_trained(read_weights(found.model), strict=True)
        with torch.no_grad():
            for tensor, values in zip(update.history, state.history, strict=True):
                tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)))

    def keep(self, count: int) -> None:
        """Remove all but the last snapshots; the description goes first, so that none is there in part."""
        for old in list(self.snapshots())[count:]:
            for path in (old.model.with_suffix(".json"), old.model, old.state):
                with suppress(FileNotFoundError):
                    path.unlink()

    def tidy(self) -> None:
        """Remove what a killed run has left half-written."""
        whole = {found.iteration for found in self.snapshots()}
        pattern = re.compile(rf"{re.escape(self.name)}_iter_(\d+)\.(caffemodel|solverstate|json)")
        for name in os.listdir(self.path):
            match = pattern.fullmatch(name)
            if match and int(match[1]) not in whole:
                (self.path / name).unlink()
        for name in (BEST, LAST, RUN, HISTORY):
            remove_remains(self.path / name)

    def best(self, found: Snapshot) -> None:
        """Let `best.caffemodel` be this snapshot's weights."""
        self._link(found.model, BEST)

    def _files(self, iteration: int, extra: Mapping[str, Any]) -> Snapshot:
        stem = self.path / f"{self.name}_iter_{iteration}"
        return Snapshot(iteration, Path(f"{stem}.caffemodel"), Path(f"{stem}.solverstate"), extra)

    def _link(self, model: Path, name: str) -> None:
        """A second name for a file, or a copy where the file system has no such thing."""
        target = self.path / name
        temporary = self.path / f".{name}.{secrets.token_hex(4)}.part"
        try:
            try:
                os.link(model, temporary)
            except OSError:
                shutil.copyfile(model, temporary)
            os.replace(temporary, target)
        except OSError as error:
            raise write_failed(target, error) from error
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_net(path: Path, net: Net, feed: pb.LayerParameter) -> None:
    """Write a .caffemodel whose data layer is `feed`, which tells how images are prepared."""
    with new_file(path) as file:
        file.write(pb.NetParameter(name=net.graph.name).SerializeToString())
        for layer, blobs in snapshot.saved_layers(net):
            told = feed if layer.type == "Input" else layer
            snapshot.write_field(
                file, snapshot.LAYER, told.SerializeToString(), *snapshot.fields(snapshot.BLOBS, blobs)
            )


def weights_of(name: str) -> Path:
    """A weight file: itself, or the best one of a run's folder, else its last.

    Raises:
        VggcError: there is none.
    """
    path = Path(name)
    choices = [path / BEST, path / LAST] if path.is_dir() else [path]
    for choice in choices:
        if choice.exists():
            return choice
    raise VggcError("no weights there", where=name, remedy="name a weight file, or the folder of a run")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with new_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        VggcError: it holds none.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VggcError(
            f"this is no JSON: {error}", where=str(path), remedy="remove it, or use another --out"
        ) from error
    if not isinstance(found, dict):
        raise VggcError("this is no JSON object", where=str(path), remedy="remove it, or use another --out")
    return found
