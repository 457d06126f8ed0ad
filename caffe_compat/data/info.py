"""What a database holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from caffe_compat.data.images import datum_image
from caffe_compat.data.records import Database, Record, open_database
from caffe_compat.errors import FormatError
from caffe_compat.reading import parse_datum
from caffe_compat.schema import pb

KINDS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"BM": "BMP", b"RIFF": "WebP"}
"""First bytes -> format of an encoded image."""


@dataclass(frozen=True)
class Info:
    """A database.

    Attributes:
        path: its folder.
        kind: "LMDB" or "LevelDB".
        bytes: of its files.
        records: how many it holds; None where they would have to be counted.
        first: the first key.
        last: the last key, where all were read.
        image: "bytes", "floats", or the format of encoded images, of the first record.
        shape: of the first image, (C, H, W).
        labels: label -> number of records, where all were read.
        shapes: shape -> number of records as they state it, where all were read; encoded ones state none.
    """

    path: str
    kind: str
    bytes: int
    records: int | None
    first: str
    last: str
    image: str
    shape: tuple[int, ...]
    labels: Mapping[int, int] = field(default_factory=dict)
    shapes: Mapping[str, int] = field(default_factory=dict)


def info_of(path: Path, scan: bool = False, progress: Callable[[int], None] | None = None) -> Info:
    """What a database holds.

    Args:
        scan: read all records, for their number, labels and shapes.
        progress: is told how many records are read.

    Raises:
        FormatError: it cannot be read, or is empty.
    """
    database = open_database(path)
    size = path.stat().st_size if path.is_file() else sum(entry.stat().st_size for entry in path.iterdir())
    first = next((Record(*item) for item in database.items()), None)
    if first is None:
        raise FormatError("this database holds no record", where=str(path), remedy="write records into it")
    datum = parse_datum(first.value, f'{path}: record "{first.name}"')
    shape = datum_image(datum).shape
    if not scan:
        return Info(str(path), database.kind, size, database.count(), first.name, "", kind_of(datum), shape)
    count, last, labels, shapes = _scanned(database, progress)
    return Info(str(path), database.kind, size, count, first.name, last, kind_of(datum), shape, labels, shapes)


def kind_of(datum: pb.Datum) -> str:
    """How a record has its image."""
    if not datum.encoded:
        return "bytes" if datum.data else "floats"
    return next((name for start, name in KINDS.items() if datum.data.startswith(start)), "encoded")


def _scanned(
    database: Database, progress: Callable[[int], None] | None
) -> tuple[int, str, dict[int, int], dict[str, int]]:
    """Number of records, last key, labels and shapes."""
    labels, shapes = Counter[int](), Counter[str]()
    record, count = Record(b"", b""), 0
    for count, item in enumerate(database.items(), 1):
        record = Record(*item)
        datum = parse_datum(record.value, f'{database.path}: record "{record.name}"')
        labels[datum.label] += 1
        shapes[kind_of(datum) if datum.encoded else f"{datum.channels} x {datum.height} x {datum.width}"] += 1
        if progress and not count % 1000:
            progress(count)
    return count, record.name, dict(sorted(labels.items())), dict(shapes.most_common())
