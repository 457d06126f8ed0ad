"""Test-time protocols of the paper: crops, dense evaluation, fusion, features and boxes (protocols/README.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffe_compat.data.images import Image, read_image
from caffe_compat.graph import rebuild
from repro import protocols
from repro.engines import ONNX, TORCH, Settings, engines
from repro.models import Classifier, open_classifier
from repro.passes import Reading, Runner, blobs_of, posterior_reading, score_reading
from repro.rescaling import rescale, rescaled_size
from tests.parity.cases import Case, Folders, guarded, read_json
from tests.parity.compare import Comparison, comparing
from tests.parity.records import Record
from tests.tolerances import BOXES, EXACT, FEATURES_L2, FEATURES_RAW, POSTERIORS, SCORE_MAPS

CROPS = ("center", "tencrop", "multicrop")
WHOLE = ("dense", "dense_scores", "features")
BOTH_ENGINES = pytest.mark.parametrize("engine", [TORCH, ONNX])
Results = Mapping[tuple[str, int], np.ndarray]
"""(pass, scale) -> one row an image."""


def cases(folders: Folders) -> list[Case]:
    index = folders.golden / "protocols" / "index.json"

    def make() -> list[Case]:
        content = read_json(index)
        groups = ("nets", "fusion", "localisation")
        return [
            Case("protocols", name, index.parent, {**content, **entry, "group": group}, ("protocol",))
            for group in groups
            for name, entry in content.get(group, {}).items()
        ]

    return guarded("protocols", index, make) if index.parent.is_dir() else []


@BOTH_ENGINES
def test_protocols(case: Case, engine: str) -> None:
    with comparing() as compare:
        {"nets": check_net, "fusion": check_fusion, "localisation": check_boxes}[case.entry["group"]](
            case, engine, compare
        )


def test_sizes_and_places(case: Case) -> None:
    """Rescaled sizes and bytes, places of crops, sizes of maps."""
    with comparing() as compare:
        if case.entry["group"] == "fusion":
            compare.equal("scales", common_scales(case), case.entry["common_q"])
            return
        scales, offsets = case.entry["q"], read_json(case.path(case.entry["offsets"]))
        for name in image_names(case):
            for q in scales:
                check_image(case, name, q, offsets[name][f"q{q}"], compare)
        check_shapes(case, compare)


# -- running -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """A net and what it gave.

    Attributes:
        means: scale -> for each pass over whole images (images, 2, values), of each image and of its mirror.
    """

    model: Classifier
    runner: Runner
    results: Results
    means: Mapping[int, dict[str, np.ndarray]]


@cache
def ran(folder: Path, net: str, group: str, engine: str, wanted: tuple[str, ...]) -> Ran:
    """Every pass over every image at every scale of the net, in batches of several images."""
    index = read_json(folder / "index.json")
    entry = index[group][net]
    model = classifier(folder, index, entry)
    readings = {
        "dense": posterior_reading(model.scores, model.posteriors),
        "dense_scores": score_reading(model.scores),
        "features": Reading((entry["penultimate"],)),
    }
    crops = {name: readings["dense"] for name in CROPS if name in wanted}
    whole = {name: readings[name] for name in WHOLE if name in wanted}
    found: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    blobs = blobs_of([*crops.values(), *whole.values()])
    (one,) = engines(model, Settings(engine=engine), blobs, [False, True])

    def sink(image: int, name: str, scale: int, values: np.ndarray) -> None:
        found.setdefault((name, scale), {})[image] = values

    runner = Runner(one, model.prepare, model.crop, crops, whole, sink, graph=model.dense.graph)
    for position, image in enumerate(index["images"]):
        for q in entry["q"]:
            runner.add(position, q, rescaled(folder, index, image["name"], q))
    runner.finish()
    count = range(len(index["images"]))
    results = {key: np.stack([rows[i] for i in count]) for key, rows in found.items()}
    return Ran(model, runner, results, {q: flips(folder, index, runner, q) for q in entry["q"]})


def flips(folder: Path, index: Mapping[str, Any], runner: Runner, q: int) -> dict[str, np.ndarray]:
    """For each pass over whole images (images, 2, values): before mirrors are averaged."""
    each = [runner.means([rescaled(folder, index, image["name"], q)]) for image in index["images"]]
    return {name: np.concatenate(rows) for name, rows in zip(runner.whole, zip(*each, strict=True), strict=True)}


def classifier(folder: Path, index: Mapping[str, Any], entry: Mapping[str, Any]) -> Classifier:
    mean = ",".join(map(str, index["mean_bgr"]))
    return open_classifier(folder / entry["weights"], folder / entry["deploy"], mean=mean)


def rescaled(folder: Path, index: Mapping[str, Any], name: str, q: int) -> Image:
    return read_image(folder / index["rescaled"][name][f"q{q}"]["file"])


def image_names(case: Case) -> list[str]:
    return [image["name"] for image in case.entry["images"]]


# -- nets --------------------------------------------------------------------------------------------------------


def check_net(case: Case, engine: str, compare: Comparison) -> None:
    it = ran(case.folder, case.id, "nets", engine, (*CROPS, *WHOLE))
    record = Record(case.path(case.entry["results"]))
    for key, got in posteriors(it.results, case.entry["q"]).items():
        compare.array(key, got, record.value(key), POSTERIORS)
    check_each(case, it, record, compare)
    check_flips(case, it, record, compare)
    compare.equal("results not compared", record.unseen(), [])
    check_maps(case, it, compare)
    check_features(case, it, compare)
    check_errors(case, posteriors(it.results, case.entry["q"]), compare)


def posteriors(results: Results, scales: list[int]) -> dict[str, np.ndarray]:
    """`q<Q>/<protocol>` and `ms/<protocol>`."""
    made: dict[str, np.ndarray] = {}
    passes = (*CROPS, "dense", "dense_scores")
    for name in passes:
        each = [results[name, q] for q in scales]
        made.update({f"q{q}/{name}": value for q, value in zip(scales, each, strict=True)})
        made[f"ms/{name}"] = protocols.mean(each)
    for place in [*(f"q{q}" for q in scales), "ms"]:
        parts = [made[f"{place}/{name}"] for name in protocols.passes("both")]
        made[f"{place}/both"] = protocols.mean(parts)
    return made


def check_each(case: Case, it: Ran, record: Record, compare: Comparison) -> None:
    """Posteriors of every crop of one image."""
    name = case.entry["map_image"]
    for q in case.entry["q"]:
        image = rescaled(case.folder, case.entry, name, q)
        for kind in ("tencrop", "multicrop"):
            places = protocols.CROPS[kind](*image.shape[:2], it.model.crop)
            x = torch.stack(list(it.runner._cut(image, places)))
            got = it.runner.engine.run(x, [it.model.posteriors], False)[0]
            key = f"{name}/q{q}/{kind}_each"
            compare.array(key, got.flatten(1), record.value(key), POSTERIORS)


def check_flips(case: Case, it: Ran, record: Record, compare: Comparison) -> None:
    """Means over places of each image and of its mirror."""
    for q in case.entry["q"]:
        for flip in (0, 1):
            for key, name, tolerance in (
                ("prob_mean", "dense", POSTERIORS),
                ("score_mean", "dense_scores", SCORE_MAPS),
            ):
                place = f"q{q}/flip{flip}/{key}"
                compare.array(place, it.means[q][name][:, flip], record.value(place), tolerance)


def check_maps(case: Case, it: Ran, compare: Comparison) -> None:
    record = Record(case.path(case.entry["maps"]))
    blobs = {
        "score": (it.model.scores, SCORE_MAPS),
        "prob": (it.model.posteriors, POSTERIORS),
        "penultimate": (case.entry["penultimate"], FEATURES_RAW),
    }
    for key in list(record.arrays):
        name, q, flip, kind = key.split("/")
        blob, tolerance = blobs[kind]
        compare.array(key, one_map(case, it, (name, int(q[1:]), flip), blob), record.value(key), tolerance)


def one_map(case: Case, it: Ran, place: tuple[str, int, str], blob: str) -> np.ndarray:
    """The map of one rescaled image or of its mirror."""
    name, q, flip = place
    image = rescaled(case.folder, case.entry, name, q)
    image = np.ascontiguousarray(image[:, ::-1]) if flip == "flip1" else image
    x = torch.from_numpy(it.model.prepare(image))[None]
    return it.runner.engine.run(x, [blob], True)[0][0].numpy()


def check_features(case: Case, it: Ran, compare: Comparison) -> None:
    record, raw = Record(case.path(case.entry["features"])), []
    for q in case.entry["q"]:
        for flip in (0, 1):
            got = it.means[q]["features"][:, flip]
            compare.array(f"q{q}/flip{flip}", got, record.value(f"q{q}/flip{flip}"), FEATURES_RAW)
        raw.append(it.results["features", q])
        compare.array(f"q{q}/raw", raw[-1], record.value(f"q{q}/raw"), FEATURES_RAW)
        compare.array(f"q{q}/l2", protocols.unit_length(raw[-1]), record.value(f"q{q}/l2"), FEATURES_L2)
    each = [protocols.unit_length(values) for values in raw]
    made = {
        "average": protocols.average_scales(raw),
        "stack": protocols.stack_scales(raw),
        "average_of_l2": protocols.average_scales(each),
        "stack_of_l2": protocols.stack_scales(each),
    }
    for key, got in made.items():
        compare.array(key, got, record.value(key), FEATURES_L2)
    compare.equal("features not compared", record.unseen(), [])


def check_errors(case: Case, made: Mapping[str, np.ndarray], compare: Comparison) -> None:
    """Top-1 and top-5 errors for the recorded labels."""
    want = read_json(case.path(case.entry["errors"]))[case.id]
    lines = case.path(case.entry["labels"]).read_text().splitlines()
    labels = np.array([int(line.split()[1]) for line in lines])
    compare.equal("labels", labels.tolist(), want["labels"])
    compare.equal("protocols with errors", sorted(made), sorted(want["protocols"]))
    for key, counts in want["protocols"].items():
        wrong = [int((protocols.ranks(made[key], labels) >= k).sum()) for k in (1, 5)]
        compare.equal(f"errors of {key}", [*wrong, len(labels)], [counts["top1"], counts["top5"], counts["of"]])


# -- several nets, boxes -----------------------------------------------------------------------------------------


def common_scales(case: Case) -> list[int]:
    nets = read_json(case.folder / "index.json")["nets"]
    return sorted(set.intersection(*(set(nets[name]["q"]) for name in case.entry["nets"])))


def check_fusion(case: Case, engine: str, compare: Comparison) -> None:
    nets = read_json(case.folder / "index.json")["nets"]
    each = []
    for name in case.entry["nets"]:
        it = ran(case.folder, name, "nets", engine, (*CROPS, *WHOLE))
        each.append(posteriors(it.results, nets[name]["q"]))
    record = Record(case.path(case.entry["results"]))
    made = {key: protocols.mean([one[key] for one in each]) for key in each[0] if all(key in one for one in each)}
    for key, got in made.items():
        compare.array(key, got, record.value(key), POSTERIORS)
    compare.equal("fusions not compared", record.unseen(), [])
    check_errors(case, made, compare)


def check_boxes(case: Case, engine: str, compare: Comparison) -> None:
    it = ran(case.folder, case.id, "localisation", engine, ("center", "dense"))
    record = Record(case.path(case.entry["boxes"]))
    blob = it.model.scores
    for key in list(record.arrays):
        if key == "center_crop":
            q = case.entry["q"][0]
            images = [rescaled(case.folder, case.entry, name, q) for name in image_names(case)]
            cut = [x for i in images for x in it.runner._cut(i, protocols.center(*i.shape[:2], it.model.crop))]
            got = it.runner.engine.run(torch.stack(cut), [blob], False)[0].flatten(1).numpy()
        else:
            name, scale, flip = key.split("/")
            got = one_map(case, it, (name, int(scale[1:]), flip), blob)
        compare.array(key, got, record.value(key), BOXES)


# -- sizes -------------------------------------------------------------------------------------------------------


def check_image(case: Case, name: str, q: int, places: Mapping[str, Any], compare: Comparison) -> None:
    image = next(each for each in case.entry["images"] if each["name"] == name)
    want, place = case.entry["rescaled"][name][f"q{q}"], f"{name}/q{q}"
    original = read_image(case.path(image["file"]))
    compare.equal(f"{name} size", original.shape[:2], (image["height"], image["width"]))
    size = rescaled_size(*original.shape[:2], q)
    compare.equal(f"{place} size", size, (want["height"], want["width"]))
    compare.equal(f"{place} identity", size == original.shape[:2], want["identity"])
    compare.array(f"{place} bytes", rescale(original, q), rescaled(case.folder, case.entry, name, q), EXACT)
    for crop, kinds in places.items():
        for ours, kind in (("center", "center"), ("tencrop", "five"), ("multicrop", "grid")):
            made = protocols.CROPS[ours](*size, int(crop))
            half = made if kind == "center" else made[: len(made) // 2]
            compare.equal(f"{place} {kind}", [[y, x] for y, x, mirrored in half if not mirrored], kinds[kind])
            mirrors = [place[:2] for place in made if place.mirrored]
            compare.equal(f"{place} {kind} mirrors", mirrors, [p[:2] for p in half] if kind != "center" else [])


def check_shapes(case: Case, compare: Comparison) -> None:
    """Sizes of the last pooling and of the score map."""
    want = read_json(case.path(case.entry["shapes"]))[case.id]
    index = read_json(case.folder / "index.json")
    graph = classifier(case.folder, index, index[case.entry["group"]][case.id]).dense.graph
    assert graph is not None

    def sizes(height: int, width: int) -> tuple[list[int], list[int]]:
        built = rebuild(graph.net, graph.context, {"data": (1, 3, height, width)})
        pool, score = (built.shapes[blob][2:] for blob in (want["pool"], case.entry["score"]))
        return list(pool), list(score)

    compare.equal("pool", want["pool"], case.entry["last_pool"])
    for name, scales in want["images"].items():
        for q, recorded in scales.items():
            size = case.entry["rescaled"][name][q]
            got = sizes(size["height"], size["width"])
            compare.equal(f"{name}/{q}", got, (recorded["pool"], recorded["score"]))
    for side, pool, score in want["table"]:
        compare.equal(f"{side} x {side}", sizes(side, side), ([pool] * 2, [score] * 2))
