"""DetectionOutput against loops over single boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from caffe_compat.errors import ConversionError, LayerError
from tests.caffe_compat.layers import naive_boxes as naive
from tests.caffe_compat.layers.harness import Array, Lone, export, forward, has_dynamic_batch, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS

N, P, C = 2, 24, 3
SHAPES = ((N, P * 4), (N, P * C), (1, 2, P * 4))


def text(fields: str) -> str:
    return f'type: "DetectionOutput" detection_output_param {{ num_classes: {C} {fields} }}'


def priors(count: int = P) -> Array:
    """(1, 2, count * 4)."""
    boxes = naive.random_boxes(count, least=0.2).reshape(-1)
    return np.stack([boxes, np.tile([0.1, 0.1, 0.2, 0.2], count)])[None]


def bottoms(located: int = 1, seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)
    loc = generator.normal(0, 0.5, (N, P * located * 4))
    conf = generator.dirichlet(np.ones(C), (N, P)).reshape(N, -1)
    return [values.astype(np.float32).astype(np.float64) for values in (loc, conf, priors())]


def reference(it: Lone, loc: Array, conf: Array, prior: Array) -> list[list[float]]:
    """The rows, box by box."""
    p: Any = it.layer.p
    kind = p.DESCRIPTOR.fields_by_name["code_type"].enum_type.values_by_number[p.code_type].name
    boxes, variances = prior.reshape(2, P, 4)
    most = p.nms_param.top_k if p.nms_param.HasField("top_k") else P
    rows = []
    for image in range(N):
        own = []
        for label in range(C):
            if label == p.background_label_id:
                continue
            codes = loc[image].reshape(P, -1, 4)[:, 0 if p.share_location else label]
            scores = conf[image].reshape(P, C)[:, label]
            above = [
                i for i in range(P) if not p.HasField("confidence_threshold") or scores[i] > p.confidence_threshold
            ]
            above = sorted(above, key=lambda i: -scores[i])[:most]
            found = [naive.decode(codes[i], boxes[i], variances[i], kind, p.variance_encoded_in_target) for i in above]
            for j in naive.suppress(found, p.nms_param.nms_threshold, p.nms_param.eta):
                own.append([image, label, scores[above[j]], *found[j]])
        if -1 < p.keep_top_k < len(own):
            own = sorted(sorted(own, key=lambda row: -row[2])[: p.keep_top_k], key=lambda row: row[1])
        rows += own
    return rows or [[image, *[-1] * 6] for image in range(N)]


@pytest.mark.parametrize(
    "fields",
    [
        "",
        "code_type: CENTER_SIZE",
        "code_type: CENTER_SIZE variance_encoded_in_target: true",
        "code_type: CORNER_SIZE nms_param { nms_threshold: 0.45 top_k: 5 }",
        "code_type: CENTER_SIZE confidence_threshold: 0.4",
        "code_type: CENTER_SIZE nms_param { nms_threshold: 0.9 eta: 0.8 } keep_top_k: 7",
        "code_type: CENTER_SIZE keep_top_k: 0",
        "nms_param { top_k: 0 }",
        "background_label_id: 2 keep_top_k: 1000",
        "background_label_id: 7",
        "confidence_threshold: 2",
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_rows(fields: str, shared: bool) -> None:
    values = bottoms(1 if shared else C)
    it = lone(text(f"{fields} share_location: {str(shared).lower()}"), *(value.shape for value in values))
    want = np.array(reference(it, *values))
    (got,) = forward(it, values)
    assert it.top_shapes == [(1, 1, 1, 7)]
    assert got.shape == (1, 1, *want.shape)
    np.testing.assert_allclose(got[0, 0], want, rtol=1e-4, atol=1e-5)


def test_no_background_at_all() -> None:
    values = bottoms(C)
    it = lone(text("background_label_id: -1 share_location: false"), *(value.shape for value in values))
    np.testing.assert_allclose(forward(it, values)[0][0, 0], reference(it, *values), rtol=1e-4, atol=1e-5)


def test_equal_scores_keep_the_order_of_the_priors() -> None:
    loc, conf, prior = bottoms()
    prior[0, 0] = np.concatenate([[i, i, i + 1, i + 1] for i in range(P)])
    (got,) = forward(
        lone(text("nms_param { top_k: 4 } keep_top_k: 5"), *SHAPES), [loc * 0, np.full_like(conf, 0.5), prior]
    )
    assert got[0, 0, :, [0, 1, 3]].T.tolist() == [
        [i, c, x] for i in range(N) for c, x in [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    ]


def test_the_fourth_bottom_is_not_read() -> None:
    values = bottoms()
    with_image = lone(text(""), *SHAPES, (N, 3, 8, 8))
    (got,) = forward(with_image, [*values, np.zeros((N, 3, 8, 8))])
    np.testing.assert_array_equal(got, forward(lone(text(""), *SHAPES), values)[0])


def test_what_does_nothing_is_noted() -> None:
    assert not lone(text(""), *SHAPES).graph.notes
    saved = 'save_output_param { output_directory: "out" label_map_file: "labels" } visualize: true'
    notes = lone(text(saved), *SHAPES).graph.notes
    assert [note.partition(": ")[2] for note in notes] == [
        'no files are written to "out" (save_output_param)',
        "no window is opened (visualize)",
    ]


def test_another_batch_size() -> None:
    loc, conf, prior = bottoms()
    one = forward(lone(text(""), *SHAPES), [loc[:1], conf[:1], prior])[0][0, 0]
    both = forward(lone(text(""), *SHAPES), [loc, conf, prior])[0][0, 0]
    np.testing.assert_array_equal(one, both[both[:, 0] == 0])


def test_a_prior_without_size_is_refused_when_its_size_counts() -> None:
    values = bottoms()
    values[2][0, 0, 4:8] = [0.5, 0.5, 0.5, 0.75]
    forward(lone(text(""), *SHAPES), values)
    with pytest.raises(LayerError, match=r"prior box \[0.5, 0.5, 0.5, 0.75\] has no width or no height"):
        forward(lone(text("code_type: CENTER_SIZE"), *SHAPES), values)


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("background_label_id: -1", "without a background", "background_label_id"),
        ("nms_param { nms_threshold: -0.1 }", "nms_threshold -0.1", "nms_param.nms_threshold"),
        ("nms_param { eta: 0 }", "eta 0.0", "nms_param.eta"),
        ("nms_param { eta: 1.5 }", "eta 1.5", "nms_param.eta"),
    ],
)
def test_refused_parameters(fields: str, what: str, field: str) -> None:
    message, place = refusal(text(fields), *SHAPES)
    assert what in message
    assert place == f"detection_output_param.{field}"


def test_num_classes_is_required() -> None:
    assert refusal('type: "DetectionOutput"', *SHAPES) == (
        "num_classes is missing",
        "detection_output_param.num_classes",
    )


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((N, P * 4), (N + 1, P * C), (1, 2, P * 4)), "2 items with locations, 3 with confidences"),
        (((N, P * 4 + 4), (N, P * C), (1, 2, P * 4)), "24 priors need 96"),
        (((N, P * 4), (N, P * C - 1), (1, 2, P * 4)), "24 priors need 72"),
        (((N, P * 4, 2), (N, P * C), (1, 2, P * 4)), "bottom 0 of shape"),
        (((N, P * 4), (N, P * C), (1, 1, P * 4)), "boxes and variances"),
        (((1, N, 1, P, 4), (N, P * C), (1, 2, P * 4)), "5 axes"),
    ],
)
def test_bottoms_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(text(""), *shapes)


def test_onnx_is_refused_with_the_blobs_to_cut_at() -> None:
    with pytest.raises(ConversionError) as caught:
        export(lone(text("nms_param { eta: 0.9 }"), *SHAPES))
    assert "eta 0.9" in caught.value.what
    assert "in0, in1, in2 outputs" in caught.value.remedy


@pytest.mark.parametrize(
    "fields",
    [
        "",
        "code_type: CENTER_SIZE",
        "code_type: CENTER_SIZE variance_encoded_in_target: true",
        "code_type: CORNER_SIZE nms_param { nms_threshold: 0.45 top_k: 5 }",
        "code_type: CENTER_SIZE confidence_threshold: 0.4 keep_top_k: 3",
        "code_type: CENTER_SIZE confidence_threshold: 2",
        "code_type: CENTER_SIZE keep_top_k: 0",
        "nms_param { top_k: 0 }",
        "nms_param { nms_threshold: 0 top_k: 1000 }",
        "nms_param { nms_threshold: 1.5 }",
        "background_label_id: 2 keep_top_k: 1000",
        "background_label_id: 7 keep_top_k: 6",
        "share_location: false nms_param { top_k: 9 } keep_top_k: 11",
        "share_location: false background_label_id: -1",
    ],
)
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_onnx_runtime_gives_the_same_rows(fields: str, opset: int) -> None:
    located = C if "share_location: false" in fields else 1
    it = lone(text(fields), (1, P * located * 4), (1, P * C), (1, 2, P * 4))
    exported = session(it, opset=opset)
    assert has_dynamic_batch(exported)
    for seed in range(3):
        values = bottoms(located, seed)
        for images in (slice(0, N), slice(1, N)):
            fed = [values[0][images], values[1][images], values[2]]
            (want,) = forward(it, fed, dtype=np.float32)
            (got,) = run_onnx(exported, fed)
            assert got.shape == want.shape
            assert LAYERS.ratio(got, want) <= 1


def test_onnx_keeps_the_order_of_equal_scores() -> None:
    it = lone(text("nms_param { top_k: 4 } keep_top_k: 5"), *SHAPES)
    loc, conf, prior = bottoms()
    fed = [loc * 0, np.full_like(conf, 0.5), prior]
    np.testing.assert_allclose(run_onnx(session(it), fed)[0], forward(it, fed, dtype=np.float32)[0], rtol=1e-6)
