"""Prototxt text as tokens: names, numbers, strings and symbols, each with its place.

Rules: protobuf's io/tokenizer.cc as text_format.cc sets it up. A comment runs from `#` to the line feed, a string ends
on its line, a number is followed by no letter.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from caffe_compat.errors import TextError, Where
from caffe_compat.mapped import kind_of

_SPACE = r"[ \t\r\n\v\f]*"
_STRINGS = r""""[^"\\\n\0]*(?:\\[^\n\0][^"\\\n\0]*)*"|'[^'\\\n\0]*(?:\\[^\n\0][^'\\\n\0]*)*'"""
_WORD = "[A-Za-z0-9_.]*"
_TOKEN = re.compile(
    rf"{_SPACE}(?:#[^\n]*{_SPACE})*(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<string>{_STRINGS})"
    rf"|(?P<number>\.?[0-9]{_WORD}(?:(?<=[eE])[+-]{_WORD})*)|(?P<symbol>.)|(?P<end>))",
    re.DOTALL,
)
_SYMBOLS = frozenset("{}<>[]:;,-")
_LINE_END = re.compile(r"\r\n?|\n")
_LONE_CR = re.compile(r"\r(?!\n)")
_COMMENT = re.compile(rf"{_STRINGS}|(?P<comment>#[^\n]*)")

_REMEDIES = {
    "/": 'comments start with "#", and paths stand in quotes',
    ".": "put paths in quotes",
    "~": "put paths in quotes",
    "=": 'write ":" between a field and its value',
    "+": 'write the number without "+"',
    "\\": "remove it",
    "(": "remove it, or fill in the template",
    "$": "fill in the template",
    "%": "fill in the template",
    "\ufeff": "remove it",
    "\u200b": "remove it",
    "\x1a": "remove it",
    **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb\uff02", "write a plain double quote"),
    **dict.fromkeys("\u2018\u2019`\u00b4\uff07", "write a plain quote"),
    **dict.fromkeys("\u00a0\u2003\u3000\u2028\u0085", "write a plain space"),
    **{wide: f'write "{plain}"' for wide, plain in zip("：；，｛｝［］－＃", ":;,{}[]-#", strict=True)},  # noqa: RUF001
}

_ESCAPE = re.compile(
    r"\\(?:(?P<plain>[abfnrtv?\\'\"])|(?P<octal>[0-7]{1,3})|[xX](?P<hex>[0-9a-fA-F]{1,2})"
    r"|u(?P<pair>[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|u(?P<u4>(?![dD][89a-fA-F])[0-9a-fA-F]{4})"
    r"|U(?P<u8>(?!0000[dD][89a-fA-F])00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})|(?P<bad>[uU]\w{0,8}|.))",
    re.DOTALL,
)
_PLAIN = dict(zip("abfnrtv?\\'\"", "\a\b\f\n\r\t\v?\\'\"", strict=True))
_PLAIN_BACK = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_NEEDS_ESCAPE = re.compile(r'["\\\x00-\x1f\x7f\udc80-\udcff]')


def _byte(value: int) -> str:
    """A byte as a character that the error handler "surrogateescape" turns back into it."""
    return chr(value) if value < 0x80 else chr(0xDC00 + value)


_ESCAPES: dict[str, Callable[[str], str]] = {
    "plain": _PLAIN.__getitem__,
    "octal": lambda digits: _byte(int(digits, 8) & 0xFF),
    "hex": lambda digits: _byte(int(digits, 16)),
    "pair": lambda pair: chr(0x10000 + ((int(pair[:4], 16) & 0x3FF) << 10) + (int(pair[6:], 16) & 0x3FF)),
    "u4": lambda digits: chr(int(digits, 16)),
    "u8": lambda digits: chr(int(digits, 16)),
}


class Lines:
    """Turns offsets into lines and columns; a line ends with LF, CRLF or a lone CR."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(text))]

    def where(self, offset: int, layer: str = "") -> Where:
        """The place of the character at `offset`."""
        line = bisect_right(self._starts, offset)
        return Where(self.source, line, offset - self._starts[line - 1] + 1, layer=layer)


class Tokens:
    """A cursor over the tokens of a text.

    Attributes:
        kind: "name", "number", "string", "symbol" or "end".
        token: the token as written; "" at the end.
        start: its offset.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.kind, self.token = "", ""
        self.start = self.end = 0

    @cached_property
    def lines(self) -> Lines:
        return Lines(self.text, self.source)

    def layer(self) -> str:
        """The name of the layer that is being read, for messages."""
        return ""

    def advance(self) -> None:
        """Go to the next token.

        Raises:
            TextError: a character that no token starts with, or a string without its closing quote.
        """
        match = _TOKEN.match(self.text, self.end)
        assert match is not None  # it matches the empty end, too
        self.kind = match.lastgroup or "end"
        self.token = match[self.kind]
        self.start, self.end = match.span(self.kind)
        if self.kind == "symbol" and self.token not in _SYMBOLS:
            raise self._stray()

    def accept(self, symbol: str) -> bool:
        """Go on when the token is `symbol`."""
        if self.token != symbol:
            return False
        self.advance()
        return True

    def take_string(self) -> str:
        """The value of adjacent strings; bytes from escapes stand in it as "surrogateescape" has them."""
        parts = []
        while self.kind == "string":
            value = self.token[1:-1]
            parts.append(_ESCAPE.sub(self._unescape, value) if "\\" in value else value)
            self.advance()
        return parts[0] if len(parts) == 1 else "".join(parts)

    def take_bytes(self) -> bytes:
        """The value of adjacent strings in UTF-8, with the bytes that escapes gave.

        Raises:
            TextError: the text holds half a surrogate pair.
        """
        start = self.start
        try:
            return self.take_string().encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise self.error("the string holds half a surrogate pair", start, "save the file as UTF-8") from None

    def got(self) -> str:
        """The token as messages show it."""
        if self.kind == "end":
            return "the end of the file"
        return printable(self.token) if self.kind == "string" else f'"{printable(self.token)}"'

    def error(self, what: str, start: int | None = None, remedy: str = "") -> TextError:
        """An error at an offset, by default that of the token."""
        where = self.lines.where(self.start if start is None else start, self.layer())
        return TextError(what, where=where, remedy=remedy)

    def _unescape(self, match: re.Match[str]) -> str:
        kind = match.lastgroup or "bad"
        if kind == "bad":
            what = f'unknown escape "{printable(match[0])}"'
            remedy = "write a backslash as two, and paths with /"
            raise self.error(what, self.start + 1 + match.start(), remedy)
        return _ESCAPES[kind](match[kind])

    def _stray(self) -> TextError:
        if self.token in ('"', "'"):
            return self.error("the string has no closing quote on its line", remedy=f"close it with {self.token}")
        shown = f'"{self.token}"' if self.token.isprintable() else f"character U+{ord(self.token):04X}"
        remedy = _REMEDIES.get(self.token, "remove it, or put the value in quotes")
        return self.error(f"unexpected {shown}", remedy=remedy)


def printable(text: str, limit: int = 60) -> str:
    """Text for a message: one line, of bounded length, without control characters."""
    shown = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def quote(value: bytes) -> str:
    """A string literal: UTF-8 is kept, other bytes and control characters are escaped."""
    return f'"{_NEEDS_ESCAPE.sub(_escape, value.decode("utf-8", "surrogateescape"))}"'


def _escape(match: re.Match[str]) -> str:
    return _PLAIN_BACK.get(match[0]) or f"\\{ord(match[0]) & 0xFF:03o}"


# -- bytes -------------------------------------------------------------------------------------------------

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNDECODED = re.compile("[\udc80-\udcff]")
_LATIN_1 = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}


class Decoded(NamedTuple):
    """Text, and what a user should know about how it was got."""

    text: str
    warnings: tuple[str, ...]


def decode(data: bytes, source: str) -> Decoded:
    """The characters of a text file.

    UTF-8, or what a byte-order mark says. Bytes that are not UTF-8 (comments in GBK, mostly) are read as Latin-1.

    Raises:
        TextError: the bytes after a UTF-16 or UTF-32 mark are not that.
    """
    codec = next((codec for mark, codec in _MARKS if data.startswith(mark)), "")
    if codec:
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            what = f"the file starts as {codec.upper()} does, but is not"
            raise TextError(what, where=Where(source, 1, 1), remedy=foreign(data) or "save it as UTF-8") from None
        return Decoded(text, (f"{source}: {codec.upper()} text; Caffe reads UTF-8 only",))
    text = data.decode("utf-8", "surrogateescape")
    bad = _UNDECODED.search(text)
    if bad is None:
        return Decoded(text, ())
    where = Lines(text, source).where(bad.start())
    warning = f"{where}: not UTF-8; such bytes are read as Latin-1, so names may look garbled"
    return Decoded(text.translate(_LATIN_1), (warning,))


def swallowed(text: str, source: str) -> tuple[str, ...]:
    """A warning when comments go on over a lone carriage return, as Caffe reads them."""
    if not _LONE_CR.search(text):
        return ()
    comments = (match for match in _COMMENT.finditer(text) if match["comment"])
    hits = [match.start() for match in comments if "\r" in match["comment"].rstrip()]
    if not hits:
        return ()
    what = "a comment goes on over a lone carriage return to the next line feed, as in Caffe; save with LF line ends"
    return (f"{Lines(text, source).where(hits[0])}: {what}" + (f" ({len(hits)} such)" if len(hits) > 1 else ""),)


_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_SERVER_ERROR = re.compile(rb"\s*[45][0-9][0-9]: ")
_JSON = re.compile(rb'\s*[{\[]\s*["{\[]')


def foreign(head: bytes) -> str:
    """What a file that cannot be read as prototxt is instead, with the remedy; "" when it may be a prototxt."""
    kind = kind_of(head)
    if kind.name not in ("", "text"):
        return f"this is no prototxt ({kind.name}): {kind.remedy}"
    if _SERVER_ERROR.match(head):
        return "this is a server's answer: the download failed; fetch the file again"
    if _JSON.match(head):
        return "this is JSON; give the prototxt"
    if b"\0" in head or len(_CONTROL.findall(head)) > 3:
        return "this is a binary file; give a caffemodel as weights"
    return ""
