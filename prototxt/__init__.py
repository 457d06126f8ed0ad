"""The nets of arXiv:1409.1556 as Caffe files: A, A-LRN, B, C, D, E and B-shallow, each with train_val and solver.

`digits` is configuration A narrowed to 32x32 images and ten classes. The files are in generation V2.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["find", "names"]

_FOLDER = Path(__file__).resolve().parent


def names() -> tuple[str, ...]:
    """What `find` knows, sorted: "A", "A_solver", "A_train_val", ..."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.prototxt")))


def find(name: str) -> Path:
    """The file of a net ("E"), its training net ("E_train_val") or its solver ("E_solver"), in any case.

    Raises:
        LookupError: there is no such file; the message lists those that there are.
    """
    for known in names():
        if known.lower() == name.lower():
            return _FOLDER / f"{known}.prototxt"
    raise LookupError(f'no net called "{name}"; there are {", ".join(names())}')
