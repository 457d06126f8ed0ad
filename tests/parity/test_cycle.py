"""Every reader and writer, on every recorded layer and published model: values stay, nets compute the same.

Weights go through each format and from there into each other: the bytes must be those that the model itself gives. Nets
in each generation, in ONNX and as source must compute what they did, and ONNX -> Caffe -> ONNX must come to rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from caffe_compat.binding import bind
from caffe_compat.errors import ConversionError, VggcError
from caffe_compat.loading import State, open_net
from caffe_compat.module import Net
from caffe_compat.weight_files import read_weights
from converters.convert import FORMATS, Options
from converters.from_onnx import from_onnx
from converters.importing.options import ImportOptions
from converters.importing.outputs import VERSION
from converters.model import Model
from converters.sides import open_side
from converters.streaming import Payloads, Target
from converters.to_caffe import model_of
from tests.parity.cases import Case, Folders, fork_cases, golden_cases
from tests.parity.compare import Comparison, comparing
from tests.parity.layer_case import WRITING, dialect, prototxt
from tests.parity.model_files import ModelRecord, model_cases, model_path, prototxt_path
from tests.parity.nets import Array, errors_in
from tests.parity.records import Record
from tests.parity.test_layers_onnx import WITHOUT_FORM, recorded
from tests.parity.test_models_onnx import layers_without_weights
from tests.tolerances import LAYERS, ONNX, Tolerance

WEIGHTS = ("safetensors", "pt", "h5", "caffemodel")
GENERATIONS = ("V2", "V1", "V0")
ALONE = WRITING | {"MemoryData"}
"""Layers that write files, or take their data from the program: such nets are converted, but not run."""
MOST_ROUNDS = 4
"""ONNX -> Caffe -> ONNX, until nothing changes."""
NOT_BACK = (
    "ArgMax: of equal values",
    "Cast: to type 9",
    "Compress: no layer",
    "CumSum: no layer",
    "Equal: no layer",
    "Expand: ",
    "GatherND: no layer",
    "Less: no layer",
    "MatMul: both factors are computed",
    "MaxPool: its indices are used",
    "MaxRoiPool: no layer",
    "Mod: no layer",
    "Mul: it works on whole numbers",
    "NonMaxSuppression: no layer",
    "Pad: padding with",
    "ReduceMax: the maximum over axes [1]",
    "ReduceMean: axes [0, 2, 3]",
    "ReduceSumSquare: axes [1]",
    "ScatterElements: no layer",
    "Slice: its range is computed",
    "TopK: no layer",
)
"""How refusals begin: operators of our own exports that no layer of BVLC Caffe computes."""


def cases(folders: Folders) -> list[Case]:
    layers = golden_cases(folders, "layers") + fork_cases(folders)
    return [replace(case, section="cycle") for case in layers] + model_cases(folders, "cycle")


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read back at once: waiting for the disk would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@dataclass(frozen=True)
class Subject:
    """A model to convert.

    Attributes:
        inputs: what it is run with.
        tolerance: of the net that its ONNX file becomes.
        runs: it may be run alone.
        settles: windows of pooling lie inside; the form of those outside is rewritten in each round.
    """

    model: Model
    state: State
    inputs: Mapping[str, Array]
    tolerance: Tolerance
    runs: bool = True
    settles: bool = True

    def has_layers(self) -> bool:
        """Whether there is a layer in which a binary net of an older generation shows."""
        assert self.model.graph is not None
        return any(node.layer.TYPE != "Input" for node in self.model.graph.nodes)


def test_cycle(case: Case, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    with comparing() as compare:
        compare.check(True, "nets recorded in the TRAIN phase alone, and models without all weights, are not converted")
        for subject in subjects(case):
            check_weights(subject.model, tmp_path, compare)
            if subject.runs:
                want = run(subject.model, subject.inputs)
                check_generations(subject, want, tmp_path, compare)
                check_source(subject, want, tmp_path, compare)
                if refusal := check_onnx(subject, want, tmp_path, compare):
                    record_property("note", f"{case}: {refusal}")


def subjects(case: Case) -> Iterator[Subject]:
    """What a case has to convert."""
    if "model" in case.entry:
        if not layers_without_weights(case):
            opened = open_net(prototxt_path(case), model_path(case), deploy=True)
            assert opened.bound is not None
            assert opened.weights is not None
            model = Model(opened.graph, opened.bound.arrays, opened.weights)
            given = ModelRecord(case).inputs()
            inputs = {blob: array for blob, array in given.items() if blob in opened.graph.inputs}
            yield Subject(model, State(dialect=opened.guess.dialect), inputs, ONNX)
        return
    for path in case.files(".npz"):
        record = Record(path)
        if record.phase == "TEST":
            yield recorded_subject(case, record)


def recorded_subject(case: Case, record: Record) -> Subject:
    """A net with the recorded parameters and inputs."""
    options = record.meta.get("opts", {})
    inputs = {blob: np.asarray(array, np.float32) for blob, array in record.group("in").items()}
    net = prototxt(case)
    state = State(
        stages=options.get("stages", ()),
        level=options.get("level", 0),
        dialect=dialect(case),
        input_shapes={blob: array.shape for blob, array in inputs.items()} or None,
        python_layers=str(net.parent),
        data_folders=(str(net.parent),),
    )
    graph = open_net(net, state=state).graph
    weights = recorded(record)
    model = Model(graph, bind(graph, weights).arrays, weights)
    return Subject(model, state, inputs, LAYERS, not ALONE & set(case.types), "empty_window" not in case.tags)


def written(model: Model, path: Path, kind: str, options: Options | None = None) -> Path:
    """A model in one of the formats."""
    with Payloads() as payloads, Target(path) as target:
        FORMATS[kind](model, target, payloads, options or Options())
        target.finish()
        target.rename()
    return path


def run(model: Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """All blobs of a net."""
    assert model.graph is not None
    net = Net(model.graph, {key: blob.values for key, blob in model.arrays.items()})
    with torch.no_grad():
        found = net({blob: torch.from_numpy(np.array(array)) for blob, array in inputs.items()}, blobs="all")
    return {blob: value.detach().numpy() for blob, value in found.items()}


# -- weights ---------------------------------------------------------------------------------------------------


def check_weights(model: Model, folder: Path, compare: Comparison) -> None:
    """From each format into each: the bytes that the model itself gives."""
    own = {kind: written(model, folder / f"own.{kind}", kind) for kind in WEIGHTS}
    want = {kind: path.read_bytes() for kind, path in own.items()}
    assert model.graph is not None
    for kind, path in own.items():
        weights = read_weights(path)
        again = replace(model, arrays=bind(model.graph, weights).arrays, weights=weights)
        compare.equal(f"parameter blobs from {kind}", again.arrays.keys(), model.arrays.keys())
        for key, blob in model.arrays.items():
            same = again.arrays[key].values.tobytes() == blob.values.tobytes()
            compare.check(same, f"{model.name(key)} from {kind} has other bits")
        for other in WEIGHTS:
            got = written(again, folder / f"again.{other}", other).read_bytes()
            compare.check(got == want[other], f"{kind} -> {other} gives other bytes")


# -- nets ------------------------------------------------------------------------------------------------------


def check_generations(subject: Subject, want: Mapping[str, Array], folder: Path, compare: Comparison) -> None:
    """A binary net of each generation that has a form for all of it computes the same bits."""
    for generation in GENERATIONS:
        try:
            path = written(subject.model, folder / "old.caffemodel", "caffemodel", Options(generation=generation))
        except VggcError as error:
            compare.check(generation != "V2", f"V2 is refused: {error}")
            refused(error, compare)
            continue
        opened = open_net(path, state=subject.state, deploy=False)
        assert opened.bound is not None
        if generation != "V2" and subject.has_layers():
            compare.equal("generation", opened.generation, generation)
        again = replace(subject.model, graph=opened.graph, arrays=opened.bound.arrays)
        if same(again, subject.model):
            continue
        got = run(again, subject.inputs)
        for blob, values in want.items():
            compare.array(f"{blob} of {generation}", got.get(blob), values)


def same(one: Model, other: Model) -> bool:
    """Whether both are the same net with the same bits, which then need not be run again."""
    assert one.graph is not None
    assert other.graph is not None
    arrays = one.arrays.keys() == other.arrays.keys()
    return (
        arrays
        and one.graph.net == other.graph.net
        and one.graph.context.dialect == other.graph.context.dialect
        and all(one.arrays[key].values.tobytes() == other.arrays[key].values.tobytes() for key in one.arrays)
    )


def check_source(subject: Subject, want: Mapping[str, Array], folder: Path, compare: Comparison) -> None:
    """Source, where all layers are written as such, computes the same bits."""
    try:
        path = written(subject.model, folder / "net.py", "py")
    except VggcError as error:
        refused(error, compare)
        return
    written(subject.model, folder / "net.safetensors", "safetensors")
    got = open_side(path).run(subject.inputs)
    assert subject.model.graph is not None
    for blob in subject.model.graph.outputs:
        compare.array(f"{blob} of the source", got.get(blob), want[blob])


def refused(error: VggcError, compare: Comparison) -> None:
    """A refusal says what has no form, and what to do."""
    for each in errors_in(error):
        compare.check(isinstance(each, ConversionError) and bool(each.remedy), f"{type(each).__name__}: {each}")


# -- ONNX ------------------------------------------------------------------------------------------------------


def check_onnx(subject: Subject, want: Mapping[str, Array], folder: Path, compare: Comparison) -> str:
    """ONNX -> Caffe computes the same, and in turn gives ONNX files that no longer change; or why there are none."""
    try:
        path = written(subject.model, folder / "0.onnx", "onnx")
    except VggcError as error:
        for each in errors_in(error):
            compare.check(isinstance(each, ConversionError) and each.what.startswith(WITHOUT_FORM), str(each))
        return ""
    before = path.read_bytes()
    for count in range(1, MOST_ROUNDS + 1):
        try:
            model = imported(path, subject.inputs)
        except VggcError as error:
            compare.check(count == 1, f"what was made in round {count - 1} is refused")
            for each in errors_in(error):
                compare.check(isinstance(each, ConversionError) and each.what.startswith(NOT_BACK), str(each))
            return "; ".join(each.what for each in errors_in(error))
        if count == 1:
            check_outputs(model, subject, want, compare)
        path = written(model, folder / f"{count}.onnx", "onnx")
        if path.read_bytes() == before:
            return ""
        before = path.read_bytes()
    compare.check(not subject.settles, f"ONNX -> Caffe -> ONNX still changes after {MOST_ROUNDS} rounds")
    return ""


def imported(path: Path, inputs: Mapping[str, Array]) -> Model:
    """The Caffe net of an ONNX file, at the sizes of these inputs."""
    taken = {info.name for info in onnx.load(path).graph.input}
    shapes = {blob: array.shape for blob, array in inputs.items() if blob in taken}
    return model_of(from_onnx(path, ImportOptions("crop", input_shapes=shapes)))


def check_outputs(model: Model, subject: Subject, want: Mapping[str, Array], compare: Comparison) -> None:
    """The outputs of the net made of ONNX; a blob that is an input too has another name there."""
    assert model.graph is not None
    got = run(model, {blob: array for blob, array in subject.inputs.items() if blob in model.graph.inputs})
    for blob in model.graph.outputs:
        compare.array(f"{blob} by ONNX", got[blob], want[VERSION.sub("", blob)], subject.tolerance)
