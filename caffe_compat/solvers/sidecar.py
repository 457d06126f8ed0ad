"""What Caffe's snapshots leave out, in `_iter_N.vggcstate` beside them, for a run to go on bit for bit.

A safetensors file: arrays (generators of random numbers, orders of images), and JSON in its metadata (places in the
data, the latest losses). Caffe never looks at it; without it a run goes on as Caffe's would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffe_compat.errors import BinaryError, VggcError
from caffe_compat.layers.base import Layer
from caffe_compat.module import Net

SUFFIX = ".vggcstate"
STATES = (".solverstate", ".solverstate.h5")
KEY = "vggc"
ARRAY = "array"
REMEDY = "remove it: random numbers and data then start anew, as in Caffe"


@dataclass(frozen=True)
class Extra:
    """The content of such a file.

    Attributes:
        iteration: updates made.
        values: of `fingerprint`, to know the snapshot that it belongs to.
        losses: those that the smoothed loss is made of.
        layers: "<net>/<layer>", nets by number, the train net being 0 -> what `Layer.saved` gave.
        random: torch's generators: "cpu" and "cuda:<n>" -> state.
        more: what a profile's solver keeps.
    """

    iteration: int
    values: int
    losses: Sequence[float]
    layers: Mapping[str, Any]
    random: Mapping[str, NDArray[np.uint8]]
    more: Mapping[str, Any]


def beside(state: Path) -> Path | None:
    """The file that belongs to a solver state; None when the state's name does not end as Caffe's do."""
    tail = next((tail for tail in STATES if state.name.endswith(tail)), None)
    return None if tail is None else state.with_name(state.name.removesuffix(tail) + SUFFIX)


def fingerprint(tensors: Sequence[Tensor]) -> int:
    """A number that tells values from others."""
    value = 0
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous().numpy()
        value = crc32(array.data.cast("B") if array.size else b"", value)
    return value


def places(nets: Sequence[Net]) -> dict[str, Any]:
    """What the layers of nets have to keep."""
    return {name: saved for name, layer in _layers(nets).items() if (saved := layer.saved())}


def _layers(nets: Sequence[Net]) -> dict[str, Layer]:
    return {f"{index}/{node.layer.name}": node.layer for index, net in enumerate(nets) for node in net.graph.nodes}


def go_to_places(nets: Sequence[Net], layers: Mapping[str, Any], where: str) -> None:
    """Let the layers be as they were.

    Raises:
        VggcError: the file is of other nets, or of other data.
    """
    own = _layers(nets)
    for name, saved in layers.items():
        try:
            own[name].resume(saved)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            what = f'what it holds of layer "{name.partition("/")[2]}" does not fit the net'
            raise VggcError(what, where=where, remedy=f"give the net that wrote it, or {REMEDY}") from error


def random_state() -> dict[str, NDArray[np.uint8]]:
    """Where torch's generators stand."""
    found = {"cpu": torch.get_rng_state().numpy()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found |= {f"cuda:{n}": state.numpy() for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def set_random_state(states: Mapping[str, NDArray[np.uint8]]) -> None:
    """Let torch's generators stand there; those of devices that are not here are left out."""
    for device, state in states.items():
        tensor = torch.from_numpy(np.array(state))
        if device == "cpu":
            torch.set_rng_state(tensor)
        elif torch.cuda.is_available() and int(device.partition(":")[2]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(tensor, device)


# -- the file ----------------------------------------------------------------------------------------------


def encode(extra: Extra) -> bytes:
    """The file's content."""
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {}
    plain = {name: _without_arrays(value, name, arrays) for name, value in vars(extra).items()}
    return save(arrays, {KEY: json.dumps(plain)})


def read(path: Path) -> Extra:
    """Read such a file.

    Raises:
        VggcError: it is damaged, or none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            plain = json.loads((file.metadata() or {})[KEY])
            content = _with_arrays(plain, file.get_tensor)
            return Extra(**{field.name: content[field.name] for field in fields(Extra)})
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError, OSError) as error:
        raise BinaryError(f"this is no {SUFFIX} file: {error}", where=str(path), remedy=REMEDY) from error


def _without_arrays(value: Any, name: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """JSON values; arrays are put aside under the path that leads to them."""
    if isinstance(value, np.ndarray):
        arrays[name] = np.ascontiguousarray(value)
        return {ARRAY: name}
    if isinstance(value, Mapping):
        return {key: _without_arrays(content, f"{name}/{key}", arrays) for key, content in value.items()}
    return value


def _with_arrays(value: Any, array: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {ARRAY}:
        return array(value[ARRAY])
    return {key: _with_arrays(content, array) for key, content in value.items()}
