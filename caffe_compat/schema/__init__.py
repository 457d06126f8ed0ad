"""Caffe's file formats as protobuf messages, in a package of their own.

The messages live under `caffe_compat.*` in protobuf's registry, so pycaffe, OpenCV or another `caffe.proto`
may be loaded in the same process.
"""

from caffe_compat.schema import caffe_pb2 as pb

__all__ = ["pb"]
