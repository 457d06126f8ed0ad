"""Caffe's layers, one file each; `registered()` lists them."""

from caffe_compat.layers.base import Context, Layer, OnnxWriter, Shape, find_layer, register, registered

__all__ = ["Context", "Layer", "OnnxWriter", "Shape", "find_layer", "register", "registered"]
