"""Nets, solvers, means and database records from files; what a file is, its content says, not its name."""

from __future__ import annotations

import mmap
import os
from itertools import islice
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from caffe_compat.errors import BinaryError, FormatError, TextError, Where, raise_all
from caffe_compat.mapped import PathName, kind_of, map_file, mostly_text
from caffe_compat.schema import pb
from caffe_compat.source import Document, UnknownField
from caffe_compat.tags import DAMAGED, Tags, fits
from caffe_compat.textformat import parse
from caffe_compat.wire import read_blob, read_message, refuse_other_kinds

MAX_TEXT = 64 << 20
M = TypeVar("M", bound=Message)
_NAMES = {pb.NetParameter: "net", pb.SolverParameter: "solver"}


def read_document(path: PathName, dialect: str = "") -> Document:
    """Read a net or a solver, as text or binary; blobs in binary nets are left out.

    Args:
        path: the file.
        dialect: the fork that wrote a binary file; "" to judge by the file. Text needs none to be read.

    Returns:
        The message (NetParameter or SolverParameter) and its source map. Fields that the schema does not have are in
        `map.unknown`; those of a binary file are also kept in the message.

    Raises:
        VggcError: there is no such file or dialect, or it may not be read.
        TextError: text that is neither.
        BinaryError: a binary file that is neither.
    """
    source = os.fspath(path)
    data = map_file(source)
    kind = kind_of(data).name
    if kind == "text" or (not kind and mostly_text(data[:4096])):
        return _from_text(data, source)
    refuse_other_kinds(data, source, "a net or solver")
    return read_message(source, _binary_kind(data, source), dialect)


def read_net(path: PathName, dialect: str = "") -> pb.NetParameter:
    """Read a net of any generation, as text or binary, without blobs; `dialect` as for `read_document`.

    Raises:
        FormatError: see `read_document`; also a field in text that neither Caffe nor a known fork has, which
            `read_document` keeps.
    """
    return _only(read_document(path, dialect), pb.NetParameter)


def read_solver(path: PathName) -> pb.SolverParameter:
    """Read a solver, as text or binary.

    Raises:
        FormatError: see `read_document`; also a field in text that Caffe does not have.
    """
    return _only(read_document(path), pb.SolverParameter)


def parse_net(text: str, source: str = "<string>") -> pb.NetParameter:
    """A net from prototxt text.

    Args:
        text: the text.
        source: what to call it in messages.

    Raises:
        TextError: it is not a net, or has a field that Caffe does not have; `Problems` for several.
    """
    return _only(parse(text, pb.NetParameter, source), pb.NetParameter)


def read_mean(path: PathName) -> np.ndarray:
    """The values of a mean image (.binaryproto), float32, in the shape that the file states: usually (1, C, H, W).

    Raises:
        VggcError: there is no such file, or it may not be read.
        BinaryError: it is no blob.
    """
    return read_blob(path).array.astype(np.float32)


def read_datum(path: PathName) -> pb.Datum:
    """Read a file that is one database record.

    Raises:
        VggcError: there is no such file, or it may not be read.
        BinaryError: it is no record.
    """
    source = os.fspath(path)
    data = map_file(source)
    refuse_other_kinds(data, source, "a database record (Datum)")
    return parse_datum(data[:], source)


def parse_datum(data: bytes, source: str = "<bytes>") -> pb.Datum:
    """A database record from its bytes.

    Raises:
        BinaryError: it is no record.
    """
    try:
        datum = pb.Datum.FromString(data)
    except DecodeError as error:
        raise BinaryError(f"this is no Datum: {error}", where=Where(source, offset=0), remedy=DAMAGED) from error
    if not datum.ListFields():
        raise BinaryError("this is no Datum: it has none of its fields", where=Where(source, offset=0), remedy=DAMAGED)
    return datum


def _only(document: Document, kind: type[M]) -> M:
    """The message, when it is of that kind and Caffe has every field in the text."""
    message, source = document.message, document.map
    if not isinstance(message, kind):
        got, wanted = _NAMES[type(message)], _NAMES[kind]  # type: ignore[index]
        remedy = f"give the {wanted}'s own file" + (": see its `net` field" if wanted == "net" else "")
        raise FormatError(f"this is a {got}, not a {wanted}", where=source.source, remedy=remedy)
    raise_all(_strange(unknown) for unknown in source.unknown if unknown.where.line)
    return message


def _strange(unknown: UnknownField) -> TextError:
    name = unknown.path.rpartition(".")[2]
    return TextError(f'neither Caffe nor a known fork has a field "{name}"', where=unknown.where, remedy=_FOREIGN)


_FOREIGN = "remove it, or use read_document, which keeps it"


# -- net or solver -----------------------------------------------------------------------------------------


def _from_text(data: mmap.mmap, source: str) -> Document:
    if len(data) > MAX_TEXT:
        what = f"{len(data)} bytes of text; at most {MAX_TEXT >> 20} MiB are read"
        raise TextError(what, where=source, remedy="keep weights in a binary file")
    net = parse(data[:], pb.NetParameter, source)
    own = sum(1 for field, _ in net.message.ListFields() if field.name != "debug_info")
    strange = {unknown.path for unknown in net.map.unknown if "." not in unknown.path}
    if len(strange & set(pb.SolverParameter.DESCRIPTOR.fields_by_name)) > own:
        return parse(data[:], pb.SolverParameter, source)
    if net.map.unknown and not net.message.ListFields():
        first = net.map.unknown[0]
        what = f'neither a net nor a solver: it begins with "{first.path.partition(".")[0]}"'
        raise TextError(what, where=first.where, remedy="give a net's or solver's file")
    return net


def _binary_kind(data: mmap.mmap, source: str) -> type[Message]:
    """Net or solver, by which of them has more of the first fields."""
    kinds: tuple[type[Message], ...] = (pb.NetParameter, pb.SolverParameter)
    fields = list(islice(Tags(data, source).fields(0, len(data)), 100))

    def own(kind: type[Message]) -> int:
        known = kind.DESCRIPTOR.fields_by_number
        return sum(field.number in known and fits(known[field.number], field.wire) for field in fields)

    return max(kinds, key=own)
