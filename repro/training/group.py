"""The processes of a run: one, or as many as torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from caffe_compat.errors import VggcError

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it takes them for lost."""

FRESH_STORE = ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
"""Lets torchrun start anew where processes leave their addresses; else those restarted meet those of lost ones."""


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
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

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
        with lost_is_told():
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
                with lost_is_told():
                    dist.broadcast(tensor, 0)

    @torch.no_grad()
    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over all processes."""
        if self.world > 1:
            for tensor in tensors:
                with lost_is_told():
                    dist.all_reduce(tensor)
                tensor.div_(self.world)

    def told(self, text: str) -> str:
        """What the first process says; what the others say is not heard."""
        if self.world == 1:
            return text
        data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8).to(self.device)
        size = torch.tensor([len(data)], device=self.device)
        with lost_is_told():
            dist.broadcast(size, 0)
            data = data if self.first else torch.empty(int(size), dtype=torch.uint8, device=self.device)
            dist.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def wait(self) -> None:
        """Until all have come here."""
        self.sum([0.0])


@contextmanager
def lost_is_told() -> Iterator[None]:
    """Turn what the other processes' end looks like from here into an error.

    Raises:
        VggcError: another process has gone.
    """
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "see what it says; the same command goes on from the last snapshot"
        raise VggcError(f"another process was lost: {first}", remedy=remedy) from error


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
    try:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
    except RuntimeError as error:
        what = f"the processes do not find each other: {str(error).strip().splitlines()[0]}"
        remedy = f"set {'='.join(FRESH_STORE)} for torchrun, which else hands out the addresses of lost processes"
        raise VggcError(what, remedy=remedy) from error
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()
