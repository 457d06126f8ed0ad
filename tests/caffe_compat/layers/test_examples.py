"""Rules that every layer keeps, on examples: shapes, gradients, other sizes at run time, ONNX."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_compat.errors import ConversionError, GraphError, LayerError, UnknownLayerError
from caffe_compat.layers.base import Context, Layer, Shape, find_layer, registered
from tests.caffe_compat.layers.harness import (
    Array,
    Lone,
    arrays,
    check_gradients,
    forward,
    has_dynamic_batch,
    lone,
    run_onnx,
    session,
)
from tests.tolerances import LAYERS

IMAGE = (2, 3, 4, 5)


@dataclass(frozen=True)
class Example:
    """A layer with bottoms.

    Attributes:
        text: its fields in prototxt.
        shapes: of the bottoms.
        low, high: range of random bottoms.
        frozen: its blobs are never learned.
        phase, profile, dialect: of the graph.
    """

    text: str
    shapes: tuple[Shape, ...] = (IMAGE,)
    tops: int = 1
    low: float = -2.0
    high: float = 2.0
    frozen: bool = False
    phase: str = "TEST"
    profile: str = "bvlc"
    dialect: str = ""

    def lone(self) -> Lone:
        state = {"phase": self.phase, "profile": self.profile, "dialect": self.dialect}
        return lone(self.text, *self.shapes, tops=self.tops, **state)

    def bottoms(self) -> list[Array]:
        return arrays(*self.shapes, low=self.low, high=self.high)

    def larger(self) -> Example:
        """One more item in every bottom."""
        return replace(self, shapes=tuple((shape[0] + 1, *shape[1:]) if shape else () for shape in self.shapes))

    def __str__(self) -> str:
        return " ".join([self.text.replace('"', "").removeprefix("type: "), self.phase, self.dialect or self.profile])


PAIR = (IMAGE, IMAGE)
VIDEO = ((2, 3, 3, 4, 4),)
CUBE = "kernel_shape { dim: 2 dim: 2 dim: 2 }"
EXAMPLES = [
    Example('type: "AbsVal"'),
    Example('type: "BNLL"', low=-60, high=60),
    Example('type: "BNLL"', profile="dec2013"),
    Example('type: "Clip" clip_param { min: -1 max: 0.5 }'),
    Example('type: "Clip" clip_param { min: 1 max: -1 }'),
    Example('type: "ELU"'),
    Example('type: "ELU" elu_param { alpha: 0.3 }'),
    Example('type: "Exp"'),
    Example('type: "Exp" exp_param { base: 2 scale: 0.5 shift: 1.5 }'),
    Example('type: "Exp" exp_param { shift: -1 }'),
    Example('type: "Log"', low=0.1),
    Example('type: "Log" log_param { base: 10 scale: 2 shift: 0.5 }', low=0.1),
    Example('type: "Power"'),
    Example('type: "Power" power_param { power: 3 scale: 0.5 shift: -1 }'),
    Example('type: "Power" power_param { power: 0.5 }', low=0.1),
    Example('type: "Power" power_param { power: 2 shift: 1 }'),
    Example('type: "Power" power_param { scale: 0 shift: 3 power: 2 }'),
    Example('type: "Power" power_param { power: 0 }'),
    Example('type: "PReLU"'),
    Example('type: "PReLU"', ((3, 4),)),
    Example('type: "PReLU" prelu_param { channel_shared: true }'),
    Example('type: "ReLU"'),
    Example('type: "ReLU"', profile="dec2013"),
    Example('type: "ReLU" relu_param { negative_slope: 0.1 }'),
    Example('type: "Sigmoid"'),
    Example('type: "Swish"'),
    Example('type: "Swish" swish_param { beta: 2 }'),
    Example('type: "TanH"'),
    Example('type: "Threshold" threshold_param { threshold: 0.3 }'),
    Example('type: "Dropout"'),
    Example('type: "Softmax"'),
    Example('type: "Softmax" softmax_param { axis: -1 }'),
    Example('type: "Softmax"', profile="dec2013"),
    Example('type: "BatchNorm"', frozen=True),
    Example('type: "BatchNorm"', ((4, 3),), frozen=True),
    Example('type: "BatchNorm"', ((4, 3, 5),), frozen=True),
    Example('type: "BatchNorm" batch_norm_param { eps: 0.01 use_global_stats: false }', frozen=True),
    Example('type: "BatchNorm"', frozen=True, phase="TRAIN"),
    Example('type: "Scale"'),
    Example('type: "Scale" scale_param { bias_term: true }'),
    Example('type: "Scale" scale_param { axis: 2 num_axes: -1 bias_term: true }'),
    Example('type: "Scale" scale_param { num_axes: 0 }'),
    Example('type: "Scale" scale_param { axis: 0 bias_term: true }', (IMAGE, (2, 3))),
    Example('type: "Scale"', (IMAGE, ())),
    Example('type: "Bias"'),
    Example('type: "Bias" bias_param { axis: -2 num_axes: 2 }'),
    Example('type: "Bias" bias_param { axis: 0 }', (IMAGE, (2, 3))),
    Example('type: "MVN"'),
    Example('type: "MVN" mvn_param { across_channels: true }'),
    Example('type: "MVN" mvn_param { normalize_variance: false }', ((2, 3, 4),)),
    Example('type: "Eltwise"', PAIR),
    Example('type: "Eltwise" eltwise_param { coeff: 0.5 coeff: -1 coeff: 1 }', (*PAIR, IMAGE)),
    Example('type: "Eltwise" eltwise_param { operation: PROD }', (*PAIR, IMAGE)),
    Example('type: "Eltwise" eltwise_param { operation: PROD stable_prod_grad: false }', PAIR),
    Example('type: "Eltwise" eltwise_param { operation: MAX }', (*PAIR, IMAGE)),
    Example('type: "Reduction"'),
    Example('type: "Reduction" reduction_param { operation: ASUM axis: 1 }'),
    Example('type: "Reduction" reduction_param { operation: SUMSQ axis: 2 coeff: 0.5 }'),
    Example('type: "Reduction" reduction_param { operation: MEAN axis: -1 coeff: 3 }'),
    Example('type: "ArgMax"'),
    Example('type: "ArgMax"', ((5,),)),
    Example('type: "ArgMax" argmax_param { top_k: 4 }', ((3, 6),)),
    Example('type: "ArgMax" argmax_param { top_k: 2 out_max_val: true }'),
    Example('type: "ArgMax" argmax_param { axis: 1 }'),
    Example('type: "ArgMax" argmax_param { axis: -1 top_k: 3 out_max_val: true }'),
    Example('type: "Concat"', (IMAGE, (2, 1, 4, 5), IMAGE)),
    Example('type: "Concat" concat_param { axis: -1 }', PAIR),
    Example('type: "Concat"'),
    Example('type: "Slice"', ((2, 6, 3),), tops=3),
    Example('type: "Slice" slice_param { axis: -1 slice_point: 1 slice_point: 3 }', tops=3),
    Example('type: "Slice"'),
    Example('type: "Split"', tops=3),
    Example('type: "Flatten"'),
    Example('type: "Flatten" flatten_param { axis: 1 end_axis: -2 }'),
    Example('type: "Flatten" flatten_param { axis: 2 end_axis: 1 }'),
    Example('type: "Flatten"', profile="dec2013"),
    Example('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 2 } }'),
    Example('type: "Reshape" reshape_param { axis: 1 num_axes: 2 shape { dim: 6 dim: 2 } }'),
    Example('type: "Reshape" reshape_param { axis: -1 shape { dim: 1 } }'),
    Example('type: "Reshape" reshape_param { axis: 0 num_axes: 0 shape { dim: 1 dim: -1 } }'),
    Example('type: "Tile" tile_param { tiles: 3 }'),
    Example('type: "Tile" tile_param { axis: -1 tiles: 2 }'),
    Example('type: "Silence"', PAIR, tops=0),
    Example('type: "Parameter" parameter_param { shape { dim: 2 dim: 3 } }', ()),
    Example('type: "Axpy"', ((2, 3), IMAGE, IMAGE)),
    Example('type: "Axpy"', ((2, 3, 1, 1), IMAGE, IMAGE)),
    Example('type: "BN"', frozen=True, phase="TRAIN", dialect="pspnet"),
    Example('type: "BN" bn_param { frozen: true }', frozen=True, dialect="yjxiong"),
    Example('type: "BN"', dialect="segnet"),
    Example('type: "BN"', ((4, 3),), tops=3, dialect="segnet"),
    Example('type: "BN" bn_param { bn_mode: INFERENCE }', ((4, 3, 5),), dialect="segnet"),
    Example('type: "HardSwish"', low=-5, high=5),
    Example('type: "Interp" interp_param { zoom_factor: 2 pad_beg: -1 }'),
    Example('type: "Interp" interp_param { height: 3 width: 9 }'),
    Example('type: "Lstm" lstm_param { num_output: 3 }', ((4, 2, 5),), dialect="ctpn"),
    Example('type: "Lstm" lstm_param { num_output: 3 batch_size: 1 }', ((4, 5),), dialect="ctpn"),
    Example('type: "MatMul" matmul_param { transpose_b: true }', PAIR),
    Example('type: "MatMul" matmul_param { blob_shape: 5 blob_shape: 2 }'),
    Example('type: "Normalize"', dialect="yjxiong"),
    Example('type: "Normalize" normalize_param { normalize_type: "L2" }', dialect="caffe-windows"),
    Example('type: "Pad" pad_param { paddings: 0 paddings: 0 paddings: 1 paddings: 2 }', ((2, 3),)),
    Example('type: "Resample" resample_param { height: 9 width: 3 }'),
    Example('type: "Resample" resample_param { height: 8 width: 10 type: CUBIC }'),
    Example('type: "Resample" resample_param { height: 8 width: 10 type: NEAREST }'),
    Example('type: "Reverse" reverse_param { axis: 1 }', dialect="caffe-ocr"),
    Example('type: "ShuffleChannel" shuffle_channel_param { group: 2 }', ((2, 6, 3, 4),)),
    Example('type: "Transpose" transpose_param { dim: 0 dim: 2 dim: 3 dim: 1 }'),
    Example('type: "Transpose" transpose_param { dim: 3 dim: 2 dim: 0 dim: 1 }'),
    Example('type: "ConvolutionDepthwise" convolution_param { kernel_size: 3 stride: 2 pad: 1 }'),
    Example(
        'type: "DepthwiseConvolution" convolution_param { num_output: 6 group: 3 kernel_size: 2 bias_term: false }'
    ),
    Example('type: "Normalize"', dialect="ssd"),
    Example('type: "Normalize" norm_param { across_spatial: false eps: 0.01 }', ((2, 3, 4),)),
    Example('type: "Permute" permute_param { order: 0 order: 2 order: 3 order: 1 }'),
    Example('type: "Permute" permute_param { order: 2 }', ((2, 3, 4),)),
    Example('type: "Permute"'),
    Example('type: "PriorBox" prior_box_param { min_size: 3 aspect_ratio: 2 }', (IMAGE, (2, 3, 20, 30))),
    Example('type: "PriorBoxClustered" prior_box_param { width: 3 height: 5 img_size: 30 clip: true }'),
    Example('type: "ReLU6"', low=-4, high=10),
    Example('type: "Reorg" reorg_param { stride: 2 }', ((2, 8, 4, 6),)),
    Example('type: "Reorg" reorg_param { stride: 2 reverse: true }', ((2, 8, 3, 5),), dialect="mobilenet-yolo"),
    Example('type: "Upsample" upsample_param { scale: 3 }', dialect="mobilenet-yolo"),
    Example('type: "Convolution" convolution_param { num_output: 2 kernel_size: 3 pad: 1 stride: 2 }'),
    Example('type: "Convolution" convolution_param { num_output: 2 kernel_size: 2 }', profile="dec2013"),
    Example('type: "Deconvolution" convolution_param { num_output: 2 kernel_size: 2 stride: 2 }'),
    Example('type: "InnerProduct" inner_product_param { num_output: 4 }'),
    Example('type: "InnerProduct" inner_product_param { num_output: 4 }', profile="dec2013"),
    Example('type: "Pooling" pooling_param { kernel_size: 2 stride: 2 }'),
    Example('type: "Pooling" pooling_param { pool: AVE kernel_size: 2 stride: 2 }', profile="dec2013"),
    Example('type: "LRN" lrn_param { local_size: 3 alpha: 0.5 }'),
    Example('type: "LRN" lrn_param { local_size: 3 alpha: 0.5 }', profile="dec2013"),
    Example('type: "Im2col" convolution_param { kernel_size: 2 }'),
    Example('type: "Im2col" convolution_param { kernel_size: 2 }', profile="dec2013"),
    Example('type: "SPP" spp_param { pyramid_height: 2 pool: AVE }'),
    Example('type: "Crop" crop_param { axis: 2 offset: 1 }', (IMAGE, (2, 3, 3, 2))),
    Example('type: "EuclideanLoss"', PAIR),
    Example('type: "ContrastiveLoss"', ((3, 4), (3, 4), (3,))),
    Example('type: "SigmoidCrossEntropyLoss"', PAIR, low=0, high=1),
    Example('type: "DummyData" dummy_data_param { shape { dim: 2 dim: 3 } }', ()),
    Example('type: "CuDNNBatchNorm"', dialect="genet", phase="TRAIN"),
    Example('type: "Flip"', dialect="caffe-windows"),
    Example('type: "Insanity"', dialect="caffe-windows"),
    Example('type: "ChannelScale"', (IMAGE, (2, 1, 4, 5)), dialect="caffe-windows"),
    Example('type: "ChannelScale"', ((3, 4), (3, 1)), dialect="caffe-windows"),
    Example('type: "InnerDistance" inner_distance_param { num_output: 3 }', ((2, 4),), dialect="caffe-windows"),
    Example(
        'type: "Convolution3D" convolution_param { num_output: 2 kernel_size: 2 kernel_depth: 2 }', VIDEO, dialect="c3d"
    ),
    Example(
        'type: "Deconvolution3D" convolution_param { num_output: 2 kernel_size: 2 kernel_depth: 2 }',
        VIDEO,
        dialect="c3d",
    ),
    Example('type: "Pooling3D" pooling_param { pool: AVE kernel_size: 2 kernel_depth: 2 }', VIDEO, dialect="c3d"),
    Example(f'type: "NdConvolution" convolution_param {{ num_output: 2 {CUBE} }}', VIDEO, dialect="video-caffe"),
    Example(f'type: "NdPooling" pooling_param {{ pool: AVE {CUBE} }}', VIDEO, dialect="video-caffe"),
    Example('type: "ReLURecover"', dialect="steganalysis"),
    Example('type: "BdctToSpatial"', ((2, 64, 2, 3),), dialect="steganalysis"),
    Example('type: "GRN"', dialect="openvino"),
    Example('type: "GRN" grn_param { bias: 0.5 }', ((3, 4),), dialect="openvino"),
    Example('type: "ScaleFilter" scale_filter_param { min_scale: 0.5 max_scale: 2 }', dialect="openvino"),
    Example('type: "L1Loss"', PAIR, dialect="nvidia"),
    Example('type: "SmoothL1Loss"', PAIR, dialect="rfcn"),
    Example('type: "SmoothL1Loss"', PAIR, dialect="ssd"),
    Example('type: "SmoothL1Loss"', PAIR, dialect="3d-faster-rcnn"),
    Example(
        'type: "Correlation" correlation_param { kernel_size: 1 max_displacement: 1 pad: 1 }', PAIR, dialect="flownet2"
    ),
    Example('type: "FlowWarp"', (IMAGE, (2, 2, 4, 5)), dialect="flownet2"),
    Example('type: "L1Loss"', PAIR, dialect="flownet2"),
    Example('type: "Eltwise" eltwise_param { coeff: 0.5 }', dialect="flownet2"),
    Example('type: "L1Loss" l1_loss_param { l2_per_location: true }', dialect="flownet2"),
    Example('type: "NegReLU" relu_param { negative_slope: 0.1 }', dialect="flownet2"),
    Example('type: "Downsample" downsample_param { top_height: 3 top_width: 2 }', dialect="flownet2"),
    Example(
        'type: "Correlation1D" correlation_param { kernel_size: 3 max_displacement: 2 pad: 2 single_direction: -1 }',
        PAIR,
        dialect="flownet2",
    ),
    Example('type: "ReverseTime"', ((3, 2, 4), (2,)), dialect="caffe-ocr"),
    Example(
        'type: "MultiStageMeanfield" multi_stage_meanfield_param {'
        " num_iterations: 2 theta_alpha: 4 theta_beta: 3 theta_gamma: 2 }",
        (IMAGE, IMAGE, IMAGE),
    ),
]
EXPORTED = [example for example in EXAMPLES if example.tops and example.shapes]

FILES = "a file gives its tops or takes its bottoms"
LABELS = "its bottoms hold labels, lengths, markers or boxes, which are not any numbers"
TOPS = "it has no tops, or what it computes is up to its module"
BEFORE = "what it does depends on the layers before it"
GRADIENT = "its gradient is not the derivative of its forward pass"
ELSEWHERE = {
    "test_accuracy": ("Accuracy Accuracy2013", LABELS),
    "test_annotated_data": ("AnnotatedData", FILES),
    "test_batch_norm_nvidia": ("BatchNormNvidia", GRADIENT),
    "test_caffe_windows": ("GeneralContrastiveLoss Hotspot MarginInnerProduct Noise SubRegion", LABELS),
    "test_cascade": (
        "BboxAccuracy BoxGroupOutput DecodeBBox DetectionEvaluateCascade DetectionGroupAccuracy DetectionGroupLoss "
        "FrcnnOutput ProposalTarget ScaleRoute",
        LABELS,
    ),
    "test_center_grid": ("BatchNormScale CenterGridOutput FaceAttriEvaluate", LABELS),
    "test_conv_lstm": ("ConvLSTM ConvLSTMUnit", LABELS),
    "test_crop_aligned": ("CropAligned", BEFORE),
    "test_ctc_loss": ("CTCLoss CtcLoss", LABELS),
    "test_data": ("Data Data2013", FILES),
    "test_detection_evaluate": ("DetectionEvaluate", LABELS),
    "test_detection_output": ("DetectionOutput", LABELS),
    "test_detection_output_opencv": ("DetectionOutputOpencv", LABELS),
    "test_embed": ("Embed", LABELS),
    "test_euclidean_loss": ("EuclideanLoss2013", TOPS),
    "test_face_losses": ("CenterLoss TripletLoss", LABELS),
    "test_fork_neurons": ("Mish", GRADIENT),
    "test_fork_reshaping": ("ContinuationIndicator", TOPS),
    "test_hdf5_data": ("HDF5Data", FILES),
    "test_hdf5_output": ("HDF5Output", FILES),
    "test_hinge_loss": ("HingeLoss", LABELS),
    "test_image_data": ("ImageData", FILES),
    "test_infogain_loss": ("InfogainLoss InfogainLoss2013", LABELS),
    "test_input": ("Input", TOPS),
    "test_items": ("BatchReindex Filter", LABELS),
    "test_lstm_unit": ("LSTMUnit", LABELS),
    "test_memory_data": ("MemoryData", FILES),
    "test_multibox_loss": ("MultiBoxLoss", LABELS),
    "test_multinomial_logistic_loss": ("MultinomialLogisticLoss MultinomialLogisticLoss2013", LABELS),
    "test_openvino": ("AnchorEmbeddingExtractor DetectionOutputExtended LabelSpecificAdd", LABELS),
    "test_padding": ("Padding", TOPS),
    "test_proposal": ("ProposalOpencv ProposalWindows", LABELS),
    "test_python": ("Python", TOPS),
    "test_recurrent": ("LSTM RNN", LABELS),
    "test_region_loss": ("EvalDetection RegionLoss RegionLossYolo9000", LABELS),
    "test_rois": ("BoxAnnotatorOHEM PSROIPooling ROIAlign ROIPooling", LABELS),
    "test_smooth_l1_loss": ("SmoothL1LossOHEM SoftmaxWithLossOHEM", LABELS),
    "test_softmax_with_loss": ("SoftmaxLoss2013 SoftmaxWithLoss SoftmaxWithLossRfcn", LABELS),
    "test_steganalysis": ("BNConv QuantTruncAbs", GRADIENT),
    "test_textboxes": ("DetectionOutputTextBoxes", LABELS),
    "test_upsample": ("UpsampleMask", LABELS),
    "test_window_data": ("WindowData", FILES),
    "test_yolo_outputs": ("YoloDetectionOutput Yolov3DetectionOutput", LABELS),
}
"""Module of this folder -> the layers without an example which it tests, and why they have none."""


def each(examples: list[Example]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", examples, ids=str)


@each(EXAMPLES)
def test_shape_rule_gives_the_real_shapes(example: Example) -> None:
    it = example.lone()
    tops = forward(it, example.bottoms(), it.blobs())
    assert [top.shape for top in tops] == it.top_shapes
    assert len(it.layer.fillers()) == len(it.node.blob_shapes)


@each([e for e in EXAMPLES if e.tops])
def test_gradients_equal_finite_differences(example: Example) -> None:
    it = example.lone()
    if it.layer.BACKWARD:
        check_gradients(it, example.bottoms(), it.blobs(), learned=not example.frozen)
        return
    inputs = [torch.tensor(bottom, requires_grad=True) for bottom in example.bottoms()]
    assert not any(top.requires_grad for top in it.layer.forward(inputs, []))


@each(EXAMPLES)
def test_other_batch_sizes_behave_as_in_a_net_built_for_them(example: Example) -> None:
    it = example.lone()
    larger = example.larger()
    try:
        other = larger.lone()
    except GraphError:
        other = None
    if other is not None and other.node.blob_shapes == it.node.blob_shapes:
        got, want = (forward(net, larger.bottoms(), it.blobs()) for net in (it, other))
        assert [top.shape for top in got] == other.top_shapes
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    else:
        with pytest.raises((LayerError, RuntimeError)):
            forward(it, larger.bottoms(), it.blobs())


@each(EXPORTED)
@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_onnx_runtime_agrees(example: Example, opset: int) -> None:
    it = example.lone()
    blobs = it.blobs()
    if type(it.layer).to_onnx is Layer.to_onnx:
        with pytest.raises(ConversionError, match=f"{it.layer.TYPE} has no exact form in ONNX"):
            session(it, blobs, opset)
        return
    exported = session(it, blobs, opset)
    sizes = [example, example.larger()] if has_dynamic_batch(exported) else [example]
    for size in sizes:
        bottoms = size.bottoms()
        want = forward(it, bottoms, blobs, np.float32)
        got = run_onnx(exported, bottoms)
        assert [top.shape for top in got] == [top.shape for top in want]
        assert all(LAYERS.ratio(a, b) <= 1 for a, b in zip(got, want, strict=True))


LATER = ["AbsVal", "Sigmoid", "TanH", "Split", "Concat", "Crop", "Scale", "Eltwise", "Reshape"]


@pytest.mark.parametrize("kind", LATER)
def test_later_types_are_unknown_in_2013(kind: str) -> None:
    with pytest.raises(UnknownLayerError, match="dec2013"):
        find_layer(kind, Context(profile="dec2013"))


def test_every_layer_has_an_example_or_a_module_of_its_own() -> None:
    shown = {type(example.lone().layer).__name__ for example in EXAMPLES}
    others = [name for names, _ in ELSEWHERE.values() for name in names.split()]
    ours = {cls.__name__: kind for kind, _, cls in registered() if cls.__module__.startswith("caffe_compat.")}
    assert sorted([*shown, *others]) == sorted(ours)
    for module, (names, _) in ELSEWHERE.items():
        text = (Path(__file__).parent / f"{module}.py").read_text()
        assert [name for name in names.split() if ours[name] not in text] == []
