"""Caffe's training loop (solver.cpp, sgd_solver.cpp)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from caffe_compat.errors import VggcError
from caffe_compat.graph import ParamKey
from caffe_compat.module import Net
from caffe_compat.reading import read_solver
from caffe_compat.schema import pb
from caffe_compat.solvers import rates, sidecar, snapshot, updates
from caffe_compat.solvers.debug_lines import debug_pass
from caffe_compat.solvers.divergence import all_finite, first_not_finite
from caffe_compat.solvers.nets import Place, said_of_test_net, said_of_train_net, test_nets, train_net
from caffe_compat.solvers.outputs import output_lines, scores
from caffe_compat.solvers.snapshot import Files, State
from caffe_compat.textformat import dump
from caffe_compat.upgrade import snapshot_prefix, upgrade_solver
from caffe_compat.weight_files import read_weights

Log = Callable[[str], None]
Inputs = Mapping[str, Tensor] | Callable[[int], Mapping[str, Tensor]]


def never() -> bool:
    """Do not end early."""
    return False


class Solver:
    """Trains a net as `caffe train -solver` does.

    Args:
        solver: a solver prototxt of any generation.
        weights: a weight file, or several separated by commas, to start from; in place of the solver's own.
        restore: a .solverstate to go on from.
        profile: "bvlc" or "dec2013".
        dialect: the fork whose layers take precedence.
        python_layers: folder from which pycaffe-style Python layers may be imported; none are run otherwise.
        log: called with each line that Caffe would log, without its time and place.
        device: where to compute, "cpu" or "cuda:0"; by default as solver_mode says, where there is a GPU.

    Attributes:
        net: the train net.
        test_nets: the test nets; they use the train net's parameters.
        iter: updates made so far.
        losses: the loss of every forward pass for training so far.
        inputs: blobs for nets with Input layers, or a function of the iteration that gives them.
        rate: the learning rate of the latest update.
        test_scores: for each test net the means of the latest test.
        kept: the state of the latest snapshot that this solver wrote or was restored from; None before.

    Raises:
        VggcError: the solver or its nets are wrong, or files are missing.
    """

    def __new__(cls, *_args: object, profile: str = "bvlc", **_more: object) -> Solver:
        if cls is Solver and profile == "dec2013":
            from caffe_compat.solvers.solver2013 import Solver2013

            return super().__new__(Solver2013)
        return super().__new__(cls)

    def __init__(
        self,
        solver: str | PathLike[str],
        weights: str | PathLike[str] | None = None,
        restore: str | PathLike[str] | None = None,
        *,
        profile: str = "bvlc",
        dialect: str = "",
        python_layers: str | None = None,
        log: Log | None = None,
        device: str | None = None,
    ) -> None:
        self.path = Path(solver)
        self.param = upgrade_solver(read_solver(self.path)).solver
        self.log: Log = log or (lambda _line: None)
        self.log(f"Initializing solver from parameters: \n{dump(self.param)}")
        self._shared: dict[str, Any] = {"seed": max(self.param.random_seed, 0), "python_layers": python_layers}
        place = self._place()
        self._folder = place.folder
        self._check(place.solver)
        self.device = chosen_device(self.param, device)
        if self.param.random_seed >= 0:
            torch.manual_seed(self.param.random_seed)
        self.iter, self.step_count, self.rate = 0, 0, 0.0
        self.losses: list[float] = []
        self.inputs: Inputs = {}
        self._stopped: Callable[[], bool] = never
        self._early = self._snapshot_asked = False
        self.kept: Path | None = None
        self.test_scores: list[dict[str, list[float]]] = []
        self._window: list[float] | None = None
        self._smoothed = Smoothed(self.param.average_loss)
        self._make_nets(place, profile, dialect, [str(weights)] if weights is not None else list(self.param.weights))
        if restore is not None:
            self.restore(restore)

    def _make_nets(self, place: Place, profile: str, dialect: str, weights: Sequence[str]) -> None:
        """The nets with their weights, and a history for each parameter blob."""
        self.log(said_of_train_net(self.param))
        self.net, self.original = train_net(self.param, place, profile, dialect)
        self.net.to(self.device)
        for names in weights:
            self._start_from(names)
        self.test_nets = test_nets(self.param, place, profile, dialect)
        for index, net in enumerate(self.test_nets):
            self.log(said_of_test_net(self.param, index))
            net.share_trained(self.net)
            for names in weights:
                self._start_from(names, net)
            net.to(self.device)
        self.log("Solver scaffolding done.")
        self._learnable = list(_learnable(self.net))
        self._parameters = [item.blob for item in self._learnable]
        self.history = [torch.zeros_like(blob) for _ in range(self._method.memories) for blob in self._parameters]
        for blob in self.history:
            blob.requires_grad_(False)
        self._decays = [self.param.weight_decay * item.decay_mult for item in self._learnable]

    def _place(self) -> Place:
        """Paths are relative to the working folder, as in Caffe; else to the solver's own."""
        named = [self.param.net, self.param.train_net, *self.param.test_net]
        here = all((Path() / name).exists() for name in named if name)
        return Place(str(self.path), Path() if here else self.path.parent, self._shared)

    def _check(self, where: str) -> None:
        rates.check(self.param, where)
        self._method = updates.method(self.param, where)
        self._updates: Sequence[Tensor] = ()
        if self.param.average_loss < 1:
            raise VggcError(f"average_loss {self.param.average_loss}", where=where, remedy="state 1 or more")
        if self.param.regularization_type not in ("L1", "L2"):
            what = f'unknown regularization_type "{self.param.regularization_type}"'
            raise VggcError(what, where=where, remedy='use "L1" or "L2"')
        prefix = snapshot_prefix(self.param, str(self.path), lambda name: (self._folder / name).is_dir())
        self._prefix = self._folder / prefix if self.param.HasField("snapshot_prefix") else Path(prefix)
        if self.param.snapshot:
            self._check_prefix()

    def _start_from(self, names: str, net: Net | None = None) -> None:
        """Weights for the train net, or for the layers that only a test net has."""
        for name in names.split(","):
            path = Path(name.strip())
            path = path if path.exists() else self._folder / path
            self.log(f"Finetuning from {name.strip()}")
            (net or self.net).copy_trained(read_weights(path))

    # -- training ------------------------------------------------------------------------------------------

    def step(self, count: int, stopped: Callable[[], bool] = never) -> None:
        """Make `count` updates, with the tests, log lines and snapshots that fall due (Solver::Step).

        `stopped` is asked after each update, and in tests, whether to end early.

        Raises:
            VggcError: the net needs inputs that were not given, a snapshot cannot be written, or the loss is no number.
        """
        self._stopped, self._early = stopped, False
        self._smoothed = Smoothed(self.param.average_loss, self._window or ())
        self._window = None
        clock = Clock(self.iter)
        for _ in range(count):
            interval = self.param.test_interval
            if interval and self.iter % interval == 0 and (self.iter > 0 or self.param.test_initialization):
                self.test_all()
                if self._early:
                    break
            shown = bool(self.param.display) and self.iter % self.param.display == 0
            outputs, loss = self._forward_backward(shown and self.param.debug_info)
            average = self._smoothed.add(loss)
            if shown:
                self.log(f"Iteration {self.iter} {clock.passed(self.iter, self.param.display)}, loss = {average:g}")
                self._log_outputs("Train", self.net, scores(self.net, outputs))
            self._update(shown)
            if self._due():
                self.snapshot()
            if stopped():
                self._early = True
                break

    def ask_for_snapshot(self) -> None:
        """Let a snapshot be written after the update that is being made; may be called in a signal handler."""
        self._snapshot_asked = True

    def _due(self) -> bool:
        """Whether a snapshot is to be written now."""
        asked, self._snapshot_asked = self._snapshot_asked, False
        return asked or bool(self.param.snapshot and self.iter % self.param.snapshot == 0)

    def solve(self, stopped: Callable[[], bool] = never) -> bool:
        """Train to max_iter, with the last snapshot, display and test (Solver::Solve).

        Returns:
            False when `stopped` ended it early; a snapshot has been written then too.
        """
        self.log(f"Solving {self.net.graph.name}")
        self.log(f"Learning Rate Policy: {self.param.lr_policy}")
        if self.param.snapshot_after_train:
            self._check_prefix()
        self.step(self.param.max_iter - self.iter, stopped)
        due = self.param.snapshot and self.iter % self.param.snapshot == 0
        if (self.param.snapshot_after_train or self._early) and not due:
            self.snapshot()
        if self._early:
            self.log("Optimization stopped early.")
            return False
        if self.param.display and self.iter % self.param.display == 0:
            with torch.no_grad():
                loss = float(self.net.scored(self._given(self.net)).loss)
            self.log(f"Iteration {self.iter}, loss = {self._smoothed.add(loss):g}")
        if self.param.test_interval and self.iter % self.param.test_interval == 0:
            self.test_all()
            if self._early:
                return False
        self.log("Optimization Done.")
        return True

    def _forward_backward(self, debug: bool = False) -> tuple[Mapping[str, Tensor], float]:
        """iter_size passes; gradients add up. Returns the outputs of the last one and the mean loss."""
        for blob in self._parameters:
            blob.grad = None
        total = 0.0
        for _ in range(self.param.iter_size):
            given = self._given(self.net)
            random = torch.get_rng_state()
            trace = debug_pass(self.net, given, self.log) if debug else self.net.scored(given)
            if trace.loss.requires_grad and not debug:
                trace.loss.backward()  # type: ignore[no-untyped-call]
            loss = float(trace.loss.detach())
            self.losses.append(loss)
            total += loss
            if not isfinite(loss):
                raise self._diverged(loss, given, trace.first, random)
        return trace.blobs, total / self.param.iter_size

    def _given(self, net: Net) -> Mapping[str, Tensor]:
        given = self.inputs(self.iter) if callable(self.inputs) else self.inputs
        return {name: given[name].to(self.device) for name in net.inputs if name in given}

    def _diverged(
        self, loss: float, given: Mapping[str, Tensor], data: Mapping[str, Tensor], random: Tensor
    ) -> VggcError:
        """The error for a loss that is no number; a snapshot is there to go on from, if one can be."""
        first = first_not_finite(self.net, given, data, random)
        if all_finite(self._parameters) and not self._just_written():
            self.snapshot()
        kept = f"go on from {self._named(self.kept)}" if self.kept else "start anew"
        remedy = f"lower base_lr, set clip_gradients, or correct the data, and {kept}"
        what = f"the loss of iteration {self.iter} is {loss:g}; the first blob that is not finite is {first}"
        return VggcError(what, where=str(self.path), remedy=remedy)

    # -- updating ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _update(self, shown: bool) -> None:
        """SGDSolver::ApplyUpdate."""
        before = self.step_count
        self.step_count = rates.next_step(self.param, self.iter, before)
        if self.param.lr_policy == "multistep" and self.step_count > before:
            self.log(f"MultiStep Status: Iteration {self.iter}, step = {self.step_count}")
        self.rate = rates.rate(self.param, self.iter, self.step_count)
        if shown:
            self.log(f"Iteration {self.iter}, lr = {self.rate:g}")
        if self._parameters:
            self._updates = self._apply()
        self.iter += 1

    def _apply(self) -> Sequence[Tensor]:
        """Change the parameters; returns by what."""
        blobs: list[Tensor] = list(self._parameters)
        diffs = [torch.zeros_like(blob) if blob.grad is None else blob.grad for blob in blobs]
        self._clip(diffs)
        if self.param.iter_size > 1:
            torch._foreach_mul_(diffs, 1 / self.param.iter_size)
        local = [self.rate * learnable.lr_mult for learnable in self._learnable]
        step = updates.Step(self.param, diffs, local, self.history, self.iter)
        if self._method.with_decay and self._in_one_pass(diffs):
            return self._method.with_decay(step, blobs, self._decays)
        updates.regularize(diffs, blobs, self._decays, self.param.regularization_type)
        moved = self._method.rule(step)
        torch._foreach_sub_(blobs, list(moved))
        return moved

    def _in_one_pass(self, diffs: Sequence[Tensor]) -> bool:
        """Whether the update that goes over memory once gives what Caffe's does: it has momentum, and L2 or nothing."""
        plain = self.param.momentum and (self.param.regularization_type == "L2" or not self.param.weight_decay)
        return bool(plain) and all(t.is_contiguous() for each in (diffs, self._parameters, self.history) for t in each)

    def _clip(self, diffs: Sequence[Tensor]) -> None:
        limit = self.param.clip_gradients
        if limit < 0 or not diffs:
            return
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(diffs)))))
        if norm > limit:
            scale = limit / norm
            self.log(
                f"Gradient clipping: scaling down gradients (L2 norm {norm:g} > {limit:g}) by scale factor {scale:g}"
            )
            torch._foreach_mul_(list(diffs), scale)

    # -- testing -------------------------------------------------------------------------------------------

    def test_all(self) -> list[dict[str, list[float]]]:
        """Run every test net for its test_iter passes; returns the mean of each output element (Solver::Test).

        Nothing more is run, and the net under way is left out, once the `stopped` of `step` says so.
        """
        found = []
        for index in range(len(self.test_nets)):
            scored = self.test(index)
            if self._early:
                break
            found.append(scored)
        self.test_scores = self.test_scores if self._early else found
        return found

    @torch.no_grad()
    def test(self, index: int) -> dict[str, list[float]]:
        """Run one test net."""
        self.log(f"Iteration {self.iter}, Testing net (#{index})")
        net, count = self.test_nets[index], self.param.test_iter[index]
        total: dict[str, np.ndarray] = {}
        loss = 0.0
        for _ in range(count):
            if self._snapshot_asked:
                self._snapshot_asked = False
                self.snapshot()
            if self._stopped():
                self._early = True
                self.log("Test interrupted.")
                return {}
            given = self._given(net)
            trace = debug_pass(net, given, self.log) if self.param.debug_info else net.scored(given)
            loss += float(trace.loss)
            for name, values in scores(net, trace.blobs).items():
                total[name] = total.get(name, np.zeros((), np.float32)) + values
        if self.param.test_compute_loss:
            self.log(f"Test loss: {loss / count:g}")
        mean = {name: values / count for name, values in total.items()}
        self._log_outputs("Test", net, mean)
        return {name: [float(v) for v in values] for name, values in mean.items()}

    def _log_outputs(self, kind: str, net: Net, found: Mapping[str, np.ndarray]) -> None:
        for number, line in enumerate(output_lines(net, found)):
            self.log(f"    {kind} net output #{number}: {line}")

    # -- snapshots -----------------------------------------------------------------------------------------

    def snapshot(self) -> Path:
        """Write the weights and the solver's state; returns the state's path (Solver::Snapshot).

        What Caffe does not keep goes to `_iter_N.vggcstate`. The three are there whole, or not at all.

        Raises:
            VggcError: they cannot be written; earlier snapshots are untouched.
        """
        hdf5 = self.param.snapshot_format == pb.SolverParameter.HDF5
        kind, tail = ("HDF5", ".h5") if hdf5 else ("binary proto", "")
        stem = f"{self._prefix}_iter_{self.iter}"
        files = Files(*(Path(stem + end) for end in (f".caffemodel{tail}", f".solverstate{tail}", sidecar.SUFFIX)))
        self.log(f"Snapshotting to {kind} file {self._named(files.model)}")
        self.log(f"Snapshotting solver state to {kind} file {self._named(files.state)}")
        put_net, put_state = (
            (snapshot.put_net_h5, snapshot.put_state_h5) if hdf5 else (snapshot.put_net, snapshot.put_state)
        )
        self._write(files, lambda file: put_net(file, self.net, self._diffs()), put_state)
        return files.state

    def _write(
        self, files: Files, put_net: Callable[[BinaryIO], None], put_state: Callable[[BinaryIO, State], None]
    ) -> None:
        """Write a snapshot's files, all or none."""
        history = [blob.cpu().numpy() for blob in self.history]
        state = State(self.iter, self.step_count, self._named(files.model), history)
        extra = sidecar.encode(self._extra())
        snapshot.write_all(files, put_net, lambda file: put_state(file, state), extra)
        self.kept = files.state

    def _extra(self) -> sidecar.Extra:
        """What Caffe does not keep."""
        values = sidecar.fingerprint([*self._parameters, *self.history])
        layers = sidecar.places([self.net, *self.test_nets])
        losses = self._smoothed.losses
        return sidecar.Extra(self.iter, values, losses, layers, sidecar.random_state(), self._more())

    def _more(self) -> dict[str, Any]:
        """What else a profile's solver keeps, as JSON values."""
        return {}

    def _take_more(self, more: Mapping[str, Any]) -> None:
        """Go on from what `_more` gave."""

    def _just_written(self) -> bool:
        """Whether this iteration's snapshot is there, written by this solver."""
        return self.kept is not None and self.kept.name.startswith(f"{self._prefix.name}_iter_{self.iter}.")

    def _check_prefix(self) -> None:
        """A folder to write to, before any time is spent (Solver::CheckSnapshotWritePermissions)."""
        folder = self._prefix.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            what = f'no snapshot can be written as "{self._named(self._prefix)}": {folder} is no folder to write to'
            raise VggcError(what, where=str(self.path), remedy="create the folder, or state another snapshot_prefix")

    def _named(self, path: Path) -> str:
        """The path as Caffe, run in the same folder, would say it."""
        with suppress(ValueError):
            return str(path.relative_to(self._folder))
        return str(path)

    def _diffs(self) -> dict[ParamKey, np.ndarray] | None:
        """The latest update of each blob, when snapshots are to hold them."""
        if not self.param.snapshot_diff:
            return None
        return {item.key: moved.cpu().numpy() for item, moved in zip(self._learnable, self._updates, strict=True)}

    @torch.no_grad()
    def restore(self, state: str | PathLike[str]) -> None:
        """Go on from a solver state, and from the weights that it names (SGDSolver::RestoreSolverState).

        Raises:
            VggcError: the state does not fit the net, or its weights are not found.
        """
        path = Path(state)
        found = snapshot.read_state(path)
        if len(found.history) != len(self.history):
            what = f"{len(found.history)} history blobs, but the solver keeps {len(self.history)}"
            raise VggcError(what, where=str(path), remedy="restore it with the solver and net that wrote it")
        for index, (old, new) in enumerate(zip(self.history, found.history, strict=True)):
            if tuple(old.shape) != new.shape:
                what = f"history blob {index} has shape {new.shape}, the net's parameter {tuple(old.shape)}"
                raise VggcError(what, where=str(path), remedy="restore it with the net that wrote it")
        if found.learned_net:
            self.net.copy_trained(read_weights(self._beside(found.learned_net, path)), strict=True)
        for old, new in zip(self.history, found.history, strict=True):
            old.copy_(torch.from_numpy(new))
        self.iter, self.step_count, self.kept = found.iteration, found.step, path
        self._restore_extra(path)

    def _restore_extra(self, state: Path) -> None:
        """Random numbers and places in the data, where they were kept."""
        path = sidecar.beside(state)
        if path is None or not path.exists():
            name = path.name if path else f"{sidecar.SUFFIX} file"
            self.log(f"There is no {name}: random numbers and data start anew, as in Caffe")
            return
        extra = sidecar.read(path)
        values = sidecar.fingerprint([*self._parameters, *self.history])
        if (extra.iteration, extra.values) != (self.iter, values):
            self.log(f"{path.name} is of another snapshot: random numbers and data start anew, as in Caffe")
            return
        self._window = list(extra.losses)
        sidecar.go_to_places([self.net, *self.test_nets], extra.layers, str(path))
        self._take_more(extra.more)
        sidecar.set_random_state(extra.random)
        self.log(f"Random numbers and data go on from {path.name}")

    def _beside(self, name: str, state: Path) -> Path:
        """The weights that a state names: as named, relative to the solver's folder, or beside the state."""
        choices = [Path(name), self._folder / name, state.with_name(Path(name).name)]
        for choice in choices:
            if choice.exists():
                return choice
        raise VggcError(f'its weights "{name}" are not found', where=str(state), remedy="put them beside the state")


class Clock:
    """How fast it goes."""

    def __init__(self, iteration: int) -> None:
        self._began, self._last = time.perf_counter(), iteration

    def passed(self, iteration: int, display: int) -> str:
        """What Caffe says of the time since it was last asked."""
        passed = time.perf_counter() - self._began
        speed = (iteration - self._last) / (passed or 1)
        self._began, self._last = time.perf_counter(), iteration
        return f"({speed:g} iter/s, {passed:g}s/{display} iters)"


class Smoothed:
    """The loss averaged over the latest passes of a call (Solver::UpdateSmoothedLoss).

    Attributes:
        losses: that are averaged.
    """

    def __init__(self, size: int, losses: Sequence[float] = ()) -> None:
        self._size = size
        self.losses = list(losses)

    def add(self, loss: float) -> float:
        self.losses = [*self.losses, loss][-self._size :]
        return sum(self.losses) / len(self.losses)


def chosen_device(param: pb.SolverParameter, name: str | None) -> torch.device:
    """Where to compute: as asked, else on the GPU that the solver names when there is one, else on the CPU.

    Raises:
        VggcError: there is no such device.
    """
    if name is None:
        gpu = param.solver_mode == pb.SolverParameter.GPU and torch.cuda.is_available()
        return torch.device("cuda", param.device_id) if gpu else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        what = f'device "{name}" cannot be used: {str(error).splitlines()[0]}'
        raise VggcError(what, remedy="use cpu, or cuda where there is a GPU") from error
    return device


class Learnable:
    """A parameter blob with its multipliers; shared ones take those that any of its layers states."""

    def __init__(self, key: ParamKey, blob: nn.Parameter, specs: Sequence[pb.ParamSpec]) -> None:
        self.key, self.blob = key, blob
        self.lr_mult = next((spec.lr_mult for spec in specs if spec.HasField("lr_mult")), 1.0)
        self.decay_mult = next((spec.decay_mult for spec in specs if spec.HasField("decay_mult")), 1.0)


def _learnable(net: Net) -> Iterator[Learnable]:
    """Every owned blob, in the order of Net::learnable_params."""
    specs: dict[ParamKey, list[pb.ParamSpec]] = {}
    for node in net.graph.nodes:
        for key, spec in zip(node.params, node.specs, strict=True):
            specs.setdefault(key, []).append(spec)
    for key, blob in net.owned.items():
        yield Learnable(key, blob, specs[key])
