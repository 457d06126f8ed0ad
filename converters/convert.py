"""One read, any number of targets: `convert`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from caffe_compat.errors import ConversionError, WeightsError, raise_all
from caffe_compat.loading import Opened, State, open_net
from caffe_compat.preprocessing import preprocessing
from converters import names as naming
from converters.model import Model
from converters.streaming import Payloads, Progress, Target

Write = Callable[[Model, Target, Payloads, "Options"], None]


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        net: prototxt that describes the net, when the source does not carry it or carries another.
        names: "caffe" (`conv1_1.weight`) or "torchvision" (`features.0.weight`, VGG only).
        opset: of ONNX results.
        dynamic_batch: leave the batch size of ONNX results open.
        strict: refuse whatever would otherwise be dropped, replaced or cast with a note.
        force: replace targets that exist.
        weights_only: convert the weights of a net that cannot be built (unknown layers).
        state: phase, profile, dialect, input shapes.
    """

    net: Path | None = None
    names: str = "caffe"
    opset: int = 17
    dynamic_batch: bool = True
    strict: bool = False
    force: bool = False
    weights_only: bool = False
    state: State = field(default_factory=State)


@dataclass(frozen=True)
class Result:
    """One file written."""

    path: str
    format: str
    bytes: int
    sha256: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        source, source_bytes, source_sha256: the file read.
        generation: "V0", "V1" or "V2".
        layers: in the net that was converted, Input layers not counted; None when the net cannot be built.
        parameters: values in all parameter blobs, shared ones once.
        notes: sentences: replaced, dropped, cast, ignored.
        results: in the order of the targets.
        seconds: in all.
    """

    source: str
    source_bytes: int
    source_sha256: str
    generation: str
    layers: int | None
    parameters: int
    notes: tuple[str, ...]
    results: tuple[Result, ...]
    seconds: float


def _safetensors(model: Model, target: Target, payloads: Payloads, _options: Options) -> None:
    from converters.safetensors import write

    write(model, target, payloads)


def _pt(model: Model, target: Target, payloads: Payloads, _options: Options) -> None:
    from converters.pt import write

    write(model, target, payloads)


def _hdf5(model: Model, target: Target, payloads: Payloads, _options: Options) -> None:
    from converters.hdf5 import write

    write(model, target, payloads)


def _onnx(model: Model, target: Target, payloads: Payloads, options: Options) -> None:
    from converters.onnx import Options as OnnxOptions
    from converters.onnx import write

    write(model, target, payloads, OnnxOptions(options.opset, options.dynamic_batch))


FORMATS: Mapping[str, Write] = {"safetensors": _safetensors, "pt": _pt, "onnx": _onnx, "h5": _hdf5}
"""Format (and suffix) -> writer."""

SUFFIXES = {".safetensors": "safetensors", ".pt": "pt", ".pth": "pt", ".onnx": "onnx", ".h5": "h5", ".hdf5": "h5"}


def format_of(path: Path) -> str:
    """The format that a target's suffix asks for.

    Raises:
        ConversionError: the suffix is not known.
    """
    if path.suffix.lower() not in SUFFIXES:
        what = f'no format goes with the suffix "{path.suffix}"'
        raise ConversionError(what, where=str(path), remedy=f"use one of {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix.lower()]


def convert(
    source: Path,
    targets: Sequence[Path],
    options: Options | None = None,
    progress: Callable[[Path], Progress] | None = None,
) -> Report:
    """Convert a model to every target.

    Args:
        source: a .caffemodel of any generation, or any weight file together with `options.net`.
        targets: their suffixes say the formats.
        options: see Options.
        progress: gives for each target a function that is called with bytes written.

    Raises:
        VggcError: nothing is left behind but targets that were already complete.
    """
    began = time.perf_counter()
    options = options or Options()
    kinds = [format_of(target) for target in targets]
    _check_targets(source, targets, options)
    payloads = Payloads()
    pending = payloads.source(str(source)).sha256() if source.is_file() else None
    opened = _open(source, options)
    model = _model(opened, options)
    if options.strict and model.notes:
        raise_all(
            [ConversionError(note, where=str(source), remedy="leave out --strict to accept it") for note in model.notes]
        )
    results = []
    for target, kind in zip(targets, kinds, strict=True):
        results.append(_write(model, target, kind, options, payloads, progress))
    return Report(
        source=str(source),
        source_bytes=source.stat().st_size,
        source_sha256=pending.result() if pending else "",
        generation=opened.generation,
        layers=_layer_count(model),
        parameters=sum(item.blob.values.size for item in model.blobs()),
        notes=model.notes,
        results=tuple(results),
        seconds=time.perf_counter() - began,
    )


def _layer_count(model: Model) -> int | None:
    return sum(node.layer.TYPE != "Input" for node in model.graph.nodes) if model.graph else None


def _check_targets(source: Path, targets: Sequence[Path], options: Options) -> None:
    for target in targets:
        if target.exists() and source.exists() and target.samefile(source):
            raise ConversionError(
                "source and target are the same file", where=str(target), remedy="name another target"
            )
        if target.is_dir():
            raise ConversionError("the target is a folder", where=str(target), remedy="name a file in it")
        if target.exists() and not options.force:
            raise ConversionError("the target exists", where=str(target), remedy="use --force to replace it")


def _open(source: Path, options: Options) -> Opened:
    """The net from --net or from the source itself; data and loss layers are always replaced."""
    net, weights = (options.net, source) if options.net else (source, None)
    return open_net(net, weights, options.state, deploy=True, collect=True)


def _model(opened: Opened, options: Options) -> Model:
    if opened.weights is None:
        raise WeightsError("the file carries no weights", where=opened.graph.source.source, remedy="give a .caffemodel")
    ready = preprocessing(opened.original)
    if options.weights_only:
        return Model(None, {}, opened.weights, opened.notes, ready)
    raise_all(opened.graph.problems)
    if opened.bound is None:
        raise WeightsError("the weights were not bound", where=opened.graph.source.source)
    notes = (*opened.notes, *opened.bound.notes)
    return naming.rename(Model(opened.graph, opened.bound.arrays, opened.weights, notes, ready), options.names)


def _write(
    model: Model,
    path: Path,
    kind: str,
    options: Options,
    payloads: Payloads,
    progress: Callable[[Path], Progress] | None,
) -> Result:
    began = time.perf_counter()
    with Target(path, progress(path) if progress else None) as target:
        FORMATS[kind](model, target, payloads, options)
    return Result(str(path), kind, target.size, target.sha256, time.perf_counter() - began)
