"""Python source as `ruff format` would leave it: names, strings, and statements that are broken where too long."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterable

WIDTH = 88
"""Longest line: the formatter's own default, so that projects with wider lines have nothing to change either."""
INDENT = "    "


class Names:
    """Identifiers for names of any kind, each its own.

    Args:
        reserved: identifiers that are not given.
    """

    def __init__(self, reserved: Iterable[str]) -> None:
        self._taken = set(reserved)
        self.of: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self.of:
            self.of[name] = self._fresh(identifier(name))
        return self.of[name]

    def _fresh(self, stem: str) -> str:
        made, number = stem, 1
        while made in self._taken:
            number += 1
            made = f"{stem.rstrip('_')}_{number}"
        self._taken.add(made)
        return made


def identifier(name: str) -> str:
    """The identifier nearest to a name: "conv1/3x3" becomes "conv1_3x3", "1x1" becomes "_1x1"."""
    made = re.sub(r"^_+", "_", re.sub(r"[^0-9A-Za-z_]", "_", name))  # two in front would be mangled in a class
    made = f"_{made}" if not made or made[0].isdigit() else made
    return f"{made}_" if keyword.iskeyword(made) else made


def class_name(name: str) -> str:
    """A class's name from a net's: "VGG_ILSVRC_16" becomes "VGGILSVRC16"."""
    words = re.findall(r"[0-9A-Za-z]+", name)
    made = "".join(word[:1].upper() + word[1:] for word in words)
    return made if made and not made[0].isdigit() else f"Net{made}"


def quoted(text: str) -> str:
    """A string literal with the quotes that need fewer escapes, double ones when it does not matter."""
    inner = repr(f"'{text}\"")[3:-2].replace("\\'", "'")  # escaped but for its quotes
    quote = "'" if inner.count('"') > inner.count("'") else '"'
    return quote + inner.replace(quote, f"\\{quote}") + quote


def plain(text: str) -> str:
    """Text that may stand in a docstring or a comment, whatever it came from."""
    return re.sub(r"[^ -~]", "?", text).replace("\\", "/").replace('"', "'").strip()


def statement(target: str, expression: str, depth: int, comment: str = "") -> list[str]:
    """`target = expression` with a comment, on as many lines as needed."""
    lines = _broken(f"{INDENT * depth}{target} = ", ast.parse(expression, mode="eval").body, expression, depth)
    return _commented(lines, comment, depth)


def _commented(lines: list[str], comment: str, depth: int) -> list[str]:
    if not comment:
        return lines
    if len(lines) == 1 and len(lines[0]) + len(comment) + 4 <= WIDTH:
        return [f"{lines[0]}  # {comment}"]
    return [f"{INDENT * depth}# {comment}", *lines]


def _broken(head: str, node: ast.expr, text: str, depth: int, tail: str = "") -> list[str]:
    """`head` and an expression; of calls, lists and tuples every part on a line of its own when it is too long."""
    whole = ast.get_source_segment(text, node) or ast.unparse(node)
    if isinstance(node, ast.Tuple) and not whole.startswith("("):
        whole = f"({whole})"
    if len(head) + len(whole) + len(tail) <= WIDTH:
        return [f"{head}{whole}{tail}"]
    if isinstance(node, ast.Call):
        function = ast.get_source_segment(text, node.func) or ast.unparse(node.func)
        named = [(f"{keyword.arg}=", keyword.value) for keyword in node.keywords]
        return _exploded(f"{head}{function}(", [*(("", each) for each in node.args), *named], f"){tail}", text, depth)
    if isinstance(node, ast.List | ast.Tuple):
        opening, closing = "[]" if isinstance(node, ast.List) else "()"
        return _exploded(f"{head}{opening}", [("", each) for each in node.elts], f"{closing}{tail}", text, depth)
    if isinstance(node, ast.BinOp):
        return _operands(head, node, whole, text, depth, tail)
    return [f"{head}{whole}{tail}"]


def _exploded(head: str, parts: list[tuple[str, ast.expr]], tail: str, text: str, depth: int) -> list[str]:
    inner = INDENT * (depth + 1)
    lines = [line for name, part in parts for line in _broken(f"{inner}{name}", part, text, depth + 1, ",")]
    return [head, *lines, f"{INDENT * depth}{tail}"]


def _operands(head: str, node: ast.BinOp, whole: str, text: str, depth: int, tail: str) -> list[str]:
    """A chain of one operator in parentheses, an operand a line unless all fit on one."""
    inner = INDENT * (depth + 1)
    if len(inner) + len(whole) <= WIDTH:
        return [f"{head}(", f"{inner}{whole}", f"{INDENT * depth}){tail}"]
    sign = "*" if isinstance(node.op, ast.Mult) else "+"
    first, *others = _chain(node, text)
    return [f"{head}(", f"{inner}{first}", *(f"{inner}{sign} {each}" for each in others), f"{INDENT * depth}){tail}"]


def _chain(node: ast.expr, text: str) -> list[str]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left = node.left
        same = isinstance(left, ast.BinOp) and type(left.op) is type(node.op)
        head = _chain(left, text) if same else [ast.get_source_segment(text, left) or ""]
        return [*head, ast.get_source_segment(text, node.right) or ""]
    return [ast.get_source_segment(text, node) or ""]


def signature(name: str, parameters: list[str], returns: str, depth: int) -> list[str]:
    """The first line or lines of a function."""
    head, tail = f"{INDENT * depth}def {name}(", f") -> {returns}:"
    line = f"{head}{', '.join(parameters)}{tail}"
    if len(line) <= WIDTH:
        return [line]
    return [head, *(f"{INDENT * (depth + 1)}{each}," for each in parameters), f"{INDENT * depth}{tail}"]
