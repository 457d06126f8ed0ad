"""Writing .safetensors: the header first, then every payload straight from the source's map.

Layout: https://huggingface.co/docs/safetensors - 8 bytes header length, JSON header, the tensors back to back.
"""

from __future__ import annotations

import json
import struct

from converters.model import Model, NamedBlob
from converters.streaming import Payloads, Target

DTYPES = {"float32": "F32", "float64": "F64", "float16": "F16"}


def write(model: Model, target: Target, payloads: Payloads) -> None:
    """Write weights as `<layer>.<blob>`; the net and the preprocessing go into the metadata.

    Shapes are Caffe's for this net. The same model always gives the same bytes.
    """
    blobs = list(model.blobs())
    target.write(_header(blobs, model.metadata()))
    for blob in blobs:
        payloads.send(blob.blob, target)


def _header(blobs: list[NamedBlob], metadata: dict[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for item in blobs:
        end = offset + item.blob.values.nbytes
        dtype = DTYPES[item.blob.values.dtype.name]
        entries[item.name] = {"dtype": dtype, "shape": list(item.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
