"""Whether two models are the same: run both on one input, compare blob by blob, and compare their weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import VggcError
from caffe_compat.loading import State
from caffe_compat.mapped import kind_of, map_file
from caffe_compat.weight_files import read_weights
from converters.channels import turned
from converters.input_values import Inputs, random_inputs, read_inputs
from converters.sides import Side, open_side

Array = NDArray[Any]
Shape = tuple[int, ...]

TOLERANCE = 1e-5
"""Largest difference that is still called agreement, relative to the largest magnitude of the blob."""
HUGE = 1e37
"""At and above, a value is a sentinel (-FLT_MAX of an empty window): it must be equal and is no magnitude."""
BEST = 5
IMAGE_AXES = 4


@dataclass(frozen=True)
class Difference:
    """Two arrays of one shape.

    Attributes:
        equal: all values are the same, bit by bit but for the sign of zero.
        largest: the largest magnitude on the first side, sentinels left out.
        absolute: the largest difference; infinite when NaN or infinities stand in other places.
        relative: `absolute` over `largest`.
    """

    equal: bool
    largest: float
    absolute: float
    relative: float


@dataclass(frozen=True)
class Row:
    """A blob, or a parameter blob, of that name on both sides.

    Attributes:
        layers: the layers that write it.
        shape, other: on the first and on the second side.
        difference: None when the shapes differ.
        agrees: it is within the tolerance.
        explained: when it is over the tolerance, how much of the difference is that of the blob which Softmax, Sigmoid
            or TanH made it from; they bring values closer to each other, but give small ones where they saturate.
    """

    name: str
    layers: str
    shape: Shape
    other: Shape
    difference: Difference | None
    agrees: bool
    explained: float = 0.0

    @property
    def beyond(self) -> float:
        """The relative difference that is the layer's own; infinite when the shapes differ."""
        if self.difference is None:
            return float("inf")
        rest = max(0.0, self.difference.absolute - self.explained)
        return rest / self.difference.largest if rest and self.difference.largest else rest and float("inf")


@dataclass(frozen=True)
class Ranking:
    """The best classes of an output that is a vector for each item.

    Attributes:
        items: how many there are.
        first: for how many both sides have the same best class.
        best: for how many both have the same `count` best classes, in any order.
    """

    blob: str
    items: int
    count: int
    first: int
    best: int


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        a, b: the two files, and what ran them.
        inputs: a sentence for each input.
        blobs: blobs that both sides have, in the first side's order; inputs left out.
        only_a, only_b: blobs that the other side does not have.
        params, params_only_a, params_only_b: the same for parameter blobs.
        rankings: of the outputs that are vectors.
        notes: what was assumed.
        tolerance: relative to a blob's largest magnitude.
    """

    a: str
    b: str
    engines: tuple[str, str]
    inputs: tuple[str, ...]
    tolerance: float
    blobs: tuple[Row, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    params: tuple[Row, ...]
    params_only_a: tuple[str, ...]
    params_only_b: tuple[str, ...]
    rankings: tuple[Ranking, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Every blob is within the tolerance; when none was run, every parameter blob."""
        return all(row.agrees for row in self.blobs or self.params)

    @property
    def first(self) -> Row | None:
        """The first blob that is over the tolerance."""
        return next((row for row in self.blobs if not row.agrees), None)

    @property
    def worst(self) -> Row | None:
        """The blob with the largest relative difference of its own, of those whose shapes are the same."""
        rows = [row for row in self.blobs if row.difference]
        return max(rows, key=lambda row: row.beyond, default=None)

    @property
    def equal_params(self) -> int:
        """How many parameter blobs are bit-equal."""
        return sum(row.difference is not None and row.difference.equal for row in self.params)


@dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        net_a, net_b: prototxts of the nets, where a file does not carry the right one.
        state: profile, dialect and input shapes of Caffe's nets.
        input: .npy, .npz or image; None for random values.
        seed: of the random values.
        tolerance: relative to a blob's largest magnitude.
        run: run both sides; without, only weights are compared.
        opencv: the first side is a Caffe net that OpenCV 4 reads and runs.
    """

    net_a: Path | None = None
    net_b: Path | None = None
    state: State | None = None
    input: Path | None = None
    seed: int = 0
    tolerance: float = TOLERANCE
    run: bool = True
    opencv: bool = False


def verify(a: Path, b: Path, options: Options | None = None) -> Comparison:
    """Compare two models of any formats.

    A file that holds weights alone is read with the other side's net when none is named for it.

    Raises:
        VggcError: a side cannot be read or run, or nothing can be compared.
    """
    options = options or Options()
    first, note_a = _by_opencv(a, options) or _open(a, options.net_a, b, options.net_b, options.state)
    second, note_b = _open(b, options.net_b, a, options.net_a, options.state)
    return compare(first, second, options, (*note_a, *note_b))


def _by_opencv(path: Path, options: Options) -> tuple[Side, tuple[str, ...]] | None:
    """The first side, when OpenCV is to run it."""
    if not options.opencv:
        return None
    from converters.opencv_side import opencv_side

    return opencv_side(path, options.net_a, options.state), ()


def _open(
    path: Path, net: Path | None, other: Path, other_net: Path | None, state: State | None
) -> tuple[Side, tuple[str, ...]]:
    """A side, and what was assumed about it."""
    if net is not None or not _lacks_net(path):
        return open_side(path, net, state), ()
    lent = other_net or other
    if lent == path or lent.suffix.lower() in (".onnx", ".py") or (lent is other and _lacks_net(other)):
        raise VggcError(
            "it holds weights without a net", where=str(path), remedy="name its net with --net-a or --net-b"
        )
    return open_side(path, lent, state), (f"{path} holds weights alone: it was run with the net of {lent}",)


def _lacks_net(path: Path) -> bool:
    """Whether a file is of a kind that holds weights alone."""
    if path.suffix.lower() in (".onnx", ".py"):
        return False
    with map_file(path) as data:
        kind = kind_of(data).name
    return kind in ("HDF5", "zip") or (kind == "safetensors" and "caffe_net" not in read_weights(path).metadata)


def compare(a: Side, b: Side, options: Options, notes: Sequence[str] = ()) -> Comparison:
    """Compare two sides; see `verify`."""
    began = time.perf_counter()
    params, params_a, params_b = _rows(a.weights, b.weights, {}, options.tolerance)
    made = Comparison(
        a.path, b.path, (a.engine, b.engine), (), options.tolerance, (), (), (), params, params_a, params_b
    )
    said: list[str] = list(notes)
    if options.run:
        made = _run(made, a, b, options, said)
    if not made.blobs and not made.params:
        remedy = "check that both come from one net; blobs and weights are matched by name"
        raise VggcError(f"nothing in common with {b.path}", where=a.path, remedy=remedy)
    return replace(made, notes=tuple(said), seconds=time.perf_counter() - began)


def _run(made: Comparison, a: Side, b: Side, options: Options, said: list[str]) -> Comparison:
    """The numerical half."""
    names = _same_inputs(a, b, said)
    inputs, for_a, for_b = _inputs(a, b, names, options)
    for_b = _exchanged(a, b, names, for_b, said)
    ours, theirs = a.run(for_a), b.run(for_b)
    own = theirs.keys() - for_b.keys(), ours.keys() - for_a.keys()  # what each computes, an input of the other too
    ours = {blob: x for blob, x in ours.items() if blob not in for_a or blob in own[0]}
    theirs = {blob: x for blob, x in theirs.items() if blob not in for_b or blob in own[1]}
    theirs = _same_outputs(a, b, ours, theirs, said)
    layers = {**a.layers, **b.layers} if b.caffe else {**b.layers, **a.layers}
    rows, only_a, only_b = _rows(ours, theirs, layers, options.tolerance)
    rows = _explained(rows, {**a.contracts, **b.contracts}, options.tolerance)
    if not rows:
        said.append("no blob has the same name on both sides")
    ends = a.outputs or b.outputs
    found = (_ranking(blob, ours[blob], theirs[blob]) for blob in ends if blob in ours and blob in theirs)
    rankings = tuple(ranking for ranking in found if ranking)
    return replace(made, inputs=inputs.said, blobs=rows, only_a=only_a, only_b=only_b, rankings=rankings)


# -- matching --------------------------------------------------------------------------------------------------


def _same_inputs(a: Side, b: Side, said: list[str]) -> dict[str, str]:
    """The first side's inputs -> the second's: by name, or the only one of each."""
    ours, theirs = _wanted(a), _wanted(b)
    if set(ours) == set(theirs):
        return {name: name for name in ours}
    if len(ours) == len(theirs) == 1:
        said.append(f"the inputs {ours[0]} and {theirs[0]} were taken for the same")
        return {ours[0]: theirs[0]}
    what = f"it takes {', '.join(theirs) or 'nothing'}, {a.path} takes {', '.join(ours) or 'nothing'}"
    raise VggcError(what, where=b.path, remedy="compare models with the same inputs")


def _wanted(side: Side) -> list[str]:
    """The names of the inputs as blobs of the net: pixels stand for the blob that is made of them."""
    blobs = {side.takes.get("input"): str(side.takes.get("blob"))} if side.takes else {}
    return [blobs.get(name, name) for name in side.inputs]


def _same_outputs(
    a: Side, b: Side, ours: Mapping[str, Array], theirs: dict[str, Array], said: list[str]
) -> dict[str, Array]:
    """The second side's blobs, the only output under the first side's name when no name is the same."""
    if ours.keys() & theirs.keys() or len(a.outputs) != 1 or len(b.outputs) != 1:
        return theirs
    (mine,), (other,) = a.outputs, b.outputs
    said.append(f"the outputs {mine} and {other} were taken for the same")
    return {mine if blob == other else blob: value for blob, value in theirs.items()}


def _inputs(
    a: Side, b: Side, names: Mapping[str, str], options: Options
) -> tuple[Inputs, dict[str, Array], dict[str, Array]]:
    """Values for every input, and what each side is fed."""
    if a.takes or b.takes:
        return _pixel_inputs(a, b, names, options)
    shapes = _shapes(a, b, names, options)
    prepares = a.prepares or (b.prepares if bool(a.exchanged) == bool(b.exchanged) else turned(b.prepares))
    made = read_inputs(options.input, shapes, prepares) if options.input else random_inputs(shapes, options.seed)
    return made, dict(made.values), {names[blob]: value for blob, value in made.values.items()}


def _exchanged(
    a: Side, b: Side, names: Mapping[str, str], values: dict[str, Array], said: list[str]
) -> dict[str, Array]:
    """What the second side is fed, with blue and red exchanged when the weights of one side were."""
    blob = names.get(a.exchanged or b.exchanged, b.exchanged)
    if bool(a.exchanged) == bool(b.exchanged) or blob not in values or values[blob].ndim != IMAGE_AXES:
        return values
    said.append(f"{b.path} was given {blob} with blue and red exchanged, as the weights were")
    return {**values, blob: np.ascontiguousarray(values[blob][:, ::-1])}


def _shapes(a: Side, b: Side, names: Mapping[str, str], options: Options) -> dict[str, Shape]:
    """The shape of each input: the one stated by the user, else by a side; a batch that is left open is 1."""
    stated = dict(options.state.input_shapes or {}) if options.state else {}
    shapes = {}
    for ours, theirs in names.items():
        known = [tuple(stated.get(ours, ())), _declared(a, ours), _declared(b, theirs)]
        whole = [shape for shape in known if shape and all(shape)]
        partly = [(shape[0] or 1, *shape[1:]) for shape in known if shape and all(shape[1:])]
        if not whole + partly:
            raise VggcError(f"no shape is known for the input {ours}", where=a.path, remedy="give --input-shape")
        shapes[ours] = (whole + partly)[0]
    return shapes


def _declared(side: Side, blob: str) -> Shape:
    """The shape that a side states for an input, of pixels that of the blob made of them."""
    if side.takes.get("blob") != blob or not (shape := side.inputs.get(str(side.takes["input"]), ())):
        return side.inputs.get(blob, ())
    return (shape[0], shape[-1], *shape[1:-1])


def _pixel_inputs(
    a: Side, b: Side, names: Mapping[str, str], options: Options
) -> tuple[Inputs, dict[str, Array], dict[str, Array]]:
    """Values when a side prepares pixels itself: the other is fed with what numpy makes of the same pixels."""
    from converters.pixels import feed, pixels

    side = b if b.takes else a
    made = pixels(_shapes(a, b, names, options), options.input, options.seed, side.takes)
    image = next(iter(made.values.values()))
    blob = next(iter(names)) if side is b else next(iter(names.values()))
    return made, feed(a, image, side, blob), feed(b, image, side, blob)


# -- numbers ---------------------------------------------------------------------------------------------------


def _rows(
    ours: Mapping[str, Array], theirs: Mapping[str, Array], layers: Mapping[str, str], tolerance: float
) -> tuple[tuple[Row, ...], tuple[str, ...], tuple[str, ...]]:
    """Rows for what both have, and what only one has."""
    rows = tuple(
        _row(name, layers.get(name, ""), ours[name], theirs[name], tolerance) for name in ours if name in theirs
    )
    return rows, tuple(n for n in ours if n not in theirs), tuple(n for n in theirs if n not in ours)


def _row(name: str, layers: str, a: Array, b: Array, tolerance: float) -> Row:
    if a.shape != b.shape:
        return Row(name, layers, a.shape, b.shape, None, False)
    found = difference(a, b)
    return Row(name, layers, a.shape, b.shape, found, found.relative <= tolerance)


def _explained(rows: tuple[Row, ...], contracts: Mapping[str, str], tolerance: float) -> tuple[Row, ...]:
    """The rows; those over the tolerance with what the difference of the blob that they were made from explains."""
    known = {row.name: row.difference.absolute for row in rows if row.difference}
    made = [row if row.agrees else replace(row, explained=known.get(contracts.get(row.name, ""), 0.0)) for row in rows]
    return tuple(replace(row, agrees=row.beyond <= tolerance) for row in made)


def difference(a: Array, b: Array) -> Difference:
    """Compare two arrays of one shape; a sentinel or NaN counts as equal only to itself in the same place."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    usual = np.isfinite(x) & (np.abs(x) < HUGE)
    largest = float(np.abs(x[usual]).max(initial=0))
    if same.all():
        return Difference(bool(a.dtype == b.dtype), largest, 0.0, 0.0)
    special = ~same & ~(usual & np.isfinite(y))
    absolute = float("inf") if special.any() else float(np.abs(x[~same] - y[~same]).max())
    return Difference(False, largest, absolute, absolute / largest if largest else float("inf"))


def _ranking(blob: str, a: Array, b: Array) -> Ranking | None:
    """The best classes, when the blob is a vector for each item."""
    if a.shape != b.shape or a.ndim < 2 or a.size != a.shape[0] * a.shape[1] or a.shape[1] < 2 or not a.size:
        return None
    count = min(BEST, a.shape[1])
    ours, theirs = (np.argsort(-x.reshape(len(x), -1), 1, kind="stable")[:, :count] for x in (a, b))
    first = int((ours[:, 0] == theirs[:, 0]).sum())
    best = int((np.sort(ours, 1) == np.sort(theirs, 1)).all(1).sum())
    return Ranking(blob, len(a), count, first, best)
