"""Layers and small nets as ONNX files in ONNX Runtime, against what Caffe and its forks computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from caffe_compat.binding import bind
from caffe_compat.errors import ConversionError, Problems, VggcError
from caffe_compat.loading import State, open_net
from caffe_compat.weights import Blob, LayerBlobs, Weights
from converters.model import Model
from converters.onnx import Options, write
from converters.streaming import Payloads, Target
from tests.parity.cases import Case, Folders, fork_cases, golden_cases
from tests.parity.compare import Comparison, comparing
from tests.parity.layer_case import dialect, prototxt
from tests.parity.nets import Array
from tests.parity.records import Record
from tests.tolerances import LAYERS

WITHOUT_FORM = (
    # losses and measures, which a conversion drops or replaces
    "Accuracy",
    "BoxAnnotatorOHEM",
    "CTCLoss",
    "CenterLoss",
    "ContrastiveLoss",
    "CtcLoss",
    "DetectionEvaluate",
    "EuclideanLoss",
    "HDF5Output",
    "HingeLoss",
    "InfogainLoss",
    "MultinomialLogisticLoss",
    "RegionLoss",
    "SigmoidCrossEntropyLoss",
    "SmoothL1Loss",
    "SoftmaxWithLoss",
    "TripletLoss",
    # data, in whose place a conversion puts inputs
    "AnnotatedData",
    "HDF5Data",
    "MemoryData",
    # programs, and state between two passes
    "LSTM carries its state",
    "Python",
    "RNN carries its state",
    # no operator of ONNX computes these exactly
    "Correlation",
    "DetectionOutput with eta",
    "FlowWarp",
    "PSROIPooling",
    "ROIAlign",
    "Upsample with a mask needs operator set 18",
    "Yolo",
    # nets that compute nothing
    "the net has no outputs",
)
"""How refusals begin: layers that are known to have no form. Every other net must be written."""


def cases(folders: Folders) -> list[Case]:
    return golden_cases(folders, "layers") + fork_cases(folders)


def test_layers_onnx(case: Case, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    records = [record for path in case.files(".npz") if (record := Record(path)).phase == "TEST"]
    with comparing() as compare:
        compare.check(True, "nets recorded in the TRAIN phase alone have nothing to export")
        for record in records:
            try:
                exported = export(case, record, tmp_path / "net.onnx")
            except VggcError as error:
                record_property("note", f"{case}: refused: {check_refusal(error, compare)}")
                continue
            for blob, got in run(exported, record).items():
                want = record.arrays.get(f"out/{blob}", record.arrays.get(f"blob/{blob}"))
                if want is not None:
                    compare.array(blob, got, want, LAYERS)


def export(case: Case, record: Record, target: Path) -> Path:
    """The net with the recorded parameters and input sizes, all its blobs as outputs."""
    options = record.meta.get("opts", {})
    shapes = {blob: array.shape for blob, array in record.group("in").items()}
    net = prototxt(case)
    state = State(
        stages=options.get("stages", ()),
        level=options.get("level", 0),
        dialect=dialect(case),
        input_shapes=shapes or None,
        python_layers=str(net.parent),
    )
    graph = open_net(net, state=state).graph
    weights = recorded(record)
    model = Model(graph, bind(graph, weights).arrays, weights)
    with Payloads() as payloads, Target(target) as file:
        write(model, file, payloads, Options())
        file.finish()
        file.rename()
    return target


def recorded(record: Record) -> Weights:
    layers: dict[str, dict[int, Array]] = {}
    for (layer, index), values in record.params("param").items():
        layers.setdefault(layer, {})[index] = values
    blobs = {name: [Blob(v.shape, v.ravel()) for _, v in sorted(own.items())] for name, own in layers.items()}
    return Weights(tuple(LayerBlobs(name, tuple(own)) for name, own in blobs.items()))


def run(path: Path, record: Record) -> dict[str, np.ndarray]:
    """Every final blob of the net, computed from the recorded inputs."""
    model = onnx.load(path)
    outputs = {value.name for value in model.graph.output}
    made = {name for node in model.graph.node for name in node.output if "@" not in name}
    wanted = {key.split("/", 1)[1] for key in record.arrays if key.startswith(("out/", "blob/"))}
    inner = [onnx.helper.make_empty_tensor_value_info(blob) for blob in sorted(made & wanted - outputs)]
    model.graph.output.extend(inner)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    arrays = record.group("in")
    feed = {value.name: np.asarray(arrays[value.name], np.float32) for value in session.get_inputs()}
    return dict(zip(names, session.run(names, feed), strict=True))


def check_refusal(error: VggcError, compare: Comparison) -> str:
    """A refusal names each layer that has no form, and nothing else."""
    errors = error.errors if isinstance(error, Problems) else (error,)
    for each in errors:
        known = isinstance(each, ConversionError) and each.what.startswith(WITHOUT_FORM)
        compare.check(known and bool(each.remedy), f"{type(each).__name__}: {each}")
    return "; ".join(each.what for each in errors)
