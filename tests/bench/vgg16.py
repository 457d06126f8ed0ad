"""A caffemodel of VGG-16's shape (528 MiB, generation V1, legacy dimensions) with made-up weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from google.protobuf import text_format

from caffe_compat.schema import pb

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
LAYER, BLOBS, DATA = (
    b"\x12",
    b"\x32",
    b"\x2a",
)  # NetParameter.layers = 2, V1LayerParameter.blobs = 6, BlobProto.data = 5


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def write(path: Path) -> None:
    """Write the model, a layer at a time, and its net beside it as prototxt."""
    generator = np.random.default_rng(0)
    head = pb.NetParameter(name="VGG_ILSVRC_16_layers", input=["data"], input_dim=[10, 3, 224, 224])
    net = pb.NetParameter(layers=[layer for layer, _ in layers()])
    net.MergeFrom(head)
    path.with_suffix(".prototxt").write_text(text_format.MessageToString(net))
    with path.open("wb") as file:
        file.write(head.SerializeToString())
        for layer, shapes in layers():
            blobs = b"".join(_blob(shape, generator) for shape in shapes)
            body = layer.SerializeToString()
            file.write(LAYER + varint(len(body) + len(blobs)) + body + blobs)


def layers() -> list[tuple[pb.V1LayerParameter, list[tuple[int, ...]]]]:
    """Every layer with the legacy shapes of its blobs."""
    made: list[tuple[pb.V1LayerParameter, list[tuple[int, ...]]]] = []
    bottom, channels = "data", 3
    for block, (width, depth) in enumerate(BLOCKS, 1):
        for index in range(1, depth + 1):
            name = f"conv{block}_{index}"
            conv = pb.V1LayerParameter(name=name, type=pb.V1LayerParameter.CONVOLUTION, bottom=[bottom], top=[name])
            conv.convolution_param.num_output = width
            conv.convolution_param.pad.append(1)
            conv.convolution_param.kernel_size.append(3)
            made.append((conv, [(width, channels, 3, 3), (1, 1, 1, width)]))
            made.append((_inplace(f"relu{block}_{index}", pb.V1LayerParameter.RELU, name), []))
            bottom, channels = name, width
        pool = pb.V1LayerParameter(name=f"pool{block}", type=pb.V1LayerParameter.POOLING, bottom=[bottom])
        pool.top.append(f"pool{block}")
        pool.pooling_param.kernel_size = pool.pooling_param.stride = 2
        made.append((pool, []))
        bottom = f"pool{block}"
    return made + _classifier(bottom)


def _classifier(bottom: str) -> list[tuple[pb.V1LayerParameter, list[tuple[int, ...]]]]:
    made: list[tuple[pb.V1LayerParameter, list[tuple[int, ...]]]] = []
    for name, inputs, outputs in (("fc6", 25088, 4096), ("fc7", 4096, 4096), ("fc8", 4096, 1000)):
        fc = pb.V1LayerParameter(name=name, type=pb.V1LayerParameter.INNER_PRODUCT, bottom=[bottom], top=[name])
        fc.inner_product_param.num_output = outputs
        made.append((fc, [(1, 1, outputs, inputs), (1, 1, 1, outputs)]))
        if name != "fc8":
            made.append((_inplace(f"relu{name[2]}", pb.V1LayerParameter.RELU, name), []))
            made.append((_inplace(f"drop{name[2]}", pb.V1LayerParameter.DROPOUT, name), []))
        bottom = name
    softmax = pb.V1LayerParameter(name="prob", type=pb.V1LayerParameter.SOFTMAX, bottom=["fc8"], top=["prob"])
    return [*made, (softmax, [])]


def _inplace(name: str, kind: pb.V1LayerParameter.LayerType, blob: str) -> pb.V1LayerParameter:
    return pb.V1LayerParameter(name=name, type=kind, bottom=[blob], top=[blob])


def _blob(shape: tuple[int, ...], generator: np.random.Generator) -> bytes:
    dims = pb.BlobProto(num=shape[0], channels=shape[1], height=shape[2], width=shape[3]).SerializeToString()
    count = int(np.prod(shape))
    deviation = np.float32(np.sqrt(2 / max(count // max(shape[0], shape[2]), 1)))
    values = (generator.standard_normal(count, np.float32) * deviation).astype("<f4").tobytes()
    body = dims + DATA + varint(len(values)) + values
    return BLOBS + varint(len(body)) + body
