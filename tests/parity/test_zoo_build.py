"""All published nets: at least 85 of 100 build, data sources replaced by inputs; the others say why, completely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from caffe_compat.errors import FormatError, UnknownLayerError, VggcError
from caffe_compat.graph import Graph
from caffe_compat.layers.base import Context
from caffe_compat.reading import read_document
from caffe_compat.schema import pb
from caffe_compat.source import SourceMap
from caffe_compat.upgrade import Upgraded, upgrade_net
from tests.parity.cases import Case, Folders
from tests.parity.compare import comparing
from tests.parity.nets import errors_in

WANTED = 0.85
COMMON = 3
"""Repositories that make a layer type one that must be known."""
SIDES = (224, 227, 300, 32, 28, 64, 321, 512, 48, 12)
"""Sizes of images tried when the net states none."""
SOURCES = frozenset({"Input", "DummyData", "Parameter"})
"""Layers without bottoms that are no data source."""
TOPS = {"im_info": (1, 3), "gt_boxes": (8, 5), "rois": (8, 5), "label": (2,), "labels": (2,)}
"""Usual shapes of blobs beside the images."""
LABELS: tuple[tuple[int, ...], ...] = ((2,), (1, 1, 8, 8), (2, 1, 0, 0))
"""Shapes tried for other blobs, 0 for the image's side; items of eight numbers are the boxes of detection data."""


@dataclass(frozen=True)
class Outcome:
    """One net: what keeps it from building."""

    path: Path
    problems: tuple[VggcError, ...]


def cases(folders: Folders) -> list[Case]:
    nets = folders.zoo / "prototxt"
    return [Case("zoo_build", "all nets", nets, {}, ("(zoo)",), zoo=folders.zoo)] if nets.is_dir() else []


def test_zoo_build(case: Case) -> None:
    outcomes = [outcome for path in sorted(case.folder.rglob("*")) if path.is_file() and (outcome := build(path))]
    failed = [outcome for outcome in outcomes if outcome.problems]
    with comparing() as compare:
        share = 1 - len(failed) / len(outcomes)
        compare.check(share >= WANTED, f"{len(outcomes) - len(failed)} of {len(outcomes)} nets build ({share:.1%})")
        for outcome in failed:
            for error in outcome.problems:
                compare.check(bool(str(error.where)), f"{outcome.path}: no place: {error}")
        for kind, users in unknown_types(failed, case.folder).items():
            compare.check(len(users) < COMMON, f"{kind}, of {len(users)} repositories, is not known")


def build(path: Path) -> Outcome | None:
    """Build a net; None when the file holds none."""
    try:
        document = read_document(path)
        if not isinstance(document.message, pb.NetParameter) or not net_of(document.message):
            return None
        upgraded = upgrade_net(document.message, document.map)
    except FormatError:
        return None
    except VggcError as error:
        return Outcome(path, tuple(errors_in(error)))
    best: Outcome | None = None
    for given in guesses(upgraded.net):
        outcome = attempt(path, upgraded, document.map, *given)
        best = outcome if best is None or len(outcome.problems) < len(best.problems) else best
        if not best.problems:
            break
    return best


def net_of(net: pb.NetParameter) -> bool:
    return bool(net.layer or net.layers)


def guesses(net: pb.NetParameter) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Size, channels and label shape of the data sources: what the net states, else the usual ones, until one fits."""
    stated = {size for layer in net.layer if (size := layer.transform_param.crop_size)}
    sources = any(is_source(layer) for layer in net.layer)
    for labels in LABELS if sources else LABELS[:1]:
        for side in stated or SIDES[: len(SIDES) if sources else 1]:
            for channels in (3, 1) if sources else (3,):
                yield side, channels, labels


def is_source(layer: pb.LayerParameter) -> bool:
    return not layer.bottom and bool(layer.top) and layer.type not in SOURCES


def attempt(
    path: Path, upgraded: Upgraded, source: SourceMap, side: int, channels: int, labels: tuple[int, ...]
) -> Outcome:
    """Build with Input layers for the data sources, in the phase that has them."""
    net = pb.NetParameter()
    net.CopyFrom(upgraded.net)
    labels = tuple(size or side for size in labels)
    origins = list(upgraded.origins)
    for index, layer in enumerate(net.layer):
        if is_source(layer):
            substitute(layer, [(2, channels, side, side), *(TOPS.get(top, labels) for top in layer.top[1:])])
            origins[index] = ""
    ready = replace(upgraded, net=net, origins=tuple(origins))
    found = [Outcome(path, build_phase(path, ready, source, phase)) for phase in ("TEST", "TRAIN")]
    return min(found, key=lambda outcome: len(outcome.problems))


def build_phase(path: Path, net: Upgraded, source: SourceMap, phase: str) -> tuple[VggcError, ...]:
    context = Context(phase, folder=str(path.parent))
    return Graph.from_upgraded(net, context, source=source, collect=True).problems


def unknown_types(failed: Sequence[Outcome], root: Path) -> Mapping[str, set[str]]:
    """Layer types that are not known -> the repositories that use them."""
    users: dict[str, set[str]] = {}
    for outcome in failed:
        for error in outcome.problems:
            if isinstance(error, UnknownLayerError):
                users.setdefault(error.what.split('"')[1], set()).add(outcome.path.relative_to(root).parts[0])
    return users


def substitute(layer: pb.LayerParameter, shapes: Sequence[Sequence[int]]) -> None:
    """Make an Input layer of a data source, in place."""
    kept = pb.LayerParameter(name=layer.name, type="Input", top=layer.top, include=layer.include, exclude=layer.exclude)
    for shape in shapes:
        kept.input_param.shape.add(dim=shape)
    layer.CopyFrom(kept)
