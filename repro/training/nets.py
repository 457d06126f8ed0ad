"""A net made ready for training: images and labels come in through an Input layer, the loss is attached.

Any net will do: one to deploy, whose Softmax becomes the loss, or one to train, whose data layers are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import prototxt
from caffe_compat.deploy import NOT_DATA
from caffe_compat.errors import GraphError, VggcError
from caffe_compat.graph import Graph, meets_rule, newest
from caffe_compat.layers.base import Context
from caffe_compat.reading import read_document
from caffe_compat.schema import pb

INITS = ("paper", "caffe", "glorot", "msra")
"""Rules for initial weights; biases start at 0. paper: N(0, 0.1^2), the variance of 1e-2 in Sect. 3.1; caffe: N(0,
0.01^2), what published training nets have; glorot: the footnote's alternative; msra: He et al. (2015)."""
MEASURES = ("Accuracy",)
LOSS = "SoftmaxWithLoss"
WEIGHTED = {
    "Convolution": "convolution_param",
    "Deconvolution": "convolution_param",
    "InnerProduct": "inner_product_param",
}
"""Types with num_output and fillers -> where they stand."""


@dataclass(frozen=True)
class TrainingNet:
    """A net of generation V2 whose only data layer is an Input with images and labels.

    Attributes:
        message: the net; layers of both phases are in it.
        data, label, scores: blobs: images (N, 3, crop, crop), labels (N), and what the loss takes the softmax of.
        feed: name of the Input layer.
        crop: side of the images.
        classes: scores of an image.
        notes: what was replaced or changed, one sentence each.
        dialect, python_layers: see `caffe_compat.load`.
    """

    message: pb.NetParameter
    data: str
    label: str
    scores: str
    feed: str
    crop: int
    classes: int
    notes: tuple[str, ...]
    dialect: str = ""
    python_layers: str = ""

    def graph(self, phase: str, batch: int) -> Graph:
        """The net for so many images at a time; in phase TEST without losses and labels.

        Raises:
            GraphError: Caffe would refuse it.
        """
        shapes: dict[str, Sequence[int]] = {self.data: (batch, 3, self.crop, self.crop), self.label: (batch,)}
        net = self.message if phase == "TRAIN" else self._scoring()
        context = Context(phase, dialect=self.dialect, state={"python_layers": self.python_layers or None})
        upgraded = newest(net, context.profile, dialect=self.dialect)
        made = Graph.from_upgraded(upgraded, context, input_shapes={k: shapes[k] for k in _tops(net, self.feed)})
        size = made.shapes[self.scores]
        if phase == "TRAIN" and size[:2] != (batch, self.classes):
            what = f"scores of shape {size} for {batch} images in {self.classes} classes"
            raise GraphError(what, remedy="give a net with one score for each class")
        return made

    def _scoring(self) -> pb.NetParameter:
        """The net without losses."""
        net = pb.NetParameter(name=self.message.name)
        net.layer.extend(layer for layer in self.message.layer if self.label not in layer.bottom)
        feed = next(layer for layer in net.layer if layer.name == self.feed)
        del feed.top[1:]
        del feed.input_param.shape[1:]
        return net


def net_file(name: str | PathLike[str]) -> Path:
    """A file, or one of the nets that come along: its training form where there is one.

    Raises:
        VggcError: there is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    for stem in (f"{name}_train_val", str(name)):
        try:
            return prototxt.find(stem)
        except LookupError:
            continue
    ours = [each for each in prototxt.names() if not each.endswith(("_solver", "_train_val"))]
    raise VggcError("no such file", where=str(name), remedy=f"give a file, or one of {', '.join(ours)}")


def training_net(
    source: str | PathLike[str],
    classes: int,
    *,
    crop: int = 0,
    init: str = "",
    dialect: str = "",
    python_layers: str = "",
) -> TrainingNet:
    """Read a net and make it ready for training.

    Args:
        source: a prototxt or caffemodel of any generation, or the name of one of ours.
        classes: of the data; the layer that gives the scores is fitted to it.
        crop: side of the images; 0 for what the net states.
        init: one of `INITS`; "" keeps the fillers that the net states, "caffe" where it states none.
        dialect, python_layers: see `caffe_compat.load`.

    Raises:
        VggcError: it is no net, or cannot be trained so; use a solver for that.
    """
    path = net_file(source)
    document = read_document(path)
    if not isinstance(document.message, pb.NetParameter):
        raise VggcError("this is not a net", where=str(path), remedy="give a net, or the solver alone")
    net = pb.NetParameter()
    net.CopyFrom(newest(document.message, "bvlc", document.map, dialect).net)
    made = _Making(net, str(path)).make(classes, crop, init)
    return replace(made, dialect=dialect, python_layers=python_layers)


class _Making:
    """The steps from a net to a net for training."""

    def __init__(self, net: pb.NetParameter, where: str) -> None:
        self.net, self.where = net, where
        self.notes: list[str] = []

    def make(self, classes: int, crop: int, init: str) -> TrainingNet:
        feed, tops = self.take_feeds(crop)
        self.drop_measures()
        scores = self.loss_scores(tops[1])
        self.fit(classes)
        self.fill(init)
        side = feed.input_param.shape[0].dim[2]
        feed.name = self.net.layer[0].name
        return TrainingNet(
            self.net, tops[0], tops[1], scores, feed.name, int(side), classes, tuple(dict.fromkeys(self.notes))
        )

    def fail(self, what: str, remedy: str) -> VggcError:
        return VggcError(what, where=self.where, remedy=remedy)

    # -- data ----------------------------------------------------------------------------------------------

    def take_feeds(self, crop: int) -> tuple[pb.LayerParameter, list[str]]:
        """Put one Input layer in place of all that feed the net; returns it with its blobs."""
        feeds = [layer for layer in self.net.layer if _feeds(layer)]
        used = [layer for layer in feeds if included(layer, "TRAIN")]
        tops = list(dict.fromkeys(top for layer in used for top in layer.top))
        if not tops or len(tops) > 2:
            what = f"the net is fed with {len(tops)} blobs in training: {', '.join(tops) or 'none'}"
            raise self.fail(what, "give a net with images and at most labels, or train it with a solver")
        side = crop or self.side(used[0])
        made = pb.LayerParameter(name=used[0].name, type="Input", top=[tops[0], *(tops[1:] or [self.free("label")])])
        made.input_param.shape.add(dim=[1, 3, side, side])
        made.input_param.shape.add(dim=[1])
        rest = [layer for layer in self.net.layer if not _feeds(layer)]
        for layer in feeds:
            if layer.type != "Input":
                self.notes.append(f'layer "{layer.name}" ({layer.type}) is replaced by the images of --data')
        del self.net.layer[:]
        self.net.layer.extend([made, *rest])
        return self.net.layer[0], list(made.top)

    def side(self, feed: pb.LayerParameter) -> int:
        """The side of the images that the net states."""
        shape = list(feed.input_param.shape[0].dim) if feed.input_param.shape else []
        if feed.transform_param.crop_size:
            return feed.transform_param.crop_size
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            stated = f"shape {tuple(shape)}" if shape else "no size"
            what = f'layer "{feed.name}" states {stated} of its images; they must be square and in colour'
            raise self.fail(what, "state the side of the images (--crop), or train it with a solver")
        return shape[2]

    def free(self, name: str) -> str:
        taken = {blob for layer in self.net.layer for blob in (*layer.top, *layer.bottom)}
        return name if name not in taken else self.free(f"{name}_")

    # -- loss ----------------------------------------------------------------------------------------------

    def drop_measures(self) -> None:
        """Accuracy is measured on all images of a validation, not by layers."""
        kept = [layer for layer in self.net.layer if layer.type not in MEASURES]
        del self.net.layer[:]
        self.net.layer.extend(kept)

    def loss_scores(self, label: str) -> str:
        """What the (last) loss compares with the labels; without a loss, one takes the place of the Softmax."""
        losses = [layer for layer in self.net.layer if included(layer, "TRAIN") and layer.type == LOSS]
        if losses:
            if any(layer.loss_param.normalization == pb.LossParameter.NONE for layer in losses):
                raise self.fail("a loss that is summed over the batch (normalization: NONE)", "train it with a solver")
            return losses[-1].bottom[0]
        others = [layer.type for layer in self.net.layer if layer.type.endswith("Loss")]
        if others:
            raise self.fail(f"the net's loss is {others[0]}, not {LOSS}", "train it with a solver")
        read = {blob for layer in self.net.layer for blob in layer.bottom if list(layer.top) != list(layer.bottom)}
        ends = [layer for layer in self.net.layer if layer.top and not read & set(layer.top) and layer.bottom]
        softmax = [layer for layer in ends if layer.type == "Softmax"]
        blobs = [layer.bottom[0] for layer in softmax] or list(dict.fromkeys(layer.top[0] for layer in ends))
        if len(blobs) != 1:
            what = f"{len(blobs)} blobs could be the scores: {', '.join(blobs)}"
            raise self.fail(what, f"end the net in one Softmax, or attach {LOSS}")
        return self.attach(softmax, blobs[0], label)

    def attach(self, softmax: list[pb.LayerParameter], scores: str, label: str) -> str:
        loss = pb.LayerParameter(name="loss", type=LOSS, bottom=[scores, label], top=[self.free("loss")])
        for layer in softmax:
            loss.softmax_param.CopyFrom(layer.softmax_param)
            self.notes.append(f'layer "{layer.name}" (Softmax) is replaced by {LOSS}')
            self.net.layer.remove(layer)
        if not softmax:
            self.notes.append(f'{LOSS} is attached to blob "{scores}"')
        self.net.layer.append(loss)
        return scores

    # -- parameters ----------------------------------------------------------------------------------------

    def fit(self, classes: int) -> None:
        """Let every layer that gives scores to a loss give one for each class."""
        for loss in [layer for layer in self.net.layer if layer.type == LOSS]:
            layer = self.maker(loss.bottom[0])
            param = getattr(layer, WEIGHTED[layer.type])
            if param.num_output != classes:
                what = f'layer "{layer.name}" gives {classes} scores, not {param.num_output}: the data has that many'
                self.notes.append(f"{what} classes")
                param.num_output = classes

    def maker(self, blob: str) -> pb.LayerParameter:
        """The layer whose num_output decides how many scores a blob holds."""
        for layer in reversed(self.net.layer):
            if blob in layer.top:
                if layer.type in WEIGHTED:
                    return layer
                blob = layer.bottom[0] if layer.bottom else ""
        raise self.fail("no layer with num_output gives the scores", "train it with a solver")

    def fill(self, init: str) -> None:
        """State how blobs start."""
        for layer in self.net.layer:
            if layer.type in WEIGHTED:
                param = getattr(layer, WEIGHTED[layer.type])
                if init or not param.HasField("weight_filler"):
                    param.weight_filler.CopyFrom(weight_filler(init or "caffe"))
                if init:
                    param.bias_filler.CopyFrom(pb.FillerParameter(type="constant", value=0))


def weight_filler(init: str) -> pb.FillerParameter:
    """The filler of weights by one of `INITS`.

    Raises:
        VggcError: there is no such rule.
    """
    rules = {
        "paper": pb.FillerParameter(type="gaussian", std=0.1),
        "caffe": pb.FillerParameter(type="gaussian", std=0.01),
        "glorot": pb.FillerParameter(type="xavier", variance_norm=pb.FillerParameter.AVERAGE),
        "msra": pb.FillerParameter(type="msra"),
    }
    if init not in rules:
        raise VggcError(f'no rule for initial weights called "{init}"', remedy=f"use one of {', '.join(INITS)}")
    return rules[init]


def included(layer: pb.LayerParameter, phase: str) -> bool:
    """Whether a layer is in the net in that phase (Net::FilterNet)."""
    state = pb.NetState(phase=pb.Phase.Value(phase))  # type: ignore[arg-type]
    rules = layer.include or layer.exclude
    return not rules or any(meets_rule(state, rule) for rule in rules) == bool(layer.include)


def _feeds(layer: pb.LayerParameter) -> bool:
    """Whether it brings examples or labels into the net."""
    return not layer.bottom and bool(layer.top) and (layer.type == "Input" or layer.type not in NOT_DATA)


def _tops(net: pb.NetParameter, feed: str) -> list[str]:
    return next(list(layer.top) for layer in net.layer if layer.name == feed)
