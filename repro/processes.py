"""The processes of an evaluation: one, or those that torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long a process waits for the others: their shares of the images take as long as they take."""


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank: its number.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()

    def in_turn(self, make: Callable[[], T]) -> T:
        """What each process makes, the first one before the others."""
        if self.first:
            made = make()
            self.wait()
            return made
        self.wait()
        return make()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun's environment tells of; one without it. They need not have a GPU."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
