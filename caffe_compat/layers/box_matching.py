"""Which prior boxes SSD trains with: matching with the truth, and mining of hard examples.

Rules: bbox_util.cpp of weiliu89/caffe, branch ssd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.boxes import Floats, Indices, areas, best, overlaps, suppress
from caffe_compat.schema import pb

FREE, IGNORED = -1, -2
"""In place of the index of a true box."""
LEAST_OVERLAP = 1e-6
"""Boxes that share no more do not overlap."""
SMALLEST = 1e-5
"""Boxes of a smaller area are left out of the suppression before mining."""

PER_PREDICTION = pb.MultiBoxLossParameter.PER_PREDICTION
MAX_NEGATIVE, HARD_EXAMPLE = pb.MultiBoxLossParameter.MAX_NEGATIVE, pb.MultiBoxLossParameter.HARD_EXAMPLE


@dataclass(frozen=True)
class Truth:
    """The true boxes of an image: (G, 4) and (G,)."""

    boxes: Floats
    labels: NDArray[np.int64]


def read_truth(rows: Floats) -> Mapping[int, Truth]:
    """Image -> its boxes, from rows (image, label, instance, xmin, ymin, xmax, ymax, difficult)."""
    images = np.trunc(rows[:, 0])
    own = {int(image): rows[images == image] for image in np.unique(images)}
    return {image: Truth(mine[:, 3:7], np.trunc(mine[:, 1]).astype(np.int64)) for image, mine in own.items()}


# -- matching --------------------------------------------------------------------------------------------------


def match(boxes: Floats, truth: Floats, rule: pb.MultiBoxLossParameter) -> tuple[Indices, Floats]:
    """The true box that each box is to predict, or FREE or IGNORED, and its overlap with it or else its largest one.

    First each true box gets the box that overlaps it most, the closest pair first. PER_PREDICTION then gives each box
    left the true box that it overlaps most, from overlap_threshold on. (MatchBBox)

    Args:
        boxes: (P, 4).
        truth: (G, 4).
    """
    index = np.full(len(boxes), FREE)
    if not len(truth):
        return index, np.zeros(len(boxes), np.float32)
    shared = overlaps(boxes, truth)
    shared[shared <= np.float64(LEAST_OVERLAP)] = 0
    if rule.ignore_cross_boundary_bbox:
        across = ((boxes < 0) | (boxes > 1)).any(1)
        index[across], shared[across] = IGNORED, 0
    most = shared.max(1)
    _match_pairs(shared.copy(), index, most)
    if rule.match_type == PER_PREDICTION:
        largest = shared.max(1)
        late = (index == FREE) & (largest > 0) & (largest >= np.float32(rule.overlap_threshold))
        index[late] = shared.argmax(1)[late]
    return index, most


def _match_pairs(left: Floats, index: Indices, most: Floats) -> None:
    """Pair boxes with true boxes, the largest overlap first; `left` is used up."""
    for _ in range(left.shape[1]):
        box, true = np.unravel_index(left.argmax(), left.shape)
        if left[box, true] <= 0:
            return
        index[box], most[box] = true, left[box, true]
        left[box], left[:, true] = 0, 0


def match_label(boxes: Floats, truth: Truth, label: int, rule: pb.MultiBoxLossParameter) -> tuple[Indices, Floats]:
    """As `match`, with the true boxes of one label alone."""
    own = np.flatnonzero(truth.labels == label)
    index, most = match(boxes, truth.boxes[own], rule)
    found = index >= 0
    index[found] = own[index[found]]
    return index, most


# -- mining ----------------------------------------------------------------------------------------------------


def mine(
    index: Indices, most: Floats, losses: Floats, boxes: Floats | None, rule: pb.MultiBoxLossParameter
) -> tuple[Indices, Indices]:
    """The matches that stay, and the boxes that are negative examples (MineHardExamples).

    MAX_NEGATIVE takes, of free boxes whose overlap is below neg_overlap, neg_pos_ratio for each match; HARD_EXAMPLE
    takes sample_size of all and frees the others. The largest losses are taken; with nms_param only after suppression
    of boxes that overlap one with a larger loss, among the top_k (0 unless stated) largest.

    Args:
        index, most: as from `match`.
        losses: (P,).
        boxes: what suppression compares, (P, 4); None where there is none.
    """
    hard = rule.mining_type == HARD_EXAMPLE
    eligible = np.flatnonzero(np.ones(len(index), bool) if hard else (index == FREE) & (most < rule.neg_overlap))
    count = rule.sample_size if hard else int(np.float32(np.sum(index >= 0)) * np.float32(rule.neg_pos_ratio))
    values = losses[eligible]
    if boxes is not None:
        order = best(values, -np.inf, rule.nms_param.top_k)
        order = order[areas(boxes[eligible[order]]) >= np.float64(SMALLEST)]
        order = order[suppress(boxes[eligible[order]], rule.nms_param.nms_threshold)]
    else:
        order = np.argsort(-values, kind="stable")
    chosen = np.zeros(len(index), bool)
    chosen[eligible[order[: max(0, count)]]] = True
    kept = np.where((index >= 0) & ~chosen, FREE, index) if hard else index
    return kept, np.flatnonzero((index == FREE) & chosen)
