"""Caffe's training loop (solver.cpp, sgd_solver.cpp)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_compat.errors import VggcError
from caffe_compat.graph import ParamKey
from caffe_compat.module import Net, Trace
from caffe_compat.reading import read_solver
from caffe_compat.schema import pb
from caffe_compat.solvers import rates, snapshot, updates
from caffe_compat.solvers.nets import Place, test_nets, train_net
from caffe_compat.upgrade import snapshot_prefix, upgrade_solver
from caffe_compat.weight_files import read_weights

Log = Callable[[str], None]
Inputs = Mapping[str, Tensor] | Callable[[int], Mapping[str, Tensor]]


class Solver:
    """Trains a net as `caffe train -solver` does.

    Args:
        solver: a solver prototxt of any generation.
        weights: a weight file, or several separated by commas, to start from; in place of the solver's own.
        restore: a .solverstate to go on from.
        profile: "bvlc" or "dec2013".
        dialect: the fork whose layers take precedence.
        log: called with each line that Caffe would log, without its time and place.

    Attributes:
        net: the train net.
        test_nets: the test nets; they use the train net's parameters.
        iter: updates made so far.
        losses: the loss of every forward pass for training so far.
        inputs: blobs for nets with Input layers, or a function of the iteration that gives them.
        rate: the learning rate of the latest update.

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
        log: Log | None = None,
    ) -> None:
        self.path = Path(solver)
        self.param = upgrade_solver(read_solver(self.path)).solver
        self.log: Log = log or (lambda _line: None)
        self._shared: dict[str, Any] = {"seed": max(self.param.random_seed, 0)}
        place = self._place()
        self._folder = place.folder
        self._check(place.solver)
        if self.param.random_seed >= 0:
            torch.manual_seed(self.param.random_seed)
        self.net, self.original = train_net(self.param, place, profile, dialect)
        self.test_nets = test_nets(self.param, place, profile, dialect)
        self.iter, self.step_count = 0, 0
        self.losses: list[float] = []
        self.inputs: Inputs = {}
        self.rate = 0.0
        self._learnable = list(_learnable(self.net))
        count = len(self._learnable) * self._method.memories
        self.history = [torch.zeros_like(self._blobs()[i % len(self._learnable)]) for i in range(count)]
        for net in self.test_nets:
            net.share_trained(self.net)
        for name in [str(weights)] if weights is not None else self.param.weights:
            self._start_from(name)
        if restore is not None:
            self.restore(restore)

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

    def _blobs(self) -> list[nn.Parameter]:
        return [learnable.blob for learnable in self._learnable]

    def _start_from(self, names: str) -> None:
        for name in names.split(","):
            path = Path(name.strip())
            path = path if path.exists() else self._folder / path
            self.log(f"Finetuning from {name.strip()}")
            self.net.copy_trained(read_weights(path))

    # -- training ------------------------------------------------------------------------------------------

    def step(self, count: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Make `count` updates, with the tests, log lines and snapshots that fall due (Solver::Step).

        `stopped` is asked after each update whether to end early.

        Raises:
            VggcError: the net needs inputs that were not given, or a snapshot cannot be written.
        """
        self._smoothed = smoothed = _Smoothed(self.param.average_loss)
        began, last = time.perf_counter(), self.iter
        for _ in range(count):
            interval = self.param.test_interval
            if interval and self.iter % interval == 0 and (self.iter > 0 or self.param.test_initialization):
                self.test_all()
            shown = bool(self.param.display) and self.iter % self.param.display == 0
            trace, loss = self._forward_backward()
            average = smoothed.add(loss)
            if shown:
                passed = time.perf_counter() - began
                speed = (self.iter - last) / (passed or 1)
                timing = f"({speed:g} iter/s, {passed:g}s/{self.param.display} iters)"
                self.log(f"Iteration {self.iter} {timing}, loss = {average:g}")
                self._log_outputs("Train", self.net, _scores(self.net, trace))
                began, last = time.perf_counter(), self.iter
            self._update(shown)
            if self.param.snapshot and self.iter % self.param.snapshot == 0:
                self.snapshot()
            if stopped():
                break

    def solve(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Train to max_iter, with the last snapshot, display and test (Solver::Solve).

        Returns:
            False when `stopped` ended it early; a snapshot has been written then too.
        """
        self.log(f"Solving {self.net.graph.name}")
        self.log(f"Learning Rate Policy: {self.param.lr_policy}")
        self.step(self.param.max_iter - self.iter, stopped)
        early = self.iter < self.param.max_iter
        if (self.param.snapshot_after_train or early) and (not self.param.snapshot or self.iter % self.param.snapshot):
            self.snapshot()
        if early:
            self.log("Optimization stopped early.")
            return False
        if self.param.display and self.iter % self.param.display == 0:
            with torch.no_grad():
                loss = float(self.net.trace(self._given(self.net)).loss)
            self.log(f"Iteration {self.iter}, loss = {self._smoothed.add(loss):g}")
        if self.param.test_interval and self.iter % self.param.test_interval == 0:
            self.test_all()
        self.log("Optimization Done.")
        return True

    def _forward_backward(self) -> tuple[Trace, float]:
        """iter_size passes; gradients add up. Returns the last trace and the mean loss."""
        for blob in self._blobs():
            blob.grad = None
        total = 0.0
        for _ in range(self.param.iter_size):
            trace = self.net.trace(self._given(self.net))
            if trace.loss.requires_grad:
                trace.loss.backward()  # type: ignore[no-untyped-call]
            self.losses.append(float(trace.loss.detach()))
            total += self.losses[-1]
        return trace, total / self.param.iter_size

    def _given(self, net: Net) -> Mapping[str, Tensor]:
        given = self.inputs(self.iter) if callable(self.inputs) else self.inputs
        return {name: given[name] for name in net.inputs if name in given}

    @torch.no_grad()
    def _update(self, shown: bool) -> None:
        """SGDSolver::ApplyUpdate."""
        self.step_count = rates.next_step(self.param, self.iter, self.step_count)
        self.rate = rates.rate(self.param, self.iter, self.step_count)
        if shown:
            self.log(f"Iteration {self.iter}, lr = {self.rate:g}")
        blobs = self._blobs()
        diffs = [torch.zeros_like(b) if b.grad is None else b.grad for b in blobs]
        self._clip(diffs)
        if self.param.iter_size > 1:
            torch._foreach_mul_(diffs, 1 / self.param.iter_size)
        self._regularize(diffs, blobs)
        local = [self.rate * learnable.lr_mult for learnable in self._learnable]
        moved = self._method.rule(updates.Step(self.param, diffs, local, self.history, self.iter)) if blobs else []
        self._updates = moved
        if blobs:
            torch._foreach_sub_(list[Tensor](blobs), list(moved))
        self.iter += 1

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

    def _regularize(self, diffs: list[Tensor], blobs: Sequence[Tensor]) -> None:
        for diff, blob, learnable in zip(diffs, blobs, self._learnable, strict=True):
            decay = self.param.weight_decay * learnable.decay_mult
            if decay:
                diff.add_(blob if self.param.regularization_type == "L2" else blob.sign(), alpha=decay)

    # -- testing -------------------------------------------------------------------------------------------

    def test_all(self) -> list[dict[str, list[float]]]:
        """Run every test net for its test_iter passes; returns the mean of each output element (Solver::Test)."""
        return [self.test(index) for index in range(len(self.test_nets))]

    @torch.no_grad()
    def test(self, index: int) -> dict[str, list[float]]:
        """Run one test net."""
        self.log(f"Iteration {self.iter}, Testing net (#{index})")
        net, count = self.test_nets[index], self.param.test_iter[index]
        total: dict[str, np.ndarray] = {}
        loss = 0.0
        for _ in range(count):
            trace = net.trace(self._given(net))
            loss += float(trace.loss)
            for name, values in _scores(net, trace).items():
                total[name] = total.get(name, np.zeros((), np.float32)) + values
        if self.param.test_compute_loss:
            self.log(f"Test loss: {loss / count:g}")
        mean = {name: values / count for name, values in total.items()}
        self._log_outputs("Test", net, mean)
        return {name: [float(v) for v in values] for name, values in mean.items()}

    def _log_outputs(self, kind: str, net: Net, scores: Mapping[str, np.ndarray]) -> None:
        weights = loss_weights(net)
        number = 0
        for name, values in scores.items():
            for value in values:
                weight = weights.get(name, 0)
                extra = f" (* {weight:g} = {weight * value:g} loss)" if weight else ""
                self.log(f"    {kind} net output #{number}: {name} = {value:g}{extra}")
                number += 1

    # -- snapshots -----------------------------------------------------------------------------------------

    def snapshot(self) -> Path:
        """Write the weights and the solver's state; returns the state's path (Solver::Snapshot)."""
        stem = f"{self._prefix}_iter_{self.iter}"
        hdf5 = self.param.snapshot_format == pb.SolverParameter.HDF5
        tail = ".h5" if hdf5 else ""
        model, state = Path(f"{stem}.caffemodel{tail}"), Path(f"{stem}.solverstate{tail}")
        kind = "HDF5" if hdf5 else "binary proto"
        self.log(f"Snapshotting to {kind} file {self._named(model)}")
        (snapshot.write_net_h5 if hdf5 else snapshot.write_net)(model, self.net, self._diffs())
        self.log(f"Snapshotting solver state to {kind} file {self._named(state)}")
        history = [blob.detach().cpu().numpy() for blob in self.history]
        made = snapshot.State(self.iter, self.step_count, self._named(model), history)
        (snapshot.write_state_h5 if hdf5 else snapshot.write_state)(state, made)
        return state

    def _named(self, path: Path) -> str:
        """The path as Caffe, run in the same folder, would say it."""
        with suppress(ValueError):
            return str(path.relative_to(self._folder))
        return str(path)

    def _diffs(self) -> dict[ParamKey, np.ndarray] | None:
        """The latest update of each blob, when snapshots are to hold them."""
        if not self.param.snapshot_diff:
            return None
        return {
            item.key: moved.detach().cpu().numpy() for item, moved in zip(self._learnable, self._updates, strict=True)
        }

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
            self.net.copy_trained(read_weights(self._beside(found.learned_net, path)))
        for old, new in zip(self.history, found.history, strict=True):
            old.copy_(torch.from_numpy(new))
        self.iter, self.step_count = found.iteration, found.step

    def _beside(self, name: str, state: Path) -> Path:
        """The weights that a state names: as named, relative to the solver's folder, or beside the state."""
        choices = [Path(name), self._folder / name, state.with_name(Path(name).name)]
        for choice in choices:
            if choice.exists():
                return choice
        raise VggcError(f'its weights "{name}" are not found', where=str(state), remedy="put them beside the state")


def loss_weights(net: Net) -> dict[str, float]:
    """Blob -> its weight in the loss."""
    return {v.blob: w for node in net.graph.nodes for v, w in zip(node.tops, node.loss_weights, strict=True)}


class _Smoothed:
    """The loss averaged over the latest passes of a call (Solver::UpdateSmoothedLoss)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._losses: list[float] = []

    def add(self, loss: float) -> float:
        self._losses = [*self._losses, loss][-self._size :]
        return sum(self._losses) / len(self._losses)


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


def _scores(net: Net, trace: Trace) -> dict[str, np.ndarray]:
    """The elements of each output."""
    return {name: trace.blobs[name].detach().cpu().numpy().ravel() for name in net.outputs}
