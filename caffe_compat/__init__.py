"""What Caffe means: its formats, generations, layers and nets, without Caffe.

    import caffe_compat as cc
    net = cc.load("deploy.prototxt", "w.caffemodel")
    net({"data": x})["prob"]

Names are imported when first used, so that a command pays only for what it needs; `upgrade` at once, as it is also
the name of its module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from caffe_compat.upgrade import upgrade

if TYPE_CHECKING:
    from caffe_compat.errors import VggcError
    from caffe_compat.graph import Graph
    from caffe_compat.layers.base import Layer
    from caffe_compat.layers.python import register_layer
    from caffe_compat.loading import load
    from caffe_compat.reading import parse_net, read_net

_HOMES = {
    "Graph": "caffe_compat.graph",
    "Layer": "caffe_compat.layers.base",
    "Solver": "caffe_compat.solvers",
    "VggcError": "caffe_compat.errors",
    "load": "caffe_compat.loading",
    "parse_net": "caffe_compat.reading",
    "read_net": "caffe_compat.reading",
    "register_layer": "caffe_compat.layers.python",
}

__all__ = ["Graph", "Layer", "Solver", "VggcError", "load", "parse_net", "read_net", "register_layer", "upgrade"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'caffe_compat' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
