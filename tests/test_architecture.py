"""Rules that the source itself keeps: who may import whom, how long a function may be, what is never used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import caffe_compat
from tests.shared import ROOT

ROOMS = ("caffe_compat", "converters", "prototxt", "repro")
MAY_IMPORT = {
    "caffe_compat": {"caffe_compat"},
    "converters": {"caffe_compat", "converters", "prototxt"},
    "prototxt": {"prototxt"},
    "repro": {"caffe_compat", "converters", "prototxt", "repro"},
}
TORCH_AT_TOP = ("caffe_compat/module.py", "caffe_compat/solvers", "converters/python_parts.py", "repro/")
SPEAKS = ("commands.py", "_command.py", "repro/cli.py", "repro/demo.py", "schema/generate.py")
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
LONGEST = 35

SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if path.name != "caffe_pb2.py"
}

every_file = pytest.mark.parametrize("file", SOURCES)


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """The modules that import statements name, in full."""
    modules: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where a module is"
            modules.add(node.module or "")
    return modules


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import_time(child)


def calls(file: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(SOURCES[file]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    end = function.end_lineno or function.lineno
    lines = end - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_there_are_sources() -> None:
    assert {Path(file).parts[0] for file in SOURCES} == set(ROOMS)


@every_file
def test_imports_follow_the_dependency_direction(file: str) -> None:
    own = {module.partition(".")[0] for module in imported(ast.walk(SOURCES[file]))} & set(ROOMS)
    assert own <= MAY_IMPORT[Path(file).parts[0]]


@every_file
def test_torch_is_imported_at_the_top_only_where_all_needs_it(file: str) -> None:
    if not file.startswith(TORCH_AT_TOP):
        assert "torch" not in {module.partition(".")[0] for module in imported(at_import_time(SOURCES[file]))}


@every_file
def test_functions_are_short(file: str) -> None:
    functions = [n for n in ast.walk(SOURCES[file]) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f"{f.name}:{f.lineno}": length(f) for f in functions if length(f) > LONGEST}
    assert not long


@every_file
def test_nothing_is_pickled(file: str) -> None:
    modules = imported(ast.walk(SOURCES[file]))
    assert not {module.partition(".")[0] for module in modules} & PICKLES


@every_file
def test_readers_that_could_unpickle_are_told_not_to(file: str) -> None:
    for name, call in calls(file):
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False"


@every_file
def test_only_commands_print_or_exit(file: str) -> None:
    if not file.endswith(SPEAKS):
        assert not {name for name, _ in calls(file)} & {"print", "exit", "quit", "sys.exit", "os._exit", "click.echo"}


@every_file
def test_a_file_is_about_something(file: str) -> None:
    assert Path(file).stem not in {"utils", "util", "helpers", "helper", "misc", "common"}
    assert ast.get_docstring(SOURCES[file]), "no module docstring"


def test_public_names_exist_and_are_documented() -> None:
    assert len(set(caffe_compat.__all__)) == len(caffe_compat.__all__)
    for name in caffe_compat.__all__:
        assert getattr(caffe_compat, name).__doc__, name


def test_every_module_can_be_imported() -> None:
    for file in SOURCES:
        if not file.endswith("__main__.py"):
            import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
