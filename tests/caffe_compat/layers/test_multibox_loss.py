"""MultiBoxLoss against loops over single boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers import naive_boxes as naive
from tests.caffe_compat.layers.harness import Array, Lone, check_gradients, forward, gradients, lone
from tests.caffe_compat.layers.refusals import refusal

N, P, C = 3, 14, 3
TRUTH = [  # image, label, box
    (0, 1, (0.1, 0.1, 0.5, 0.6)),
    (0, 2, (0.3, 0.2, 0.9, 0.8)),
    (2, 1, (0.5, 0.5, 0.95, 0.9)),
    (2, 1, (0.05, 0.4, 0.4, 0.95)),
]
ONE = [np.array(1.0)]


def text(fields: str, loss: str = "") -> str:
    return f'type: "MultiBoxLoss" {loss} multibox_loss_param {{ num_classes: {C} {fields} }}'


def true_rows(truth: list[tuple[int, int, tuple[float, ...]]] = TRUTH, difficult: tuple[int, ...] = ()) -> Array:
    """(1, 1, G, 8), with a row of -1 at the end."""
    rows = [[image, label, 0, *box, i in difficult] for i, (image, label, box) in enumerate(truth)]
    return np.array([*rows, [-1.0] * 8])[None, None].astype(np.float32).astype(np.float64)


def bottoms(located: int = 1, truth: Array | None = None) -> list[Array]:
    generator = np.random.default_rng(3)
    boxes = naive.random_boxes(P, least=0.3, most=0.7)
    prior = np.stack([boxes.ravel(), np.tile([0.1, 0.1, 0.2, 0.2], P)])[None]
    loc, conf = generator.normal(0, 0.8, (N, P * located * 4)), generator.normal(0, 1, (N, P * C))
    values = [loc, conf, prior.astype(np.float32), true_rows() if truth is None else truth]
    return [value.astype(np.float64) for value in values]


def build(fields: str, values: list[Array], loss: str = "", dialect: str = "") -> Lone:
    return lone(text(fields, loss), *(value.shape for value in values), phase="TRAIN", dialect=dialect)


class Reference:
    """The loss of a layer, box by box."""

    def __init__(self, it: Lone, values: list[Array]) -> None:
        self.p: Any = it.layer.p
        self.loc = values[0].reshape(N, P, -1, 4)
        self.conf = values[1].reshape(N, P, C)
        self.boxes, self.variances = values[2].reshape(2, P, 4)
        self.rows = [
            row for row in values[3].reshape(-1, 8) if row[0] != -1 and (self.p.use_difficult_gt or not row[7])
        ]
        self.matches: dict[tuple[int, int, int], Array] = {}
        self.negatives: list[tuple[int, int]] = []
        for image in range(N):
            self.choose(image, [row for row in self.rows if row[0] == image])

    def enum(self, field: str) -> str:
        name: str = self.p.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[getattr(self.p, field)].name
        return name

    def decoded(self, image: int, prior: int, column: int) -> list[float]:
        code = self.loc[image, prior, column]
        in_target = self.p.encode_variance_in_target
        return naive.decode(code, self.boxes[prior], self.variances[prior], self.enum("code_type"), in_target)

    def choose(self, image: int, truth: list[Array]) -> None:
        if not truth:
            return
        limit = self.p.overlap_threshold if self.enum("match_type") == "PER_PREDICTION" else None
        shared = self.p.share_location
        for column in range(self.loc.shape[2]):
            if not shared and column == self.p.background_label_id:
                continue
            own = truth if shared or self.p.use_prior_for_matching else [r for r in truth if r[1] == column]
            boxes = list(self.boxes)
            if not self.p.use_prior_for_matching:
                boxes = [self.decoded(image, prior, column) for prior in range(P)]
            true = [row[3:7] for row in own]
            index = naive.match(boxes, true, limit, self.p.ignore_cross_boundary_bbox)
            found = {(image, prior, column): own[j] for prior, j in enumerate(index) if j >= 0}
            self.matches |= {key: row for key, row in found.items() if shared or row[1] == column}
            if self.enum("mining_type") != "NONE":
                self.mine(image, boxes, true, index)

    def mine(self, image: int, boxes: list[Any], true: list[Any], index: list[int]) -> None:
        hard = self.enum("mining_type") == "HARD_EXAMPLE"
        close = [max(naive.overlap(box, other) for other in true) for box in boxes]
        losses = [self.prior_loss(image, prior, hard) for prior in range(P)]
        able = [i for i in range(P) if hard or (index[i] == -1 and close[i] < self.p.neg_overlap)]
        positives = sum(j >= 0 for j in index)
        count = self.p.sample_size if hard else int(positives * self.p.neg_pos_ratio)
        able.sort(key=lambda i: -losses[i])
        if self.p.HasField("nms_param"):
            able = able[: self.p.nms_param.top_k]
            compared = [boxes[i] if self.p.use_prior_for_nms else self.decoded(image, i, 0) for i in able]
            able = [able[k] for k in naive.suppress(compared, self.p.nms_param.nms_threshold)]
        chosen = set(able[:count])
        if hard:
            self.matches = {k: row for k, row in self.matches.items() if k[0] != image or k[1] in chosen}
        self.negatives += [(image, i) for i in sorted(chosen) if index[i] == -1]

    def prior_loss(self, image: int, prior: int, hard: bool) -> float:
        row = self.matches.get((image, prior, 0))
        label = int(row[1]) if row is not None else self.p.background_label_id
        loss = self.conf_loss(self.conf[image, prior], label, np.eye(C)[label])
        return loss + (sum(self.loc_losses((image, prior, 0), row)) if hard and row is not None else 0)

    def conf_loss(self, scores: Array, label: int, targets: Array) -> float:
        softmax = self.enum("conf_loss_type") == "SOFTMAX"
        return naive.softmax_loss(scores, label) if softmax else naive.logistic_loss(scores, targets)

    def loc_losses(self, key: tuple[int, int, int], row: Array) -> list[float]:
        image, prior, column = key
        variance, in_target = self.variances[prior], self.p.encode_variance_in_target
        target = naive.encode(row[3:7], self.boxes[prior], variance, self.enum("code_type"), in_target)
        divisor = variance if in_target else np.ones(4)
        difference = (self.loc[image, prior, column] - target) / divisor
        box = self.boxes[prior] if self.p.use_prior_for_matching else self.decoded(image, prior, column)
        if self.p.bp_inside:
            difference = [d if 0 <= side <= 1 else 0.0 for d, side in zip(difference, box, strict=True)]
        quadratic = self.enum("loc_loss_type") == "L2"
        return [d * d / 2 if quadratic else naive.smooth_l1(d) for d in difference]

    def parts(self) -> tuple[float, float, int]:
        """Location loss, confidence loss, matches."""
        loc = sum(sum(self.loc_losses(key, row)) for key, row in self.matches.items())
        labels = {key[:2]: 1 if self.p.map_object_to_agnostic else int(row[1]) for key, row in self.matches.items()}
        if self.enum("mining_type") != "NONE":
            labels |= dict.fromkeys(self.negatives, self.p.background_label_id)
            rows = [(self.conf[key], label, np.eye(C)[label]) for key, label in labels.items()]
            return loc, sum(self.conf_loss(*row) for row in rows), len(self.matches)
        targets = np.full(N * P * C, float(self.p.background_label_id))
        for (image, prior), label in labels.items():
            targets[image * P + prior * C + label] = 1
        every = [(i, j) for i in range(N) for j in range(P)]
        background = self.p.background_label_id
        conf = sum(
            self.conf_loss(self.conf[key], labels.get(key, background), targets.reshape(N, P, C)[key]) for key in every
        )
        return loc, conf, len(self.matches)


@pytest.mark.parametrize(
    "fields",
    [
        "",
        "code_type: CENTER_SIZE",
        "code_type: CENTER_SIZE loc_loss_type: L2 loc_weight: 2.5",
        "code_type: CORNER_SIZE encode_variance_in_target: true",
        "match_type: BIPARTITE mining_type: NONE",
        "overlap_threshold: 0.2 neg_overlap: 0.3 neg_pos_ratio: 1.7",
        "ignore_cross_boundary_bbox: true overlap_threshold: 0.3",
        "bp_inside: true overlap_threshold: 0.1",
        "bp_inside: true use_prior_for_matching: false code_type: CENTER_SIZE",
        "use_prior_for_matching: false code_type: CENTER_SIZE",
        "use_prior_for_matching: false share_location: false mining_type: NONE code_type: CENTER_SIZE",
        "share_location: false mining_type: NONE overlap_threshold: 0.3",
        "conf_loss_type: LOGISTIC",
        "conf_loss_type: LOGISTIC mining_type: NONE",
        "mining_type: HARD_EXAMPLE sample_size: 4",
        "mining_type: HARD_EXAMPLE sample_size: 4 loc_loss_type: L2 conf_loss_type: LOGISTIC",
        "mining_type: HARD_EXAMPLE nms_param { nms_threshold: 0.4 top_k: 8 } sample_size: 5",
        "mining_type: HARD_EXAMPLE nms_param { nms_threshold: 0.4 top_k: 8 } use_prior_for_nms: true",
        "nms_param { nms_threshold: 0.5 top_k: 6 } use_prior_for_nms: true",
        "use_difficult_gt: false",
    ],
)
def test_loss_and_gradients(fields: str) -> None:
    values = bottoms(C if "share_location: false" in fields else 1, true_rows(difficult=(1,)))
    it = build(fields, values)
    loc, conf, matches = Reference(it, values).parts()
    assert matches, "the case has nothing to match"
    want = (it.layer.p.loc_weight * loc + conf) / matches
    np.testing.assert_allclose(forward(it, values)[0], want, rtol=1e-5)
    if "encode_variance_in_target" not in fields:
        check_gradients(it, values)


def test_the_gradient_knows_nothing_of_variances_in_the_target() -> None:
    values = bottoms()
    fields = "encode_variance_in_target: true code_type: CENTER_SIZE loc_loss_type: L2"
    it = build(fields, values)
    (got, *_), _ = gradients(it, values, ONE)
    step = np.zeros_like(values[0])
    step[0, 4 * int(np.flatnonzero(got[0])[0] // 4) + 2] = 1e-5
    high, low = (forward(it, [values[0] + s, *values[1:]])[0] for s in (step, -step))
    numeric = (high - low) / 2e-5
    np.testing.assert_allclose(got[step > 0], numeric * 0.2, rtol=1e-4)


@pytest.mark.parametrize(
    ("mode", "divisor"),
    [("FULL", N * P), ("BATCH_SIZE", N), ("NONE", 1), ("VALID", None)],
)
def test_normalization(mode: str, divisor: int | None) -> None:
    values = bottoms()
    it = build("", values, f"loss_param {{ normalization: {mode} }}")
    loc, conf, matches = Reference(it, values).parts()
    np.testing.assert_allclose(forward(it, values)[0], (loc + conf) / (divisor or matches), rtol=1e-5)


@pytest.mark.parametrize(("down", "parts"), [((1, 0), (1, 0)), ((0, 1), (0, 1)), ((0, 0), (0, 0))])
def test_a_part_that_is_not_propagated_does_not_count(down: tuple[int, int], parts: tuple[int, int]) -> None:
    values = bottoms()
    stated = " ".join(f"propagate_down: {'true' if d else 'false'}" for d in (*down, 0, 0))
    it = build("", values, stated)
    loc, conf, matches = Reference(it, values).parts()
    want = (parts[0] * loc + parts[1] * conf) / matches
    np.testing.assert_allclose(forward(it, values)[0], want, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("fields", ["", "mining_type: HARD_EXAMPLE", "mining_type: NONE"])
def test_nothing_to_match(fields: str) -> None:
    values = bottoms(truth=np.full((1, 1, 1, 8), -1.0))
    it = build(fields, values)
    want = Reference(it, values).parts()[1]
    assert (want > 0) == ("NONE" in fields)
    np.testing.assert_allclose(forward(it, values)[0], want, rtol=1e-6)
    (loc, conf, prior, label), _ = gradients(it, values, ONE)
    assert not loc.any()
    assert not prior.any()
    assert not label.any()
    assert conf.any() == ("NONE" in fields)


def test_a_box_across_the_border_beside_the_only_true_one() -> None:
    values = bottoms(C, true_rows(TRUTH[:1]))
    assert (values[2][0, 0] < 0).any()
    it = build("share_location: false mining_type: NONE ignore_cross_boundary_bbox: true", values)
    loc, conf, matches = Reference(it, values).parts()
    np.testing.assert_allclose(forward(it, values)[0], (loc + conf) / matches, rtol=1e-5)


def test_suppression_without_top_k_selects_nothing() -> None:
    values = bottoms()
    it = build("mining_type: HARD_EXAMPLE nms_param { nms_threshold: 0.4 }", values)
    assert forward(it, values)[0] == 0


def test_all_objects_as_one_class() -> None:
    values = bottoms()
    values[1] = values[1].reshape(N, P, C)[..., :2].reshape(N, -1)
    it = lone(
        'type: "MultiBoxLoss" multibox_loss_param { num_classes: 2 map_object_to_agnostic: true mining_type: NONE }',
        *(value.shape for value in values),
    )
    one_class = values[3].copy()
    one_class[..., 1] = 1
    assert forward(it, values)[0] == forward(it, [*values[:3], one_class])[0]


@pytest.mark.parametrize(("classes", "labels", "same"), [(2, (1, 7), (1, 1)), (3, (1, 9), (1, 2))])
def test_openvino_takes_labels_that_are_too_large(classes: int, labels: tuple[int, int], same: tuple[int, int]) -> None:
    boxes = [(0, box) for _, _, box in TRUTH[:2]]

    def loss(pair: tuple[int, int], dialect: str) -> Array:
        truth = true_rows([(image, label, box) for label, (image, box) in zip(pair, boxes, strict=True)])
        values = bottoms(truth=truth)
        values[1] = values[1].reshape(N, P, C)[..., :classes].reshape(N, -1)
        stated = f'type: "MultiBoxLoss" multibox_loss_param {{ num_classes: {classes} }}'
        return forward(lone(stated, *(value.shape for value in values), dialect=dialect), values)[0]

    assert loss(labels, "openvino") == loss(same, "openvino") == loss(same, "ssd")
    with pytest.raises(LayerError, match=f"label {labels[1]}, not one of the {classes} classes"):
        loss(labels, "ssd")


def test_the_background_is_no_true_label() -> None:
    values = bottoms(truth=true_rows([(0, 0, TRUTH[0][2])]))
    with pytest.raises(LayerError, match="a true box has the background's label 0"):
        forward(build("", values), values)


def test_boxes_without_size_match_nothing() -> None:
    values = bottoms(truth=true_rows([*TRUTH, (1, 1, (0.2, 0.2, 0.2, 0.6))]))
    values[2][0, 0, :4] = (0.3, 0.2, 0.3, 0.9)
    it = build("code_type: CENTER_SIZE overlap_threshold: 0.01", values)
    reference = Reference(it, values)
    assert not [key for key in reference.matches if key[0] == 1 or key[1] == 0]
    loc, conf, matches = reference.parts()
    np.testing.assert_allclose(forward(it, values)[0], (loc + conf) / matches, rtol=1e-5)
    with pytest.raises(LayerError, match=r"prior box \[0.3.* has no width or no height"):
        forward(build("code_type: CENTER_SIZE use_prior_for_matching: false", values), values)


def test_variances_are_positive() -> None:
    values = bottoms()
    values[2][0, 1] = 0
    with pytest.raises(LayerError, match="a variance is not positive"):
        forward(build("", values), values)


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("do_neg_mining: false", "do_neg_mining False contradicts", "do_neg_mining"),
        ("share_location: false", "mining needs locations", "mining_type"),
        ("mining_type: HARD_EXAMPLE sample_size: 0", "sample_size 0", "sample_size"),
        ("background_label_id: 3", "background_label_id 3 is not one of the 3", "background_label_id"),
        ("map_object_to_agnostic: true", "map_object_to_agnostic with 3 classes", "map_object_to_agnostic"),
    ],
)
def test_refused_parameters(fields: str, what: str, field: str) -> None:
    located = C if "share_location" in fields else 1
    message, place = refusal(text(fields), *(value.shape for value in bottoms(located)))
    assert what in message
    assert place == f"multibox_loss_param.{field}"


def test_bottoms_that_do_not_fit() -> None:
    shapes = [value.shape for value in bottoms()]
    for position, shape, message in (
        (0, (N, P * 4 + 4), "14 priors need 56"),
        (1, (N + 1, P * C), "first dimension"),
        (3, (1, 1, 2, 7), "the true boxes have shape"),
    ):
        changed = [shape if i == position else old for i, old in enumerate(shapes)]
        with pytest.raises(LayerError, match=message):
            lone(text(""), *changed)
    with pytest.raises(LayerError, match="num_classes is missing"):
        lone('type: "MultiBoxLoss"', *shapes)
