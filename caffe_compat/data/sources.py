"""Labelled images one after another, from a database or from a list of files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from caffe_compat.data.images import Planes, datum_image, planes, read_image
from caffe_compat.data.lists import ImageList
from caffe_compat.data.random_numbers import set_state, state_of
from caffe_compat.data.records import Database, Record, Records
from caffe_compat.errors import FormatError, VggcError
from caffe_compat.reading import parse_datum

T = TypeVar("T")
R = TypeVar("R")
WORKERS = 8


class Item(NamedTuple):
    """An image (C, H, W) and its label."""

    image: Planes
    label: int


class Source(Protocol):
    """A place in an endless row of entries; an entry becomes an item when it is loaded, in any thread."""

    def peek(self) -> Any:
        """The entry that `take` gives next.

        Raises:
            VggcError: it cannot be read.
        """

    def take(self, count: int) -> list[Any]:
        """The next entries; raises as `peek`."""

    def skip(self, count: int) -> None:
        """Go on by so many entries; raises as `peek`."""

    def place(self) -> Any:
        """Where it stands: JSON values and arrays, which later changes leave alone."""

    def go_to(self, place: Any) -> None:
        """Stand where `place` told.

        Raises:
            LookupError, TypeError, ValueError: it is a place in a source of another kind.
            VggcError: it is a place in other data.
        """

    def load(self, entry: Any) -> Item:
        """The item of an entry.

        Raises:
            VggcError: it cannot be read; the message names the entry.
        """


class RecordSource(Records):
    """The Datum records of a database, from its first.

    Args:
        color: force encoded images to three channels or to one; None leaves them as they are.
    """

    def __init__(self, database: Database, color: bool | None = None) -> None:
        super().__init__(database)
        self.color = color

    def load(self, entry: Record) -> Item:
        try:
            datum = parse_datum(entry.value)
            return Item(datum_image(datum, self.color), datum.label)
        except VggcError as error:
            raise FormatError(f'record "{entry.name}": {error.what}', remedy=error.remedy) from error


class ListSource:
    """The files of a list; shuffled anew for every round.

    Args:
        images: the list.
        find: name in the list -> file; raises VggcError.
        color: three channels, else one.
        size: height and width to resize to; zeros: as they are.
        shuffle: None keeps the order of the list.
    """

    def __init__(
        self,
        images: ImageList,
        find: Callable[[str], Path],
        *,
        color: bool = True,
        size: tuple[int, int] = (0, 0),
        shuffle: np.random.Generator | None = None,
    ) -> None:
        self.images, self.find, self.color, self.size, self.generator = images, find, color, size, shuffle
        self.order = np.arange(len(images.names))
        self.position = 0
        self._shuffle()

    def peek(self) -> int:
        return int(self.order[self.position])

    def take(self, count: int) -> list[int]:
        entries = []
        for _ in range(count):
            entries.append(self.peek())
            self.position = (self.position + 1) % len(self.order)
            if self.position == 0:
                self._shuffle()
        return entries

    def skip(self, count: int) -> None:
        self.take(count)

    def load(self, entry: int) -> Item:
        name = self.images.names[entry]
        try:
            image = read_image(self.find(name), self.color, self.size)
        except VggcError as error:
            raise type(error)(f'image "{name}": {error.what}', remedy=error.remedy) from error
        return Item(planes(image), int(self.images.labels[entry]))

    def place(self) -> dict[str, Any]:
        place: dict[str, Any] = {"position": self.position, "images": len(self.order)}
        if self.generator is not None:
            place |= {"order": self.order, "shuffle": state_of(self.generator)}
        return place

    def go_to(self, place: Mapping[str, Any]) -> None:
        if place["images"] != len(self.order):
            what = f"a place in a list of {place['images']} images; this one has {len(self.order)}"
            raise VggcError(what, remedy="use the same list")
        if self.generator is not None:
            set_state(self.generator, place["shuffle"])
            self.order = np.array(place["order"])
        self.position = int(place["position"])

    def _shuffle(self) -> None:
        if self.generator is not None:
            self.order = self.generator.permutation(self.order)


@cache
def _pool(name: str = "images") -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1), f"vggc-{name}")


def ahead(work: Callable[[], R]) -> Future[R]:
    """`work()`, already under way in another thread; it may itself work side by side."""
    return _pool("ahead").submit(work)


def begin(work: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    """`work(thing)` for each of them, already under way in several threads: decoding and arithmetic let others run."""
    return _pool().map(work, things)


def side_by_side(work: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """`[work(thing) for thing in things]` in several threads."""
    return list(begin(work, things))
