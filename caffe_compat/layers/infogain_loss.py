"""InfogainLoss: cross entropy with a matrix of credits for each (label, prediction)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.files import inner_file, inner_path, read_blob
from caffe_compat.layers.loss import (
    LOG_THRESHOLD,
    Loss2013,
    LossLayer,
    check_label_count,
    clamp_straight,
    ignored_label,
    label_indices,
    normalizer,
)

if TYPE_CHECKING:
    from torch import Tensor


@register
class InfogainLoss(LossLayer):
    """loss = -1/Z sum_i sum_k H[label_i, k] log(max(p_i[k], 1e-20)), p = softmax along `infogain_loss_param.axis`.

    H (C x C) is bottom 2, else the BlobProto file `infogain_loss_param.source`. Z and ignored labels as in
    SoftmaxWithLoss; `loss_param.normalize` is refused. Gradient: (p sum_k H[label, k] - H[label]) / Z, also where
    the logarithm was clamped. A second top holds p; no gradient comes from it. Source: infogain_loss_layer.cpp.
    """

    TYPE = "InfogainLoss"
    V1 = ("INFOGAIN_LOSS",)
    V0 = ("infogain_loss",)
    PARAM = "infogain_loss_param"
    BOTTOMS = (2, 3)
    TOPS = (1, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        what = "loss_param.normalize is not known to InfogainLoss"
        legacy = self.param.loss_param.HasField("normalize")
        self.check(not legacy, what, field="loss_param.normalize", remedy="state loss_param.normalization")
        axis = self.axis(self.p.axis, len(bottoms[0]), "infogain_loss_param.axis")
        check_label_count(self, bottoms[0], bottoms[1], axis)
        self.matrix = _matrix_rule(self, bottoms, bottoms[0][axis])

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(), bottoms[0]][: self.tops]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        data, labels = bottoms[0], bottoms[1]
        axis = self.p.axis % data.ndim
        classes, outer, inner = data.shape[axis], prod(data.shape[:axis]), prod(data.shape[axis + 1 :])
        log_p = torch.log_softmax(data.reshape(outer, classes, inner), 1)
        ignore = ignored_label(self.param.loss_param)
        index, counted = label_indices(self, labels.reshape(outer, inner), classes, ignore)
        matrix = _matrix_tensor(self, bottoms, classes)
        credit = matrix[index].movedim(2, 1)  # (outer, C, inner)
        losses = -(credit * clamp_straight()(log_p, log(LOG_THRESHOLD), None)).sum(1)
        if counted is not None:
            losses = losses.where(counted, 0)
        loss = losses.sum() / normalizer(self.param.loss_param.normalization, outer, inner, counted)
        return [loss, log_p.detach().exp().view(data.shape)][: self.tops]


@register
class InfogainLoss2013(Loss2013):
    """loss = -1/N sum_i sum_k H[label_i, k] log(max(p_i[k], 1e-20)) of probabilities p; no top.

    H (1 x 1 x C x C) is the BlobProto file `source`. Gradient: -H[label, k] / max(p[k], 1e-20) / N to bottom 0.
    Source: loss_layer.cu of December 2013.
    """

    TYPE = "InfogainLoss"
    V0 = ("infogain_loss",)
    PARAM = "infogain_loss_param"
    KNOWN = ("source",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self.matrix = _matrix_rule(self, bottoms, prod(bottoms[0][1:]))

    def loss(self, bottoms: list[Tensor]) -> Tensor:
        p = bottoms[0].flatten(1)
        index, _ = label_indices(self, bottoms[1].flatten(), p.shape[1])
        credit = _matrix_tensor(self, bottoms, p.shape[1])[index]  # (N, C)
        return -(credit * clamp_straight()(p, LOG_THRESHOLD, None).log()).sum() / len(p)


def _matrix_rule(layer: Layer, bottoms: Sequence[Shape], classes: int) -> np.ndarray | None:
    """The matrix of the file; None when it is a bottom, or the file is not there yet."""
    if len(bottoms) == 3:
        what = f"the matrix in bottom 2 has shape {bottoms[2]}; {classes} classes need {classes} x {classes}"
        layer.check(prod(bottoms[2]) == classes**2, what, field="bottom[2]", remedy="feed C x C values")
        return None
    what = "no infogain matrix: neither a third bottom nor infogain_loss_param.source"
    field = "infogain_loss_param.source"
    layer.check(layer.has("source"), what, field=field, remedy="name a BlobProto file")
    path = inner_file(layer, layer.p.source)
    if path is None:
        return None
    _, values = read_blob(layer, path, field)
    what = f'"{layer.p.source}" holds {values.size} values; {classes} classes need {classes} x {classes}'
    layer.check(values.size == classes**2, what, field=field, remedy="use the matrix of these classes")
    return values.reshape(classes, classes)


def _matrix_tensor(layer: Any, bottoms: list[Tensor], classes: int) -> Tensor:
    """The matrix as a tensor (C, C) of the kind of bottom 0."""
    import torch

    if len(bottoms) == 3:
        return bottoms[2].detach().reshape(classes, classes)
    if layer.matrix is None:
        inner_path(layer, layer.p.source, "infogain_loss_param.source")
        what = f'the infogain matrix "{layer.p.source}" does not exist'
        raise layer.error(what, field="infogain_loss_param.source", remedy=f"put it into {layer.context.folder}")
    return torch.from_numpy(layer.matrix).to(bottoms[0])
