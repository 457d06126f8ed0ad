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
from caffe_compat.loading import Opened, State, open_net
from caffe_compat.mapped import kind_of, map_file
from caffe_compat.preprocessing import carried, color_channels, preprocessing
from caffe_compat.weight_files import read_weights
from caffe_compat.weights import Weights
from caffe_compat.wire import read_caffemodel
from converters import names as naming
from converters.card import check_cards, write_cards
from converters.channels import COLORS
from converters.checks import Verified, equal_blobs, verified
from converters.extras import Extras, check_extras, license_text, pixels_for, sentence, transformed
from converters.image_options import unsaid
from converters.model import EXCHANGED, Model
from converters.renaming import in_nets_names, read_table
from converters.streaming import Payloads, Progress, Target

Write = Callable[[Model, Target, Payloads, "Options"], None]


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        net: prototxt that describes the net, when the source does not carry it or carries another.
        names: of weights, "caffe" (`conv1_1.weight`), or "torchvision" or "timm" (`features.0.weight`, VGG only); of
            the source's when it has these, or else of the results'.
        opset: of ONNX results.
        dynamic_batch: leave the batch size of ONNX results open.
        strict: refuse whatever would otherwise be dropped, replaced or cast with a note.
        force: replace targets that exist.
        weights_only: convert the weights of a net that cannot be built (unknown layers).
        generation: of .caffemodel and .prototxt results, "V2", "V1" or "V0".
        pool_rewrite, fold_batch_norm: how an ONNX model becomes a net, see importing.options.
        state: phase, profile, dialect, input shapes.
        extras: what is done besides: fold, round, verify, describe.
    """

    net: Path | None = None
    names: str = "caffe"
    opset: int = 17
    dynamic_batch: bool = True
    strict: bool = False
    force: bool = False
    weights_only: bool = False
    generation: str = "V2"
    pool_rewrite: str = "refuse"
    fold_batch_norm: bool = False
    state: State = field(default_factory=State)
    extras: Extras = field(default_factory=Extras)


@dataclass(frozen=True)
class Result:
    """One file written. Weights that lie beside an ONNX model have the format "onnx data".

    Attributes:
        equal_blobs: parameter blobs that were read back and are bit-equal to those that were to be written.
        verified: the numerical comparison with the source; None when none was made.
    """

    path: str
    format: str
    bytes: int
    sha256: str
    seconds: float
    equal_blobs: int = 0
    verified: Verified | None = None


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        source, source_bytes, source_sha256: the file read.
        format: "caffemodel", "hdf5", "safetensors", "pt", "onnx" or "prototxt".
        generation: "V0", "V1" or "V2" of the net; "" when only weights were read.
        layers: in the net that was converted, Input layers not counted; None when the net was not built.
        parameters: values in all parameter blobs, shared ones once.
        notes: sentences: upgraded, replaced, dropped, cast, ignored.
        results: in the order of the targets.
        seconds: in all.
        cards: model cards.
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
    cards: tuple[str, ...] = ()


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

    write(model, target, payloads, OnnxOptions(options.opset, options.dynamic_batch, pixels_for(model, options.extras)))


def _python(model: Model, target: Target, payloads: Payloads, _options: Options) -> None:
    from converters.python_source import write

    write(model, target, payloads)


def _caffemodel(model: Model, target: Target, payloads: Payloads, options: Options) -> None:
    from converters.to_caffe import write

    write(model, target, payloads, options.generation)


def _prototxt(model: Model, target: Target, _payloads: Payloads, options: Options) -> None:
    from converters.to_caffe import write_net

    write_net(model, target, options.generation)


FORMATS: Mapping[str, Write] = {
    "safetensors": _safetensors,
    "pt": _pt,
    "onnx": _onnx,
    "h5": _hdf5,
    "py": _python,
    "caffemodel": _caffemodel,
    "prototxt": _prototxt,
}
"""Format (and suffix) -> writer."""

SUFFIXES = {
    ".safetensors": "safetensors",
    ".pt": "pt",
    ".pth": "pt",
    ".onnx": "onnx",
    ".h5": "h5",
    ".hdf5": "h5",
    ".py": "py",
    ".caffemodel": "caffemodel",
    ".prototxt": "prototxt",
}

WEIGHTLESS = (".py", ".prototxt")
"""Suffixes of targets that hold no weights: they can be made of a prototxt alone."""
BESIDE = {".py": ".safetensors", ".caffemodel": ".prototxt"}
"""Suffix of a target -> that of a second one, without which it is of little use."""


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
        source: a .caffemodel of any generation, a .safetensors that carries its net, or an .onnx; with `options.net`
            or `options.weights_only` also other weights: .h5, .pt; or a .prototxt, for targets that hold no weights.
        targets: their suffixes say the formats; a .py has its weights in a .safetensors beside it, a .caffemodel its
            net in a .prototxt.
        options: see Options.
        progress: gives for each target a function that is called with bytes written.

    Raises:
        VggcError: no target was changed, unless renaming one of several finished files failed.
    """
    began = time.perf_counter()
    options = options or Options()
    targets = _with_others(source, targets)
    kinds = _check(source, targets, options)
    licence = license_text(options.extras)
    with Payloads() as payloads, ExitStack() as stack:
        original = payloads.source(os.fspath(source))
        original.hash()
        read = prepare(source, options)
        prepared = replace(read, model=_finished(read, kinds, options))
        made: list[Target] = []
        results: list[Result] = []
        for path, kind in zip(targets, kinds, strict=True):
            made.append(Target(path, progress(path) if progress else None))
            stack.push(made[-1])  # whenever the run is interrupted, nothing stays
            made[-1].__enter__()
            results += _write(prepared.model, made[-1], kind, options, payloads)
        payloads.check()
        for target in made:
            target.rename()
        sha256 = original.sha256()
    if options.extras.verify:
        results = [_verified(result, source, read.model, prepared.model, options) for result in results]
    report = _report(source, sha256, prepared, results, time.perf_counter() - began)
    return _with_cards(report, prepared.model, options, licence) if options.extras.card else report


# -- what is there -----------------------------------------------------------------------------------------


def is_text(source: Path) -> bool:
    """Whether the source is a net without weights."""
    return kind_of(map_file(source)).name == "text"


def _with_others(source: Path, targets: Sequence[Path]) -> list[Path]:
    """The targets, and what goes beside them, unless it is another target or the source itself."""
    found = list(targets)
    for path in targets if not is_text(source) else ():
        if path.suffix.lower() in BESIDE:
            other = path.with_suffix(BESIDE[path.suffix.lower()])
            if other not in found and not (other.exists() and other.samefile(source)):
                found.append(other)
    return found


def _check(source: Path, targets: Sequence[Path], options: Options) -> list[str]:
    """The formats of the targets; refuses names that cannot be read or written."""
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
    if is_text(source) and any(target.suffix.lower() not in WEIGHTLESS for target in targets):
        remedy = "give the weights (.caffemodel) as SRC, and this file with --net if it is their net"
        problems.insert(0, WeightsError("this is text, without weights", where=str(source), remedy=remedy))
    raise_all(problems)
    check_extras(options.extras, kinds, options.weights_only)
    if options.extras.card:
        check_cards(targets, options.force)
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
    """A model ready to be written, and where it comes from.

    Attributes:
        names_read: the source has the names that the options tell.
    """

    model: Model
    generation: str
    names_read: bool = False


def prepare(source: Path, options: Options) -> Prepared:
    """Read a model.

    Raises:
        VggcError: the files cannot be read, the net cannot be built, the weights do not fit it; or, when
            `options.strict`, something would be dropped, replaced or cast. `Problems` when there are several.
    """
    if source.suffix.lower() == ".onnx":
        prepared, losses = _imported(source, options)
    elif options.weights_only:
        weights = read_weights(source)
        ready = carried(weights.metadata) or _of_caffemodel(source, weights)
        prepared, losses = Prepared(Model(None, {}, weights, weights.notes, ready), ""), weights.notes
    else:
        prepared, losses = _with_net(source, options)
    if options.strict:
        remedy = "leave out --strict to accept it"
        raise_all(ConversionError(loss, where=str(source), remedy=remedy) for loss in losses)
    return prepared


def _finished(read: Prepared, kinds: Sequence[str], options: Options) -> Model:
    """The model as it is to be written: transformed, and under the names asked for."""
    model = transformed(read.model, options.extras)
    lost = unsaid(model.preprocessing, options.generation) if {"caffemodel", "prototxt"} & set(kinds) else ""
    model = replace(model, notes=(*model.notes, lost)) if lost else model
    if read.names_read:
        return model
    return naming.rename(model, options.names, read_table(options.extras.rename))


def _with_net(source: Path, options: Options) -> tuple[Prepared, tuple[str, ...]]:
    """The model with the net from --net or from the source itself, and what is lost.

    Data and loss layers are always replaced.
    """
    net, weights = (options.net, source) if options.net else (source, None)
    given = _in_nets_names(net, weights, options) if weights else None
    opened = open_net(net, given or weights, options.state, deploy=True, collect=True)
    raise_all(opened.graph.problems)
    if opened.weights is None or opened.bound is None:
        return _without_weights(source, opened), opened.losses
    read = (*opened.graph.source.warnings, *opened.weights.notes)
    losses = tuple(dict.fromkeys((*opened.losses, *opened.bound.notes, *read)))
    notes = tuple(dict.fromkeys((*opened.notes, *losses)))
    channels = color_channels(opened.graph.shapes)
    ready: Mapping[str, Any] = preprocessing(opened.original, channels) or carried(opened.weights.metadata)
    if options.net and not ready:
        ready = _of_caffemodel(source, opened.weights, channels)
    if given:
        ready = {"channel_order": "RGB", **ready} if channels == COLORS and options.names != "caffe" else ready
        notes = (*notes, *_read_so(options))
    exchanged = opened.weights.metadata.get(EXCHANGED, "")
    model = Model(opened.graph, opened.bound.arrays, opened.weights, notes, ready, exchanged=exchanged)
    return Prepared(model, opened.generation, given is not None), losses


def _without_weights(source: Path, opened: Opened) -> Prepared:
    """The net of a prototxt, for what is written without weights."""
    if not is_text(source):
        raise WeightsError("there are no weights", where=str(source), remedy="give a .caffemodel")
    graph = opened.graph
    ready = preprocessing(opened.original, color_channels(graph.shapes))
    weights = Weights((), str(source), "prototxt")
    return Prepared(Model(graph, {}, weights, tuple(dict.fromkeys(opened.notes)), ready), opened.generation)


def _in_nets_names(net: Path, source: Path, options: Options) -> Weights | None:
    """The weights under the net's names, when the file has those that the options tell."""
    table = read_table(options.extras.rename)
    if options.names == "caffe" and not table:
        return None
    graph = open_net(net, None, options.state, deploy=True).graph
    return in_nets_names(graph, read_weights(source), naming.names_of(graph, options.names, table))


def _read_so(options: Options) -> list[str]:
    """What a user should know of weights that were read under other names."""
    if options.names == "caffe":
        return ["the weights were found under the names of the table"]
    said = "" if options.extras.rgb else ", which the net's first convolution takes too (--rgb exchanges the channels)"
    pixels = naming.PIXELS.format(scheme=options.names)
    return [f"the weights were found under {options.names} names; {pixels}{said}"]


def _imported(source: Path, options: Options) -> tuple[Prepared, tuple[str, ...]]:
    """The model that an ONNX file becomes, and what is lost."""
    from converters.from_onnx import from_onnx
    from converters.importing.options import ImportOptions
    from converters.onnx_reading import read_model
    from converters.to_caffe import model_of

    if options.net or options.weights_only:
        what = "an ONNX model is converted as a whole"
        raise ConversionError(what, where=str(source), remedy="leave out --net and --weights-only")
    shapes = options.state.input_shapes or {}
    how = ImportOptions(options.pool_rewrite, options.fold_batch_norm, input_shapes=shapes)
    made = from_onnx(source, how)
    about = {entry.key: entry.value for entry in read_model(source).metadata_props}
    model = replace(model_of(made), preprocessing=carried(about), exchanged=about.get(EXCHANGED, ""))
    return Prepared(model, "V2"), made.losses


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
    beside = target.companions[0].part if target.companions else None
    equal = equal_blobs(model, target.part, kind, beside)  # while the hash is still being computed
    target.finish()
    seconds = time.perf_counter() - began
    made = Result(str(target.path), kind, target.size, target.sha256, seconds, equal)
    return [made, *(Result(str(x.path), f"{kind} data", x.size, x.sha256, seconds) for x in target.companions)]


def _verified(result: Result, source: Path, read: Model, written: Model, options: Options) -> Result:
    """The result with its numerical comparison."""
    tolerance = options.extras.allowed
    found = verified(source, read, written, Path(result.path), result.format, tolerance, options.state)
    return replace(result, verified=found)


def _with_cards(report: Report, model: Model, options: Options, licence: str) -> Report:
    """The report with the names of the model cards, which are written."""
    pixels = sentence(model, options.extras) if any(each.format == "onnx" for each in report.results) else ""
    changed = options.extras.fp16 or options.extras.fold_bn
    return replace(report, cards=tuple(map(str, write_cards(report, model, licence, pixels, changed))))


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
