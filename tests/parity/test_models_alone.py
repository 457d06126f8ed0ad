"""Published models from the .caffemodel alone, which carries its net: it loads, and computes what Caffe computed."""

from __future__ import annotations

from pathlib import Path

import torch

from caffe_compat.errors import VggcError
from caffe_compat.module import Net
from caffe_compat.schema import pb
from tests.parity.cases import Case, Folders
from tests.parity.compare import comparing
from tests.parity.model_files import ModelRecord, model_cases, model_path
from tests.parity.nets import errors_in, load, tensor


def cases(folders: Folders) -> list[Case]:
    return model_cases(folders, "models_alone")


def test_models_alone(case: Case) -> None:
    record = ModelRecord(case)
    with comparing() as compare:
        try:
            net = load(model_path(case), strict=False)
        except VggcError as error:
            compare.check(not tells_input_shape(model_path(case)), f"refused, though it has all it takes: {error}")
            for one in errors_in(error):
                compare.check(bool(one.remedy), f"no remedy: {one}")
            return
        compare.check(bool(net.outputs), "a net without outputs")
        if same_layers(net, record):
            inputs = fitting(record, net)
            with torch.no_grad():
                blobs = net(inputs, "all")
            for blob in record.info["blobs"].keys() & (blobs.keys() - inputs.keys()):
                record.check_blob(blob, blobs[blob].numpy(), compare)


def tells_input_shape(model: Path) -> bool:
    """Whether the file itself says how large its inputs are."""
    net = pb.NetParameter.FromString(model.read_bytes())
    return bool(net.input_dim or net.input_shape or any(layer.input_param.shape for layer in net.layer))


def same_layers(net: Net, record: ModelRecord) -> bool:
    """Whether the file's net is that of the recorded prototxt; often it is the net it was trained in."""
    own = [[node.layer.name, node.layer.TYPE] for node in net.graph.nodes if node.layer.TYPE != "Input"]
    stored = [layer for layer in record.info["layers"] if layer[1] != "Input" and not layer[0].endswith("_split")]
    return own == stored and len(net.inputs) == len(record.info["inputs"])


def fitting(record: ModelRecord, net: Net) -> dict[str, torch.Tensor]:
    """The recorded inputs under the net's own names, in the net's number of axes."""
    arrays = record.inputs()
    given = arrays if arrays.keys() == net.inputs.keys() else dict(zip(net.inputs, arrays.values(), strict=True))
    return {
        blob: tensor(given[blob] if given[blob].ndim == len(shape) else given[blob].reshape(shape))
        for blob, shape in net.inputs.items()
    }
