"""One read, any number of targets: `convert`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from caffe_compat.errors import ConversionError, UpgradeError, VggcError, WeightsError, raise_all
from caffe_compat.loading import State, open_net
from caffe_compat.mapped import kind_of, map_file
from caffe_compat.preprocessing import carried, color_channels, preprocessing
from caffe_compat.weight_files import read_weights
from caffe_compat.weights import Weights
from caffe_compat.wire import read_caffemodel
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
    """One file written. Weights that lie beside an ONNX model have the format "onnx data"."""

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
        format: "caffemodel", "hdf5", "safetensors" or "pt".
        generation: "V0", "V1" or "V2" of the net; "" when only weights were read.
        layers: in the net that was converted, Input layers not counted; None when the net was not built.
        parameters: values in all parameter blobs, shared ones once.
        notes: sentences: upgraded, replaced, dropped, cast, ignored.
        results: in the order of the targets.
        seconds: in all.
    """

    source: str
    source_bytes: int
    source_sha256: str
    format: str
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


def _python(model: Model, target: Target, payloads: Payloads, _options: Options) -> None:
    from converters.python_source import write

    write(model, target, payloads)


FORMATS: Mapping[str, Write] = {"safetensors": _safetensors, "pt": _pt, "onnx": _onnx, "h5": _hdf5, "py": _python}
"""Format (and suffix) -> writer."""

SUFFIXES = {
    ".safetensors": "safetensors",
    ".pt": "pt",
    ".pth": "pt",
    ".onnx": "onnx",
    ".h5": "h5",
    ".hdf5": "h5",
    ".py": "py",
}


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
        source: a .caffemodel of any generation or a .safetensors that carries its net; with `options.net` or
            `options.weights_only` also other weights: .h5, .pt.
        targets: their suffixes say the formats; a .py has its weights in a .safetensors beside it.
        options: see Options.
        progress: gives for each target a function that is called with bytes written.

    Raises:
        VggcError: no target was changed, unless renaming one of several finished files failed.
    """
    began = time.perf_counter()
    options = options or Options()
    targets = _with_weights(source, targets)
    kinds = _check(source, targets, options)
    with Payloads() as payloads, ExitStack() as stack:
        original = payloads.source(os.fspath(source))
        original.hash()
        prepared = prepare(source, options)
        made: list[Target] = []
        results: list[Result] = []
        for path, kind in zip(targets, kinds, strict=True):
            made.append(stack.enter_context(Target(path, progress(path) if progress else None)))
            results += _write(prepared.model, made[-1], kind, options, payloads)
        payloads.check()
        for target in made:
            target.rename()
        sha256 = original.sha256()
    return _report(source, sha256, prepared, results, time.perf_counter() - began)


# -- what is there -----------------------------------------------------------------------------------------


def _with_weights(source: Path, targets: Sequence[Path]) -> list[Path]:
    """The targets, and the weights beside each .py, unless they are another target or the source itself."""
    found = list(targets)
    for path in targets:
        weights = path.with_suffix(".safetensors")
        if path.suffix.lower() == ".py" and weights not in found and not (weights.exists() and weights.samefile(source)):
            found.append(weights)
    return found


def _check(source: Path, targets: Sequence[Path], options: Options) -> list[str]:
    """The formats of the targets; refuses names that cannot be read or written."""
    if kind_of(map_file(source)).name == "text":
        remedy = "give the weights (.caffemodel) as SRC, and this file with --net if it is their net"
        raise WeightsError("this is text, without weights", where=str(source), remedy=remedy)
    if options.net and options.weights_only:
        raise ConversionError("--net is of no use with --weights-only", remedy="leave one out")
    read = [path for path in (source, options.net) if path and path.exists()]
    kinds: list[str] = []
    problems: list[VggcError] = []
    for target in targets:
        try:
            kinds.append(format_of(target))
            _check_target(target, read, options)
        except VggcError as error:
            problems.append(error)
    problems += _twice(targets)
    raise_all(problems)
    return kinds


def _check_target(target: Path, read: Sequence[Path], options: Options) -> None:
    where = str(target)
    if target.is_dir():
        raise ConversionError("the target is a folder", where=where, remedy="name a file in it")
    if target.exists() and any(target.samefile(path) for path in read):
        raise ConversionError("the target is also read from", where=where, remedy="name another target")
    if os.path.lexists(target) and not options.force:
        raise ConversionError("the target exists", where=where, remedy="use --force to replace it")
    if not target.parent.is_dir():
        raise ConversionError("there is no such folder", where=str(target.parent), remedy="create it first")


def _twice(targets: Sequence[Path]) -> Iterator[ConversionError]:
    """An error for each file that comes a second time, however its folder is spelt."""
    seen: set[str] = set()
    for target in targets:
        place = os.path.join(os.path.realpath(target.parent), target.name)
        if place in seen:
            yield ConversionError("two targets are the same file", where=str(target), remedy="name each target once")
        seen.add(place)


# -- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A model ready to be written, and where it comes from."""

    model: Model
    generation: str


def prepare(source: Path, options: Options) -> Prepared:
    """Read a model and give its weights the names asked for.

    Raises:
        VggcError: the files cannot be read, the net cannot be built, the weights do not fit it; or, when
            `options.strict`, something would be dropped, replaced or cast. `Problems` when there are several.
    """
    if options.weights_only:
        weights = read_weights(source)
        ready = carried(weights.metadata) or _of_caffemodel(source, weights)
        prepared, losses = Prepared(Model(None, {}, weights, weights.notes, ready), ""), weights.notes
    else:
        prepared, losses = _with_net(source, options)
    if options.strict:
        remedy = "leave out --strict to accept it"
        raise_all(ConversionError(loss, where=str(source), remedy=remedy) for loss in losses)
    return replace(prepared, model=naming.rename(prepared.model, options.names))


def _with_net(source: Path, options: Options) -> tuple[Prepared, tuple[str, ...]]:
    """The model with the net from --net or from the source itself, and what is lost.

    Data and loss layers are always replaced.
    """
    net, weights = (options.net, source) if options.net else (source, None)
    opened = open_net(net, weights, options.state, deploy=True, collect=True)
    raise_all(opened.graph.problems)
    if opened.weights is None or opened.bound is None:
        raise WeightsError("there are no weights", where=str(source), remedy="give a .caffemodel")
    read = (*opened.graph.source.warnings, *opened.weights.notes)
    losses = tuple(dict.fromkeys((*opened.losses, *opened.bound.notes, *read)))
    notes = tuple(dict.fromkeys((*opened.notes, *losses)))
    channels = color_channels(opened.graph.shapes)
    ready: Mapping[str, Any] = preprocessing(opened.original, channels) or carried(opened.weights.metadata)
    if options.net and not ready:
        ready = _of_caffemodel(source, opened.weights, channels)
    return Prepared(Model(opened.graph, opened.bound.arrays, opened.weights, notes, ready), opened.generation), losses


def _of_caffemodel(source: Path, weights: Weights, channels: int = 3) -> Mapping[str, Any]:
    """What the net inside a caffemodel says of its images, when another net is used in its place."""
    if weights.format != "caffemodel":
        return {}
    try:
        return preprocessing(read_caffemodel(source).net, channels)
    except UpgradeError:
        return {}


# -- writing -----------------------------------------------------------------------------------------------


def _write(model: Model, target: Target, kind: str, options: Options, payloads: Payloads) -> list[Result]:
    """Write one target, still under its temporary name; what it consists of, the file itself first."""
    began = time.perf_counter()
    FORMATS[kind](model, target, payloads, options)
    target.finish()
    seconds = time.perf_counter() - began
    parts = [(target, kind), *((data, f"{kind} data") for data in target.companions)]
    return [Result(str(part.path), name, part.size, part.sha256, seconds) for part, name in parts]


def _report(source: Path, sha256: str, prepared: Prepared, results: Sequence[Result], seconds: float) -> Report:
    model, graph = prepared.model, prepared.model.graph
    return Report(
        source=str(source),
        source_bytes=source.stat().st_size,
        source_sha256=sha256,
        format=model.weights.format,
        generation=prepared.generation,
        layers=None if graph is None else sum(node.layer.TYPE != "Input" for node in graph.nodes),
        parameters=sum(item.blob.values.size for item in model.blobs()),
        notes=model.notes,
        results=tuple(results),
        seconds=seconds,
    )
