"""Weights put into nets where Caffe puts them: its own recordings are the judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from caffe_compat.binding import Bound, bind
from caffe_compat.errors import BinaryError, Problems, WeightsError
from caffe_compat.graph import Graph, ParamKey
from caffe_compat.reading import parse_net, read_net
from caffe_compat.weight_files import read_weights
from caffe_compat.weights import Blob, LayerBlobs, Weights
from tests.caffe_compat.wire_files import GOLDEN

CASES: dict[str, dict[str, object]] = json.loads((GOLDEN / "weights.json").read_text())
UNREADABLE = ("blob_without_any_shape", "not_a_model", "truncated")
"""Refused before there is anything to bind. Caffe takes not_a_model by an accident of the wire format."""


def graph(name: str = "net.prototxt") -> Graph:
    return Graph.from_net(read_net(GOLDEN / name))


def recorded(name: str, **options: bool) -> Bound:
    return bind(graph(str(CASES[name]["net"])), read_weights(GOLDEN / name), **options)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["ok"] and name[:5] != "not_a"])
def test_binds_what_caffe_loaded(name: str) -> None:
    net, bound = graph(str(CASES[name]["net"])), recorded(name, strict=False)
    with np.load(GOLDEN / "loaded.npz") as loaded:
        for node in net.nodes:
            for index, key in enumerate(node.params):
                want = loaded[f"{name}/{node.layer.name}/{index}"]
                if key in bound.arrays:
                    assert bound.arrays[key].values.dtype == np.float32
                    np.testing.assert_array_equal(bound.arrays[key].array, want)
                else:
                    assert node.layer.name in bound.missing
                    assert np.ptp(want) == 0  # the constant filler's value


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case["ok"]])
def test_refuses_what_caffe_refused(name: str) -> None:
    stem = name.rpartition(".")[0]
    with pytest.raises(BinaryError if stem in UNREADABLE else (WeightsError, Problems)) as caught:
        recorded(name, strict=False)
    for error in getattr(caught.value, "errors", [caught.value]):
        assert error.remedy
        if stem not in UNREADABLE:
            assert error.where.layer in ("alpha", "beta", "gamma")
            assert error.where.source.endswith(name)


# -- the report --------------------------------------------------------------------------------------------


def test_missing_layers_are_an_error_when_strict() -> None:
    with pytest.raises(WeightsError, match="has no weights for it") as caught:
        recorded("missing_layer_keeps_init.caffemodel")
    assert caught.value.where.layer == "beta"
    bound = recorded("missing_layer_keeps_init.caffemodel", strict=False)
    assert (bound.copied, bound.missing) == (("alpha", "gamma"), ("beta",))
    assert bound.notes == ("no weights in the file for beta: their fillers' values are kept",)


@pytest.mark.parametrize("name", ["extra_layer_ignored.caffemodel", "extra_layer.h5"])
def test_unexpected_layers_are_reported(name: str) -> None:
    bound = recorded(name)
    assert bound.unexpected == ("stranger",)
    assert bound.notes == ("the net has no layer called stranger: their weights are not used",)


def test_legacy_sizes_are_reported() -> None:
    assert "beta[0]: 1 x 1 x 3 x 36 -> 3 x 36" in recorded("legacy_4d_dims.caffemodel").reshaped


def test_doubles_are_converted_and_reported() -> None:
    bound = recorded("double_data.caffemodel")
    assert bound.converted == tuple(
        f"{name}: float64" for name in ("alpha[0]", "alpha[1]", "beta[0]", "beta[1]", "gamma[0]")
    )
    assert all(blob.path == "" for blob in bound.arrays.values())


def test_matching_values_stay_views_of_the_file() -> None:
    for name in ("exact.caffemodel", "exact.h5"):
        blob = next(iter(recorded(name).arrays.values()))
        data = Path(blob.path).read_bytes()
        assert data[blob.offset : blob.offset + blob.values.nbytes] == blob.values.tobytes()


def test_all_mismatches_in_one_pass() -> None:
    alpha = LayerBlobs("alpha", (Blob((1,), np.zeros(1, np.float32)),))
    beta = LayerBlobs("beta", (Blob((2,), np.zeros(2, np.float32)), Blob((4,), np.zeros(4, np.float32))))
    with pytest.raises(Problems) as caught:
        bind(graph(), Weights((alpha, beta)))
    assert [error.where.layer for error in caught.value.errors] == ["alpha", "beta", "beta", "gamma"]
    assert "weight 4 x 3 x 3 x 3, bias 4" in str(caught.value)


# -- names -------------------------------------------------------------------------------------------------

NET = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" } inner_product_param { num_output: 2 } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } inner_product_param { num_output: 2 } }
"""


def named(*names: str, layer: str = "a") -> LayerBlobs:
    sizes = {"weight": (2, 2), "0": (2, 2), "bias": (2,), "1": (2,)}
    blobs = [
        Blob(sizes.get(n, (1,)), np.full(int(np.prod(sizes.get(n, (1,)))), i, np.float32)) for i, n in enumerate(names)
    ]
    return LayerBlobs(layer, tuple(blobs), names=names)


@pytest.mark.parametrize("names", [("weight", "bias"), ("bias", "weight"), ("0", "1"), ("1", "0"), ("weight", "1")])
def test_blobs_find_their_places_by_name(names: tuple[str, ...]) -> None:
    weights = Weights((named(*names), named("bias", layer="b")), format="safetensors")
    bound = bind(Graph.from_net(parse_net(NET)), weights)
    weight = next(i for i, name in enumerate(names) if name in ("weight", "0"))
    assert bound.arrays[ParamKey(1, 0)].values[0] == weight
    assert bound.arrays[ParamKey(1, 1)].values[0] == 1 - weight
    assert set(bound.arrays) == {ParamKey(1, 0), ParamKey(1, 1), ParamKey(2, 1)}


@pytest.mark.parametrize("names", [("weight",), ("weight", "bias", "mean"), ("weight", "0", "bias"), ("bias", "9"), ()])
def test_blobs_that_do_not_fit_by_name(names: tuple[str, ...]) -> None:
    with pytest.raises(WeightsError, match="needs weight 2 x 2, bias 2"):
        bind(Graph.from_net(parse_net(NET)), Weights((named(*names),), format="pt"), strict=False)


def test_shared_blobs_may_be_left_out_but_not_in_a_caffemodel() -> None:
    layers = (named("weight", "bias"), named("bias", layer="b"))
    assert not bind(Graph.from_net(parse_net(NET)), Weights(layers, format="hdf5")).missing
    with pytest.raises(WeightsError, match="has 1 blob"):
        bind(Graph.from_net(parse_net(NET)), Weights(layers))


def test_later_copies_of_a_shared_blob_win() -> None:
    first, second = (
        LayerBlobs(n, (Blob((2, 2), np.full(4, v, np.float32)), Blob((2,), np.zeros(2, np.float32))))
        for n, v in (("a", 1), ("b", 2))
    )
    bound = bind(Graph.from_net(parse_net(NET)), Weights((first, second)))
    assert bound.arrays[ParamKey(1, 0)].values[0] == 2


def test_half_precision_and_overflow() -> None:
    halves = LayerBlobs("a", (Blob((2, 2), np.ones(4, np.float16)), Blob((2,), np.array([1e300, 0.0]))))
    bound = bind(Graph.from_net(parse_net(NET)), Weights((halves,)), strict=False)
    assert bound.converted == ("a[0]: float16", "a[1]: float64")
    np.testing.assert_array_equal(bound.arrays[ParamKey(1, 1)].values, np.array([np.inf, 0], np.float32))


def test_layers_without_blobs_on_either_side_are_nothing_to_report() -> None:
    layers = (
        LayerBlobs("x", ()),
        LayerBlobs("loss", ()),
        named("weight", "bias"),
        LayerBlobs("b", named("weight", "bias").blobs),
    )
    bound = bind(Graph.from_net(parse_net(NET)), Weights(layers))
    assert (bound.unexpected, bound.missing, bound.notes) == ((), (), ())


def test_permissive_sharing_takes_the_owners_shape() -> None:
    net = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
      inner_product_param { num_output: 3 bias_term: false } }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" share_mode: PERMISSIVE }
      inner_product_param { num_output: 2 bias_term: false } }
    """
    values = np.arange(6, dtype=np.float32)
    layers = tuple(LayerBlobs(name, (Blob(shape, values),)) for name, shape in (("a", (3, 2)), ("b", (2, 3))))
    bound = bind(Graph.from_net(parse_net(net)), Weights(layers))
    assert bound.arrays[ParamKey(1, 0)].shape == (3, 2)
