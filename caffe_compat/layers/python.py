"""Python: layers written in Python, known by module and class.

A net only names such code, and nothing that a file names is run by itself. There are two ways to give it:

    @register_layer("siftflow_layers.SIFTFlowSegDataLayer")      # a Layer in torch, like those in this package
    class SIFTFlow(Layer): ...

    load("net.prototxt", python_layers="layers")               # pycaffe's own classes, from that folder only
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

from caffe_compat.layers.base import Context, Layer, load_all, register
from caffe_compat.schema import pb

L = TypeVar("L", bound=type[Layer])

_REGISTERED: dict[str, type[Layer]] = {}
"""`module.Class` -> layer."""
_KNOWN: dict[str, type[Layer]] = {}
"""The same for layers of published nets, which users' own come before."""


@overload
def register_layer(layer: L) -> L: ...


@overload
def register_layer(layer: str) -> Callable[[L], L]: ...


def register_layer(layer: Any) -> Any:
    """Class decorator that makes a Layer of one's own known to nets.

    `@register_layer` goes by the class's TYPE, for its PROFILES or DIALECTS; `@register_layer("module.Class")` is for
    what nets call a Python layer with that module and class.

    Raises:
        ValueError: another class already has that type or name.
    """
    if isinstance(layer, str):
        return partial(_register_name, layer)
    load_all()
    return register(layer)


def _register_name(name: str, cls: L) -> L:
    other = _REGISTERED.setdefault(name, cls)
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"Python layer {name} is already registered by {other.__module__}")
    _REGISTERED[name] = cls
    return cls


def known_layer(*names: str) -> Callable[[L], L]:
    """Class decorator for the layer that published nets call so (`module.Class`)."""

    def keep(cls: L) -> L:
        _KNOWN.update(dict.fromkeys(names, cls))
        return cls

    return keep


@register
class Python(Layer):
    """What `python_param.module` and `python_param.layer` name; `python_param.param_str` is passed to it.

    The object is one of the class registered with `register_layer`; else, when the net is built with a folder of
    `python_layers`, an adapter for the pycaffe class in it; else, for a name that published nets use, of our class
    that does the same (python_known.py). Source: python_layer.hpp, layer_factory.cpp.
    """

    TYPE = "Python"
    PARAM = "python_param"
    BOTTOMS = (0, None)
    TOPS = (0, None)
    INPLACE = True

    def __new__(cls, param: pb.LayerParameter, context: Context, *_: Any, **__: Any) -> Any:
        return object.__new__(_implementation(cls, param, context))

    @property
    def full_name(self) -> str:
        """`module.Class`."""
        return _full_name(self.param)


class _Unknown(Python):
    """Stands for code that was not given."""

    def __init__(self, param: pb.LayerParameter, context: Context, locate: Any = None) -> None:
        super().__init__(param, context, locate)
        name, module = self.full_name, self.p.module
        for field in ("module", "layer"):
            what = f"python_param.{field} is not stated"
            self.check(self.has(field), what, field="python_param", remedy="name the module and the class")
        file = f"DIR/{module.replace('.', '/')}.py"
        own = f'give --python-layers DIR (python_layers="DIR" in Python) when {file} is pycaffe code that you trust'
        layer = f'write a Layer in torch under @caffe_compat.register_layer("{name}"), or {own}'
        tops = ", ".join(param.top)
        source = f"if it reads data, replace it by an Input layer with top {tops}; or {own}"
        what = f"{name} is Python code, which is not run because a net names it"
        raise self.error(what, field="python_param.layer", remedy=layer if param.bottom else source)


def _full_name(param: pb.LayerParameter) -> str:
    return f"{param.python_param.module}.{param.python_param.layer}"


def _implementation(cls: type[Python], param: pb.LayerParameter, context: Context) -> type[Python]:
    """The class of the object that stands in the net."""
    if cls is not Python:
        return cls
    name, folder = _full_name(param), context.state.get("python_layers")
    own = _REGISTERED.get(name) or (None if folder else _KNOWN.get(name))
    if own is not None:
        return type(own.__name__, (own, Python), {"TYPE": "Python", "__doc__": own.__doc__})
    if folder:
        from caffe_compat.layers.pycaffe import PycaffeLayer

        return PycaffeLayer
    return _Unknown
