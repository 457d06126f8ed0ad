"""Prototxt fields that no schema describes: read without one, written in one canonical form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.message import Message

from caffe_compat.errors import TextError
from caffe_compat.tokens import Tokens, printable, quote

MAX_DEPTH = 100
"""Most messages inside one another."""

INTEGER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
REAL = re.compile(r"(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?")
EXTENSION = re.compile(r"\[\s*[A-Za-z_][\w./-]*\s*\]", re.ASCII)
INFINITE = {"inf": float("inf"), "infinity": float("inf"), "nan": float("nan")}
CLOSING = {"{": "}", "<": ">"}

_STRAY = "remove it, or complete the field before it"


class Node(NamedTuple):
    """A field that no schema describes: its value as text, or its fields."""

    name: str
    value: str
    fields: tuple[Node, ...] | None = None


class Open(NamedTuple):
    """A message whose end has not come yet."""

    name: str
    start: int
    close: str
    message: Message | None


class Untyped(Tokens):
    """Reads fields whose names and types are not known.

    Attributes:
        open: the messages around the token, outermost first.
    """

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text, source)
        self.open: list[Open] = []

    def any_fields(self, close: str) -> tuple[Node, ...]:
        """Fields of no known type up to the token `close`."""
        nodes: list[Node] = []
        while self.token != close:
            nodes += self.any_field()
            self.separator()
        return tuple(nodes)

    def any_field(self) -> list[Node]:
        """A field of no known type; several when it lists messages."""
        start, name = self.start, self.any_name()
        if not self.accept(":") or self.token in CLOSING:
            return [self.any_message(name, start)]
        if not self.accept("["):
            return [Node(name, self.any_value(name))]
        return self.any_list(name)

    def any_name(self) -> str:
        extension = EXTENSION.match(self.text, self.start) if self.token == "[" else None
        if extension:
            self.end = extension.end()
        elif self.kind != "name":
            raise self.no_field()
        name = "".join(extension[0].split()) if extension else self.token
        self.advance()
        return name

    def any_message(self, name: str, start: int) -> Node:
        close = self.enter(name, start)
        fields = self.any_fields(close)
        self.leave()
        return Node(name, "", fields)

    def any_list(self, name: str) -> list[Node]:
        if self.accept("]"):
            return [Node(name, "[]")]
        nodes = [self.any_element(name)]
        while self.accept(","):
            nodes.append(self.any_element(name))
        self.end_list(name)
        if any(node.fields is not None for node in nodes):
            return nodes
        return [Node(name, f"[{', '.join(node.value for node in nodes)}]")]

    def any_element(self, name: str) -> Node:
        if self.token in CLOSING:
            return self.any_message(name, self.start)
        return Node(name, self.any_value(name))

    def any_value(self, name: str) -> str:
        """A value of no known type, as `dump` would write it."""
        if self.kind == "string":
            return quote(self.take_bytes())
        sign = "-" if self.accept("-") else ""
        token = self.token
        allowed = token.lower() in INFINITE if sign else True
        if not (INTEGER.fullmatch(token) or REAL.fullmatch(token) or (self.kind == "name" and allowed)):
            what = f'expected a value for "{printable(name)}", got {self.got()}'
            raise self.error(what, remedy=f'write "{printable(name)}: ..."')
        self.advance()
        return sign + token

    def enter(self, name: str, start: int, message: Message | None = None) -> str:
        """Take the opening bracket; returns what closes it."""
        close = CLOSING.get(self.token, "")
        if not close:
            what = f'expected "{{" after "{printable(name)}", got {self.got()}'
            shown = printable(name)
            value = f'"{shown}: value" or ' if message is None else ""
            raise self.error(what, remedy=f'write {value}"{shown} {{ ... }}"')
        if len(self.open) == MAX_DEPTH:
            raise self.error(f"messages are nested more than {MAX_DEPTH} deep", remedy="check the brackets")
        self.open.append(Open(name, start, close, message))
        self.advance()
        return close

    def leave(self) -> None:
        self.open.pop()
        self.advance()

    def separator(self) -> None:
        if self.token in (";", ","):
            self.advance()

    def end_list(self, name: str) -> None:
        if not self.accept("]"):
            what = f'expected "," or "]" in the list of "{name}", got {self.got()}'
            raise self.error(what, remedy='end the list with "]"')

    def no_field(self) -> TextError:
        """Something stands where a field or the end of the message should."""
        inside = self.open[-1] if self.open else None
        if inside is None:
            remedy = "remove it, or a closing bracket too many before it" if self.token in ("}", ">") else _STRAY
            return self.error(f"expected a field name, got {self.got()}", remedy=remedy)
        begun = self.lines.where(inside.start)
        unclosed = f'"{printable(inside.name)}" at {begun.line}:{begun.column} is not closed'
        remedy = _STRAY if self.token else unclosed
        return self.error(f'expected a field name or "{inside.close}", got {self.got()}', remedy=remedy)


def one_line(node: Node) -> str:
    if node.fields is None:
        return f"{node.name}: {node.value}"
    return " ".join([node.name, "{", *map(one_line, node.fields), "}"])


def node_lines(node: Node, indent: str) -> Iterator[str]:
    if node.fields is None:
        yield f"{indent}{node.name}: {node.value}"
        return
    yield f"{indent}{node.name} {{"
    for inner in node.fields:
        yield from node_lines(inner, indent + "  ")
    yield f"{indent}}}"
