"""Snapshots as Caffe writes and reads them: `_iter_N.caffemodel` with `_iter_N.solverstate`, or both as HDF5.

Rules: Net::ToProto and ToHDF5 (net.cpp), SGDSolver::SnapshotSolverState and Restore (sgd_solver.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from caffe_compat.module import Net

Array = NDArray[np.float32]
LAYER, HISTORY = 100, 3
"""Fields NetParameter.layer and SolverState.history."""


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


def array_proto(values: Array, diff: Array | None = None) -> pb.BlobProto:
    """A blob with its shape (Blob::ToProto)."""
    return pb.BlobProto(
        shape=pb.BlobShape(dim=values.shape), data=values.ravel(), diff=None if diff is None else diff.ravel()
    )


def layers(net: Net, diffs: Mapping[ParamKey, Array] | None = None) -> Iterator[pb.LayerParameter]:
    """The layers as Caffe saves them, one at a time: phase stated, splits inserted, parameters in place."""
    nodes = {node.layer.name: node for node in reversed(net.graph.nodes)}
    owned = net.owned
    for layer in insert_splits([saved_param(node.layer) for node in net.graph.nodes]):
        node = None if layer.type == "Split" and layer.name not in nodes else nodes[layer.name]
        for key in node.params if node else ():
            values = owned[key].detach().cpu().numpy()
            layer.blobs.append(array_proto(values, None if diffs is None else diffs[key]))
        if not layer.HasField("phase"):
            layer.phase = pb.Phase.Value(net.graph.context.phase)  # type: ignore[assignment]
        yield layer


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


def write_net(path: Path, net: Net, diffs: Mapping[ParamKey, Array] | None = None) -> None:
    """Write a .caffemodel, a layer at a time."""
    with new_file(path) as file:
        file.write(pb.NetParameter(name=net.graph.name).SerializeToString())
        for layer in layers(net, diffs):
            write_field(file, LAYER, layer.SerializeToString())


def legacy_proto(values: Array, diff: Array | None = None) -> pb.BlobProto:
    """A blob with num, channels, height and width (Blob::ToProto of December 2013)."""
    proto = array_proto(values, diff)
    proto.ClearField("shape")
    proto.num, proto.channels, proto.height, proto.width = (1,) * (4 - values.ndim) + values.shape
    return proto


def write_field(file: Any, number: int, body: bytes) -> None:
    """Write one length-delimited field of a message."""
    file.write(encode_varint(number << 3 | 2) + encode_varint(len(body)))
    file.write(body)


def write_net_h5(path: Path, net: Net, diffs: Mapping[ParamKey, Array] | None = None) -> None:
    """Write a .caffemodel.h5: /data/<layer>/<index>, shared blobs under their owner alone, and /diff."""
    import h5py

    owned = net.owned
    with new_file(path) as target, h5py.File(target, "w") as file:
        for position, node in enumerate(net.graph.nodes):
            data = file.require_group(f"data/{node.layer.name}")
            for index, key in enumerate(node.params):
                if key == ParamKey(position, index):
                    data[str(index)] = owned[key].detach().cpu().numpy()
                if diffs is not None:
                    file[f"diff/{node.layer.name}/{index}"] = diffs[key]


def write_state(path: Path, state: State) -> None:
    """Write a .solverstate."""
    head = pb.SolverState(iter=state.iteration, learned_net=state.learned_net, current_step=state.step)
    with new_file(path) as file:
        file.write(head.SerializeToString())
        for blob in state.history:
            write_field(file, HISTORY, array_proto(blob).SerializeToString())


def write_state_h5(path: Path, state: State) -> None:
    """Write a .solverstate.h5."""
    import h5py

    with new_file(path) as target, h5py.File(target, "w") as file:
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
