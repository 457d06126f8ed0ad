"""Where the backward pass of a net goes, under both profiles; recorded nets are in tests/parity/test_backward.py."""

from __future__ import annotations

from caffe_compat.backward import Backward
from caffe_compat.graph import Graph
from caffe_compat.reading import parse_net
from tests.caffe_compat import v0_nets

INPUTS = """input: "data" input_shape { dim: 2 dim: 3 } input: "label" input_shape { dim: 2 } """


def product(name: str, bottom: str, fields: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}"'
        f" inner_product_param {{ num_output: 3 }} {fields} }}"
    )


def layer(kind: str, name: str, bottoms: str, fields: str = "") -> str:
    read = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {read} top: "{name}" {fields} }}'


FROZEN = "param { lr_mult: 0 } param { lr_mult: 0 }"
LOSS = layer("SoftmaxWithLoss", "loss", "b label")


def backward(*layers: str, head: str = "") -> tuple[Graph, Backward]:
    graph = Graph.from_net(parse_net(head + INPUTS + "".join(layers)))
    return graph, graph.backward


def running(graph: Graph) -> list[str]:
    return [node.layer.name for node, runs in zip(graph.nodes, graph.backward.layers, strict=True) if runs]


def test_all_that_learns_under_a_loss() -> None:
    graph, found = backward(product("a", "data"), product("b", "a"), LOSS)
    assert running(graph) == ["a", "b", "loss"]
    assert found.bottoms == ((), (False,), (True,), (True, False))
    assert found.params == ((), (True, True), (True, True), ())
    assert found.gradients == {"a", "b"}
    assert [blob for blob, need in found.blobs.items() if need] == ["a", "b", "loss"]


def test_frozen_layers_below_all_that_learns() -> None:
    graph, found = backward(product("a", "data", FROZEN), product("b", "a"), LOSS)
    assert running(graph) == ["b", "loss"]
    assert found.params[1] == (False, False)
    assert found.gradients == {"b"}


def test_frozen_layers_above_pass_gradients_on() -> None:
    graph, found = backward(product("a", "data"), product("b", "a", FROZEN), LOSS)
    assert running(graph) == ["a", "b", "loss"]
    assert found.gradients == {"a", "b"}


def test_what_contributes_to_no_loss_is_left_out() -> None:
    graph, found = backward(product("a", "data"), product("b", "a"), product("c", "a"), LOSS)
    assert running(graph) == ["a", "b", "loss"]
    assert found.blobs["c"]
    assert found.gradients == {"a", "b"}
    assert not backward(product("a", "data"))[1].gradients


def test_propagate_down_cuts() -> None:
    graph, found = backward(product("a", "data"), product("b", "a", "propagate_down: false"), LOSS)
    assert running(graph) == ["b", "loss"]
    assert found.bottoms[2] == (False,)
    assert backward(product("a", "data", "propagate_down: true"), product("b", "a"), LOSS)[1].gradients == {
        "data",
        "a",
        "b",
    }


def test_a_loss_weight_beside_a_reader_counts_as_one() -> None:
    graph, found = backward(
        layer("Reduction", "b", "data", "loss_weight: 2"), product("a", "data"), layer("Power", "c", "b")
    )
    assert running(graph) == []  # only "b" is under a loss, and it does not learn
    graph, found = backward(
        product("a", "data"), layer("Reduction", "b", "a", "loss_weight: 2"), layer("Power", "c", "b")
    )
    assert running(graph) == ["a", "b"]
    assert found.gradients == {"a", "b"}


def test_a_loss_that_another_layer_reads_runs_only_with_that_layer() -> None:
    power = layer("Power", "c", "loss")
    assert running(backward(product("b", "data"), LOSS, power)[0]) == []
    graph, found = backward(product("b", "data"), LOSS, layer("Power", "c", "loss", "loss_weight: 1"))
    assert running(graph) == ["b", "loss", "c"]
    assert found.gradients == {"b", "loss"}


def test_statistics_of_batch_norm_count_as_learning() -> None:
    """Net::Init goes by the net's lr_mult, 1 when not stated; the layer sets it to 0 in a copy of its own."""
    norm = layer("BatchNorm", "b", "a")
    graph, found = backward(product("a", "data", FROZEN), norm, layer("Reduction", "r", "b", "loss_weight: 1"))
    assert running(graph) == ["b", "r"]
    assert found.bottoms[2] == (False,)
    assert found.gradients == {"a", "b"}  # BatchNorm does not ask whether its bottom needs one
    stated = layer("BatchNorm", "b", "a", "param { lr_mult: 0 } param { lr_mult: 0 } param { lr_mult: 0 }")
    graph, found = backward(product("a", "data", FROZEN), stated, layer("Reduction", "r", "b", "loss_weight: 1"))
    assert running(graph) == []


def test_in_place_layers_share_their_blob() -> None:
    relu = 'layer { name: "r" type: "ReLU" bottom: "a" top: "a" }'
    graph, found = backward(product("a", "data"), relu, product("b", "a"), LOSS)
    assert running(graph) == ["a", "r", "b", "loss"]
    assert found.gradients == {"a", "b"}


def test_forced() -> None:
    graph, found = backward(product("a", "data", FROZEN), product("b", "a"), LOSS, head="force_backward: true ")
    assert running(graph) == ["input", "a", "b", "loss"]
    assert found.params == ((), (True, True), (True, True), ())
    assert found.gradients == {"data", "a", "b"}  # never the label


def test_of_2013() -> None:
    product_2013 = v0_nets.layer("innerproduct", "a", "data", "a", "num_output: 3")
    learning = v0_nets.layer("innerproduct", "b", "a", "b", "num_output: 3 blobs_lr: 1 blobs_lr: 0")
    loss = v0_nets.layer("softmax_loss", "loss", "b label", "")
    shapes = {"data": (2, 3, 1, 1), "label": (2, 1, 1, 1)}
    graph = v0_nets.graph(v0_nets.net(product_2013, learning, loss, **shapes))
    assert running(graph) == ["b", "loss"]
    assert graph.backward.bottoms == ((), (False,), (True,), (True, False))  # all bottoms but labels
    assert graph.backward.params == ((), (False, False), (True, True), ())
    assert graph.backward.gradients == {"a", "b"}
    forced = v0_nets.graph(v0_nets.net(product_2013, learning, loss, head="force_backward: true", **shapes))
    assert running(forced) == ["a", "b", "loss"]
    assert all(forced.backward.blobs.values())
