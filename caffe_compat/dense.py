"""A net for whole images: inner products behind a spatial blob become convolutions over the same weights.

An InnerProduct over (C, H, W) is a convolution with an H x W kernel, one over what an InnerProduct gave a 1 x 1 kernel
(arXiv:1409.1556, Sect. 3.2; Sermanet et al. 2014; Caffe's net_surgery example). Pads and ceil pooling stay as they
are. Each place of the result is what the net gives for the crop there, but that a crop has zeros around it where the
image goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.errors import GraphError, VggcError, raise_all
from caffe_compat.graph import Graph, Node, ParamKey, Value, rebuild
from caffe_compat.layers.base import Shape
from caffe_compat.schema import pb
from caffe_compat.upgrade import copy_fields
from caffe_compat.weights import Blob

if TYPE_CHECKING:
    from caffe_compat.module import Net

POINTWISE = frozenset(
    {
        "AbsVal",
        "BNLL",
        "Clip",
        "Dropout",
        "ELU",
        "Eltwise",
        "Exp",
        "HardSwish",
        "Log",
        "Mish",
        "Power",
        "ReLU",
        "ReLU6",
        "Sigmoid",
        "Silence",
        "Split",
        "Swish",
        "TanH",
        "Threshold",
    }
)
"""Types that treat every value alike, whatever the shape."""
BY_CHANNEL = {
    "BN": "",
    "BatchNorm": "",
    "Bias": "bias_param",
    "Concat": "concat_param",
    "PReLU": "",
    "Scale": "scale_param",
    "Slice": "slice_param",
    "Softmax": "softmax_param",
}
"""Types that work along the channels at every place -> their message with an `axis`, "" for those that have none."""
RESHAPING = ("Flatten", "Reshape")
CROPS = "this net runs on crops only"


def dense_graph(graph: Graph) -> Graph:
    """The same net with convolutions in place of inner products behind a spatial blob.

    Layers, blobs and parameters keep their names and places, so `ParamKey`s stay what they are; a layer that only
    flattens becomes a Split. The inputs have the shapes that they had, and larger ones may be fed.

    Raises:
        GraphError: a layer behind the first such inner product has no form that holds at every place.
    """
    recast = _Recast(graph)
    layers = [recast.layer(node) for node in graph.nodes]
    raise_all(recast.problems)
    net = pb.NetParameter(name=graph.net.name, layer=layers, force_backward=graph.net.force_backward)
    made = rebuild(net, graph.context, graph.inputs)
    raise_all(made.problems)
    if [node.params for node in made.nodes] != [node.params for node in graph.nodes]:
        raise GraphError("its layers do not share their weights in the same way when they are convolutions")
    return made


def dense_arrays(dense: Graph, graph: Graph, arrays: Mapping[ParamKey, Blob]) -> dict[ParamKey, Blob]:
    """The weights of a net in the shapes that `dense_graph` gives them, in the same memory where that is possible."""
    found = {}
    for key, blob in arrays.items():
        shape = dense.nodes[key.node].blob_shapes[key.blob]
        values = blob.array
        if _transposed(graph, key):
            values = values.T
        found[key] = Blob(shape, values.reshape(-1), where=blob.where)
    return found


def dense_net(net: Net) -> Net:
    """The torch module for whole images; it shares the parameters of `net`, on whatever device they are.

    Raises:
        GraphError: see `dense_graph`.
    """
    from torch import nn

    from caffe_compat.module import Net

    graph = dense_graph(net.graph)
    owned = net.owned
    shapes = {key: graph.nodes[key.node].blob_shapes[key.blob] for key in owned}
    views = {
        key: nn.Parameter(
            (blob.detach().t() if _transposed(net.graph, key) else blob.detach()).reshape(shapes[key]),
            requires_grad=blob.requires_grad,
        )
        for key, blob in owned.items()
    }
    return Net(graph, parameters=views)


def _transposed(graph: Graph, key: ParamKey) -> bool:
    """Whether a blob is an inner product's (K, num_output) matrix."""
    layer = graph.nodes[key.node].layer
    return layer.TYPE == "InnerProduct" and key.blob == 0 and bool(layer.p.transpose)


@dataclass
class _Recast:
    """Goes through the layers in order.

    Attributes:
        windows: flat values -> the (C, H, W) that they were made of.
    """

    graph: Graph

    def __post_init__(self) -> None:
        self.windows: dict[Value, Shape] = {}
        self.problems: list[VggcError] = []

    def layer(self, node: Node) -> pb.LayerParameter:
        """The layer of the dense net that takes this one's place."""
        made = pb.LayerParameter()
        copy_fields(node.layer.param, made, leave={"blobs", "include", "exclude"})
        try:
            kind = node.layer.TYPE
            if kind == "InnerProduct":
                self._convolution(node, made)
            elif kind in RESHAPING and self._flattens(node):
                self._flat(node, made)
            elif any(bottom in self.windows for bottom in node.bottoms):
                self._along(node, made)
        except VggcError as error:
            self.problems.append(error)
        return made

    # -- inner products ------------------------------------------------------------------------------------------

    def _convolution(self, node: Node, made: pb.LayerParameter) -> None:
        window = self._window(node.bottoms[0])
        if window is None:
            return
        param = node.layer.p
        node.layer.check(
            param.axis % len(self._shape(node.bottoms[0])) == 1,
            f"an inner product over the axes from {param.axis} on has no form as a convolution",
            field="inner_product_param.axis",
            remedy=CROPS,
        )
        made.type = "Convolution"
        made.ClearField("inner_product_param")
        convolution = made.convolution_param
        convolution.num_output, convolution.bias_term = param.num_output, param.bias_term
        if window[1] == window[2]:
            convolution.kernel_size.append(window[1])
        else:
            convolution.kernel_h, convolution.kernel_w = window[1:]
        self.windows[node.tops[0]] = (param.num_output, 1, 1)

    def _window(self, value: Value) -> Shape | None:
        """(C, H, W) of one place of a value; None when it is no spatial blob."""
        shape = self._shape(value)
        return self.windows.get(value) or (shape[1:] if len(shape) == 4 else None)

    def _shape(self, value: Value) -> Shape:
        return self.graph.values[value]

    # -- what comes behind them ----------------------------------------------------------------------------------

    def _flattens(self, node: Node) -> bool:
        """Whether a layer makes (N, C, H, W), or what was made of it, flat and does no more."""
        window, top = self._window(node.bottoms[0]), self._shape(node.tops[0])
        return window is not None and len(top) == 2 and top == (self._shape(node.bottoms[0])[0], prod(window))

    def _flat(self, node: Node, made: pb.LayerParameter) -> None:
        window = self._window(node.bottoms[0])
        made.type = "Split"
        for name in ("flatten_param", "reshape_param"):
            made.ClearField(name)  # type: ignore[arg-type]
        if window is not None:
            self.windows[node.tops[0]] = window

    def _along(self, node: Node, made: pb.LayerParameter) -> None:
        """A layer that is to work at every place."""
        windows = [self._window(bottom) for bottom in node.bottoms]
        kind = node.layer.TYPE
        places = {window[1:] for window in windows if window}
        node.layer.check(
            len(places) == 1 and None not in windows,
            f"{kind} joins values of single places with others",
            field="bottom",
            remedy=CROPS,
        )
        if kind not in POINTWISE:
            self._by_channel(node, made, places == {(1, 1)})
        bottom = windows[0] or ()
        for top in node.tops:
            self.windows[top] = (self._shape(top)[1], 1, 1) if places == {(1, 1)} else bottom

    def _by_channel(self, node: Node, made: pb.LayerParameter, single: bool) -> None:
        layer = node.layer
        field = BY_CHANNEL.get(layer.TYPE)
        over_item = layer.context.profile != "bvlc" and layer.TYPE == "Softmax"
        if field is None or not single or over_item:
            raise layer.error(f"{layer.TYPE} behind an inner product has no form for whole images", remedy=CROPS)
        if field:
            param = getattr(made, field)
            axis = param.axis % len(layer.bottom_shapes[0])
            layer.check(axis == 1, f"{layer.TYPE} works along axis {axis}", field=f"{field}.axis", remedy=CROPS)
            param.axis = 1


def scores_and_posteriors(graph: Graph) -> tuple[str, str]:
    """The blobs that hold a classification net's scores and posteriors, the bottom and top of its last Softmax.

    A net without one gives scores only: then the second is "".

    Raises:
        GraphError: the net has not one output, or its Softmax works in place.
    """
    ends = [node for node in graph.nodes if node.layer.TYPE == "Softmax" and node.tops[0].blob in graph.outputs]
    if len(ends) == 1:
        bottom, top = ends[0].bottoms[0].blob, ends[0].tops[0].blob
        return ("" if bottom == top else bottom), top
    if len(ends) > 1 or len(graph.outputs) != 1:
        what = f"the net has {len(graph.outputs)} outputs: {', '.join(graph.outputs)}"
        raise GraphError(what, remedy="name the one with class scores (--output)")
    return graph.outputs[0], ""
