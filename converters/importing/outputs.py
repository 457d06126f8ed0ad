"""The end of an import: exactly the program's outputs are left unread, as Caffe's outputs are what nothing reads."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from caffe_compat.schema import pb
from caffe_compat.weights import Blob, LayerBlobs, Weights
from converters.importing.builder import Builder, Made
from converters.importing.program import Array, Op
from converters.onnx_reading import Stored


def finish(b: Builder) -> tuple[pb.NetParameter, Weights]:
    """The net and its weights.

    Raises:
        ConversionError: an output has no form in Caffe.
    """
    results = _outputs(b)
    _silence(b, results)
    _in_place(b)
    net = pb.NetParameter(name=b.program.name)
    net.layer.extend(made.param for made in b.layers)
    layers = [
        LayerBlobs(made.param.name, tuple(_blob(array, b.program.stored) for array in made.blobs), made.param.type)
        for made in b.layers
    ]
    return net, Weights(tuple(layers), b.program.source, "onnx")


def _blob(array: Array, stored: Stored | None) -> Blob:
    """The values, with their place in the mapped file when they lie there as they are."""
    flat = array.reshape(-1)
    if stored is not None and flat.nbytes:
        offset = _address(flat) - _address(np.frombuffer(stored.data, np.uint8))
        if 0 <= offset <= len(stored.data) - flat.nbytes:
            return Blob(tuple(array.shape), flat, path=stored.path, offset=offset)
    return Blob(tuple(array.shape), flat)


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _outputs(b: Builder) -> set[str]:
    """Give the outputs their names; those that are read as well, or are one blob, get tops of a Split layer."""
    groups: dict[str, list[str]] = {}
    for name in b.program.outputs:
        op = Op("Identity", name, (name,), (name,), source=b.program.source)
        b.enter(op)
        groups.setdefault(b.blob(op, b.values[name]).blob, []).append(name)
    read = Counter(blob for made in b.layers for blob in made.param.bottom)
    results: set[str] = set()
    for blob, names in groups.items():
        results.update(_settled(b, blob, names, bool(read[blob])))
    return results


def _settled(b: Builder, blob: str, names: list[str], read: bool) -> list[str]:
    """The names that outputs of one blob have in the net."""
    given = blob in b.program.inputs
    if len(names) == 1 and not read and (not given or names == [blob]):
        b.rename(blob, names[0])
        return names
    if given:
        names = [b.fresh_blob(f"{name}_output") if name == blob else name for name in names]
    elif blob in names:
        inner = b.fresh_blob(f"{blob}/inner")
        b.rename(blob, inner)
        blob = inner
    param = pb.LayerParameter(name=b.unique(names[0]), type="Split", bottom=[blob], top=names)
    b.layers.append(Made(param, []))
    return names


def _silence(b: Builder, results: set[str]) -> None:
    """Unused tops go to a Silence layer, as they would be outputs."""
    read = {blob for made in b.layers for blob in made.param.bottom}
    unused = [top for made in b.layers for top in made.param.top if top not in read and top not in results]
    if unused:
        b.layers.append(Made(pb.LayerParameter(name=b.unique("unused"), type="Silence", bottom=unused), []))


VERSION = re.compile(r"@\d+$")
"""What the names of a blob's values end with, but for the last, in models that `vggc convert` wrote."""


def _in_place(b: Builder) -> None:
    """Let layers overwrite their bottom where the names say that both are values of one blob."""
    reads = Counter(blob for made in b.layers for blob in made.param.bottom)
    own = {top for made in b.layers for top in made.param.top} - set(b.program.inputs)
    last: dict[str, str] = {}
    for made in reversed(b.layers):
        if len(made.param.top) != 1 or not made.param.bottom or not b.in_place(made):
            continue
        bottom, top = made.param.bottom[0], made.param.top[0]
        if reads[bottom] == 1 and bottom in own and VERSION.sub("", bottom) == VERSION.sub("", top):
            last[bottom] = last.get(top, top)
    for earlier, name in last.items():
        b.rename(earlier, name)
