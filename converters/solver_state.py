"""Solver states: .solverstate and .solverstate.h5 as Caffe writes them, and their histories as arrays.

A state holds one history blob, or several, for each parameter blob of the net that learns, in the net's order: momenta,
or what the solver's type keeps besides.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from caffe_compat.errors import ConversionError
from caffe_compat.solvers.snapshot import State, read_state, write_state, write_state_h5
from caffe_compat.writing import new_file
from converters.convert import Options, Report, Result
from converters.inspect import STATE
from converters.mean import digest
from converters.model import tool_version


def is_state(source: Path) -> bool:
    """Whether a file is a solver state, by its name."""
    return STATE in source.name.lower()


def convert(source: Path, targets: Sequence[Path], options: Options) -> Report:
    """Write a solver state in other formats: .npz and .safetensors have `history.<n>`, .h5 is Caffe's own layout.

    Raises:
        VggcError: the source cannot be read, or a target not be written.
        ConversionError: no target, its suffix is of none of the formats, or it exists and is not to be replaced.
    """
    began = time.perf_counter()
    if not targets:
        raise ConversionError("a solver state needs a target", where=str(source), remedy=f"name one {_known()}")
    writers = [_writer(source, target, options.force) for target in targets]
    state = read_state(source)
    results = []
    for target, write in zip(targets, writers, strict=True):
        start = time.perf_counter()
        write(target, state)
        size, sha256 = digest(target)
        results.append(Result(str(target), _kind(target), size, sha256, time.perf_counter() - start))
    count = sum(blob.size for blob in state.history)
    notes = (f"iteration {state.iteration}, step {state.step}, {len(state.history)} history blobs",)
    seconds = time.perf_counter() - began
    kind = "solverstate.h5" if source.suffix.lower() in (".h5", ".hdf5") else "solverstate"
    return Report(str(source), *digest(source), kind, "", None, count, notes, tuple(results), seconds)


def _writer(source: Path, target: Path, force: bool) -> Callable[[Path, State], None]:
    if _kind(target) not in WRITERS:
        raise ConversionError(f"a solver state is written {_known()}", where=str(target), remedy="name the target so")
    if target.exists() and (not force or target.samefile(source)):
        raise ConversionError("the target exists", where=str(target), remedy="use --force, or name another")
    return WRITERS[_kind(target)]


def _kind(target: Path) -> str:
    return {"hdf5": "h5"}.get(target.suffix.lower()[1:], target.suffix.lower()[1:])


def _known() -> str:
    return f"as {', '.join(f'.{kind}' for kind in WRITERS)}"


def about(state: State) -> dict[str, str]:
    """What a state says besides its histories."""
    return {"current_step": str(state.step), "iter": str(state.iteration), "learned_net": state.learned_net}


def _safetensors(target: Path, state: State) -> None:
    entries: dict[str, object] = {"__metadata__": {**about(state), "vggc_version": tool_version()}}
    offset = 0
    for index, blob in enumerate(state.history):
        end = offset + blob.nbytes
        entries[f"history.{index}"] = {"dtype": "F32", "shape": list(blob.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with new_file(target) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for blob in state.history:
            file.write(np.ascontiguousarray(blob, "<f4").data)


def _npz(target: Path, state: State) -> None:
    arrays = {f"history.{index}": blob for index, blob in enumerate(state.history)}
    numbers = {"iter": np.array(state.iteration), "current_step": np.array(state.step)}
    with new_file(target) as file:
        _savez(file, {**numbers, "learned_net": np.array(state.learned_net), **arrays})


def _savez(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez(file, **arrays)  # type: ignore[arg-type]


WRITERS: Mapping[str, Callable[[Path, State], None]] = {
    "npz": _npz,
    "safetensors": _safetensors,
    "h5": write_state_h5,
    "solverstate": write_state,
}
"""Suffix -> writer."""
