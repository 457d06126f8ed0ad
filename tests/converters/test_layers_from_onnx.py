"""The layers that say nets read from ONNX may have them are those that the importer makes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import converters.importing
from caffe_compat.layers.base import registered
from caffe_compat.support import support

MAKERS = ("one", "layer", "_operand_layer", "_spread")
"""What takes the type of a layer to make, after the operator."""


def made() -> set[str]:
    """The types in calls that make layers, in messages of layers, and in tables of operators with a layer each."""
    found: set[str] = set()
    for path in Path(converters.importing.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found.update(texts(kinds(node)))
    return found


def kinds(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in MAKERS:
            yield from node.args[1:3]
        elif name == "LayerParameter":
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "type")
    elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if ast.unparse(target) == "PLAIN":
            yield from node.value.values


def texts(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        parts = (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,)
        yield from (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))


def test_layers_are_those_of_the_importer() -> None:
    known = {kind for kind, _, _ in registered()}
    assert made() & known == {entry.type for entry in support() if entry.from_onnx}
    assert len(made()) > 30


def test_only_one_class_of_a_type_is_read_from_onnx() -> None:
    types = [entry.type for entry in support() if entry.from_onnx]
    assert len(types) == len(set(types))
