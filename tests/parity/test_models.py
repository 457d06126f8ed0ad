"""Published models: every blob and parameter against what Caffe computed on the same inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.parity.cases import Case, Folders
from tests.parity.compare import comparing
from tests.parity.model_files import ModelRecord, check_params, model_cases, model_path, prototxt_path
from tests.parity.nets import load, parameters, tensor
from tests.tolerances import MODELS


def cases(folders: Folders) -> list[Case]:
    return model_cases(folders, "models")


def test_models(case: Case, record_property: Callable[[str, object], None]) -> None:
    record = ModelRecord(case)
    net = load(prototxt_path(case), model_path(case), strict=False)
    with comparing() as compare:
        check_params(record, parameters(net), compare)
        compare.equal("layers", [[n.layer.name, n.layer.TYPE] for n in net.graph.nodes], _own(record.info["layers"]))
        compare.equal("outputs", list(net.outputs), record.info["outputs"])
        inputs = record.inputs()
        with torch.no_grad():
            trace = net.trace({blob: tensor(array) for blob, array in inputs.items()})
            outputs = net({blob: tensor(array) for blob, array in inputs.items()})
        compare.array("loss", trace.loss, record.loss(), MODELS)
        for blob in record.info["blobs"]:
            record.check_blob(blob, trace.blobs[blob].numpy() if blob in trace.blobs else None, compare)
        for blob, got in outputs.items():  # calling a net may take a faster way than tracing it
            record.check_blob(blob, got.numpy(), compare)
        compare.equal("keys that were not compared", record.record.unseen(), [])
        record_property("distance", record.distance())
        if record.note():
            record_property("note", f"{case}: {record.note()}")


def _own(layers: list[list[str]]) -> list[list[str]]:
    """Without the splits that Caffe inserts."""
    return [layer for layer in layers if not (layer[1] == "Split" and layer[0].endswith("_split"))]
