"""Layers of openvinotoolkit/training_toolbox_caffe against loops."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from caffe_compat.errors import ConversionError, LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers import naive_boxes as naive
from tests.caffe_compat.layers.harness import Array, Lone, arrays, check_gradients, export, forward, gradients, lone
from tests.caffe_compat.layers.refusals import refusal

# -- GRN ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3), (4,)])
def test_channels_of_length_one(shape: Shape) -> None:
    (x,) = arrays(shape)
    it = lone('type: "GRN" grn_param { bias: 0.25 }', shape)
    full = x.reshape(*shape, *[1] * (4 - len(shape)))
    want = np.zeros(full.shape)
    for n, c, i, j in np.ndindex(*full.shape):
        want[n, c, i, j] = full[n, c, i, j] / sqrt(sum(v * v for v in full[n, :, i, j]) + 0.25)
    np.testing.assert_allclose(forward(it, [x])[0], want.reshape(shape), rtol=1e-12)
    check_gradients(it, [x])


def test_gradients_that_pass_as_they_are() -> None:
    x, grad = arrays((2, 3, 4), (2, 3, 4))
    true, dummy = (lone(f'type: "GRN" grn_param {{ dummy_backward: {flag} }}', x.shape) for flag in ("false", "true"))
    np.testing.assert_array_equal(forward(dummy, [x])[0], forward(true, [x])[0])
    np.testing.assert_array_equal(gradients(dummy, [x], [grad])[0][0], grad)


def test_what_grn_refuses() -> None:
    assert refusal('type: "GRN" grn_param { bias: -1 }', (2, 3)) == ("bias -1 is negative", "grn_param.bias")
    assert refusal('type: "GRN"', (1, 2, 3, 4, 5)) == ("bottom 0 has 5 axes; GRN allows 4", "bottom[0]")


# -- ScaleFilter -------------------------------------------------------------------------------------------

FILTER = 'type: "ScaleFilter" scale_filter_param { min_scale: 0.5 max_scale: 1.5 }'


def test_each_channel_is_scaled_by_chance() -> None:
    (x,) = arrays((6, 20, 3, 2))
    np.testing.assert_array_equal(forward(lone(FILTER, x.shape), [x])[0], x)
    it = lone(FILTER, x.shape, phase="TRAIN")
    scales = forward(it, [x])[0] / x
    np.testing.assert_allclose(scales, np.broadcast_to(scales[:, :, :1, :1], x.shape), rtol=1e-12)
    assert 0.5 <= scales.min() < 0.55
    assert 1.45 < scales.max() < 1.5
    assert len(np.unique(scales[:, :, 0, 0].round(9))) == 120
    (found,), _ = gradients(it, [x], [np.ones(x.shape)])
    assert 0.5 <= found.min() < found.max() < 1.5
    with pytest.raises(ConversionError, match="ScaleFilter has no exact form"):
        export(it)


@pytest.mark.parametrize(
    ("fields", "shape", "want"),
    [
        ("max_scale: 1", (1, 2, 3, 4), ("min_scale 0 is not positive", "scale_filter_param.min_scale")),
        ("min_scale: 1 max_scale: 1", (1, 2, 3, 4), ("max_scale 1 <= min_scale 1", "scale_filter_param.max_scale")),
        ("", (2, 3), ("the bottom has shape (2, 3); four axes are needed", "bottom[0]")),
    ],
)
def test_what_scale_filter_refuses(fields: str, shape: Shape, want: tuple[str, str]) -> None:
    assert refusal(f'type: "ScaleFilter" scale_filter_param {{ {fields} }}', shape) == want


# -- LabelSpecificAdd --------------------------------------------------------------------------------------

MARGIN = 'type: "LabelSpecificAdd" label_specific_add_param { bias: -0.5 transform_test: true }'


def test_margins_of_labels() -> None:
    x = np.array([[1.0, 2, 3], [0.5, 0.25, 0], [-1, 0.75, 2], [0.25, 9, 9]])
    labels, grad = np.array([2.0, 0, 1.9, 0]), arrays(x.shape)[0]
    it = lone(MARGIN, x.shape, (4,), phase="TRAIN", dialect="openvino")
    want = x.copy()
    want[0, 2], want[2, 1] = 2.5, 0.25  # the others are not greater than 0.5
    np.testing.assert_array_equal(forward(it, [x, labels])[0], want)
    (of_x, _), _ = gradients(it, [x, labels], [grad])
    np.testing.assert_array_equal(of_x, grad)
    test = lone(MARGIN, x.shape, (4,), dialect="openvino")
    np.testing.assert_array_equal(forward(test, [x, labels])[0], x)
    assert test.layer.notes() == ["transform_test has no effect"]
    with pytest.raises(ConversionError, match="LabelSpecificAdd has no exact form"):
        export(it)


def test_labels_count_through_an_item() -> None:
    (x,) = arrays((2, 3, 2, 2), low=1)
    it = lone(MARGIN, x.shape, (2, 1, 1), phase="TRAIN", dialect="openvino")
    changed = (x - forward(it, [x, np.array([7.0, 11]).reshape(2, 1, 1)])[0]).reshape(2, 12)
    np.testing.assert_allclose(changed, 0.5 * np.eye(12)[[7, 11]], atol=1e-15)
    with pytest.raises(LayerError, match="label 12 at index 1"):
        forward(it, [x, np.array([7.0, 12]).reshape(2, 1, 1)])


def test_labels_that_are_missing() -> None:
    with pytest.raises(LayerError, match="labels of shape"):
        lone(MARGIN, (2, 3), (3,), dialect="openvino")


# -- DetectionOutputExtended -------------------------------------------------------------------------------

N, H, W, A = 2, 3, 4, 2
P = H * W * A
SHAPES = ((N, H, W, 4 * A), (N, P, 2), (1, 2, 4 * P))


def extended(fields: str, *shapes: Shape) -> Lone:
    text = f'type: "DetectionOutputExtended" detection_output_param {{ num_classes: 2 {fields} }}'
    return lone(text, *(shapes or SHAPES))


def predictions() -> list[Array]:
    generator = np.random.default_rng(2)
    boxes = naive.random_boxes(P, least=0.2).reshape(-1)
    prior = np.stack([boxes, np.tile([0.1, 0.1, 0.2, 0.2], P)])[None]
    found = generator.normal(0, 0.5, SHAPES[0]), generator.dirichlet(np.ones(2), (N, P)), prior
    return [values.astype(np.float32).astype(np.float64) for values in found]


@pytest.mark.parametrize(("most", "keep"), [(-1, -1), (9, -1), (-1, 4), (400, 3)])
def test_boxes_with_their_cells(most: int, keep: int) -> None:
    nms = f"nms_param {{ nms_threshold: 0.3 top_k: {most} }}"
    fields = f"{nms} keep_top_k: {keep} code_type: CENTER_SIZE confidence_threshold: 0.2 background_label_id: -1"
    loc, conf, prior = predictions()
    boxes, variances = prior.reshape(2, P, 4)
    want = []
    for image in range(N):
        scores = conf[image, :, 1]
        order = sorted((i for i in range(P) if scores[i] > 0.2), key=lambda i: -scores[i])[: most if most > 0 else P]
        codes = loc[image].reshape(P, 4)
        found = [naive.decode(codes[i], boxes[i], variances[i], "CENTER_SIZE", False) for i in order]
        kept = naive.suppress(found, 0.3, 1.0)[: keep if keep > 0 else P]
        cells = {y * W * A + x * A + a: (a, x, y) for y in range(H) for x in range(W) for a in range(A)}
        want += [[image, 1, scores[order[j]], *found[j], *cells[order[j]]] for j in kept]
    (top,) = forward(extended(fields), [loc, conf, prior])
    assert top.shape == (1, 1, len(want), 10)
    assert len(want) > N
    np.testing.assert_allclose(top[0, 0], want, atol=1e-6)


def test_nothing_is_found() -> None:
    it = extended("confidence_threshold: 2 code_type: CENTER_SIZE")
    assert it.top_shapes == [(1, 1, 1, 10)]
    (top,) = forward(it, predictions())
    np.testing.assert_array_equal(top, [[[[0, *[-1] * 9], [1, *[-1] * 9]]]])


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("num_classes: 3", "num_classes 3", "num_classes"),
        ("num_classes: 2 share_location: false", "share_location: false reads", "share_location"),
        ("num_classes: 2 nms_param { nms_threshold: -1 }", "nms_threshold -1.0 is negative", "nms_param.nms_threshold"),
        ("num_classes: 2 nms_param { eta: 2 }", "eta 2.0 is not in", "nms_param.eta"),
    ],
)
def test_what_extended_output_refuses(fields: str, what: str, field: str) -> None:
    found = refusal(f'type: "DetectionOutputExtended" detection_output_param {{ {fields} }}', *SHAPES)
    assert found[0].startswith(what)
    assert found[1] == f"detection_output_param.{field}"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((N, 4 * P), *SHAPES[1:]), "locations of shape"),
        (((N, H, 4 * A, W - 2), *SHAPES[1:]), "locations of shape"),
        ((SHAPES[0], (1, P, 2), SHAPES[2]), "2 items with locations"),
        ((SHAPES[0], (N, P), SHAPES[2]), "bottom 1 of shape"),
        ((*SHAPES[:2], (1, 2, 4 * P + 4)), "bottom 0 of shape"),
        ((*SHAPES[:2], (1, 1, 4 * P)), "boxes and variances are needed"),
    ],
)
def test_predictions_that_do_not_fit(shapes: tuple[Shape, ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        extended("", *shapes)


# -- AnchorEmbeddingExtractor ------------------------------------------------------------------------------

MAPS: tuple[Shape, ...] = ((2, 3, 4, 5),) * 4
ROWS = np.array(
    [
        [0, 1, 0.1, 0.2, 0.3, 0.4, 2, 7, 1, 4, 3],
        [1, 1, 0.5, 0.6, 0.7, 0.8, 0, 7, 0, 0, 2],
        [-1, 1, 0.5, 0.6, 0.7, 0.8, 9, 7, 0, 9, 9],
        [0, 1, 0.1, 0.1, 0.9, 0.9, 3, 7, 2, 1, 1],
        [0, 1, 0.2, 0.2, 0.8, 0.8, 2, 7, 5, 4, 3],
    ]
)


def extractor(fields: str, tops: int = 2, rows: int = len(ROWS)) -> Lone:
    fields = f"num_anchors: 4 label_src_pos: 8 {fields}"
    text = f'type: "AnchorEmbeddingExtractor" embedding_extractor_param {{ {fields} }}'
    return lone(text, (1, 1, rows, 11), *MAPS, tops=tops)


@pytest.mark.parametrize(("fields", "counted"), [("", [0, 1, 3, 4]), ("num_valid_actions: 3", [0, 1, 3])])
def test_embeddings_of_detections(fields: str, counted: list[int]) -> None:
    maps = arrays(*MAPS)
    found, labels = forward(it := extractor(fields), [ROWS[None, None], *maps])
    rows = ROWS[counted].astype(int)
    np.testing.assert_array_equal(found, [maps[r[6]][r[0], :, r[10], r[9]] for r in rows])
    np.testing.assert_array_equal(labels, rows[:, 8])
    (grad,) = arrays(found.shape)
    (_, *of_maps), _ = gradients(it, [ROWS[None, None], *maps], [grad, labels])
    want = [np.zeros(shape) for shape in MAPS]
    for r, g in zip(rows, grad, strict=True):
        want[r[6]][r[0], :, r[10], r[9]] += g
    np.testing.assert_array_equal(of_maps, want)


def test_the_third_top() -> None:
    bottoms = [ROWS[None, None], *arrays(*MAPS)]
    weights = forward(extractor("output_instance_weights: true", 3), bottoms)[2]
    np.testing.assert_allclose(weights, [1 / 3, 1, 1 / 3, 1 / 3])
    proposals = forward(extractor("output_proposals: true", 3), bottoms)[2]
    np.testing.assert_array_equal(proposals, ROWS[[0, 1, 3, 4]][:, [0, 2, 3, 4, 5]])


@pytest.mark.parametrize(("mode", "third"), [("output_instance_weights", [-1]), ("output_proposals", [[-1] * 5])])
def test_no_detection_counts(mode: str, third: list[int]) -> None:
    it = extractor(f"{mode}: true", 3, 1)
    assert it.top_shapes == [(1, 3), (1,), np.shape(third)]
    found, labels, other = forward(it, [np.full((1, 1, 1, 11), -1.0), *arrays(*MAPS)])
    assert not found.any()
    np.testing.assert_array_equal(labels, [-1])
    np.testing.assert_array_equal(other, third)


@pytest.mark.parametrize("column", [0, 6, 9, 10])
def test_detections_beside_the_maps(column: int) -> None:
    rows = ROWS[:1].copy()
    rows[0, column] = 5
    with pytest.raises(LayerError, match="a detection with anchor"):
        forward(extractor("", rows=1), [rows[None, None], *arrays(*MAPS)])


def test_detections_of_another_kind() -> None:
    with pytest.raises(LayerError, match="detections of shape"):
        forward(extractor(""), [np.zeros((1, 1, 3, 7)), *arrays(*MAPS)])


@pytest.mark.parametrize(
    ("fields", "tops", "what", "field"),
    [
        ("label_src_pos: 8", 2, "num_anchors 0", ".num_anchors"),
        ("num_anchors: 4", 2, "label_src_pos is not stated", ".label_src_pos"),
        ("num_anchors: 4 label_src_pos: 11", 2, "label_src_pos 11", ".label_src_pos"),
        ("num_anchors: 4 label_src_pos: 8", 3, "three tops, with 0 of", ""),
        (
            "num_anchors: 4 label_src_pos: 8 output_proposals: true output_instance_weights: true",
            3,
            "three tops, with 2 of",
            "",
        ),
    ],
)
def test_what_extraction_refuses(fields: str, tops: int, what: str, field: str) -> None:
    text = f'type: "AnchorEmbeddingExtractor" embedding_extractor_param {{ {fields} }}'
    found = refusal(text, (1, 1, 2, 11), *MAPS, tops=tops)
    assert found[0].startswith(what)
    assert found[1] == f"embedding_extractor_param{field}"


def test_maps_of_several_shapes() -> None:
    text = 'type: "AnchorEmbeddingExtractor" embedding_extractor_param { num_anchors: 4 label_src_pos: 8 }'
    with pytest.raises(LayerError, match="bottom 4 has shape"):
        lone(text, (1, 1, 2, 11), *MAPS[:3], (2, 3, 4, 4), tops=2)


# -- Parameter ---------------------------------------------------------------------------------------------


def test_a_blob_that_starts_by_a_filler() -> None:
    text = 'type: "Parameter" parameter_param { shape { dim: 2 } filler { type: "constant" value: 3 } }'
    (filler,) = lone(text, dialect="openvino").layer.fillers()
    assert (filler.type, filler.value) == ("constant", 3)
    wrong = 'type: "Parameter" parameter_param { shape { dim: 2 } filler { type: "magic" } }'
    assert refusal(wrong, dialect="openvino")[1] == "parameter_param.filler"
