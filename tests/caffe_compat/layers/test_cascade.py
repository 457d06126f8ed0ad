"""The layers of Cascade R-CNN against loops over single boxes."""

from __future__ import annotations

from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from caffe_compat.layers.cascade_boxes import overlaps
from tests.caffe_compat.layers.harness import Array, Lone, forward, gradients, lone
from tests.caffe_compat.layers.refusals import refusal

MEANS, STDS = (0, 0.1, 0, -0.1), (0.1, 0.1, 0.2, 0.2)
REG = " ".join([f"bbox_mean: {mean}" for mean in MEANS] + [f"bbox_std: {std}" for std in STDS])
REG = f"bbox_reg_param {{ {REG} %s }}"
FIELDS = "field_w: 20 field_w: 40 field_h: 30 field_h: 20 stride: 8"
WIDTHS, HEIGHTS = (20, 40), (30, 20)
RNG = np.random.default_rng(5)


def shared(a: Array, b: Array, mode: str = "IOU") -> float:
    """Of corners."""
    if a[2] < a[0] or a[3] < a[1] or b[2] < b[0] or b[3] < b[1]:
        return 0.0
    x1, y1, x2, y2 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    common = 0.0 if x1 > x2 or y1 >= y2 else (x2 - x1 + 1) * (y2 - y1 + 1)
    one, other = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return float(common / {"IOMU": min(one, other), "IOFU": one}.get(mode, one + other - common))


def kept(boxes: list[Array], limit: float, mode: str = "IOU") -> list[Array]:
    left: list[Array] = []
    for box in boxes:
        if all(shared(other, box, mode) <= limit for other in left):
            left.append(box)
    return left


def decoded(code: Array, width: float, height: float, x: int, y: int) -> tuple[float, float, float, float]:
    """x, y, width, height of a code relative to a field."""
    dx, dy, dw, dh = (float(c) * s + m for c, m, s in zip(code, MEANS, STDS, strict=True))
    dx, dy = (min(max(v, -0.5), 0.5) for v in (dx, dy))
    dw, dh = (min(max(v, -log(2)), log(2)) for v in (dw, dh))
    w, h = width * exp(dw), height * exp(dh)
    return dx * width + (x + 0.5) * 8 - w / 2, dy * height + (y + 0.5) * 8 - h / 2, w, h


@pytest.mark.parametrize("mode", ["IOU", "IOMU", "IOFU"])
def test_overlaps(mode: str) -> None:
    boxes = np.float32([[0, 0, 9, 9], [5, 5, 14, 20], [9, 0, 12, 9], [0, 9, 9, 12], [4, 4, 2, 9], [30, 30, 31, 31]])
    wanted = [[shared(a, b, mode) for b in boxes] for a in boxes]
    np.testing.assert_allclose(overlaps(boxes, boxes, mode), wanted, rtol=1e-6)
    assert shared(boxes[0], boxes[2]) > 0
    assert shared(boxes[0], boxes[3]) == 0


# -- proposals -------------------------------------------------------------------------------------------------

GROUP = f"box_group_param {{ {FIELDS} }}"


def group_text(fields: str = "") -> str:
    return f'type: "BoxGroupOutput" box_group_output_param {{ {GROUP} {fields} }} {REG % ""}'


@pytest.mark.parametrize(
    ("fields", "mode", "before", "after"),
    [
        ("fg_thr: 0.3 iou_thr: 0.4", "IOU", 999, 999),
        ('nms_type: "IOMU" max_nms_num: 20 max_post_nms_num: 4', "IOMU", 20, 4),
    ],
)
def test_proposals(fields: str, mode: str, before: int, after: int) -> None:
    limits = {"fg_thr: 0.3 iou_thr: 0.4": (0.3, 0.4)}.get(fields, (0.0, 0.5))
    scores, codes = RNG.uniform(0, 1, (4, 3, 3, 4)), RNG.normal(0, 2, (4, 4, 3, 4))
    it = lone(group_text(fields), scores.shape, codes.shape, tops=2)
    assert it.top_shapes == [(1, 5, 1, 1), (1, 6, 1, 1)]
    wanted = []
    for item in range(2):
        boxes = []
        for g, y, x in np.ndindex(2, 3, 4):
            left, top, w, h = decoded(codes[2 * item + g, :, y, x], WIDTHS[g], HEIGHTS[g], x, y)
            right, bottom = min(left + w - 1, 32), min(top + h - 1, 24)
            box = np.array([max(left, 0), max(top, 0), right, bottom, 1 - scores[2 * item + g, 0, y, x]])
            if box[4] >= limits[0] and box[2] - box[0] + 1 >= 15 and box[3] - box[1] + 1 >= 15:
                boxes.append(box)
        boxes = sorted(boxes, key=lambda box: -box[4])[:before]
        wanted += [[item, *box] for box in kept(boxes, limits[1], mode)[:after]]
    rois, scored = forward(it, [scores, codes])
    np.testing.assert_allclose(scored[:, :, 0, 0], wanted, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(rois[:, :, 0, 0], scored[:, :5, 0, 0])
    assert len(wanted) > 2


def test_without_proposals_one_stands_for_none() -> None:
    it = lone(group_text("fg_thr: 2"), (2, 2, 3, 4), (2, 4, 3, 4), tops=2)
    rois, scored = forward(it, [np.ones((2, 2, 3, 4)), np.zeros((2, 4, 3, 4))])
    assert rois.ravel().tolist() == [0, 1, 1, 10, 10]
    assert not scored.any()


@pytest.mark.parametrize(
    ("text", "shapes", "what", "field"),
    [
        (group_text(GROUP), [(2, 2, 3, 4), (2, 4, 3, 4)], "2 bottoms for 2 box_group_param", "box_group_output_param"),
        (
            group_text().replace("field_w: 40", ""),
            [(2, 2, 3, 4), (2, 4, 3, 4)],
            "1 field_w for 2 field_h",
            "box_group_output_param.box_group_param[0]",
        ),
        (
            group_text().replace("bbox_mean: 0.1", ""),
            [(2, 2, 3, 4), (2, 4, 3, 4)],
            "3 bbox_mean value(s)",
            "bbox_reg_param.bbox_mean[0]",
        ),
        (
            group_text().replace("bbox_std: 0.1", "bbox_std: 0"),
            [(2, 2, 3, 4), (2, 4, 3, 4)],
            "bbox_std [0.0, 0.0, 0.20000000298023224, 0.20000000298023224]",
            "bbox_reg_param.bbox_std[0]",
        ),
    ],
)
def test_groups_that_are_refused(text: str, shapes: list[tuple[int, ...]], what: str, field: str) -> None:
    assert refusal(text, *shapes) == (what, field)


def test_maps_of_different_size_are_refused() -> None:
    with pytest.raises(LayerError, match=r"codes of shape \(2, 4, 3, 5\)"):
        lone(group_text(), (2, 2, 3, 4), (2, 4, 3, 5))


# -- regions ---------------------------------------------------------------------------------------------------


def moved(code: Array, roi: Array) -> list[float]:
    w, h = roi[2] - roi[0] + 1, roi[3] - roi[1] + 1
    dx, dy, dw, dh = (float(c) * s + m for c, m, s in zip(code, MEANS, STDS, strict=True))
    tw, th = w * exp(dw), h * exp(dh)
    x, y = dx * w + (roi[0] + roi[2]) / 2 - (tw - 1) / 2, dy * h + (roi[1] + roi[3]) / 2 - (th - 1) / 2
    return [x, y, x + tw - 1, y + th - 1]


def regions(count: int, items: int = 1) -> Array:
    low = RNG.uniform(0, 60, (count, 2))
    return np.concatenate([RNG.integers(0, items, (count, 1)), low, low + RNG.uniform(5, 40, (count, 2))], 1)


def test_decoded_regions() -> None:
    codes, rois = RNG.normal(0, 1, (6, 8)), regions(6, 2)
    it = lone(f'type: "DecodeBBox" {REG % ""}', (6, 8), (6, 5))
    wanted = [[roi[0], *moved(code[4:], roi[1:])] for code, roi in zip(codes, rois, strict=True)]
    np.testing.assert_allclose(forward(it, [codes, rois])[0][:, :, 0, 0], wanted, rtol=1e-4, atol=1e-3)


def test_regions_left_out_in_training() -> None:
    codes, rois, truth = np.zeros((4, 8)), regions(4), np.zeros((4, 6))
    rois[1] = [0, 9, 9, 3, 20]
    truth[2, 5] = 0.96
    it = lone('type: "DecodeBBox"', (4, 8), (4, 5), (4, 6), phase="TRAIN")
    np.testing.assert_allclose(forward(it, [codes, rois, truth])[0][:, :, 0, 0], rois[[0, 3]], rtol=1e-5, atol=1e-4)
    with pytest.raises(LayerError, match="no region is left"):
        forward(it, [codes, rois, np.ones((4, 6))])
    with pytest.raises(LayerError, match="phase TRAIN alone"):
        lone('type: "DecodeBBox"', (4, 8), (4, 5), (4, 6))
    with pytest.raises(LayerError, match=r"bottom 0 has shape \(4, 4\)"):
        lone('type: "DecodeBBox"', (4, 4), (4, 5))


def test_regions_by_scale() -> None:
    rois = np.array([[0, 0, 0, 9, 9], [0, 0, 0, 29, 29], [1, 0, 0, 99, 99], [1, 5, 5, 34, 34]], float)
    rows = np.arange(8.0).reshape(4, 2)
    text = 'type: "ScaleRoute" scale_route_param {{ {} }}'
    it = lone(text.format("low_scale: 20 high_scale: 50"), (4, 5), (4, 2), tops=2)
    assert it.top_shapes == [(1, 5, 1, 1), (1, 2, 1, 1)]
    found = [top[:, :, 0, 0] for top in forward(it, [rois, rows])]
    np.testing.assert_array_equal(found[0], rois[[1, 3]])
    np.testing.assert_array_equal(found[1], rows[[1, 3]])
    (nearest,) = forward(lone(text.format("low_scale: 400"), (4, 5)), [rois])
    np.testing.assert_array_equal(nearest[:, :, 0, 0], rois[[2]])


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("low_scale: 0", "low_scale 0.0 must be above 0", "scale_route_param.low_scale"),
        ("low_scale: 9 high_scale: 3", "high_scale 3.0 is below low_scale 9.0", "scale_route_param.high_scale"),
    ],
)
def test_scales_that_are_refused(fields: str, what: str, field: str) -> None:
    assert refusal(f'type: "ScaleRoute" scale_route_param {{ {fields} }}', (4, 5)) == (what, field)
    down = refusal('type: "ScaleRoute" propagate_down: true', (4, 5))
    assert down == ("propagate_down is true, but nothing has a gradient", "propagate_down[0]")


@pytest.mark.parametrize("aware", [True, False])
def test_mean_overlap_before_and_after(aware: bool) -> None:
    codes, rois = RNG.normal(0, 1, (5, 12 if aware else 8)), regions(5)
    truth = np.concatenate([[[2], [0], [1], [1], [2]], rois[:, 1:] + 3, [[0.6], [0], [0.99], [0.5], [0.7]]], 1)
    it = lone(f'type: "BboxAccuracy" {REG % f"cls_aware: {str(aware).lower()}"}', codes.shape, (5, 5), (5, 6), tops=2)
    after, before = [], []
    for row in (0, 3, 4):
        label = int(truth[row, 0]) if aware else 1
        after.append(shared(np.array(moved_to(codes[row, 4 * label : 4 * label + 4], rois[row, 1:])), truth[row, 1:5]))
        before.append(shared(rois[row, 1:], truth[row, 1:5]))
    found = forward(it, [codes, rois, truth])
    np.testing.assert_allclose([top.item() for top in found], [np.mean(after), np.mean(before)], rtol=1e-4)
    none = forward(it, [codes, rois, truth * [0, 1, 1, 1, 1, 1]])
    assert [top.item() for top in none] == [-1, -1]


def moved_to(code: Array, roi: Array) -> list[float]:
    """As `moved`, with the middle half a pixel further on."""
    w, h = roi[2] - roi[0] + 1, roi[3] - roi[1] + 1
    dx, dy, dw, dh = (float(c) * s + m for c, m, s in zip(code, MEANS, STDS, strict=True))
    tw, th = w * exp(dw), h * exp(dh)
    x, y = dx * w + roi[0] + w / 2 - tw / 2, dy * h + roi[1] + h / 2 - th / 2
    return [x, y, x + tw - 1, y + th - 1]


def test_codes_of_classes_that_are_not_told_apart_are_eight() -> None:
    with pytest.raises(LayerError, match=r"codes of shape \(5, 12\)"):
        lone('type: "BboxAccuracy" bbox_reg_param { cls_aware: false }', (5, 12), (5, 5), (5, 6))


# -- detections ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("most", [0, 3])
def test_detections(aware: bool, most: int) -> None:
    scores, codes, rois = RNG.uniform(0, 1, (9, 3)), RNG.normal(0, 1, (9, 12 if aware else 8)), regions(9)
    fields = f"conf_thr: 0.2 iou_thr: 0.3 max_det_num: {most}"
    text = f'type: "FrcnnOutput" frcnn_output_param {{ {fields} }} {REG % f"cls_aware: {str(aware).lower()}"}'
    it = lone(text, scores.shape, codes.shape, (9, 5), (1, 2))
    wanted = []
    for label in (1, 2):
        boxes = []
        for row in range(9):
            at = 4 * label if aware else 4
            x1, y1, x2, y2 = moved(codes[row, at : at + 4], rois[row, 1:])
            boxes.append(np.array([max(x1, 0), max(y1, 0), min(x2, 70), min(y2, 50), label, scores[row, label]]))
        wanted += kept(sorted((box for box in boxes if box[5] >= 0.2), key=lambda box: -box[5]), 0.3)
    best = sorted(wanted, key=lambda box: -box[5])[: most or None]
    wanted = [box for box in wanted if any(box is other for other in best)]
    (top,) = forward(it, [scores, codes, rois, np.array([[50.0, 70.0]])])
    assert top[0].ravel().tolist() == [0, *[-1] * 6]
    rows = [[0, *box] for box in sorted(wanted, key=lambda box: (box[4], -box[5]))]
    np.testing.assert_allclose(top[1:, :, 0, 0], rows, rtol=1e-4, atol=1e-3)


def test_regions_of_other_images_are_refused() -> None:
    it = lone('type: "FrcnnOutput"', (1, 2), (1, 8), (1, 5), (1, 2))
    bottoms = [np.ones((1, 2)), np.zeros((1, 8)), np.array([[1.0, 0, 0, 5, 5]]), np.ones((1, 2))]
    with pytest.raises(LayerError, match="a region of another image"):
        forward(it, bottoms)
    with pytest.raises(LayerError, match=r"bottom 1 has shape \(1, 9\)"):
        lone('type: "FrcnnOutput"', (1, 2), (1, 9), (1, 5), (1, 2))


def test_where_detections_would_be_written_is_noted() -> None:
    text = 'type: "FrcnnOutput" frcnn_output_param { save_output_param { output_directory: "out" } }'
    assert 'no files are written to "out"' in lone(text, (1, 2), (1, 8), (1, 5), (1, 2)).layer.notes()[0]


def test_true_and_false_detections(tmp_path: Path) -> None:
    (tmp_path / "sizes").write_text("a 100 200\nb 50 50\n")
    text = 'type: "DetectionEvaluate" detection_evaluate_param { num_classes: 3 name_size_file: "sizes" }'
    found = np.array(
        [[0, -1, -1, -1, -1, -1, -1], [0, 1, 1, 10, 10, 1, 0.9], [0, 1, 1, 10, 11, 1, 0.8], [1, 5, 5, 9, 9, 2, 0.7]]
    )
    truth = np.array([[-1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 10, 10, 1, 0, 0], [1, 30, 30, 40, 40, 2, 0, 1]], float)
    it = lone(text, (4, 7), (3, 8), (2, 2), folder=str(tmp_path), dialect="cascade-rcnn")
    assert it.top_shapes == [(6, 5, 1, 1)]
    (top,) = forward(it, [found, truth, np.array([[50.0, 100], [50, 50]])])
    rows = [[round(float(v), 6) for v in row] for row in top[:, :, 0, 0]]
    assert rows == [[-1, 1, 1, -1, -1], [-1, 2, 1, -1, -1], [0, 1, 0.9, 1, 0], [0, 1, 0.8, 0, 1], [1, 2, 0.7, 0, 1]]


def test_the_list_of_sizes_is_needed() -> None:
    text = 'type: "DetectionEvaluate" detection_evaluate_param { num_classes: 3 }'
    what, field = refusal(text, (4, 7), (3, 8), (2, 2), dialect="cascade-rcnn")
    assert (what, field) == ("name_size_file is missing", "detection_evaluate_param.name_size_file")


# -- training --------------------------------------------------------------------------------------------------


def target_layer(fields: str, rois: int, truth: int, tops: int = 7, reg: str = "") -> Lone:
    text = f'type: "ProposalTarget" proposal_target_param {{ cls_num: 3 num_img_per_batch: 2 {fields} }} {REG % reg}'
    return lone(text, (rois, 5), (truth, 8), tops=tops)


TRUTH = np.array(
    [[0, 10, 10, 39, 49, 2, 0, 0], [1, 20, 5, 60, 40, 1, 0, 0], [1, 50, 50, 70, 70, 1, 1, 0], [-1, *[0] * 7]], float
)
ROIS = np.array(
    [[0, 12, 11, 40, 48], [0, 60, 60, 90, 90], [1, 22, 5, 58, 40], [1, 30, 20, 80, 60], [1, 50, 50, 70, 70]], float
)


@pytest.mark.parametrize("aware", [True, False])
def test_targets_of_all_regions(aware: bool) -> None:
    reg = f"cls_aware: {str(aware).lower()}"
    it = target_layer(
        "batch_size: -1 bg_thr_lw: 0 pickup_discard: false append_gtbox: false iou_weighted: true", 5, 4, reg=reg
    )
    tops = [top[:, :, 0, 0] for top in forward(it, [ROIS, TRUTH])]
    np.testing.assert_allclose(tops[0], ROIS[[0, 2, 1, 3]], rtol=1e-6)  # the fifth has an ignored box
    assert tops[1].ravel().tolist() == [2, 1, 0, 0]
    width = 12 if aware else 8
    targets, weights, matched = np.zeros((4, width)), np.zeros((4, width)), np.zeros((4, 6))
    for row, (roi, box) in enumerate(((ROIS[0], TRUTH[0]), (ROIS[2], TRUTH[1]))):
        at = 4 * (int(box[5]) if aware else 1)
        w, h, tw, th = roi[3] - roi[1] + 1, roi[4] - roi[2] + 1, box[3] - box[1] + 1, box[4] - box[2] + 1
        raw = [(box[1] + tw / 2 - roi[1] - w / 2) / w, (box[2] + th / 2 - roi[2] - h / 2) / h, log(tw / w), log(th / h)]
        targets[row, at : at + 4] = (np.array(raw) - MEANS) / STDS
        weights[row, at : at + 4] = 1
        matched[row] = [box[5], *box[1:5], shared(roi[1:], box[1:5])]
    np.testing.assert_allclose(tops[2], targets, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(tops[3], weights)
    np.testing.assert_array_equal(tops[4], weights)
    np.testing.assert_allclose(tops[5], matched, rtol=1e-5)
    objects = matched[:2, 5] / matched[:2, 5].sum() * 0.25 * 4
    np.testing.assert_allclose(tops[6].ravel(), [*objects, 1.5, 1.5], rtol=1e-5)


def test_drawn_regions_are_as_many_as_asked_for() -> None:
    torch.manual_seed(1)
    rois = np.tile(ROIS, (20, 1))
    it = target_layer("batch_size: 16 bg_thr_lw: 0 bbox_thr_hg: 0.9", 100, 4, tops=6)
    assert it.top_shapes == [(16, size, 1, 1) for size in (5, 1, 12, 12, 12, 6)]
    tops = [top[:, :, 0, 0] for top in forward(it, [rois, TRUTH])]
    assert [len(top) for top in tops] == [16] * 6
    assert (tops[1] > 0).sum() == 4
    narrow = (tops[5][:, 5] > 0.9) & (tops[1].ravel() > 0)
    assert not tops[3][narrow].any()


def test_where_background_lacks_others_are_picked_up_or_one_is_drawn() -> None:
    none = TRUTH * [0, *[1] * 7] - [1, *[0] * 7]
    it = target_layer("batch_size: 4 bg_thr_lw: 0.1", 5, 4, tops=6)
    tops = forward(it, [ROIS, none])
    assert len(tops[0]) == 4
    it = target_layer("batch_size: 4 bg_thr_lw: 0.1 pickup_discard: false img_width: 90 img_height: 80", 5, 4, tops=6)
    (roi, label, *_) = forward(it, [ROIS, none])
    assert roi.shape[0] == 1
    assert label.item() == 0
    with pytest.raises(LayerError, match="img_width 0, img_height 0 allow none"):
        forward(target_layer("pickup_discard: false bg_thr_lw: 0.1", 5, 4, tops=6), [ROIS, none])


def test_targets_that_are_refused() -> None:
    def what(fields: str) -> tuple[str, str]:
        return refusal(f'type: "ProposalTarget" proposal_target_param {{ {fields} }}', (5, 5), (4, 8), tops=6)

    assert what("batch_size: 0") == ("batch_size 0", "proposal_target_param.batch_size")
    assert what("fg_thr: 0.3") == ("fg_thr 0.3 is below bg_thr_hg 0.5", "proposal_target_param.fg_thr")
    with pytest.raises(LayerError, match="num_img_per_batch 2"):
        forward(target_layer("", 5, 4), [ROIS + np.array([2, 0, 0, 0, 0]), TRUTH])
    with pytest.raises(LayerError, match="label 7 of 3 classes"):
        forward(target_layer("", 5, 4), [ROIS, TRUTH + np.array([0, 0, 0, 0, 0, 5, 0, 0])])


def group_truth() -> Array:
    """Two items of two fields, 3 x 4 cells: label, middle, size, overlap."""
    truth = np.zeros((4, 6, 3, 4))
    truth[:, 0] = RNG.choice([0, 0, 1, 2], (4, 3, 4))
    truth[:, 1:3], truth[:, 3:5] = RNG.uniform(0, 30, (4, 2, 3, 4)), RNG.uniform(1, 60, (4, 2, 3, 4))
    truth[:, 5] = RNG.uniform(0, 1, (4, 3, 4))
    return truth


@pytest.mark.parametrize("ignore", [None, 2])
def test_accuracy_of_groups(ignore: int | None) -> None:
    scores, codes, truth = RNG.normal(size=(4, 3, 3, 4)), RNG.normal(0, 2, (4, 4, 3, 4)), group_truth()
    fields = f"cls_num: 3 {FIELDS} field_xyr: 2 field_whr: 2"
    loss = f"loss_param {{ ignore_label: {ignore} }}" if ignore else ""
    text = f'type: "DetectionGroupAccuracy" detection_group_accuracy_param {{ {fields} }} {loss} {REG % ""}'
    right, objects, shares = [], [], []
    for n, y, x in np.ndindex(4, 3, 4):
        label = int(truth[n, 0, y, x])
        if label == ignore:
            continue
        if label or truth[n, 5, y, x] < 0.5:
            right.append(scores[n, :, y, x].argmax() == label)
        if label:
            objects.append(right[-1])
            left, top, w, h = decoded(codes[n, :, y, x], WIDTHS[n % 2], HEIGHTS[n % 2], x, y)
            cx, cy, tw, th = truth[n, 1:5, y, x]
            box = np.array([cx - tw / 2, cy - th / 2, cx + tw / 2 - 1, cy + th / 2 - 1])
            shares.append(shared_closed(np.array([left, top, left + w - 1, top + h - 1]), box))
    found = forward(lone(text, scores.shape, codes.shape, truth.shape, tops=2), [scores, codes, truth])
    np.testing.assert_allclose(found[0].ravel(), [np.mean(right), np.mean(objects)], rtol=1e-6)
    np.testing.assert_allclose(found[1].ravel(), [np.mean(shares)], rtol=1e-3)


def shared_closed(a: Array, b: Array) -> float:
    """Of boxes that share the row where they touch."""
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    common = w * h if w >= 1 and h >= 1 else 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return float(common / (sum(areas) - common)) if min(b[2] - b[0], b[3] - b[1]) > -1 else 0.0


def loss_layer(fields: str) -> Lone:
    text = f'type: "DetectionGroupLoss" detection_group_loss_param {{ cls_num: 3 lambda: 0.5 {FIELDS} {fields} }}'
    return lone(f"{text} {REG % ''}", (4, 3, 3, 4), (4, 4, 3, 4), (4, 6, 3, 4))


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_loss_of_groups(euclidean: bool, bounded: bool) -> None:
    scores, codes, truth = RNG.normal(size=(4, 3, 3, 4)), RNG.normal(0, 2, (4, 4, 3, 4)), group_truth()
    kind = "Euclidean_L2" if euclidean else "Smooth_L1"
    fields = f'neg_mining_type: "bootstrap" bg_multiple: 1 min_num_neg: 2 bbox_loss_type: "{kind}"'
    it = loss_layer(fields + (" field_xyr: 2 field_whr: 2" if bounded else ""))
    errors = -(scores - np.log(np.exp(scores).sum(1, keepdims=True)))
    low = np.array([(-0.5 - 0.05) / 0.1] * 2 + [(-log(2) + 0.05) / 0.2] * 2)
    high = np.array([(0.5 - 0.05) / 0.1] * 2 + [(log(2) + 0.05) / 0.2] * 2)
    classes, boxes, slopes = [], [], [np.zeros(scores.shape), np.zeros(codes.shape)]
    for item in range(2):
        places = [(2 * item + g, y, x) for g, y, x in np.ndindex(2, 3, 4)]
        objects = [place for place in places if truth[place[0], 0, place[1], place[2]] > 0]
        others = [(n, y, x) for n, y, x in places if truth[n, 0, y, x] == 0 and truth[n, 5, y, x] < 0.5]
        hard = sorted(others, key=lambda place: -errors[place[0], 0, place[1], place[2]])
        for n, y, x in [*objects, *hard[: max(len(objects), 2)]]:
            label = int(truth[n, 0, y, x])
            classes.append(errors[n, label, y, x])
            slopes[0][n, :, y, x] = np.exp(-errors[n, :, y, x]) - np.eye(3)[label]
            if label:
                cx, cy, w, h = truth[n, 1:5, y, x]
                fw, fh = WIDTHS[n % 2], HEIGHTS[n % 2]
                raw = [(cx - (x + 0.5) * 8) / fw, (cy - (y + 0.5) * 8) / fh, log(max(w, 2) / fw), log(max(h, 2) / fh)]
                code = np.clip(codes[n, :, y, x], low, high) if bounded else codes[n, :, y, x]
                shift = code - (np.array(raw) - MEANS) / STDS
                smooth = np.where(abs(shift) < 1, shift**2 / 2, abs(shift) - 0.5)
                boxes += list(shift**2 / 2 if euclidean else smooth)
                slopes[1][n, :, y, x] = shift if euclidean else shift.clip(-1, 1)
    wanted = np.mean(classes) + 0.5 * np.mean(boxes), 0.5 * np.mean(boxes)
    bottoms = [scores, codes, truth]
    np.testing.assert_allclose(forward(it, bottoms)[0].ravel(), wanted, rtol=1e-4)
    found, _ = gradients(it, bottoms, [np.array([1.0, 1.0]).reshape(1, 1, 1, 2)])
    np.testing.assert_allclose(found[0], slopes[0] / len(classes), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], 0.5 * slopes[1] / len(boxes), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mining", ["random", "mixture"])
def test_background_drawn_at_random(mining: str) -> None:
    torch.manual_seed(3)
    truth = group_truth()
    truth[:, 5] = 0
    it = loss_layer(f'batch_size: 6 bg_multiple: 2 neg_mining_type: "{mining}" neg_ranking_type: "conf_prob"')
    scores, codes = RNG.normal(size=(4, 3, 3, 4)), np.zeros((4, 4, 3, 4))
    gradient = gradients(it, [scores, codes, truth], [np.array([1.0, 0]).reshape(1, 1, 1, 2)])[0][0]
    used = gradient.any(1).reshape(2, -1)
    labels = truth[:, 0].reshape(2, -1)
    assert (used & (labels > 0)).sum(1).tolist() == [2, 2]
    assert (used & (labels == 0)).sum(1).tolist() == [4, 4]


def test_weights_of_objects_and_background() -> None:
    truth = group_truth()
    truth[:, 5] = 0
    scores, codes = RNG.normal(size=(4, 3, 3, 4)), np.zeros((4, 4, 3, 4))
    it = loss_layer("batch_size: 999 bg_multiple: 3 pos_neg_weighted: true")
    errors = -(scores - np.log(np.exp(scores).sum(1, keepdims=True)))
    labels = truth[:, 0].astype(int)
    own = np.take_along_axis(errors, labels[:, None], 1)[:, 0]
    found = forward(it, [scores, codes, truth])[0].ravel()
    wanted = 0.25 * own[labels > 0].mean() + 0.75 * own[labels == 0].mean()
    np.testing.assert_allclose(found[0] - found[1], wanted, rtol=1e-4)


@pytest.mark.parametrize("name", ["neg_mining_type", "neg_ranking_type", "bbox_loss_type"])
def test_kinds_of_loss_that_do_not_exist(name: str) -> None:
    shapes = ((4, 3, 3, 4), (4, 4, 3, 4), (4, 6, 3, 4))
    text = f'type: "DetectionGroupLoss" detection_group_loss_param {{ cls_num: 3 {FIELDS} {name}: "x" }}'
    assert refusal(text, *shapes) == (f'{name} "x" is not known', f"detection_group_loss_param.{name}")
    text = f'type: "DetectionGroupLoss" detection_group_loss_param {{ cls_num: 3 {FIELDS} batch_size: 0 }}'
    assert refusal(text, *shapes) == ("batch_size 0", "detection_group_loss_param.batch_size")


def test_groups_that_do_not_fit() -> None:
    text = f'type: "DetectionGroupAccuracy" detection_group_accuracy_param {{ cls_num: 3 {FIELDS} objectness: true }}'
    with pytest.raises(LayerError, match="objectness tells two classes"):
        lone(text, (4, 3, 3, 4), (4, 4, 3, 4), (4, 6, 3, 4))
    with pytest.raises(LayerError, match=r"bottom 2 has shape \(4, 5, 3, 4\)"):
        lone(text, (4, 3, 3, 4), (4, 4, 3, 4), (4, 5, 3, 4))
    with pytest.raises(LayerError, match="for 2 fields"):
        lone(text, (3, 3, 3, 4), (3, 4, 3, 4), (3, 6, 3, 4))
