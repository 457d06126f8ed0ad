"""Snapshots as Caffe writes and reads them: `_iter_N.caffemodel` with `_iter_N.solverstate`, or both as HDF5.

Rules: Net::ToProto and ToHDF5 (net.cpp), SGDSolver::SnapshotSolverState and Restore (sgd_solver.cpp).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffe_compat.errors import BinaryError, VggcError, Where
from caffe_compat.graph import ParamKey
from caffe_compat.hdf5_weights import EXPANSION, SPARE, own_member
from caffe_compat.layers.base import Layer
from caffe_compat.mapped import kind_of, map_file
from caffe_compat.schema import pb
from caffe_compat.splits import insert_splits
from caffe_compat.tags import encode_varint
from caffe_compat.writing import new_file

if TYPE_CHECKING:
    from torch import Tensor

    from caffe_compat.module import Net

Array = NDArray[np.float32]
Put = Callable[[BinaryIO], None]
LAYER, BLOBS, HISTORY, DATA, DIFF = 100, 7, 3, 5, 6
"""Fields NetParameter.layer, LayerParameter.blobs, SolverState.history, BlobProto.data and diff."""


@dataclass(frozen=True)
class State:
    """A solverstate.

    Attributes:
        iteration: updates made so far.
        step: steps of the learning rate taken.
        learned_net: the file with the weights, as the state names it.
        history: the solver's memory.
    """

    iteration: int
    step: int
    learned_net: str
    history: Sequence[Array]


class Saved(NamedTuple):
    """A parameter blob, or a solver's memory of one, to be written.

    Attributes:
        values: of any shape.
        diff: its latest update, None to leave it out.
        legacy: its shape is stated as num, channels, height and width, as until 2014.
    """

    values: Array
    diff: Array | None = None
    legacy: bool = False

    def message(self) -> pb.BlobProto:
        """The blob (Blob::ToProto)."""
        return pb.BlobProto.FromString(b"".join(self.parts()))

    def parts(self) -> Iterator[bytes | memoryview]:
        """The blob in Caffe's encoding, its values where they lie."""
        yield self._shape().SerializeToString()
        for number, array in ((DATA, self.values), (DIFF, self.diff)):
            if array is not None and array.size:
                yield encode_varint(number << 3 | 2) + encode_varint(4 * array.size)
                yield np.ascontiguousarray(array, "<f4").data.cast("B")

    def _shape(self) -> pb.BlobProto:
        shape = self.values.shape
        if not self.legacy:
            return pb.BlobProto(shape=pb.BlobShape(dim=shape))
        num, channels, height, width = (1,) * (4 - len(shape)) + shape
        return pb.BlobProto(num=num, channels=channels, height=height, width=width)


def layers(net: Net, diffs: Mapping[ParamKey, Array] | None = None) -> Iterator[pb.LayerParameter]:
    """The layers as Caffe saves them, one at a time: phase stated, splits inserted, parameters in place."""
    for layer, blobs in saved_layers(net, diffs):
        layer.blobs.extend(blob.message() for blob in blobs)
        yield layer


def saved_layers(
    net: Net, diffs: Mapping[ParamKey, Array] | None = None
) -> Iterator[tuple[pb.LayerParameter, list[Saved]]]:
    """As `layers`, the parameters apart."""
    nodes = {node.layer.name: node for node in reversed(net.graph.nodes)}
    owned = net.owned
    for layer in insert_splits([saved_param(node.layer) for node in net.graph.nodes]):
        node = None if layer.type == "Split" and layer.name not in nodes else nodes[layer.name]
        if not layer.HasField("phase"):
            layer.phase = pb.Phase.Value(net.graph.context.phase)  # type: ignore[assignment]
        yield layer, [saved_blob(owned[key], key, diffs) for key in (node.params if node else ())]


def saved_blob(blob: Tensor, key: ParamKey, diffs: Mapping[ParamKey, Array] | None, legacy: bool = False) -> Saved:
    """A parameter blob to be written, with its diff if there are any."""
    return Saved(blob.detach().cpu().numpy(), None if diffs is None else diffs[key], legacy)


def saved_param(layer: Layer) -> pb.LayerParameter:
    """A layer's message after its LayerSetUp, which completes some."""
    param = pb.LayerParameter()
    param.CopyFrom(layer.param)
    if layer.LOSS and not param.loss_weight:
        param.loss_weight.append(1)
    if layer.TYPE == "BatchNorm":
        del param.param[:]
        param.param.extend(layer.param_specs(list(layer.param.param), 3))
    return param


class Files(NamedTuple):
    """Where the two files of a snapshot go, and what Caffe does not keep."""

    model: Path
    state: Path
    extra: Path


def write_all(files: Files, put_net: Put, put_state: Put, extra: bytes) -> None:
    """Write a snapshot's files so that none is seen without the others, whatever happens on the way.

    All are written out under temporary names before the first is renamed; the state comes last, and one of the same
    name goes before.

    Raises:
        VggcError: they cannot be written.
    """
    with new_file(files.state) as state, new_file(files.extra) as more, new_file(files.model) as model:
        put_net(model)
        more.write(extra)
        put_state(state)
        for file in (model, more, state):
            file.flush()
            os.fsync(file.fileno())
        files.state.unlink(missing_ok=True)


def write_net(path: Path, net: Net, diffs: Mapping[ParamKey, Array] | None = None) -> None:
    """Write a .caffemodel."""
    with new_file(path) as file:
        put_net(file, net, diffs)


def put_net(file: BinaryIO, net: Net, diffs: Mapping[ParamKey, Array] | None = None) -> None:
    """The content of a .caffemodel, a layer at a time."""
    file.write(pb.NetParameter(name=net.graph.name).SerializeToString())
    for layer, blobs in saved_layers(net, diffs):
        write_field(file, LAYER, layer.SerializeToString(), *fields(BLOBS, blobs))


def fields(number: int, blobs: Sequence[Saved]) -> list[bytes | memoryview]:
    """Blobs as fields of a message, in parts."""
    return [part for blob in blobs for part in field(number, list(blob.parts()))]


def field(number: int, parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """One length-delimited field of a message, in parts."""
    return [encode_varint(number << 3 | 2) + encode_varint(sum(map(len, parts))), *parts]


def write_field(file: BinaryIO, number: int, *parts: bytes | memoryview) -> None:
    """Write one length-delimited field of a message; its body may come in parts."""
    for part in field(number, parts):
        file.write(part)


def put_net_h5(target: BinaryIO, net: Net, diffs: Mapping[ParamKey, Array] | None = None) -> None:
    """The content of a .caffemodel.h5: /data/<layer>/<index>, shared blobs under their owner alone, and /diff."""
    import h5py

    owned = net.owned
    with h5py.File(target, "w") as file:
        for position, node in enumerate(net.graph.nodes):
            data = file.require_group(f"data/{node.layer.name}")
            for index, key in enumerate(node.params):
                if key == ParamKey(position, index):
                    data[str(index)] = owned[key].detach().cpu().numpy()
                if diffs is not None:
                    file[f"diff/{node.layer.name}/{index}"] = diffs[key]


def write_state(path: Path, state: State) -> None:
    """Write a .solverstate."""
    with new_file(path) as file:
        put_state(file, state)


def put_state(file: BinaryIO, state: State) -> None:
    """The content of a .solverstate."""
    head = pb.SolverState(iter=state.iteration, learned_net=state.learned_net, current_step=state.step)
    file.write(head.SerializeToString())
    for blob in state.history:
        write_field(file, HISTORY, *Saved(blob).parts())


def put_state_2013(file: BinaryIO, state: State) -> None:
    """The content of a .solverstate of December 2013."""
    head = pb.SolverState(iter=state.iteration, learned_net=state.learned_net)
    file.write(head.SerializeToString())
    for blob in state.history:
        write_field(file, HISTORY, *Saved(blob, legacy=True).parts())


def write_state_h5(path: Path, state: State) -> None:
    """Write a .solverstate.h5."""
    with new_file(path) as file:
        put_state_h5(file, state)


def put_state_h5(target: BinaryIO, state: State) -> None:
    """The content of a .solverstate.h5."""
    import h5py

    with h5py.File(target, "w") as file:
        for name, value in (("iter", state.iteration), ("current_step", state.step)):
            file.create_dataset(name, data=np.array([value], np.int32))
        _write_text(file, "learned_net", state.learned_net)
        history = file.create_group("history")
        for index, blob in enumerate(state.history):
            history[str(index)] = blob


def _write_text(file: Any, name: str, text: str) -> None:
    """Text that ends with a zero byte, which Caffe relies on (H5LTmake_dataset_string)."""
    import h5py

    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(text.encode()) + 1)
    kind.set_strpad(h5py.h5t.STR_NULLTERM)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(text.encode(), f"S{len(text.encode()) + 1}"), kind)


def read_state(path: Path) -> State:
    """Read a solverstate of either kind, ours or Caffe's.

    Raises:
        VggcError: it cannot be read, or is none.
    """
    if kind_of(map_file(path)).name == "HDF5":
        return _read_h5(path)
    try:
        message = pb.SolverState.FromString(path.read_bytes())
    except DecodeError as error:
        remedy = "give the .solverstate that Caffe or vggc wrote"
        raise BinaryError("not a solver state", where=str(path), remedy=remedy) from error
    history = [_array(blob, path) for blob in message.history]
    return State(message.iter, message.current_step, message.learned_net, history)


def _array(blob: pb.BlobProto, path: Path) -> Array:
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else legacy
    values = np.array(blob.data if len(blob.data) else blob.double_data, np.float32)
    if values.size != np.prod(shape, dtype=object):
        what = f"a history blob of shape {shape} with {values.size} values"
        raise VggcError(what, where=Where(str(path)), remedy="the file is damaged; use another snapshot")
    return values.reshape(shape)


def _read_h5(path: Path) -> State:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            spare = SPARE + EXPANSION * path.stat().st_size
            history = own_member(file, "history", spare)
            blobs = [
                np.asarray(own_member(history, str(index), spare // max(len(history), 1)), np.float32)
                for index in range(len(history))
            ]
            name = own_member(file, "learned_net", spare)[()] if "learned_net" in file else b""
            text = name.decode() if isinstance(name, bytes) else str(name)
            iteration, step = (_integer(own_member(file, key, spare)) for key in ("iter", "current_step"))
            return State(iteration, step, text.rstrip("\0"), blobs)
    except (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        remedy = "give the .solverstate.h5 that Caffe or vggc wrote"
        raise VggcError(f"not a solver state: {error}", where=str(path), remedy=remedy) from error


def _integer(dataset: Any) -> int:
    return int(np.asarray(dataset).reshape(-1)[0])
