"""Weights from any of the formats that hold them, told apart by content."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from caffe_compat.mapped import PathName, kind_of, map_file
from caffe_compat.weights import Weights


def read_weights(path: PathName) -> Weights:
    """Read a caffemodel, Caffe's HDF5, safetensors or a torch state dict, whatever its name.

    Raises:
        VggcError: there is no such file, or it may not be read.
        FormatError: it is none of these, or is damaged.
    """
    source = os.fspath(path)
    with map_file(source) as data:
        kind = kind_of(data).name
    return _READERS.get(kind, _caffemodel)(source)


def _caffemodel(source: str) -> Weights:
    from caffe_compat.wire import read_caffemodel

    model = read_caffemodel(source)
    return replace(model.weights, notes=tuple(model.map.warnings))


def _hdf5(source: str) -> Weights:
    from caffe_compat.hdf5_weights import read_hdf5

    return read_hdf5(source)


def _safetensors(source: str) -> Weights:
    from caffe_compat.tensor_weights import read_safetensors

    return read_safetensors(source)


def _pt(source: str) -> Weights:
    from caffe_compat.tensor_weights import read_pt

    return read_pt(source)


_READERS: Mapping[str, Callable[[str], Weights]] = {"HDF5": _hdf5, "safetensors": _safetensors, "zip": _pt}
