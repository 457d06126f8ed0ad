"""Bytes of small caffemodels, built without the code under test."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import numpy as np

from caffe_compat.schema import pb

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "weights"


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def delimited(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def number(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value % 2**64)


def shape(*dims: int) -> bytes:
    return delimited(7, delimited(1, b"".join(varint(d % 2**64) for d in dims)))


def packed(values: np.ndarray, field: int = 5) -> bytes:
    return delimited(field, values.tobytes())


def unpacked(values: np.ndarray) -> bytes:
    return b"".join(b"\x2d" + struct.pack("<f", v) for v in values)


def layer(*blobs: bytes, name: str = "ip", kind: str = "InnerProduct", extra: bytes = b"") -> bytes:
    head = delimited(1, name.encode()) + delimited(2, kind.encode())
    return delimited(100, head + b"".join(delimited(7, blob) for blob in blobs) + extra)


def numbers(*dims: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dims).astype(np.float32)


def small_model() -> bytes:
    """Two layers, four blobs, a field of another fork, gradients."""
    net = pb.NetParameter(name="small")
    for name, kind, dims in (("conv", "Convolution", (2, 3, 3, 3)), ("ip", "InnerProduct", (4, 2))):
        param = net.layer.add(name=name, type=kind, bottom=["x"], top=[name])
        for index, size in enumerate((dims, dims[:1])):
            blob = param.blobs.add(data=numbers(*size, seed=index).ravel().tolist())
            blob.shape.dim.extend(size)
        param.blobs[0].diff.extend([0.0] * prod(dims))
    net.layer[0].convolution_param.kernel_size.append(3)
    return net.SerializeToString() + layer(name="perm", kind="Permute", extra=delimited(202, b"\x08\x01"))
