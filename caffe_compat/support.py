"""Which layers are supported, read off the registry: `vggc layers` and the README's table."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from caffe_compat.layers.base import Layer, registered


@dataclass(frozen=True)
class Support:
    """One layer type under one meaning.

    Attributes:
        type: the V2 type string.
        generations: those that know it, e.g. "V0 V1 V2".
        scope: the profiles, or the forks, that define it so.
        backward: Caffe has a backward pass, and so have we.
        forward: it computes its tops.
        onnx: it can be written to ONNX, at least for some parameters.
        from_onnx: nets read from ONNX may have it.
        rule: the first line of its description.
    """

    type: str
    generations: str
    scope: str
    forward: bool
    backward: bool
    onnx: bool
    from_onnx: bool
    rule: str

    def marks(self) -> tuple[bool, ...]:
        """Forward, backward, to ONNX and from ONNX."""
        return self.forward, self.backward, self.onnx, self.from_onnx


def support() -> list[Support]:
    """One entry for each class and type, sorted by type."""
    scopes: dict[tuple[str, type[Layer]], list[str]] = {}
    for kind, scope, cls in registered():
        scopes.setdefault((kind, cls), []).append(scope)
    return [_entry(kind, cls, names) for (kind, cls), names in scopes.items()]


def _entry(kind: str, cls: type[Layer], scopes: list[str]) -> Support:
    if "bvlc" in cls.PROFILES or cls.DIALECTS:
        known = [("V0", bool(cls.V0)), ("V1", bool(cls.V1)), ("V2", True)]
    else:
        known = [("V0", True)]
    generations = " ".join(name for name, there in known if there)
    forward, onnx = (getattr(cls, name) is not getattr(Layer, name) for name in ("forward", "to_onnx"))
    rule = (cls.__doc__ or "").strip().splitlines()[0]
    read = bool(vars(cls).get("FROM_ONNX"))
    return Support(kind, generations, ", ".join(scopes), forward, cls.BACKWARD, onnx, read, rule)


def markdown(entries: Iterable[Support] | None = None) -> str:
    """The table for the README."""
    head = ("layer", "generations", "profile or fork", "forward", "backward", "ONNX out", "ONNX in")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for entry in support() if entries is None else entries:
        marks = " | ".join("yes" if mark else "-" for mark in entry.marks())
        lines.append(f"| {entry.type} | {entry.generations} | {entry.scope} | {marks} |")
    return "\n".join(lines)


def update(readme: Path) -> None:
    """Put the table between the marks in the README."""
    head, _, rest = readme.read_text().partition("<!-- layers -->\n")
    tail = rest.partition("<!-- /layers -->")[2]
    readme.write_text(f"{head}<!-- layers -->\n{markdown()}\n<!-- /layers -->{tail}")


if __name__ == "__main__":
    update(Path(sys.argv[1]))
