"""What loss weights, shared parameters and propagate_down do to the loss and to gradients of a whole net.

Rules: net.cpp (Init, AppendParam), layer.hpp (SetLossWeights), loss_layer.cpp, insert_splits.cpp of BVLC Caffe; the
expected values are worked out by hand.
"""

from __future__ import annotations

import pytest
import torch

from caffe_compat.errors import LayerError
from caffe_compat.graph import Graph
from caffe_compat.module import Net
from caffe_compat.reading import parse_net

X = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
INPUTS = """input: "x" input_shape { dim: 2 dim: 2 } input: "y" input_shape { dim: 2 dim: 2 } """
DOUBLE = (
    """layer { name: "a" type: "Scale" bottom: "x" top: "a" scale_param { num_axes: 0 filler { value: 2 } } %s } """
)
LOSS = 'layer { name: "e" type: "EuclideanLoss" bottom: "a" bottom: "y" top: "e" %s } '
TRIPLE = 'layer { name: "%s" type: "Power" bottom: "%s" top: "%s" power_param { scale: 3 } %s } '
PLAIN = float(((2 * X) ** 2).sum() / 4)
"""The Euclidean loss of 2 x against 0."""
SLOPE = float((2 * X * X).sum() / 2)
"""Its derivative by the scale."""


def net(*layers: str, head: str = "") -> Net:
    return Net(Graph.from_net(parse_net(head + INPUTS + "".join(layers))))


def run(made: Net) -> tuple[float, float, torch.Tensor]:
    """The loss, and its gradients by the first layer's blob and by x."""
    x = X.clone().requires_grad_()
    loss = made.trace({"x": x, "y": torch.zeros(2, 2)}).loss
    blob = made.params["a"][0]
    wanted = [t for t in (blob, x) if t.requires_grad]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True) if loss.requires_grad else ()
    found = dict(zip(map(id, wanted), grads, strict=False))
    return float(loss.detach()), float(found.get(id(blob), torch.zeros(1)).sum()), found.get(id(x), torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("own", "reader", "value", "slope"),
    [
        ("", None, 1, 1),
        ("loss_weight: 0.5", None, 0.5, 0.5),
        ("", "", 1, 0),  # the reader has no loss, so none of the two is differentiated
        ("", "loss_weight: 2", 1 + 6, 6),  # the reader's gradient takes the place of the weight 1
        ("loss_weight: 0.5", "", 1 + 0.5, 0.5),  # 0.5 moves to a split, and the loss layer is at its default again
        ("loss_weight: 0.5", "loss_weight: 2", 1 + 0.5 + 6, 0.5 + 6),
        ("loss_weight: 0", "loss_weight: 2", 6, 6),
    ],
)
def test_a_loss_that_is_read(own: str, reader: str | None, value: float, slope: float) -> None:
    read = [] if reader is None else [TRIPLE % ("t", "e", "t", reader)]
    loss, gradient, _ = run(net(DOUBLE % "", LOSS % own, *read))
    assert loss == pytest.approx(value * PLAIN)
    assert gradient == pytest.approx(slope * SLOPE)


SLICE = 'layer { name: "s" type: "Slice" bottom: "a" top: "p" top: "q" %s } '


@pytest.mark.parametrize(
    ("weights", "readers", "want"),
    [
        ("loss_weight: 1 loss_weight: 2", "", (1, 2)),
        ("loss_weight: 1 loss_weight: 2", "p", (1, 0)),  # p's weight moves to a split; what the layer states goes
        ("loss_weight: 1 loss_weight: 2", "q", (0, 2)),
        ("loss_weight: 1 loss_weight: 2", "pq", (1, 2)),
        ("loss_weight: 0 loss_weight: 2", "p", (0, 2)),
        ("loss_weight: 1", "p", (1, 0)),
    ],
)
def test_weights_of_several_tops(weights: str, readers: str, want: tuple[float, float]) -> None:
    made = net(DOUBLE % "", SLICE % weights, *(TRIPLE % (f"t{top}", top, f"t{top}", "") for top in readers))
    assert made.graph.layer("s").loss_weights == want
    sums = (2 * X).sum(0)
    assert run(made)[0] == pytest.approx(float(want[0] * sums[0] + want[1] * sums[1]))


def test_one_weight_for_two_tops_is_refused_where_it_stays() -> None:
    with pytest.raises(LayerError, match=r"1 loss_weight value\(s\) for 2 top\(s\)"):
        net(DOUBLE % "", SLICE % "loss_weight: 1", TRIPLE % ("t", "q", "t", ""))


def test_a_weight_is_a_reader_that_forbids_in_place() -> None:
    relu = 'layer { name: "r" type: "ReLU" bottom: "a" top: "a" }'
    with pytest.raises(LayerError, match="changed in place while another layer reads it"):
        net(DOUBLE % "loss_weight: 2", relu)
    assert net(DOUBLE % "loss_weight: 0", relu)


@pytest.mark.parametrize(
    ("first", "second", "slope"),
    [("lr_mult: 1", "", 2), ("lr_mult: 0", "", 1), ("", "lr_mult: 0", 1), ("lr_mult: 0", "lr_mult: 0", 0)],
)
def test_each_layer_decides_whether_it_adds_to_a_shared_gradient(first: str, second: str, slope: float) -> None:
    """The sum of w w x, w being one blob of two layers."""
    again = DOUBLE.replace('"a"', '"b"').replace('"x"', '"a"')
    shared = [text % f'param {{ name: "w" {spec} }}' for text, spec in ((DOUBLE, first), (again, second))]
    made = net(*shared, 'layer { name: "r" type: "Reduction" bottom: "b" top: "r" loss_weight: 1 }')
    loss, gradient, _ = run(made)
    assert loss == pytest.approx(float(4 * X.sum()))
    assert gradient == pytest.approx(float(slope * 2 * X.sum()))


@pytest.mark.parametrize(("head", "slope"), [("", 0.0), ("force_backward: true ", 1.0)])
def test_force_backward_is_stronger_than_propagate_down(head: str, slope: float) -> None:
    made = net(DOUBLE % "propagate_down: false", LOSS % "propagate_down: true propagate_down: false", head=head)
    torch.testing.assert_close(run(made)[2], slope * 2 * (2 * X) / 2)


@pytest.mark.parametrize(("frozen", "factor"), [("", 18.0), ("param { lr_mult: 0 }", 6.0)])
def test_the_diff_of_a_blob_stops_at_an_in_place_layer_that_passes_none_on(frozen: str, factor: float) -> None:
    """Of sum(b^2) / 2 with b = 3 a and a = 2 x; when nothing below learns, what stays is the gradient of b."""
    scale = 'layer { name: "s" type: "Scale" bottom: "a" top: "a" scale_param { num_axes: 0 filler { value: 3 } } } '
    total = """layer { name: "r" type: "Reduction" bottom: "a" top: "r" loss_weight: 0.5
                       reduction_param { operation: SUMSQ } }"""
    made = net(DOUBLE % frozen, scale, total)
    trace = made.trace({"x": X.clone().requires_grad_(), "y": torch.zeros(2, 2)})
    (found,) = torch.autograd.grad(trace.loss, trace.differentiated["a"])
    torch.testing.assert_close(found, factor * X)


def test_recurrent_layers_compute_the_gradients_of_all_blobs() -> None:
    text = """
      input: "x" input_shape { dim: 3 dim: 1 dim: 2 } input: "c" input_shape { dim: 3 dim: 1 }
      layer { name: "l" type: "LSTM" bottom: "x" bottom: "c" top: "h" loss_weight: 1
              recurrent_param { num_output: 2 weight_filler { type: "uniform" } } param { lr_mult: 0 } }
    """
    graph = Graph.from_net(parse_net(text))
    assert graph.backward.params == ((), (True, True, True))
    assert all(blob.requires_grad for blob in Net(graph).params["l"])
