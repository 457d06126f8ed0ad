"""`vggc convert`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from caffe_compat.commands import dialect_option, python_layers_option
from caffe_compat.errors import one_line
from caffe_compat.loading import State
from converters.convert import FORMATS, Options, Report, Result
from converters.convert import convert as run_convert
from converters.downgrade import GENERATIONS
from converters.extra_options import extra_options
from converters.extras import Extras, apart
from converters.importing.options import REWRITES
from converters.mean import convert as convert_mean
from converters.mean import is_mean
from converters.names import SCHEMES
from converters.solver_state import convert as convert_state
from converters.solver_state import is_state
from converters.streaming import Progress
from converters.verify_report import plain

DIFFERS = 3
"""Exit code when a result is not the same model as its source."""
LARGE = 64 << 20
"""Bytes from which a progress bar is worth it."""


def _shape(_context: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """`data=1,3,224,224` as a dict entry."""
    shapes = {}
    for value in values:
        blob, _, sizes = value.rpartition("=")
        try:
            shapes[blob or "data"] = tuple(int(size) for size in sizes.split(","))
        except ValueError as error:
            raise click.BadParameter(f"{value!r}: write BLOB=N,C,H,W") from error
    return shapes


shapes_option = click.option(
    "--input-shape", "shapes", multiple=True, callback=_shape, metavar="BLOB=N,C,H,W", help="Shape of an input."
)


@click.command(short_help="Convert a Caffe model to PyTorch, ONNX, HDF5 or safetensors, or ONNX to Caffe.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("targets", metavar="[DST...]", nargs=-1, type=click.Path(path_type=Path))
@click.option("--to", "formats", multiple=True, type=click.Choice(list(FORMATS)), help="Write <stem>.<FMT> beside SRC.")
@click.option(
    "--net", type=click.Path(path_type=Path), help="Prototxt of the net, when SRC does not carry the right one."
)
@click.option(
    "--names",
    type=click.Choice(SCHEMES),
    default="caffe",
    show_default=True,
    help="Names of the weights in results; or in SRC, where they are called so.",
)
@click.option("--opset", type=int, default=17, show_default=True, help="Operator set of ONNX results.")
@click.option("--static-batch", is_flag=True, help="Keep the declared batch size in ONNX results.")
@shapes_option
@click.option("--profile", type=click.Choice(["bvlc", "dec2013"]), default="bvlc", show_default=True, help="Semantics.")
@dialect_option
@python_layers_option
@click.option("--weights-only", is_flag=True, help="Convert the weights of a net that cannot be built.")
@click.option(
    "--generation",
    type=click.Choice(GENERATIONS),
    default="V2",
    show_default=True,
    help="Of .caffemodel and .prototxt results.",
)
@click.option(
    "--pool-rewrite",
    type=click.Choice(REWRITES),
    default="refuse",
    show_default=True,
    help="Where pooling of an ONNX model rounds down.",
)
@extra_options
@click.option("--strict", is_flag=True, help="Refuse what would be dropped, replaced or cast.")
@click.option("--force", is_flag=True, help="Replace targets that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def convert(
    source: Path,
    targets: tuple[Path, ...],
    formats: tuple[str, ...],
    net: Path | None,
    names: str,
    opset: int,
    static_batch: bool,
    shapes: dict[str, tuple[int, ...]],
    profile: str,
    dialect: str,
    python_layers: str | None,
    weights_only: bool,
    generation: str,
    pool_rewrite: str,
    strict: bool,
    force: bool,
    as_json: bool,
    **extras: Any,
) -> int:
    """Convert SRC to every DST (.safetensors, .pt, .onnx, .h5, .py, .caffemodel, .prototxt).

    SRC is a .caffemodel of any generation, a .safetensors that carries its net, or an .onnx, which becomes a net that
    computes the same or is refused; with --net or --weights-only also an .h5 or .pt; or a .prototxt, for results
    without weights. With SRC alone, <stem>.safetensors is written beside it. Data and loss layers are replaced by
    inputs and a Softmax, and the summary says so. Either all targets are written or none.

    Means go from .binaryproto to .npy and back, a .solverstate to .safetensors, .h5 or .npz.
    """
    state = State(profile=profile, dialect=dialect, input_shapes=shapes or None, python_layers=python_layers)
    how = Options(net, names, opset, not static_batch, strict, force, weights_only, generation, state=state)
    asked = Extras(**{name: value for name, value in extras.items() if value is not None})
    options = replace(how, pool_rewrite=pool_rewrite, fold_batch_norm=asked.fold_bn, extras=asked)
    if is_mean(source) or is_state(source):
        report = (convert_mean if is_mean(source) else convert_state)(source, targets, options)
    else:
        with _bars(source, quiet=as_json) as bars:
            report = run_convert(source, _targets(source, targets, formats), options, bars)
    click.echo(json.dumps(plain(asdict(report)), indent=2) if as_json else _summary(report))
    return 0 if all(result.verified is None or result.verified.agrees for result in report.results) else DIFFERS


def _targets(source: Path, targets: tuple[Path, ...], formats: tuple[str, ...]) -> list[Path]:
    stem = source.name.removesuffix(".h5").removesuffix(".caffemodel") if ".caffemodel" in source.name else source.stem
    beside = [source.with_name(f"{stem}.{name}") for name in formats]
    return [*targets, *beside] or [source.with_name(f"{stem}.safetensors")]


@contextmanager
def _bars(source: Path, quiet: bool) -> Iterator[Callable[[Path], Progress] | None]:
    """A progress bar a target, on a terminal and for large files only."""
    size = source.stat().st_size if source.is_file() else 0
    if quiet or size < LARGE or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    name = TextColumn("{task.description}", markup=False)
    columns = name, BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def start(path: Path) -> Callable[[int], None]:
            task = bar.add_task(one_line(path.name), total=size)
            return lambda n: bar.update(task, advance=n)

        yield start


def _summary(report: Report) -> str:
    kind = f"{report.format} {report.generation}".rstrip()
    layers = "net not built" if report.layers is None else f"{report.layers} layers"
    lines = [
        f"{report.source}: {kind}, {layers}, {report.parameters:,} parameters",
        f"  {report.source_bytes:,} bytes, sha256 {report.source_sha256}",
        *(f"  note: {note}" for note in report.notes),
    ]
    for result in report.results:
        lines.append(f"wrote {result.path} ({result.format}) in {result.seconds:.2f} s")
        lines.append(f"  {result.bytes:,} bytes, sha256 {result.sha256}")
        lines += _checks(result)
    lines += [f"wrote {card}" for card in report.cards]
    lines.append(f"done in {report.seconds:.2f} s")
    return "\n".join(map(one_line, lines))


def _checks(result: Result) -> list[str]:
    """What was found when the result was read back, and when it was run."""
    found = result.verified
    lines = [f"  weights: {result.equal_blobs} parameter blobs are bit-equal"] if result.equal_blobs else []
    if found:
        verdict = "agrees" if found.agrees else f"DIFFERS, first in blob {found.first}"
        lines.append(f"  {verdict}: {apart(found)}; allowed: {found.tolerance:g}")
    return lines
