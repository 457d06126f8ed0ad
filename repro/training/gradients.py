"""Gradients of a batch, added up over passes and processes in an order that does not depend on how it was split.

Sums of floats depend on their order, and training makes much of little: after some updates a difference in the last
bit is one in the third digit. So passes are added as the leaves of a binary tree, ((a + b) + (c + d)) + ..., and so are
processes, pairs first. Where the numbers of passes and processes are powers of two, one process makes the same sums as
many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor, nn

from repro.training.group import Group, lost_is_told

Sums = dict[int, Tensor]


class Gradients:
    """The gradients of a net's parameters while a batch is gone through.

    In the last pass each gradient is sent to the other processes as soon as it is complete, by a thread of its own, in
    one order everywhere: the reverse of the net's, in which they become complete.

    Args:
        group: the processes.
        blobs: the parameters that are learnt.
    """

    def __init__(self, group: Group, blobs: Sequence[nn.Parameter]) -> None:
        self._blobs = list(reversed(blobs))
        self._tree = _Tree(group) if group.world > 1 else None
        self._partial: list[Sums] = []
        self._parts = 0
        self._last = False
        self._complete: set[int] = set()
        self._sent: list[Future[None]] = []
        for index, blob in enumerate(self._blobs if self._tree else ()):
            blob.register_post_accumulate_grad_hook(self._hook(index))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """A new batch."""
        for blob in self._blobs:
            blob.grad = None
        self._partial, self._parts, self._last = [], 0, False
        self._complete, self._sent = set(), []

    def last(self) -> None:
        """The pass that follows is the last one."""
        self._last = True

    def passed(self) -> None:
        """A pass is done; after the last one the parameters have the sums over all processes."""
        if self._last:
            self._finish()
            return
        sums = {index: blob.grad for index, blob in enumerate(self._blobs) if blob.grad is not None}
        for blob in self._blobs:
            blob.grad = None
        self._parts += 1
        parts = self._parts
        while parts % 2 == 0:
            parts //= 2
            sums = _added(self._partial.pop(), sums)
        self._partial.append(sums)

    def _finish(self) -> None:
        for index, blob in enumerate(self._blobs):
            if index not in self._complete:
                self._merge(index)
            if self._tree and blob.grad is None:
                blob.grad = torch.zeros_like(blob)
        self._complete = set(range(len(self._blobs)))
        self._send()
        for future in self._sent:
            future.result()
        if self._tree:
            self._tree.join()

    def _merge(self, index: int) -> None:
        """Add what earlier passes have left to a gradient."""
        for sums in reversed(self._partial):
            earlier, blob = sums.get(index), self._blobs[index]
            if earlier is not None:
                blob.grad = earlier if blob.grad is None else earlier.add_(blob.grad)

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def completed(_blob: Tensor) -> None:
            if self._last and index not in self._complete:
                self._merge(index)
                self._complete.add(index)
                self._send()

        return completed

    def _send(self) -> None:
        while self._tree and len(self._sent) < len(self._blobs) and len(self._sent) in self._complete:
            gradient = self._blobs[len(self._sent)].grad
            assert gradient is not None
            self._sent.append(self._tree.send(gradient))


def _added(earlier: Sums, later: Sums) -> Sums:
    """Sums of two parts, in the memory of the earlier one."""
    for index, values in later.items():
        earlier[index] = earlier[index].add_(values) if index in earlier else values
    return earlier


class _Tree:
    """Adds tensors up over processes: pairs, then pairs of pairs; all at once where they are no power of two."""

    def __init__(self, group: Group) -> None:
        self._device = group.device
        self._thread = ThreadPoolExecutor(1, "vggc-sum")
        self._stream = _stream(group.device)
        self._groups: list[dist.ProcessGroup | None] = [None]
        if group.world & (group.world - 1) == 0:
            self._groups = [_pair(group, distance) for distance in _powers(group.world)]

    def send(self, tensor: Tensor) -> Future[None]:
        """Replace a tensor by its sum, meanwhile."""
        ready = torch.cuda.current_stream(self._device).record_event() if self._stream else None
        return self._thread.submit(self._sum, tensor, ready)

    def join(self) -> None:
        """Let what is computed from now on see the sums."""
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _sum(self, tensor: Tensor, ready: torch.cuda.Event | None) -> None:
        with torch.cuda.stream(self._stream):
            if self._stream and ready:
                self._stream.wait_event(ready)
            for group in self._groups:
                with lost_is_told():
                    dist.all_reduce(tensor, group=group)


def _powers(world: int) -> list[int]:
    return [1 << level for level in range(world.bit_length() - 1)]


def _pair(group: Group, distance: int) -> dist.ProcessGroup:
    """This process and the one so far away; every process has to make every pair."""
    pairs = [(rank, rank ^ distance) for rank in range(group.world) if rank < rank ^ distance]
    made = {pair: dist.new_group(list(pair)) for pair in pairs}
    mine: dist.ProcessGroup = next(each for pair, each in made.items() if group.rank in pair)
    return mine


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """Where CUDA adds up while the backward pass goes on."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
