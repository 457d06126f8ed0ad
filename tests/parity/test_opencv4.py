"""What we write, in OpenCV 4's own Caffe importer: it loads and gives what Caffe recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.parity.cases import Case, Folders, fork_cases, golden_cases
from tests.parity.compare import comparing
from tests.parity.nets import Array
from tests.parity.records import Record
from tests.parity.test_cycle import Subject, recorded_subject, written
from tests.tolerances import ENGINES

KNOWN = frozenset(
    {
        *("AbsVal", "BNLL", "BatchNorm", "Concat", "Convolution", "ConvolutionDepthwise", "Correlation", "Crop"),
        *("Deconvolution", "DetectionOutput", "Dropout", "ELU", "Eltwise", "Exp", "Flatten", "FlowWarp", "HardSwish"),
        *("InnerProduct", "Input", "Interp", "LRN", "MVN", "MatMul", "Mish", "Normalize", "PReLU", "PSROIPooling"),
        *("Permute", "Pooling", "Power", "PriorBox", "PriorBoxClustered", "ROIPooling", "ReLU", "ReLU6", "Reorg"),
        *("Reshape", "Scale", "ShuffleChannel", "Sigmoid", "Slice", "Softmax", "Split", "Swish", "TanH"),
    }
)
"""Types that OpenCV's importer has a layer for."""
NO_AXES = "it reads no blobs without axes, as Caffe writes them"
LIMITS: Mapping[str, str] = {
    "batchnorm_global_false": "it has no statistics of a batch",
    "concat_legacy_dim": "it does not read concat_dim",
    "convolution_3d": "it takes two of three sizes",
    "convolution_axis0": "its channels are on axis 1",
    "convolution_axis2": "its channels are on axis 1",
    "convolution_zero_spatial_axes": "its kernels have sizes",
    "correlation_subtract": "it has no subtraction",
    "deconvolution_3d_2": "it has two dimensions",
    "deconvolution_dilated": "it does not dilate",
    "detectionoutput_background_none": "it ends the process",
    "detectionoutput_corner_notopk": "it takes keep_top_k -1 for one box",
    "detectionoutput_corner_size": "its schema has no CORNER_SIZE",
    "detectionoutput_empty": "it takes keep_top_k -1 for one box",
    "detectionoutput_eta": "it takes keep_top_k -1 for one box",
    "detectionoutput_no_conf_threshold": "it takes keep_top_k -1 for one box",
    "detectionoutput_not_shared": "it ends the process",
    "detectionoutput_var_in_target": "it takes keep_top_k -1 for one box",
    "flatten_end_before_start": "it has no such axes",
    "innerproduct_transpose": "it does not read transpose",
    "interp_crop_pad": "it does not read pad_beg and pad_end",
    "interp_shrink2": "it does not read shrink_factor",
    "interp_shrink_zoom": "it does not read shrink_factor",
    "lrn_across_k2": "it does not read k",
    "lrn_defaults": "it has other defaults",
    "matmul_trans_b": "it does not read the fork's fields",
    "mvn_eps": "it puts eps elsewhere",
    "net_outputs_sorted": "an input that nothing reads",
    "normalize_across_perchannel": "it has one factor where it sums over places",
    "normalize_across_shared": NO_AXES,
    "normalize_spatial_shared_eps": NO_AXES,
    "permute_partial": "it wants an order for every axis",
    "pooling_ave_floor_pad_2": "it does not know round_mode",
    "pooling_empty_window_max": "it has -inf for Caffe's -FLT_MAX",
    "pooling_max_floor": "it does not know round_mode",
    "prelu_inplace_2": NO_AXES,
    "prelu_shared": NO_AXES,
    "priorbox_flip_default": "it orders and clips boxes in its own way",
    "priorbox_img_hw_step_hw": "it does not read img_h and step_h",
    "priorbox_img_size": "it does not read img_size",
    "priorbox_multi_sizes_clip": "it orders and clips boxes in its own way",
    "priorbox_noflip_dup_ratio": "it orders and clips boxes in its own way",
    "priorboxclustered_clip_img": "it does not read img_h",
    "reorg_mobilenetyolo_reverse": "it does not read reverse",
    "reshape_insert_axes": "it has no such axes",
    "reshape_neg_axis": "it has no such axes",
    "scale_axis_neg": "it counts no axis from the end",
    "scale_scalar": NO_AXES,
    "slice_legacy_dim_2": "it does not read slice_dim",
    "slice_single_top": "it slices into two at least",
    "swish_beta_2": "it does not read beta",
}
"""Nets that it refuses or computes otherwise although it knows the types, and why."""


def cases(folders: Folders) -> list[Case]:
    found = golden_cases(folders, "layers") + fork_cases(folders)
    able = [case for case in found if case.broken or (set(case.types) <= KNOWN and case.id not in LIMITS)]
    return [replace(case, section="opencv4") for case in able]


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read back at once."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def test_opencv4(case: Case, tmp_path: Path) -> None:
    records = [record for path in case.files(".npz") if (record := Record(path)).phase == "TEST"]
    with comparing() as compare:
        compare.check(True, "nets recorded in the TRAIN phase alone are not for OpenCV")
        for record in records:
            subject = recorded_subject(case, record)
            for blob, got in computed(subject, tmp_path):
                want = record.arrays.get(f"out/{blob}", record.arrays.get(f"blob/{blob}"))
                compare.check(want is not None, f"{blob} is not recorded")
                if want is not None:
                    detection = "DetectionOutput" in case.types
                    shape = got.shape if got.size != want.size else want.shape
                    compare.array(
                        blob, rows(got) if detection else got.reshape(shape), rows(want) if detection else want, ENGINES
                    )


def rows(boxes: Array) -> Array:
    """Detections in one order: OpenCV has the best first, Caffe those of a class together."""
    found = np.asarray(boxes).reshape(-1, 7)
    return found[np.lexsort((-found[:, 2], found[:, 1], found[:, 0]))]


def computed(subject: Subject, folder: Path) -> Iterator[tuple[str, Array]]:
    """The outputs of the files that we write, by blob."""
    weights = written(subject.model, folder / "net.caffemodel", "caffemodel")
    text = written(subject.model, folder / "net.prototxt", "prototxt")
    net = cv2.dnn.readNetFromCaffe(str(text), str(weights))
    for blob, array in subject.inputs.items():
        net.setInput(np.ascontiguousarray(array), blob)
    assert subject.model.graph is not None
    nodes = subject.model.graph.nodes
    blobs = {top.blob: [top.blob] for node in nodes for top in node.tops}
    layers = {node.layer.name: [top.blob for top in node.tops] for node in nodes}
    names = list(net.getUnconnectedOutLayersNames())
    for name, tops in zip(names, net.forwardAndRetrieve(names), strict=True):
        found = blobs.get(name, []) if name not in layers else layers[name]
        yield from zip(found, map(np.asarray, tops), strict=False)
