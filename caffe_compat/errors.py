"""Everything that can go wrong, and how it is said.

    VggcError                  exit code 1; never shown with a traceback
    ├── FormatError            a file is not what it should be
    │   ├── TextError          prototxt text: line and column
    │   └── BinaryError        caffemodel, HDF5, safetensors, ...: byte offset
    ├── UpgradeError           an old net or solver cannot be brought to the newest generation
    ├── GraphError             a net that Caffe would refuse to build
    │   ├── LayerError         one layer: its parameters, bottoms or shapes
    │   └── UnknownLayerError  a layer type that is not known, or not under this profile or dialect
    ├── WeightsError           weights that do not fit the net
    ├── ConversionError        no exact form exists in the target format
    └── Problems               several of the above, found in one pass

Every error says where, what, what was got, and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Where:
    """A place in a net or file; parts that are not known stay at their defaults.

    `line` and `column` count from 1, `offset` is in bytes from the start of a binary file.
    """

    source: str = ""
    line: int = 0
    column: int = 0
    offset: int = -1
    layer: str = ""

    def __str__(self) -> str:
        place = self.source
        if self.line:
            place += f":{self.line}:{self.column}"
        if self.offset >= 0:
            place += f" at byte {self.offset}"
        return f'{place} layer "{self.layer}"'.strip() if self.layer else place

    def in_layer(self, name: str) -> Where:
        return replace(self, layer=name)


class VggcError(Exception):
    """An error with a place, a fact and a remedy.

    Args:
        what: the rule that was broken, with the values.
        where: the place; a string stands for a file name.
        remedy: what the user can do about it.
    """

    def __init__(self, what: str, *, where: Where | str = "", remedy: str = "") -> None:
        self.what = what
        self.where = Where(where) if isinstance(where, str) else where
        self.remedy = remedy
        super().__init__(what)

    def __str__(self) -> str:
        place = str(self.where)
        text = f"{place}: {self.what}" if place else self.what
        return f"{text}; {self.remedy}" if self.remedy else text


class FormatError(VggcError):
    """A file is not what it should be."""


class TextError(FormatError):
    """Prototxt text that cannot be read."""


class BinaryError(FormatError):
    """A binary file that cannot be read."""


class UpgradeError(VggcError):
    """A legacy net or solver that cannot be upgraded without loss."""


class GraphError(VggcError):
    """A net that Caffe would refuse to build."""


class LayerError(GraphError):
    """A layer whose parameters, bottoms or shapes break Caffe's rules."""


class UnknownLayerError(GraphError):
    """A layer type that no registered layer has."""


class WeightsError(VggcError):
    """Weights that do not fit the net."""


class ConversionError(VggcError):
    """The target format has no exact form for something in the net."""


class Problems(VggcError):
    """Several errors found in one pass.

    Attributes:
        errors: the errors, in the order of the file.
    """

    def __init__(self, errors: Iterable[VggcError]) -> None:
        self.errors = tuple(errors)
        super().__init__(f"{len(self.errors)} problems")

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


def in_file(error: VggcError, source: str) -> VggcError:
    """The error, with the file where it does not say one."""
    for each in error.errors if isinstance(error, Problems) else (error,):
        if not each.where.source:
            each.where = replace(each.where, source=source)
    return error


def one_line(text: str, limit: int = 4000) -> str:
    """Text for a terminal: what it would obey instead of showing becomes an escape (`\\x1b`, `\\n`).

    Names come from files, and files may be hostile.
    """
    shown = text if len(text) <= limit else f"{text[:limit]} ... ({len(text):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def raise_all(errors: Iterable[VggcError]) -> None:
    """Raise nothing, the only error, or `Problems` with all of them."""
    found = list(errors)
    if len(found) == 1:
        raise found[0]
    if found:
        raise Problems(found)
