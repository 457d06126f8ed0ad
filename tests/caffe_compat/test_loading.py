"""Nets from files: shapes that the file does not state, and everything that keeps one from being read."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_compat.errors import Problems, UpgradeError
from caffe_compat.loading import State, open_net

V0 = 'input: "data" layers { layer { name: "conv" type: "conv" num_output: 1 kernelsize: 5 } bottom: "data" top: "y" }'
V2 = 'input: "data" layer { name: "y" type: "Softmax" bottom: "data" top: "y" }'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.prototxt"


@pytest.mark.parametrize(
    ("text", "shape", "top"),
    [(V0, (2, 3, 9, 8), (2, 1, 5, 4)), (V2, (2, 3, 9, 8), (2, 3, 9, 8)), (V2, (4, 5), (4, 5))],
)
def test_inputs_of_which_only_the_names_stand_there_take_the_shapes_given(
    path: Path, text: str, shape: tuple[int, ...], top: tuple[int, ...]
) -> None:
    path.write_text(text)
    graph = open_net(path, state=State(input_shapes={"data": shape})).graph
    assert graph.shapes == {"data": shape, "y": top}
    assert graph.inputs == {"data": shape}


def test_without_shapes_they_are_dropped_as_in_caffe(path: Path) -> None:
    path.write_text(V2)
    graph = open_net(path, collect=True).graph
    assert "dropped input data: no shape is stated" in graph.notes
    assert [error.what for error in graph.problems] == ['bottom 0 "data" is not a blob so far']


def test_shapes_that_the_net_states_are_replaced(path: Path) -> None:
    path.write_text(f"input_dim: [1, 3, 4, 5] {V2}")
    assert open_net(path, state=State(input_shapes={"data": (2, 3)})).graph.shapes["y"] == (2, 3)


def test_unknown_fields_are_told_with_what_forbids_the_upgrade(path: Path) -> None:
    path.write_text(f'bottom: "data"\n{V0.replace("input", "name")}\ncolour: 3')
    with pytest.raises(Problems) as caught:
        open_net(path, collect=True)
    told = [(type(error), error.where.line, error.what) for error in caught.value.errors]
    assert [line for _, line, _ in told] == [2, 1, 3]
    assert told[0][0] is UpgradeError
    assert [what for _, _, what in told[1:]] == ['unknown field "bottom"', 'unknown field "colour"']


@pytest.mark.parametrize("collect", [False, True])
def test_layer_types_of_forks_in_v1_nets_are_told_with_all_other_problems(tmp_path: Path, collect: bool) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layers { name: "d" type: DUMMY_DATA top: "x" dummy_data_param { num: 1 channels: 2 height: 3 width: 3 } }\n'
        'layers { name: "m" type: LRN_MAP bottom: "x" top: "y" lrn_map_param { } }\n'
        'layers { name: "t" type: LRN_MAP bottom: "x" top: "z" include { phase: TRAIN } }\n'
        'layers { name: "c" type: CONVOLUTION bottom: "x" top: "c" }\n'
    )
    with pytest.raises(Problems) as caught:
        open_net(path, collect=collect)
    assert [(error.where.line, error.what) for error in caught.value.errors] == [
        (2, "V1 layer type LRN_MAP is not one of Caffe's; it stays as it is"),
        (3, "V1 layer type LRN_MAP is not one of Caffe's; it stays as it is"),
        (2, 'unknown field "lrn_map_param"'),
        (4, "kernel_size is given 0 time(s) for 2 spatial axes"),
    ]
