"""The training loop of December 2013 (solver.cpp at 3213bd87e): iterations count from 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffe_compat.data.random_numbers import CRand, Draw
from caffe_compat.errors import VggcError
from caffe_compat.graph import ParamKey
from caffe_compat.layers.data import Data2013
from caffe_compat.schema import pb
from caffe_compat.solvers import rates, snapshot
from caffe_compat.solvers.solver import Solver
from caffe_compat.writing import new_file

POLICIES = ("fixed", "step", "exp", "inv")
LAYERS = 2
"""Field NetParameter.layers."""


class Solver2013(Solver):
    """SGD as the paper's authors had it; made by `Solver(..., profile="dec2013")`.

    Update u uses the rate of iteration u; h <- rate * gradient + momentum * h, then h <- h + decay * rate * w, and
    w <- w - h. Blobs without a backward pass are updated by their latest update again. Snapshots have no suffix and
    are always written at the end; losses are those of each update, and there is no test before the first.

    Attributes:
        rand: gives the numbers that the data layers of all nets draw from, one after another: the C library's rand().
    """

    rand: Draw

    def _check(self, where: str) -> None:
        super()._check(where)
        if self.param.lr_policy not in POLICIES:
            what = f'lr_policy "{self.param.lr_policy}" does not exist under profile dec2013'
            raise VggcError(what, where=where, remedy=f"use one of {', '.join(POLICIES)}, or profile bvlc")
        if self.param.type != "SGD":
            what = f"solver type {self.param.type} does not exist under profile dec2013"
            raise VggcError(what, where=where, remedy="use SGD, or profile bvlc")
        self._updates = ()
        self.rand = CRand()
        self._shared["rand"] = lambda: self.rand()

    def _prefetch(self) -> None:
        """Read the first batches: each data layer reads ahead when it is made, while the phase is still TRAIN."""
        for net in (self.net, *self.test_nets):
            for node in net.graph.nodes:
                if isinstance(node.layer, Data2013):
                    node.layer.prefetch("TRAIN")

    def step(self, count: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Make `count` updates, with the snapshots, log lines and tests that fall due, in that order."""
        self._prefetch()
        for _ in range(count):
            _, loss = self._forward_backward()
            self._update(shown=False)
            if self.param.snapshot and self.iter % self.param.snapshot == 0:
                self.snapshot()
            if self.param.display and self.iter % self.param.display == 0:
                self.log(f"Iteration {self.iter}, loss = {loss:g}")
            if self.param.test_interval and self.iter % self.param.test_interval == 0:
                self.test_all()
            if stopped():
                break

    def solve(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Train to max_iter; the last snapshot is always written."""
        self.log(f"Solving {self.net.graph.name}")
        self.step(self.param.max_iter - self.iter, stopped)
        self.snapshot()
        self.log("Optimization Done.")
        return self.iter >= self.param.max_iter

    @torch.no_grad()
    def _update(self, shown: bool) -> None:
        """ComputeUpdateValue, then Net::Update."""
        del shown
        self.iter += 1
        self.rate = rates.rate(self.param, self.iter, self.iter // max(self.param.stepsize, 1))
        moved: list[Tensor] = []
        for index, (learnable, history) in enumerate(zip(self._learnable, self.history, strict=True)):
            blob, local = learnable.blob, self.rate * learnable.lr_mult
            stale = self._updates[index] if self._updates else torch.zeros_like(blob)
            history.mul_(self.param.momentum).add_(stale if blob.grad is None else blob.grad, alpha=local)
            history.add_(blob, alpha=self.param.weight_decay * learnable.decay_mult * local)
            moved.append(history.clone())
            blob.sub_(history)
        self._updates = moved

    @torch.no_grad()
    def test(self, index: int) -> dict[str, list[float]]:
        """Mean of each output element; no loss is computed."""
        net, count = self.test_nets[index], self.param.test_iter[index]
        total: dict[str, np.ndarray] = {}
        for _ in range(count):
            trace = net.trace(self._given(net))
            for name in net.outputs:
                values = trace.blobs[name].detach().cpu().numpy().ravel()
                total[name] = total.get(name, np.zeros((), np.float32)) + values
        scores = {name: [float(v) for v in values / count] for name, values in total.items()}
        for number, value in enumerate(v for values in scores.values() for v in values):
            self.log(f"Test score #{number}: {value:g}")
        return scores

    def snapshot(self) -> Path:
        """Write `<prefix>_iter_N`, a V0 net with its blobs, and `<prefix>_iter_N.solverstate`."""
        model = Path(f"{self._prefix}_iter_{self.iter}")
        self.log(f"Snapshotting to {self._named(model)}")
        diffs = self._diffs()
        with new_file(model) as file:
            file.write(self._head().SerializeToString())
            for layer in self._saved_layers(diffs):
                snapshot.write_field(file, LAYERS, layer.SerializeToString())
        state = model.with_name(model.name + ".solverstate")
        self.log(f"Snapshotting solver state to {self._named(state)}")
        head = pb.SolverState(iter=self.iter, learned_net=self._named(model))
        with new_file(state) as file:
            file.write(head.SerializeToString())
            for blob in self.history:
                body = snapshot.legacy_proto(blob.detach().cpu().numpy())
                snapshot.write_field(file, snapshot.HISTORY, body.SerializeToString())
        return state

    def _head(self) -> pb.NetParameter:
        """What Net::ToProto writes besides layers: the name and the inputs' names."""
        return pb.NetParameter(name=self.net.graph.name, input=list(self.net.inputs))

    def _saved_layers(self, diffs: dict[ParamKey, NDArray[np.float32]] | None) -> list[pb.V1LayerParameter]:
        """The V0 layers as the net gave them, with their blobs."""
        layers = [layer for layer in self.original.layers if layer.HasField("layer")]
        nodes = {node.layer.name: node for node in reversed(self.net.graph.nodes)}
        owned = self.net.owned
        for layer in layers:
            del layer.layer.blobs[:]
            for key in nodes[layer.layer.name].params if layer.layer.name in nodes else ():
                values = owned[key].detach().cpu().numpy()
                layer.layer.blobs.append(snapshot.legacy_proto(values, None if diffs is None else diffs[key]))
        return layers
