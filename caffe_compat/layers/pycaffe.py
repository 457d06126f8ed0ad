"""Layers written for pycaffe: `caffe.Layer` classes with setup, reshape, forward and backward on numpy arrays."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.errors import VggcError, Where
from caffe_compat.layers.base import Context, Layer, Shape
from caffe_compat.layers.python import Python
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)

# -- what `import caffe` gives ---------------------------------------------------------------------------------


class Blob:
    """A blob as pycaffe shows it: `data` and `diff` arrays of one shape."""

    def __init__(self, shape: Sequence[int] | None = None) -> None:
        self._shape = None if shape is None else tuple(shape)
        self._dtype: Any = np.float32
        self._arrays: dict[str, np.ndarray] = {}

    def reshape(self, *shape: int) -> None:
        """Take another shape; arrays of another count are filled with 0."""
        new = tuple(int(size) for size in shape)
        if self._shape is None or prod(new) != prod(self._shape):
            self._arrays.clear()
        self._shape = new
        self._arrays = {name: array.reshape(new) for name, array in self._arrays.items()}

    def load(self, data: np.ndarray) -> None:
        """Take over an array as `data`."""
        self._shape, self._dtype, self._arrays = data.shape, data.dtype, {"data": data}

    def clear_diff(self) -> None:
        self._arrays.pop("diff", None)

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = np.zeros(self.shape, self._dtype)
        return self._arrays[name]

    @property
    def known(self) -> bool:
        """Whether it ever got a shape."""
        return self._shape is not None

    @property
    def shape(self) -> Shape:
        return self._shape or ()

    @property
    def data(self) -> np.ndarray:
        return self._array("data")

    @property
    def diff(self) -> np.ndarray:
        return self._array("diff")

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def num(self) -> int:
        return self._legacy(0)

    @property
    def channels(self) -> int:
        return self._legacy(1)

    @property
    def height(self) -> int:
        return self._legacy(2)

    @property
    def width(self) -> int:
        return self._legacy(3)

    def _legacy(self, axis: int) -> int:
        return (*self.shape, 1, 1, 1, 1)[axis]


class BlobVec(list[Blob]):
    """The parameter blobs of a layer."""

    def add_blob(self, *shape: int) -> None:
        """Append a blob of zeros."""
        self.append(Blob(shape))


class PyLayer:
    """`caffe.Layer`."""

    param_str: str
    phase: int
    blobs: BlobVec

    def __init__(self, *args: Any) -> None:
        """Take what pycaffe passes, the LayerParameter."""


def caffe_module() -> ModuleType:
    """What such layers import as `caffe`."""
    module = ModuleType("caffe", "What layers written for pycaffe need of it.")
    members = {"Layer": PyLayer, "TRAIN": pb.TRAIN, "TEST": pb.TEST}
    for name, value in members.items():
        setattr(module, name, value)
    return module


# -- importing their modules -----------------------------------------------------------------------------------

_LOCK = threading.RLock()
_MODULES: dict[tuple[Path, str], ModuleType] = {}
"""(folder, module) -> what was imported; kept out of sys.modules, where other folders may have that name."""


def find_class(layer: Layer, folder: Path) -> Any:
    """The class that a layer names, from a module in `folder`.

    Raises:
        LayerError: the module is not in the folder, cannot be imported, or has no such class.
    """
    name = layer.p.module
    what = f'python_param.module "{name}" is not the name of a module'
    layer.check(bool(MODULE.fullmatch(name)), what, field="python_param.module", remedy="correct it")
    base = folder.joinpath(*name.split("."))
    found = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
    inside = bool(found) and found[0].resolve().is_relative_to(folder)
    what = f"no module {name} in {folder}"
    layer.check(inside, what, field="python_param.module", remedy=f"put {name.replace('.', '/')}.py into it")
    kind = getattr(_import(layer, folder, name), layer.p.layer, None)
    what = f'module {name} has no class "{layer.p.layer}"'
    layer.check(isinstance(kind, type), what, field="python_param.layer", remedy="correct the class or the name")
    return kind


def _import(layer: Layer, folder: Path, name: str) -> ModuleType:
    with _LOCK:
        if (folder, name) not in _MODULES:
            top = name.split(".", 1)[0]
            what = f"module {name} has the name of one that is already in use"
            layer.check(top not in sys.modules, what, field="python_param.module", remedy="rename it in the net too")
            try:
                with _importing_from(folder):
                    _MODULES[folder, name] = importlib.import_module(name)
            except Exception as error:
                what = f"module {name} cannot be imported: {type(error).__name__}: {error}"
                raise layer.error(what, field="python_param.module", remedy=f"see {folder}") from error
        return _MODULES[folder, name]


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """`folder` is where modules are looked for first, and `caffe` is ours; afterwards all is as it was."""
    path, quiet, caffe = list(sys.path), sys.dont_write_bytecode, sys.modules.get("caffe")
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    sys.modules["caffe"] = caffe_module()
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, quiet
        del sys.modules["caffe"]
        if caffe is not None:
            sys.modules["caffe"] = caffe
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(folder):
                del sys.modules[name]


# -- the adapter -----------------------------------------------------------------------------------------------


class PycaffeLayer(Python):
    """A pycaffe class as a layer. Arrays are copied to and from it; `backward` belongs to the latest `forward`."""

    def __init__(
        self, param: pb.LayerParameter, context: Context, locate: Callable[[str], Where] | None = None
    ) -> None:
        super().__init__(param, context, locate)
        folder = Path(context.state["python_layers"]).resolve()
        self.kind = find_class(self, folder)
        self.passes = 0

    # -- rules ---------------------------------------------------------------------------------------------

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.bottom = [Blob(shape) for shape in bottoms]
        self.top = [self._top(position) for position in range(self.tops)]
        self.user = self._make()
        self.user.param_str = self.p.param_str
        self.user.phase = pb.Phase.Value(self.phase)
        self.user.blobs = BlobVec()
        self._call("setup", self.bottom, self.top)

    def _top(self, position: int) -> Blob:
        """A new blob, or in place the bottom's."""
        names = self.param
        inplace = position < len(names.bottom) and names.top[position] == names.bottom[position]
        return self.bottom[position] if inplace else Blob()

    def _make(self) -> Any:
        try:
            return self.kind(self.param)
        except Exception as error:
            raise self._failure("__init__", error) from error

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        for blob, shape in zip(self.bottom, bottoms, strict=True):
            blob.reshape(*shape)
        return self._reshape()

    def _reshape(self) -> list[Shape]:
        self._call("reshape", self.bottom, self.top)
        for position, blob in enumerate(self.top):
            what = f"reshape of {self.full_name} gives top {position} no shape"
            self.check(blob.known, what, field="python_param.layer", remedy=f"call top[{position}].reshape(...) in it")
        return [blob.shape for blob in self.top]

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [blob.shape for blob in self.user.blobs]

    def fillers(self) -> list[pb.FillerParameter]:
        return [self._filler(index, blob.data) for index, blob in enumerate(self.user.blobs)]

    def _filler(self, index: int, values: np.ndarray) -> pb.FillerParameter:
        value = float(values.flat[0]) if values.size else 0.0
        what = f"setup of {self.full_name} gives parameter blob {index} values that are not all equal"
        fine = bool((values == value).all())
        self.check(fine, what, field="python_param.layer", remedy="set one value there and load the weights")
        return pb.FillerParameter(type="constant", value=value)

    # -- work ----------------------------------------------------------------------------------------------

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return list(_function()(self, len(bottoms), *bottoms, *blobs))

    def run(self, bottoms: Sequence[np.ndarray], blobs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Forward on arrays; `bottoms` may be overwritten, `blobs` are the parameters themselves."""
        for blob, array in zip([*self.bottom, *self.user.blobs], [*bottoms, *blobs], strict=True):
            blob.load(array)
        self._reshape()
        self._call("forward", self.bottom, self.top)
        self.passes += 1
        return [blob.data.copy() for blob in self.top]

    def run_back(self, tops: Sequence[np.ndarray], wanted: Sequence[bool]) -> list[np.ndarray]:
        """The gradients of the bottoms and of the parameter blobs."""
        for blob in [*self.bottom, *self.user.blobs]:
            blob.clear_diff()
        for blob, diff in zip(self.top, tops, strict=True):
            blob.diff[...] = diff
        self._call("backward", self.top, list(wanted[: len(self.bottom)]), self.bottom)
        return [blob.diff.copy() for blob in [*self.bottom, *self.user.blobs]]

    def _call(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self.user, method)(*arguments)
        except VggcError:
            raise
        except Exception as error:
            raise self._failure(method, error) from error

    def _failure(self, method: str, error: Exception) -> VggcError:
        what = f"{method} of {self.full_name} raised {type(error).__name__}: {error}"
        return self.error(what, field="python_param.layer", remedy="correct that code")


@cache
def _function() -> Callable[..., tuple[Tensor, ...]]:
    """A function (layer, number of bottoms, *bottoms, *blobs) -> tops that autograd knows."""
    import torch

    class Run(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, layer: PycaffeLayer, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
            arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
            tops = layer.run([array.copy() for array in arrays[:count]], arrays[count:])
            for tensor, array in zip(tensors[count:], arrays[count:], strict=True):
                if tensor.device.type != "cpu":
                    tensor.data.copy_(torch.from_numpy(array))
            ctx.layer, ctx.passes = layer, layer.passes
            ctx.kinds = [(tensor.dtype, tensor.device) for tensor in tensors]
            like = tensors[0] if tensors else torch.empty(0)
            return tuple(torch.from_numpy(top).to(like) for top in tops)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            layer, wanted = ctx.layer, ctx.needs_input_grad[2:]
            what = f"backward of {layer.full_name} after another forward pass"
            layer.check(ctx.passes == layer.passes, what, remedy="run backward before the next forward pass")
            diffs = layer.run_back([grad.detach().cpu().numpy() for grad in grads], wanted)
            found = zip(diffs, ctx.kinds, wanted, strict=True)
            return None, None, *(torch.from_numpy(d).to(*kind[::-1]) if want else None for d, kind, want in found)

    return Run.apply  # type: ignore[no-any-return]
