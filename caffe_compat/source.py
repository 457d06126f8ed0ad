"""Where each part of a net stands in its file, and what in the file the schema does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from caffe_compat.errors import Where

if TYPE_CHECKING:
    from caffe_compat.guessing import Guess


@dataclass(frozen=True)
class UnknownField:
    """A field that the schema does not have; it is kept and reported, never dropped.

    Attributes:
        where: its place.
        path: dotted path from the root message, e.g. `layer[3].permute_param`; binary files give `#202`.
        text: the field as prototxt text (`permute_param { order: 0 }`), or a summary of its bytes.
        ignored: Caffe and its forks read on without it, as in binary files.
    """

    where: Where
    path: str
    text: str
    ignored: bool = False


@dataclass(frozen=True)
class SourceMap:
    """Positions of fields by dotted path, `layer[3].pooling_param.pad`; repeated fields have an index.

    A singular field has the plain name, a repeated one `name[i]`; the message's own place is its path.
    """

    source: str = "<string>"
    positions: Mapping[str, Where] = field(default_factory=dict)
    unknown: Sequence[UnknownField] = ()
    warnings: Sequence[str] = ()

    def at(self, path: str, name: str = "") -> Where:
        """The place of `name` inside the message at `path`, or the nearest enclosing place that is known.

        `name` may be in the newest generation's spelling (`pooling_param.kernel_size`): when the file is older, the
        last part is looked for inside the layer, also without underscores (`kernelsize`).
        """
        for candidate in _candidates(path, name):
            if candidate in self.positions:
                return self.positions[candidate]
        return self.positions.get(path, Where(self.source))

    def unknown_in(self, path: str) -> tuple[UnknownField, ...]:
        """The unknown fields inside the message at `path`."""
        return tuple(u for u in self.unknown if u.path.startswith(path + "."))


def _candidates(path: str, name: str) -> list[str]:
    if not name:
        return [path]
    last = name.rsplit(".", 1)[-1]
    tails = [name, last, f"layer.{last}", f"layer.{last.replace('_', '')}"]  # V0 nests its parameters in `layer`
    return [f"{path}.{tail}{index}" for tail in tails for index in ("", "[0]")]


@dataclass(frozen=True)
class Document:
    """A parsed file.

    Attributes:
        message: what it says.
        map: where its parts stand.
        guess: the fork that wrote a binary net; text is judged when it is used.
    """

    message: Message
    map: SourceMap
    guess: Guess | None = None
