"""The processes of a run: one, or as many as torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from caffe_compat.errors import VggcError

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it takes them for lost."""


@dataclass(frozen=True)
class Group:
    """This process among all.

    Attributes:
        rank: its number; 0 alone writes.
        world: how many there are.
        device: where it computes.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: int) -> int:
        """Images of a batch that each process takes.

        Raises:
            VggcError: it cannot be split evenly.
        """
        if batch % self.world:
            what = f"a batch of {batch} cannot be split over {self.world} processes"
            raise VggcError(what, remedy="choose a batch that their number divides")
        return batch // self.world

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over all processes, in float64."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def any(self, value: bool) -> bool:
        """Whether it is so in any process."""
        return self.sum([float(value)])[0] > 0

    @torch.no_grad()
    def alike(self, tensors: Sequence[Tensor]) -> None:
        """Let every process have the tensors of the first one."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    @torch.no_grad()
    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over all processes."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.world)

    def wait(self) -> None:
        """Until all have come here."""
        self.sum([0.0])


@contextmanager
def joined(device: str = "") -> Iterator[Group]:
    """The group that torchrun's environment tells of; a group of one without it.

    Args:
        device: "cpu" or "cuda"; by default CUDA where there is a device for each process of this machine.
    """
    local, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = device or ("cuda" if torch.cuda.device_count() > local else "cpu")
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    if world == 1 and "RANK" not in os.environ:
        yield Group(device=place)
        return
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()


class Summed:
    """Adds up gradients over the processes while the backward pass goes on.

    Each parameter's gradient is sent as soon as it is complete, in one order on all processes: the reverse of the
    net's, in which they become complete. Nothing else is sent or copied, so the sums are the same in every run.
    """

    def __init__(self, group: Group, blobs: Sequence[nn.Parameter]) -> None:
        self._blobs = [blob for blob in reversed(blobs) if blob.requires_grad]
        self._active = group.world > 1
        self._ready: set[int] = set()
        self._next = 0
        self._pending: list[Any] = []
        self._armed = False
        for index, blob in enumerate(self._blobs if self._active else ()):
            blob.register_post_accumulate_grad_hook(self._hook(index))

    def arm(self) -> None:
        """The backward pass that follows completes the gradients."""
        self._ready, self._next, self._pending, self._armed = set(), 0, [], self._active

    def finish(self) -> None:
        """Wait until every gradient is the sum; those of blobs that the loss does not reach count as 0."""
        if not self._armed:
            return
        self._armed = False
        for index, blob in enumerate(self._blobs):
            if index not in self._ready and blob.grad is None:
                blob.grad = torch.zeros_like(blob)
        self._ready = set(range(len(self._blobs)))
        self._send()
        for work in self._pending:
            work.wait()

    def _hook(self, index: int) -> Any:
        def completed(_blob: Tensor) -> None:
            if self._armed:
                self._ready.add(index)
                self._send()

        return completed

    def _send(self) -> None:
        while self._next < len(self._blobs) and self._next in self._ready:
            self._pending.append(dist.all_reduce(self._blobs[self._next].grad, async_op=True))
            self._next += 1
