"""AnnotatedData over databases written here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.schema import pb
from tests.caffe_compat.data.databases import write_lmdb
from tests.caffe_compat.layers.harness import Array, Lone, forward, lone

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 6, 8), dtype=np.uint8)
BOXES: list[list[tuple[int, tuple[float, ...], bool]]] = [
    [(1, (0.1, 0.2, 0.5, 0.6), False), (2, (0.7, 0.1, 1.2, 0.3), True)],
    [],
    [(1, (0.6, 0.6, 0.9, 0.9), False)],
]


def record(
    image: np.ndarray, boxes: Sequence[tuple[int, tuple[float, ...], bool]], png: bool = False
) -> pb.AnnotatedDatum:
    datum = pb.Datum(channels=image.shape[0], height=image.shape[1], width=image.shape[2], data=image.tobytes())
    if png:
        cv2 = pytest.importorskip("cv2", reason="OpenCV is an extra")
        data = cv2.imencode(".png", np.ascontiguousarray(image.transpose(1, 2, 0)))[1].tobytes()
        datum = pb.Datum(height=image.shape[1], width=image.shape[2], data=data, encoded=True)
    whole = pb.AnnotatedDatum(datum=datum, type="BBOX")
    for index, (label, corners, difficult) in enumerate(boxes):
        names = ("xmin", "ymin", "xmax", "ymax")
        box = pb.NormalizedBBox(**dict(zip(names, corners, strict=True)), difficult=difficult)
        whole.annotation_group.add(group_label=label).annotation.add(instance_id=index, bbox=box)
    return whole


def database(folder: Path, records: Sequence[pb.AnnotatedDatum] | None = None, png: bool = False) -> None:
    if records is None:
        records = [record(image, boxes, png) for image, boxes in zip(IMAGES, BOXES, strict=True)]
    write_lmdb(folder / "db", [item.SerializeToString() for item in records])


def text(batch: int = 2, transform: str = "", annotated: str = "") -> str:
    source = f'data_param {{ source: "db" batch_size: {batch} backend: LMDB }}'
    return f'type: "AnnotatedData" {source} transform_param {{ {transform} }} annotated_data_param {{ {annotated} }}'


def build(folder: Path, stated: str, **state: Any) -> Lone:
    return lone(stated, **{"tops": 2, "folder": str(folder), **state})


def label_rows(top: Array) -> list[list[float]]:
    assert top.shape[:2] == (1, 1)
    return [[round(float(value), 5) for value in row] for row in top[0, 0]]


def test_batches_go_round(tmp_path: Path) -> None:
    database(tmp_path)
    it = build(tmp_path, text())
    assert it.top_shapes == [(2, 3, 6, 8), (1, 1, 2, 8)]
    data, label = forward(it, [])
    np.testing.assert_array_equal(data, IMAGES[:2])
    assert label_rows(label) == [[0, 1, 0, 0.1, 0.2, 0.5, 0.6, 0], [0, 2, 1, 0.7, 0.1, 1, 0.3, 1]]
    data, label = forward(it, [])
    np.testing.assert_array_equal(data, IMAGES[[2, 0]])
    assert label_rows(label) == [
        [0, 1, 0, 0.6, 0.6, 0.9, 0.9, 0],
        [1, 1, 0, 0.1, 0.2, 0.5, 0.6, 0],
        [1, 2, 1, 0.7, 0.1, 1, 0.3, 1],
    ]


def test_a_batch_without_boxes_has_one_row_of_minus_one(tmp_path: Path) -> None:
    database(tmp_path, [record(IMAGES[0], [])])
    it = build(tmp_path, text(1))
    assert it.top_shapes[1] == (1, 1, 1, 8)
    assert label_rows(forward(it, [])[1]) == [[-1] * 8]


def test_means_and_scale(tmp_path: Path) -> None:
    database(tmp_path)
    means = np.array([104, 117, 123]).reshape(3, 1, 1)
    it = build(tmp_path, text(3, "mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.5"))
    np.testing.assert_allclose(forward(it, [])[0], (IMAGES - means) * 0.5)
    mean = pb.BlobProto(channels=3, height=6, width=8, num=1, data=np.arange(144.0).tolist())
    (tmp_path / "mean").write_bytes(mean.SerializeToString())
    it = build(tmp_path, text(3, 'mean_file: "mean"'))
    np.testing.assert_allclose(forward(it, [])[0], IMAGES - np.arange(144.0).reshape(3, 6, 8))


def test_boxes_follow_the_crop(tmp_path: Path) -> None:
    """The middle 4 x 4 of 6 x 8: a quarter is cut off left and right, a sixth above and below."""
    database(tmp_path)
    it = build(tmp_path, text(3, "crop_size: 4"))
    data, label = forward(it, [])
    np.testing.assert_array_equal(data, IMAGES[:, :, 1:5, 2:6])
    assert label_rows(label) == [
        [0, 1, 0, 0, 0.05, 0.5, 0.65, 0],
        [0, 2, 1, 0.9, 0, 1, 0.2, 1],
        [2, 1, 0, 0.7, 0.65, 1, 1, 0],
    ]
    it = build(tmp_path, text(3, "crop_h: 6 crop_w: 4"))
    assert it.top_shapes[0] == (3, 3, 6, 4)
    small = build(tmp_path, text(3, "crop_h: 2 crop_w: 2"))
    assert [(row[0], row[1]) for row in label_rows(forward(small, [])[1])] == [(0, 1), (2, 1)]


@pytest.mark.parametrize(
    ("constraint", "kept"),
    [
        ("", [(0, 1), (0, 2), (2, 1)]),
        ("emit_constraint { emit_type: CENTER }", [(0, 1), (2, 1)]),
        ("emit_constraint { emit_type: MIN_OVERLAP emit_overlap: 0.5 }", [(0, 1)]),
    ],
)
def test_boxes_that_the_crop_cuts_may_be_left_out(tmp_path: Path, constraint: str, kept: list[tuple[int, int]]) -> None:
    database(tmp_path)
    it = build(tmp_path, text(3, f"crop_size: 4 {constraint}"))
    assert [(row[0], row[1]) for row in label_rows(forward(it, [])[1])] == kept


def test_mirrored_images_have_mirrored_boxes(tmp_path: Path) -> None:
    database(tmp_path, [record(IMAGES[0], BOXES[0][:1])])
    it = build(tmp_path, text(16, "mirror: true"), phase="TRAIN")
    data, label = forward(it, [])
    turned = [np.array_equal(image, IMAGES[0][:, :, ::-1]) for image in data]
    assert any(turned)
    assert not all(turned)
    for row, mirrored in zip(label_rows(label), turned, strict=True):
        assert row[3:7] == ([0.5, 0.2, 0.9, 0.6] if mirrored else [0.1, 0.2, 0.5, 0.6])


def test_crops_in_train_lie_anywhere(tmp_path: Path) -> None:
    database(tmp_path, [record(IMAGES[0], [])])
    data, _ = forward(build(tmp_path, text(16, "crop_size: 4"), phase="TRAIN"), [])
    places = {
        (y, x)
        for image in data
        for y in range(3)
        for x in range(5)
        if np.array_equal(image, IMAGES[0][:, y : y + 4, x : x + 4])
    }
    assert len(places) > 3


def test_encoded_images_are_resized_with_their_boxes(tmp_path: Path) -> None:
    database(tmp_path, png=True)
    it = build(tmp_path, text(3, "resize_param { height: 8 width: 8 resize_mode: FIT_LARGE_SIZE_AND_PAD } scale: 2"))
    assert it.top_shapes[0] == (3, 3, 8, 8)
    data, label = forward(it, [])
    np.testing.assert_array_equal(data[:, :, 1:7], 2.0 * IMAGES)
    assert not data[:, :, [0, 7]].any()
    assert label_rows(label)[0] == [0, 1, 0, 0.1, 0.275, 0.5, 0.575, 0]
    gray = build(tmp_path, text(3, "force_gray: true"))
    assert gray.top_shapes[0] == (3, 1, 6, 8)


def test_the_mean_image_is_not_mirrored_with_encoded_images(tmp_path: Path) -> None:
    mean = pb.BlobProto(channels=3, height=6, width=8, num=1, data=np.arange(144.0).tolist())
    (tmp_path / "mean").write_bytes(mean.SerializeToString())
    planes = np.arange(144.0).reshape(3, 6, 8)
    for png in (False, True):
        folder = tmp_path / str(png)
        folder.mkdir()
        (folder / "mean").write_bytes(mean.SerializeToString())
        database(folder, [record(IMAGES[0], [], png)])
        it = build(folder, text(16, 'mirror: true mean_file: "mean"'), phase="TRAIN")
        turned = IMAGES[0][:, :, ::-1] - planes if png else (IMAGES[0] - planes)[:, :, ::-1]
        data = forward(it, [])[0]
        assert all(np.array_equal(x, turned) or np.array_equal(x, IMAGES[0] - planes) for x in data)
        assert any(np.array_equal(x, turned) for x in data)


def test_records_without_boxes_have_labels(tmp_path: Path) -> None:
    plain = [pb.AnnotatedDatum(datum=record(image, []).datum) for image in IMAGES]
    for index, item in enumerate(plain):
        item.datum.label = 10 + index
    database(tmp_path, plain)
    it = build(tmp_path, text(3))
    assert it.top_shapes[1] == (3,)
    assert forward(it, [])[1].tolist() == [10, 11, 12]
    with pytest.raises(LayerError, match="a record has no annotation type"):
        forward(build(tmp_path, text(3, annotated="anno_type: BBOX")), [])


def test_images_alone(tmp_path: Path) -> None:
    database(tmp_path)
    (data,) = forward(build(tmp_path, text(3), tops=1), [])
    np.testing.assert_array_equal(data, IMAGES)


# -- without the database --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        ("crop_size: 5", (2, 3, 5, 5)),
        ("resize_param { height: 5 width: 7 }", (2, 3, 5, 7)),
        ("resize_param { height: 5 width: 7 } crop_size: 4 mean_value: 1", (2, 3, 4, 4)),
        ("crop_size: 5 force_gray: true", (2, 1, 5, 5)),
        ("crop_size: 5 mean_value: 1 mean_value: 2", (2, 2, 5, 5)),
    ],
)
def test_shapes_without_the_database(tmp_path: Path, transform: str, shape: tuple[int, ...]) -> None:
    it = build(tmp_path, text(2, transform))
    assert it.top_shapes == [shape, (1, 1, 1, 8)]
    with pytest.raises(LayerError, match='"db" is not in the net\'s folder'):
        forward(it, [])


@pytest.mark.parametrize(
    ("transform", "annotated", "asked"),
    [
        ("distort_param { brightness_prob: 1 }", "", "transform_param.distort_param"),
        ("expand_param { prob: 1 max_expand_ratio: 4 }", "", "transform_param.expand_param"),
        ("noise_param { prob: 1 }", "", "transform_param.noise_param"),
        ("", "batch_sampler { max_sample: 1 }", "annotated_data_param.batch_sampler"),
    ],
)
def test_random_changes_are_refused_when_the_layer_runs(
    tmp_path: Path, transform: str, annotated: str, asked: str
) -> None:
    database(tmp_path)
    it = build(tmp_path, text(2, transform, annotated), phase="TRAIN")
    with pytest.raises(LayerError, match=f"{asked} changes images at random"):
        forward(it, [])


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (text(0), "batch_size is 0"),
        (text(2, "resize_param { height: 5 }"), "resize_param has height 5 and width 0"),
        (text(2, "resize_param { height: 5 width: 5 resize_mode: FIT_SMALL_SIZE }"), "different sizes"),
        (text(2, "force_color: true force_gray: true"), "both force_color and force_gray"),
        (text(2, "crop_h: 4"), "a crop of 4 x 0"),
        (text(2, "crop_size: 7"), "a crop of 7 x 7 is larger than the images, 6 x 8"),
        (text(2, "mean_value: 1 mean_value: 2"), "2 mean_value entries for 3 channel"),
        (text(2).replace('"db"', '"no"'), "is not known without reading it"),
    ],
)
def test_refused(tmp_path: Path, stated: str, message: str) -> None:
    database(tmp_path)
    with pytest.raises(LayerError, match=message):
        build(tmp_path, stated)


def test_broken_records(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", [b"\xff\xff\xff"])
    with pytest.raises(LayerError, match="no AnnotatedDatum"):
        build(tmp_path, text())


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (record(IMAGES[0][:, :5], []), r"\(3, 5, 8\) and \(3, 6, 8\) after transforming"),
        (pb.AnnotatedDatum(type="BBOX", datum=pb.Datum(channels=3, height=6, width=8, data=b"a")), "holds 1 values"),
        (pb.AnnotatedDatum(datum=record(IMAGES[1], []).datum), "a record has no annotation type"),
    ],
)
def test_records_that_do_not_fit(tmp_path: Path, second: pb.AnnotatedDatum, message: str) -> None:
    database(tmp_path, [record(IMAGES[0], []), second])
    with pytest.raises(LayerError, match=message):
        forward(build(tmp_path, text()), [])


def test_raw_images_are_not_resized(tmp_path: Path) -> None:
    database(tmp_path)
    it = build(tmp_path, text(2, "resize_param { height: 5 width: 5 }"))
    with pytest.raises(LayerError, match="resize_param works on encoded images alone"):
        forward(it, [])
