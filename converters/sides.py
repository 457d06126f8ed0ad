"""The two sides of a comparison: a model of any format as something that runs and has weights."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import FormatError, VggcError, WeightsError
from caffe_compat.graph import Graph
from caffe_compat.loading import Opened, State, open_net
from caffe_compat.preprocessing import carried, color_channels, preprocessing
from caffe_compat.weight_files import read_weights
from converters.model import EXCHANGED, Model
from converters.pixels import PROPERTY

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[Any]
Shape = tuple[int, ...]


CONTRACTING = ("Softmax", "Sigmoid", "TanH")
SHAPING = ("Flatten", "Permute", "Reshape", "Split")


@dataclass(frozen=True)
class Side:
    """A model that can be run.

    Attributes:
        path: the file.
        engine: what runs it.
        inputs: blob -> sizes, 0 for one that is left open, () when nothing is known.
        outputs: blobs that nothing reads.
        weights: `<layer>.<blob>` -> values.
        run: from inputs to all blobs, in the order in which they are computed, inputs first.
        layers: blob -> the layers that write it, where the file tells.
        prepares: how images are prepared for it.
        takes: how the model itself prepares images, when it takes pixels (see converters.pixels).
        contracts: blob -> the blob that it is computed from by a function that brings values closer to each other.
        caffe: it is a net of ours, so `layers` has Caffe's names.
        exchanged: the input of which it takes blue and red in each other's place, "" for none.
    """

    path: str
    engine: str
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    weights: Mapping[str, Array]
    run: Callable[[Mapping[str, Array]], dict[str, Array]]
    layers: Mapping[str, str] = field(default_factory=dict)
    prepares: Mapping[str, Any] = field(default_factory=dict)
    takes: Mapping[str, Any] = field(default_factory=dict)
    contracts: Mapping[str, str] = field(default_factory=dict)
    caffe: bool = False
    exchanged: str = ""


def open_side(path: Path, net: Path | None = None, state: State | None = None) -> Side:
    """Open a model of any format.

    Args:
        path: .caffemodel, .safetensors, .pt, .h5, .onnx, or a .py that `vggc convert` wrote, which is executed.
        net: prototxt of the net, for files of weights and for models that carry another net.
        state: profile, dialect and input shapes of Caffe's nets.

    Raises:
        VggcError: the file cannot be read or its net cannot be built.
    """
    opener = {".onnx": _onnx, ".py": _python}.get(path.suffix.lower())
    if opener is None:
        return caffe_side(str(path), _open(path, net, state))
    if net is not None:
        raise VggcError("a file of this kind has its own net", where=str(path), remedy="leave the net out")
    return opener(path)


def _open(path: Path, net: Path | None, state: State | None) -> Opened:
    """The net of a Caffe model; training nets are made runnable, as `convert` does."""
    source, weights = (net, path) if net else (path, None)
    return open_net(source, weights, state, deploy=True)


def caffe_side(name: str, opened: Opened) -> Side:
    """A net of ours, which PyTorch runs.

    Raises:
        WeightsError: it has no weights.
    """
    if opened.bound is None or opened.weights is None:
        raise WeightsError("a net without weights", where=name, remedy="give the weights, and this net with --net")
    prepares = preprocessing(opened.original, color_channels(opened.graph.shapes)) or carried(opened.weights.metadata)
    exchanged = opened.weights.metadata.get(EXCHANGED, "")
    model = Model(opened.graph, opened.bound.arrays, opened.weights, (), prepares, exchanged=exchanged)
    return model_side(name, model)


def model_side(name: str, model: Model) -> Side:
    """A model in memory, which PyTorch runs.

    Raises:
        WeightsError: its net cannot be built.
    """
    graph = model.graph
    if graph is None:
        raise WeightsError("the net cannot be built, so it cannot be run", where=name)
    arrays = {key: blob.values for key, blob in model.arrays.items()}
    makers: dict[str, list[str]] = {}
    for node in graph.nodes:
        for top in node.tops:
            makers.setdefault(top.blob, []).append(node.layer.name)

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        from caffe_compat.module import Net

        with torch.no_grad():
            module = Net(graph, arrays)
            values = module({blob: torch.from_numpy(np.array(x)) for blob, x in inputs.items()}, blobs="all")
        return {blob: value.numpy() for blob, value in values.items()}

    return Side(
        name,
        "PyTorch",
        graph.inputs,
        graph.outputs,
        {item.name: item.blob.values.reshape(item.shape) for item in model.blobs()},
        run,
        {blob: ", ".join(names) for blob, names in makers.items()},
        model.preprocessing,
        contracts=_contracting(graph),
        caffe=True,
        exchanged=model.exchanged,
    )


def _contracting(graph: Graph) -> dict[str, str]:
    """Final blobs of layers with a slope of at most 1 everywhere, and of those that reshape them -> the bottoms."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.layer.TYPE in CONTRACTING:
            top, bottom = node.tops[0], node.bottoms[0]
            if top.blob != bottom.blob and graph.last(top.blob) == top and graph.last(bottom.blob) == bottom:
                found[top.blob] = bottom.blob
        elif node.layer.TYPE in SHAPING and node.bottoms[0].blob in found:
            found |= {top.blob: found[node.bottoms[0].blob] for top in node.tops}
    return found


def _onnx(path: Path) -> Side:
    from converters.onnx_reading import read_model
    from converters.onnx_running import initializers, input_shapes, run_onnx, tensors

    model = read_model(path)
    names = tensors(model)
    made = {name: node.name for node in model.graph.node for name in node.output}
    about = {entry.key: entry.value for entry in model.metadata_props}

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {**inputs, **run_onnx(path, inputs, names)}

    return Side(
        str(path),
        "ONNX Runtime",
        input_shapes(model),
        tuple(output.name for output in model.graph.output),
        initializers(path),
        run,
        made,
        exchanged=about.get(EXCHANGED, ""),
        takes=_entries(about.get(PROPERTY, "{}")),
    )


def _entries(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"input", "blob"} <= found.keys() else {}


def _python(path: Path) -> Side:
    """A module that `vggc convert` wrote: its code is executed, with the weights beside it."""
    module = _module(path)
    try:
        net: nn.Module = module.load()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise FormatError(f"its load() fails: {error}", where=str(path), remedy="convert the model again") from error
    names: Mapping[str, str] = getattr(module, "CAFFE_NAMES", {})
    blobs = [names.get(name, name) for name in inspect.signature(net.forward).parameters]

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        with torch.no_grad():
            given = [torch.from_numpy(np.array(inputs[blob])) for blob in blobs]
            found = _locals_of_forward(net, str(path), given)
        return {names.get(name, name): value.numpy() for name, value in found.items() if torch.is_tensor(value)}

    weights = {_caffe_key(key, names): value.detach().numpy() for key, value in net.state_dict().items()}
    beside = path.with_suffix(".safetensors")
    exchanged = read_weights(beside).metadata.get(EXCHANGED, "") if beside.is_file() else ""
    return Side(str(path), "its own source", dict.fromkeys(blobs, ()), (), weights, run, exchanged=exchanged)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"vggc_verify_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise VggcError("no such Python source", where=str(path), remedy="check the path")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise FormatError(f"this source does not run: {type(error).__name__}: {error}", where=str(path)) from error
    if not callable(getattr(module, "load", None)):
        raise FormatError("this source has no load()", where=str(path), remedy="give one that `vggc convert` wrote")
    return module


def _caffe_key(key: str, names: Mapping[str, str]) -> str:
    layer, _, blob = key.rpartition(".")
    return f"{names.get(layer, layer)}.{blob}"


def _locals_of_forward(net: nn.Module, path: str, given: list[Any]) -> dict[str, Any]:
    """The variables of the net's own `forward` when it returns: they are the blobs."""
    code = inspect.getattr_static(net, "forward").__code__
    found: dict[str, Any] = {}

    def watch(frame: Any, event: str, _argument: object) -> None:
        if event == "return" and frame.f_code is code:
            found.update(frame.f_locals)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        net(*given)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise VggcError(f"it cannot run on these inputs: {error}", where=path) from error
    finally:
        sys.setprofile(before)
    return found
