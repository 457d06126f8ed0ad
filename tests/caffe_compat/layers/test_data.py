"""Data: batches from a database, in both profiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import caffe_compat as cc
from caffe_compat.data.random_numbers import CRand
from caffe_compat.data.transform import Part
from caffe_compat.errors import LayerError
from caffe_compat.graph import Graph
from caffe_compat.layers.base import Context
from caffe_compat.schema import pb
from caffe_compat.upgrade import upgrade_net
from tests.caffe_compat.data.folders import (
    RECORDED,
    datum,
    images,
    png,
    write_images,
    write_leveldb,
    write_lmdb,
)
from tests.caffe_compat.layers.harness import Lone, forward, lone
from tests.parity.cases import DATA

PICTURES = images(5)
NATIVE = DATA / "golden2013" / "solver" / "data_native"


def data(
    folder: Path, transform: str = "", param: str = "batch_size: 2", tops: int = 2, phase: str = "TEST", **state: Any
) -> Lone:
    text = f'type: "Data" data_param {{ source: "db" {param} }} transform_param {{ {transform} }}'
    it = lone(text, tops=tops, folder=str(folder), phase=phase)
    if not state:
        return it
    context = Context(phase, folder=str(folder), state=state)
    return Lone(Graph.from_upgraded(upgrade_net(it.graph.net), context))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the database "db" lies."""
    write_images(tmp_path / "db", PICTURES)
    return tmp_path


def labels(it: Lone, batches: int) -> list[list[int]]:
    return [forward(it, [])[1].ravel().astype(int).tolist() for _ in range(batches)]


@pytest.mark.parametrize("write", [write_lmdb, write_leveldb])
def test_batches_go_round(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "db", {b"%d" % index: datum(picture, index) for index, picture in enumerate(PICTURES)})
    it = data(tmp_path, "scale: 0.5")
    assert it.top_shapes == [(2, 3, 6, 5), (2,)]
    top, label = forward(it, [])
    assert [top.dtype, label.dtype] == [np.float32, np.float32]
    np.testing.assert_array_equal(top, np.stack(PICTURES[:2]) * np.float32(0.5))
    assert labels(it, 4) == [[2, 3], [4, 0], [1, 2], [3, 4]]


def test_the_backend_and_rand_skip_change_nothing(folder: Path) -> None:
    it = data(folder, param="batch_size: 2 backend: LEVELDB rand_skip: 3", tops=1)
    assert it.top_shapes == [(2, 3, 6, 5)]
    np.testing.assert_array_equal(forward(it, [])[0], np.stack(PICTURES[:2]))


def crops(it: Lone, batches: int, side: int) -> list[tuple[int, Part]]:
    """Label and place of each image, found by looking for it."""
    found = []
    for _ in range(batches):
        for top, label in zip(*forward(it, []), strict=True):
            found.append((int(label), place(top, PICTURES[int(label)], side)))
    return found


def place(top: NDArray[Any], picture: NDArray[np.uint8], side: int) -> Part:
    for mirrored in (False, True):
        wanted = top[:, :, ::-1] if mirrored else top
        for row in range(picture.shape[1] - side + 1):
            for column in range(picture.shape[2] - side + 1):
                if (picture[:, row : row + side, column : column + side] == wanted).all():
                    return Part(row, column, mirrored)
    raise AssertionError("no part of the picture")


def test_training_crops_and_mirrors_at_random(folder: Path) -> None:
    found = crops(data(folder, "crop_size: 4 mirror: true", "batch_size: 5", phase="TRAIN"), 60, 4)
    assert [label for label, _ in found] == list(range(5)) * 60
    assert {part for _, part in found} == {Part(r, c, m) for r in range(3) for c in range(2) for m in (False, True)}
    assert 110 < sum(part.mirrored for _, part in found) < 190


def test_testing_crops_the_middle_and_mirrors_too(folder: Path) -> None:
    parts = {part for _, part in crops(data(folder, "crop_size: 4 mirror: true", "batch_size: 5"), 10, 4)}
    assert parts == {Part(1, 0, False), Part(1, 0, True)}


def test_random_numbers_follow_from_the_seed(folder: Path) -> None:
    def parts(**state: Any) -> list[tuple[int, Part]]:
        return crops(data(folder, "crop_size: 3 mirror: true", "batch_size: 5", phase="TRAIN", **state), 4, 3)

    assert parts() == parts(seed=0) == parts(seed=0, share=(0, 1))
    assert parts(seed=1) == parts(seed=1) != parts(seed=2)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_records_in_training(folder: Path, count: int) -> None:
    for phase, apart in (("TRAIN", True), ("TEST", False)):
        for rank in range(count):
            it = data(folder, phase=phase, share=(rank, count))
            start, step = (rank, count) if apart else (0, 1)
            want = [(start + step * k) % 5 for k in range(8)]
            assert [label for batch in labels(it, 4) for label in batch] == want


def test_training_reads_one_batch_ahead(tmp_path: Path) -> None:
    records = {b"%d" % index: datum(picture, index) for index, picture in enumerate(PICTURES)}
    write_lmdb(tmp_path / "db", {**records, b"3": b"\xff"})
    it = data(tmp_path, phase="TRAIN")
    assert labels(it, 1) == [[0, 1]]
    with pytest.raises(LayerError, match='record "3": this is no Datum'):
        forward(it, [])
    assert labels(it, 2) == [[4, 0], [1, 2]]


def test_images_of_several_sizes(tmp_path: Path) -> None:
    sizes = [(3, 6, 5), (3, 4, 8), (3, 5, 5)]
    pictures = [images(1, *size)[0] for size in sizes]
    write_lmdb(
        tmp_path / "db",
        {
            b"%d" % i: pb.Datum(data=png(picture), encoded=True, label=i).SerializeToString()
            for i, picture in enumerate(pictures)
        },
    )
    it = data(tmp_path, param="batch_size: 1")
    assert it.top_shapes == [(1, 3, 6, 5), (1,)]
    assert [forward(it, [])[0].shape[1:] for _ in range(4)] == [*sizes, sizes[0]]
    assert forward(data(tmp_path, "crop_size: 4", "batch_size: 3"), [])[0].shape == (3, 3, 4, 4)
    with pytest.raises(LayerError, match=r"images of shape \(3, 6, 5\) and \(3, 4, 8\) in one batch; .*batch_size 1"):
        forward(data(tmp_path), [])
    with pytest.raises(LayerError, match="crop_size 5 is larger than an image of 4 x 8"):
        forward(data(tmp_path, "crop_size: 5"), [])


def test_a_mean_file(folder: Path) -> None:
    mean = np.arange(90, dtype=np.float32).reshape(3, 6, 5)
    blob = pb.BlobProto(num=1, channels=3, height=6, width=5, data=mean.ravel())
    (folder / "mean").write_bytes(blob.SerializeToString())
    top = forward(data(folder, 'mean_file: "mean" crop_size: 2'), [])[0]
    np.testing.assert_array_equal(top, (np.stack(PICTURES[:2]) - mean)[:, :, 2:4, 1:3])
    blob.height, blob.width = 5, 6
    (folder / "mean").write_bytes(blob.SerializeToString())
    with pytest.raises(LayerError, match=r"the mean image has shape \(3, 5, 6\), an image \(3, 6, 5\)"):
        data(folder, 'mean_file: "mean"')
    (folder / "mean").unlink()
    with pytest.raises(LayerError, match=r'mean" does not exist; write it with vggc data mean'):
        forward(data(folder, 'mean_file: "mean"'), [])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ("crop_size: 7", "crop_size 7 is larger than an image of 6 x 5"),
        ("mean_value: 1 mean_value: 2", "2 mean_value entries for images of 3"),
        ("force_color: true force_gray: true", "both force_color and force_gray"),
    ],
)
def test_refused(folder: Path, transform: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        data(folder, transform)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({}, "this database holds no record"),
        ({b"key": b"\xff"}, r'record "key": this is no Datum'),
        ({b"key": pb.Datum(data=b"\xff\xd8\xff", encoded=True).SerializeToString()}, 'record "key": an image cannot'),
    ],
)
def test_bad_databases(tmp_path: Path, records: dict[bytes, bytes], message: str) -> None:
    write_lmdb(tmp_path / "db", records)
    with pytest.raises(LayerError, match=rf'layer "it": "db": .*{message}') as error:
        data(tmp_path)
    assert error.value.remedy


def test_a_bad_record_is_found_when_it_is_read(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", {b"a": datum(PICTURES[0]), b"b": datum(PICTURES[1])[:-5]})
    it = data(tmp_path)
    with pytest.raises(LayerError, match='record "b": this is no Datum'):
        forward(it, [])


def test_a_folder_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    with pytest.raises(LayerError, match=r"neither data\.mdb"):
        data(tmp_path)


def test_a_database_outside_the_nets_folder(folder: Path, tmp_path: Path) -> None:
    net = tmp_path / "net"
    net.mkdir()
    for source, message in (("db", "does not exist"), (str(folder / "db"), "outside the folder .*--data-folder")):
        text = f'type: "Data" data_param {{ source: "{source}" batch_size: 2 }} transform_param {{ crop_size: 4 }}'
        it = lone(text, tops=2, folder=str(net))
        assert it.top_shapes == [(2, 3, 4, 4), (2,)]
        with pytest.raises(LayerError, match=message):
            forward(it, [])
        path = net / "net.prototxt"
        path.write_text(f'layer {{ name: "it" top: "a" top: "b" {text} }}')
        assert cc.load(path, data_folders=[str(folder)])()["a"].shape == (2, 3, 4, 4)


# -- December 2013 ---------------------------------------------------------------------------------------------


def data2013(folder: Path, fields: str, phase: str = "TRAIN") -> Lone:
    it = f'type: "Data" data_param {{ source: "db" batch_size: 2 }} transform_param {{ {fields} }}'
    return lone(it, tops=2, folder=str(folder), phase=phase, profile="dec2013")


def test_2013_one_batch_is_read_ahead(folder: Path) -> None:
    it = data2013(folder, "crop_size: 4 mirror: true")
    rand, drawn = CRand(), []
    it.layer.context.state["rand"] = lambda: drawn.append(rand()) or drawn[-1]
    for batches in (1, 2, 3):
        assert forward(it, [])[1].shape == (2, 1, 1, 1)
        assert len(drawn) == (batches + 1) * 2 * 3


def test_2013_what_is_refused(folder: Path) -> None:
    with pytest.raises(LayerError, match="crop_size 5 is not smaller than an image of 6 x 5"):
        data2013(folder, "crop_size: 5")
    floats = pb.Datum(channels=1, height=3, width=3, float_data=range(9)).SerializeToString()
    (folder / "floats").mkdir()
    write_lmdb(folder / "floats" / "db", {b"a": floats})
    data2013(folder / "floats", "")
    with pytest.raises(LayerError, match="floats cannot be cropped"):
        data2013(folder / "floats", "crop_size: 2")


def test_2013_two_nets_share_the_numbers_as_in_training() -> None:
    """What a solver saw: both nets' first batches are read before it starts, while the phase is TRAIN."""
    record = np.load(NATIVE / "case.npz")
    kinds = {"train": "TRAIN", "test": "TEST"}
    nets = {name: cc.load(NATIVE / f"{name}.prototxt", phase=phase, profile="dec2013") for name, phase in kinds.items()}
    rand = CRand(7)
    layers: dict[str, Any] = {name: net.graph.layer("data").layer for name, net in nets.items()}
    for layer in layers.values():
        layer.context.state["rand"] = rand
        layer.prefetch("TRAIN")
    steps = [("train", k) for k in range(10)]
    for k in range(6):  # two batches after every third update
        steps.insert(3 * (k // 2 + 1) + k, ("test", k))
    for name, k in steps:
        found = layers[name].forward([], [])[0].numpy()
        np.testing.assert_array_equal(found, batch2013(record, name, k))
    numbers = CRand(7)
    assert [numbers() for _ in record["rand"]] == record["rand"].tolist()
    assert rand() == numbers()


def batch2013(record: Any, name: str, k: int) -> NDArray[np.float32]:
    """A batch by the recorded offsets."""
    pictures, mean = record[f"db/{name}_db/data"], record["db/train_db/mean"][0]
    offsets = record[f"{name}_offsets"][k]
    batch = []
    for i, (row, column, mirrored) in enumerate(offsets):
        picture = pictures[(k * len(offsets) + i) % len(pictures)].astype(np.float32) - mean
        part = picture[:, row : row + 7, column : column + 7] * np.float32(0.0078125)
        batch.append(part[:, :, ::-1] if mirrored else part)
    return np.stack(batch)


def test_recorded_folder_is_not_changed() -> None:
    assert sorted(path.name for path in (RECORDED / "lmdb_raw").iterdir()) == ["data.mdb"]
