"""The training loop of December 2013 (solver.cpp at 3213bd87e): iterations count from 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from caffe_compat.data.random_numbers import CRand, Draw
from caffe_compat.errors import VggcError
from caffe_compat.layers.data import Data2013
from caffe_compat.schema import pb
from caffe_compat.solvers import rates, snapshot
from caffe_compat.solvers.outputs import scores
from caffe_compat.solvers.sidecar import SUFFIX
from caffe_compat.solvers.snapshot import Files
from caffe_compat.solvers.solver import Solver, never

POLICIES = ("fixed", "step", "exp", "inv")
LAYERS, LAYER, BLOBS = 2, 1, 50
"""Fields NetParameter.layers, V1LayerParameter.layer and V0LayerParameter.blobs."""


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
        self._check_tests(where)
        self._updates = ()
        self._crand = CRand()
        self.rand = self._crand
        self._shared["rand"] = lambda: self.rand()

    def _check_tests(self, where: str) -> None:
        """A test net takes test_iter > 0; without one test_iter is not read, and the first test is fatal."""
        generic = self.param.HasField("net") or self.param.HasField("net_param")
        if not (self.param.test_net or self.param.test_net_param or generic):
            self.param.ClearField("test_iter")
        if any(count <= 0 for count in self.param.test_iter):
            raise VggcError("a test_iter is 0", where=where, remedy="state test_iter > 0")
        if not self.param.test_iter and 0 < self.param.test_interval <= self.param.max_iter:
            what = f"test_interval {self.param.test_interval} without a test net, which is fatal at the first test"
            raise VggcError(what, where=where, remedy="state test_net and test_iter, or remove test_interval")

    def _prefetch(self) -> None:
        """Read the first batches: each data layer reads ahead when it is made, while the phase is still TRAIN."""
        for net in (self.net, *self.test_nets):
            for node in net.graph.nodes:
                if isinstance(node.layer, Data2013):
                    node.layer.prefetch("TRAIN")

    def step(self, count: int, stopped: Callable[[], bool] = never) -> None:
        """Make `count` updates, with the snapshots, log lines and tests that fall due, in that order."""
        self._stopped, self._early = stopped, False
        self._prefetch()
        for _ in range(count):
            _, loss = self._forward_backward()
            self._update(shown=False)
            if self._due():
                self.snapshot()
            if self.param.display and self.iter % self.param.display == 0:
                self.log(f"Iteration {self.iter}, loss = {loss:g}")
            if self.param.test_interval and self.iter % self.param.test_interval == 0:
                self.test_all()
            if self._early or stopped():
                break

    def solve(self, stopped: Callable[[], bool] = never) -> bool:
        """Train to max_iter; the last snapshot is always written."""
        self.log(f"Solving {self.net.graph.name}")
        self._check_prefix()
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
        if self.param.display and self.iter % self.param.display == 0:
            self.log(f"Iteration {self.iter}, lr = {self.rate:g}")
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
            if self._stopped():
                self._early = True
                return {}
            for name, values in scores(net, net.scored(self._given(net)).blobs).items():
                total[name] = total.get(name, np.zeros((), np.float32)) + values
        means = {name: [float(v) for v in values / count] for name, values in total.items()}
        for number, value in enumerate(v for values in means.values() for v in values):
            self.log(f"Test score #{number}: {value:g}")
        return means

    def snapshot(self) -> Path:
        """Write `<prefix>_iter_N`, a V0 net with its blobs, and `<prefix>_iter_N.solverstate`."""
        model = Path(f"{self._prefix}_iter_{self.iter}")
        files = Files(model, *(model.with_name(model.name + end) for end in (".solverstate", SUFFIX)))
        self.log(f"Snapshotting to {self._named(files.model)}")
        self.log(f"Snapshotting solver state to {self._named(files.state)}")
        self._write(files, self._put_net, snapshot.put_state_2013)
        return files.state

    def _put_net(self, file: BinaryIO) -> None:
        """The V0 layers as the net gave them, with their blobs."""
        file.write(self._head().SerializeToString())
        nodes = {node.layer.name: node for node in reversed(self.net.graph.nodes)}
        owned, diffs = self.net.owned, self._diffs()
        for connection in self.original.layers:
            if not connection.HasField("layer"):
                continue
            saved, layer = pb.V1LayerParameter(), pb.V0LayerParameter()
            saved.CopyFrom(connection)
            layer.CopyFrom(connection.layer)
            saved.ClearField("layer")
            del layer.blobs[:]
            keys = nodes[layer.name].params if layer.name in nodes else ()
            blobs = [snapshot.saved_blob(owned[key], key, diffs, legacy=True) for key in keys]
            body = [layer.SerializeToString(), *snapshot.fields(BLOBS, blobs)]
            snapshot.write_field(file, LAYERS, saved.SerializeToString(), *snapshot.field(LAYER, body))

    def _more(self) -> dict[str, Any]:
        return {"rand": self._crand.state}

    def _take_more(self, more: Mapping[str, Any]) -> None:
        """Go on with the C library's numbers; the latest update of each blob is what its history holds."""
        self._crand.state = more["rand"]
        self._updates = [history.clone() for history in self.history]

    def _head(self) -> pb.NetParameter:
        """What Net::ToProto writes besides layers: the name and the inputs' names."""
        return pb.NetParameter(name=self.net.graph.name, input=list(self.net.inputs))
