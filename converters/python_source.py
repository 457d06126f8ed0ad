"""Writing .py: a module as a person would write it, in torch alone, with the net's own names.

Its weights are the .safetensors beside it. A net whose layers cannot all be written is refused.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from caffe_compat.errors import ConversionError, VggcError, raise_all
from caffe_compat.graph import Graph, Node, ParamKey
from caffe_compat.layers.base import Layer, Shape
from converters.model import Model, tool_version
from converters.python_text import INDENT, Names, class_name, plain, quoted, signature, statement
from converters.streaming import Payloads, Target

HEAD_WIDTH = 80
LOADER = "read_safetensors"
PARTS = (
    "Blobs",
    "Scale",
    "BatchNorm",
    "lrn_across_channels",
    "lrn_within_channel",
    "normalize",
    "crop",
    "maximum",
    "wide_max_pool2d",
    "wide_avg_pool2d",
    "widely_padded",
    LOADER,
)
"""What `converters.python_parts` has, in its order."""
USED = frozenset({"self", "torch", "nn", "F", "Tensor", "Path", "json", "struct", "load", "CAFFE_NAMES", "_", *PARTS})
"""Names that the file has besides those of the net."""
OF_MODULES = frozenset(
    name
    for names in (
        "T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches",
        "eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict",
        "modules mtia named_buffers named_children named_modules named_parameters parameters register_backward_hook",
        "register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook",
        "register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook",
        "register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_",
        "set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu zero_grad",
    )
    for name in names.split()
)
"""Attributes that torch's modules have themselves."""


def write(model: Model, target: Target, _payloads: Payloads) -> None:
    """Write the source; the weights are another target. The same model always gives the same text.

    Raises:
        ConversionError: the net was not built, or has a layer that is not written as source; `Problems` when several.
    """
    target.write(source(model, target.path.with_suffix(".safetensors").name).encode())


def weights_path(path: Path) -> Path:
    """Where the weights of a source file are."""
    return path.with_suffix(".safetensors")


def source(model: Model, weights: str) -> str:
    """The text of the module; see `write`.

    Args:
        model: the net; values of its weights are not looked at.
        weights: name of the file with the weights.
    """
    graph = _checked(model)
    writer = _Writer(graph)
    raise_all([error for position, node in enumerate(graph.nodes) if (error := writer.write(position, node))])
    body = [*writer.parts(), *writer.net(), *writer.load()]
    return "\n".join([*_head(graph, weights, model.preprocessing), *_imports(body), *body]) + "\n"


def _checked(model: Model) -> Graph:
    graph = model.graph
    if graph is None:
        raise ConversionError("the net cannot be built, so it cannot be written as source")
    if model.renamed:
        raise ConversionError("source has Caffe's names", remedy="use --names caffe")
    if graph.context.profile != "bvlc":
        what = f"source is written for profile bvlc, this net is read under {graph.context.profile}"
        raise ConversionError(what, remedy="convert to .safetensors")
    if not graph.outputs:
        raise ConversionError("the net has no outputs", remedy="check the net")
    return graph


@dataclass
class _Writer:
    """Collects what the file consists of; what layers see as PythonWriter.

    Attributes:
        modules: attribute -> constructor.
        lines: of `forward`.
    """

    graph: Graph
    joined: str = ""
    modules: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = _net_name(self.graph)
        self.names = Names(USED | OF_MODULES | {self.name})
        self._parts: set[str] = set()
        self._skip: set[int] = set()
        self._position = 0

    # -- what layers may do --------------------------------------------------------------------------------

    def module(self, constructor: str) -> str:
        """A submodule for the layer's blobs, or that of the layer it shares all of them with."""
        node = self.graph.nodes[self._position]
        owners = {key.node for key in node.params}
        owner = owners.pop() if len(owners) == 1 else self._position
        same = node.params == tuple(ParamKey(owner, index) for index in range(len(node.params)))
        name = self.names[self._key(owner)]
        if not same or (owner != self._position and self.modules.get(name) != constructor):
            what = "it shares a part of its blobs with another layer, which is not written as source"
            raise ConversionError(what, where=node.layer.where(), remedy="convert to .safetensors")
        self.modules[name] = constructor
        return f"self.{name}"

    def _key(self, position: int) -> str:
        """What a module is called after: the layer; a second one of the same name has its place too."""
        name = self.graph.nodes[position].layer.name
        first = next(index for index, node in enumerate(self.graph.nodes) if node.layer.name == name and node.params)
        if first != position:
            what = "it has the name of another layer with weights, which is not written as source"
            raise ConversionError(what, where=self.graph.nodes[position].layer.where(), remedy="rename one of them")
        return name

    def part(self, name: str) -> str:
        """A class or function of converters.python_parts, and those that it needs."""
        if name not in self._parts:
            self._parts.add(name)
            for node in ast.walk(_definitions()[name]):
                if isinstance(node, ast.Name) and node.id in PARTS:
                    self.part(node.id)
        return name

    # -- the net -------------------------------------------------------------------------------------------

    def write(self, position: int, node: Node) -> VggcError | None:
        """Write one layer; returns why it cannot be written."""
        layer = node.layer
        if layer.TYPE == "Input" or position in self._skip:
            return None
        self._position, last = position, node
        try:
            _check_own(layer)
            if follower := self._follower(position):
                self._position, self.joined = follower, ""
                last = self.graph.nodes[follower]
                self.joined = last.layer.to_python(self, ["x"]).removesuffix("(x)")
                self._skip.add(follower)
                self._position = position
            expression = layer.to_python(self, [self.names[value.blob] for value in node.bottoms])
        except VggcError as error:
            return error
        finally:
            self.joined = ""
        self._assign(last, expression)
        return None

    def _follower(self, position: int) -> int:
        """The layer behind this one, when our own module computes the two together; 0 when it does not."""
        nodes = self.graph.nodes
        behind = position + 1
        if behind == len(nodes) or nodes[behind].bottoms != nodes[position].tops:
            return 0
        readers = sum(value in nodes[position].tops for node in nodes for value in node.bottoms)
        return behind if readers == 1 and nodes[position].layer.fused(nodes[behind].layer) else 0

    def _assign(self, node: Node, expression: str) -> None:
        """The statement for a layer's tops; nothing where a variable would be assigned to itself."""
        tops = [self.names[value.blob] if value.blob else "_" for value in node.tops]
        target = ", ".join(tops)
        if target and target != expression:
            shapes = [self.graph.values[value] for value in node.tops]
            told = len(tops) != 1 or shapes == [self.graph.values[value] for value in node.bottoms]
            self.lines += statement(target, expression, 2, "" if told else _sizes(shapes[0]))

    # -- the text ------------------------------------------------------------------------------------------

    def parts(self) -> list[str]:
        """The classes and functions that the net needs, and the names that it cannot keep."""
        text = _text()
        used = [name for name in PARTS if name in self._parts and name != LOADER]
        lines = [line for name in used for line in ("", "", _segment(text, name))]
        if renamed := self.renamed():
            entries = [f"{INDENT}{quoted(mine)}: {quoted(caffes)}," for mine, caffes in sorted(renamed.items())]
            lines = ["", "# names here -> names in the net", "CAFFE_NAMES = {", *entries, "}", *lines]
        return lines

    def renamed(self) -> dict[str, str]:
        """Identifier -> the name in the net, where that is another."""
        return {mine: caffes for caffes, mine in self.names.of.items() if mine != caffes}

    def net(self) -> list[str]:
        """The net's class."""
        made = [line for name, each in self.modules.items() for line in statement(f"self.{name}", each, 2)]
        outputs = [self.names[blob] for blob in self.graph.outputs]
        returns, result = "Tensor", outputs[0]
        if len(outputs) > 1:
            pairs = zip(self.graph.outputs, outputs, strict=True)
            entries = "".join(f"\n{INDENT * 3}{quoted(blob)}: {name}," for blob, name in pairs)
            returns, result = "dict[str, Tensor]", f"{{{entries}\n{INDENT * 2}}}"
        parameters = ["self", *(f"{self.names[blob]}: Tensor" for blob in self.graph.inputs)]
        init = [*signature("__init__", ["self"], "None", 1), f"{INDENT * 2}super().__init__()", *made, ""]
        body = [*signature("forward", parameters, returns, 1), *self.lines, f"{INDENT * 2}return {result}"]
        return ["", "", f"class {self.name}(nn.Module):", f'{INDENT}"""{_about(self.graph)}"""', "", *init, *body]

    def load(self) -> list[str]:
        """The function that gives the net with its weights."""
        state = f'{LOADER}(path or Path(__file__).with_suffix(".safetensors"))'
        return [
            "",
            "",
            *signature("load", ["path: str | Path | None = None"], self.name, 0),
            f'{INDENT}"""The net with its weights, by default those beside this file."""',
            f"{INDENT}net = {self.name}()",
            *(_RENAMING if self.renamed() else [f"{INDENT}state = {state}"]),
            f"{INDENT}net.load_state_dict(state)",
            f"{INDENT}return net.eval()",
            "",
            "",
            _segment(_text(), LOADER),
        ]


_RENAMING = """\
    names = {caffes: mine for mine, caffes in CAFFE_NAMES.items()}
    tensors = read_safetensors(path or Path(__file__).with_suffix(".safetensors"))
    state = {}
    for key, value in tensors.items():
        layer, _, blob = key.rpartition(".")
        state[f"{names.get(layer, layer)}.{blob}"] = value""".splitlines()


def _net_name(graph: Graph) -> str:
    name = class_name(graph.name)
    return f"{name}Net" if name in USED | {"Net"} and name != "Net" else name


def _about(graph: Graph) -> str:
    """One line for the class."""
    name = plain(graph.name)
    return f"The Caffe net {name[:50]}." if name else "A Caffe net."


def _check_own(layer: Layer) -> None:
    """Refuse a layer that computes in its own way but says how another is written."""
    for cls in type(layer).__mro__:
        if "to_python" in vars(cls):
            return
        if "forward" in vars(cls):
            Layer.to_python(layer, None, [])  # type: ignore[arg-type]


def _sizes(shape: Shape) -> str:
    return str(tuple(shape))


def _images(ready: Mapping[str, Any]) -> list[str]:
    """How images are prepared, where it is known."""
    said = [f"{key} {value}" for key, value in ready.items()]
    lines = textwrap.wrap(plain(f"Images: {', '.join(said)}."), HEAD_WIDTH) if said else []
    return ["", *lines] if lines else []


def _head(graph: Graph, weights: str, ready: Mapping[str, Any]) -> list[str]:
    """The docstring and the imports."""
    name = _net_name(graph)
    shapes = {**dict(graph.inputs.items()), **{blob: graph.shapes[blob] for blob in graph.outputs}}
    kinds = [*("input " for _ in graph.inputs), *("output" for _ in graph.outputs)]
    ends = zip(kinds, [*graph.inputs, *graph.outputs], strict=True)
    listed = [f"{INDENT}{kind} {plain(blob)} {_sizes(shapes[blob])}" for kind, blob in ends]
    return [
        f'"""{name}, written by vggc {tool_version()} from a Caffe model.',
        "",
        *listed,
        *_images(ready),
        "",
        f"`load()` gives the net with the weights of {plain(weights)}, which is to lie",
        "beside this file. Layers and blobs are called as in the net.",
        '"""',
    ]


def _imports(body: list[str]) -> list[str]:
    """The imports that the rest of the file needs."""
    functional = any(re.search(r"\bF\.", line) for line in body)
    return [
        "",
        "from __future__ import annotations",
        "",
        "import json",
        "import struct",
        "from pathlib import Path",
        "",
        "import torch",
        *(["import torch.nn.functional as F"] if functional else []),
        "from torch import Tensor, nn",
    ]


# -- the parts -------------------------------------------------------------------------------------------------


def _text() -> str:
    return files("converters").joinpath("python_parts.py").read_text(encoding="utf-8")


def _definitions() -> dict[str, ast.stmt]:
    """Name -> definition, read without importing torch."""
    nodes = ast.parse(_text()).body
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def _segment(text: str, name: str) -> str:
    return ast.get_source_segment(text, _definitions()[name]) or ""
