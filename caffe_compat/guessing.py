"""Which fork a net was written for, judged by its layer types, fields and, in binary files, numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import DecodeError

from caffe_compat.dialects import (
    BVLC,
    OURS,
    Dialect,
    FieldKind,
    Kind,
    dialects,
    forks_with_field,
    forks_with_type,
    is_fork_field,
    is_fork_message,
    resolve,
    translate,
)
from caffe_compat.errors import BinaryError, UnknownLayerError, Where
from caffe_compat.fork_fields import follows
from caffe_compat.layers.base import Context, Layer, find_layer, implementation
from caffe_compat.schema import pb
from caffe_compat.source import SourceMap, UnknownField
from caffe_compat.tags import BYTES, Field, Tags, fits

ASKED = ("asked for",)
MAX_REASONS = 8
MAX_CHECKED = 1 << 20
"""Bytes of a layer's parameters that are looked at."""
_LAYER: Kind = pb.LayerParameter.DESCRIPTOR
_NET_LAYER = pb.NetParameter.DESCRIPTOR.fields_by_name["layer"].number
_NAME, _TYPE, _BLOBS = (_LAYER.fields_by_name[name].number for name in ("name", "type", "blobs"))

Fact = tuple[str, str]
"""Message, and a field in it that BVLC Caffe does not have."""


@dataclass(frozen=True)
class Guess:
    """The fork that a net was written for.

    Attributes:
        dialect: its short name; "" for a net of BVLC Caffe.
        numbers: the dialect whose numbers a binary net has: that one, or "" for those of BVLC Caffe.
        reasons: what speaks for it.
        alternatives: others that have all of it as well and mean the same.
        rivals: others that have all of it as well and mean something else: then the user has to say.
        others: others that have all of it as well, but are seldom met or have layers that are not supported.
        what, where: the first layer that the rivals disagree about.
    """

    dialect: str = ""
    numbers: str = ""
    reasons: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    what: str = ""
    where: Where = field(default_factory=Where)

    def notes(self) -> list[str]:
        """What was decided, unless the user did."""
        if not self.dialect or self.rivals or self.reasons == ASKED:
            return []
        return [f"taken for a net of the fork {self.dialect}: {', '.join(self.reasons)}"]

    def problems(self) -> list[UnknownLayerError]:
        """An error when nothing says which of several forks it is."""
        if not self.rivals:
            return []
        names = ", ".join([self.dialect, *self.rivals])
        what = f"{self.what} means different things in {names}, and nothing in the net tells them apart"
        return [UnknownLayerError(what, where=self.where, remedy=f"name the fork with --dialect: {names}")]


def told(dialect: str) -> Guess | None:
    """The dialect that the user names; None for "".

    Raises:
        FormatError: there is no such dialect.
    """
    return Guess(resolve(dialect), resolve(dialect), ASKED) if dialect else None


@dataclass(frozen=True)
class _Evidence:
    """One layer that BVLC Caffe does not have, or that says more than it can.

    Attributes:
        facts: the forks' fields in it.
        forks: the dialects that have all of it.
        exact: those of them that also expect just as many parameter blobs.
        read: the layer as a dialect reads it.
    """

    type: str
    facts: tuple[str, ...]
    forks: frozenset[str]
    where: Where
    read: Callable[[str], pb.LayerParameter | None]
    exact: frozenset[str] = frozenset()


def guess_net(net: pb.NetParameter, source: SourceMap | None = None, origins: Sequence[str] | None = None) -> Guess:
    """The fork of a net that is read.

    Args:
        net: of the newest generation; older ones have no layers of forks.
        source: the places, and the fields that the schema does not have.
        origins: for each layer its path in the file; by default `layer[i]`.
    """
    source = source or SourceMap()
    unknown = _by_layer(source.unknown)
    evidence = []
    for index, layer in enumerate(net.layer):
        path = f"layer[{index}]" if origins is None else "".join(origins[index : index + 1])
        facts = [*_facts(layer), *_unknown_facts(unknown.get(path, ()))]
        if facts or forks_with_type(layer.type):
            evidence.append(_of_layer(layer, facts, source.at(path, "type").in_layer(layer.name)))
    return _decide([item for item in evidence if item.forks])


def _by_layer(unknown: Iterable[UnknownField]) -> Mapping[str, list[str]]:
    """Path of a layer -> paths of unknown fields inside it."""
    found: dict[str, list[str]] = {}
    for entry in unknown:
        layer, _, path = entry.path.partition(".")
        found.setdefault(layer, []).append(path)
    return found


def _facts(message: Any) -> Iterator[Fact]:
    """The forks' fields and enum values inside a message."""
    for own, value in message.ListFields():
        values = value if own.is_repeated else [value]
        if is_fork_field(own) or (own.enum_type is not None and max(values) >= OURS):
            yield own.containing_type.name, own.name
        if own.message_type is not None:
            for inner in values:
                yield from _facts(inner)


def _unknown_facts(paths: Iterable[str]) -> Iterator[Fact]:
    """Fields that the schema does not have, but a fork does."""
    for path in paths:
        kind: Kind = _LAYER
        *parents, name = (part.partition("[")[0] for part in path.split("."))
        for parent in parents:
            inner = kind.fields_by_name.get(parent) if kind is not None else None
            kind = inner.message_type if inner is not None else None
        if kind is not None and forks_with_field(kind.name, name):
            yield kind.name, name


def _of_layer(layer: pb.LayerParameter, facts: Sequence[Fact], where: Where) -> _Evidence:
    counts, params = (len(layer.bottom), len(layer.top)), {name for kind, name in facts if kind == _LAYER.name}
    having = [own for own in dialects().values() if _has_type(own, layer.type) and _has_facts(own, facts)]
    classes = {own.name: implementation(layer.type, own.name) for own in having if _states_required(own, layer)}
    forks = {name: cls for name, cls in classes.items() if cls is None or cls.takes(*counts)}
    known = {name: own for name, cls in forks.items() if (own := cls or implementation(layer.type, BVLC)) is not None}
    reading = {n for n, own in known.items() if params <= {own.PARAM, *own.FORK_FIELDS} and follows(own, layer)}
    deaf = known.keys() - reading if reading else set()
    return _Evidence(layer.type, _top_fields(facts), frozenset(forks) - deaf, where, lambda _: layer)


def _has_type(own: Dialect, kind: str) -> bool:
    return kind in own.types or not forks_with_type(kind)


def _has_facts(own: Dialect, facts: Iterable[Fact]) -> bool:
    return all(own.has(getattr(pb, kind).DESCRIPTOR, name) for kind, name in facts)


def _states_required(own: Dialect, layer: pb.LayerParameter | None) -> bool:
    """Whether the layer, if it can be read, states what the fork asks for in a layer of its type."""
    if layer is None:
        return False
    wanted = own.required.get(layer.type, "")
    param, _, name = wanted.partition(".")
    return not wanted or getattr(layer, param).HasField(name)


def _top_fields(facts: Iterable[Fact]) -> tuple[str, ...]:
    """The fields that stand in messages of BVLC Caffe."""
    return tuple(dict.fromkeys(name for kind, name in facts if not is_fork_message(getattr(pb, kind).DESCRIPTOR)))


# -- binary nets -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Raw:
    """A layer's fields as they stand in the file, without its blobs."""

    type: str
    name: str
    parts: tuple[Field, ...]
    blobs: int
    start: int


def guess_file(data: Any, source: str, dialect: str = "") -> Guess:
    """The fork of a binary net, judged by the numbers of its fields as well; BVLC Caffe when it is not readable.

    Args:
        data: the net, mapped or in memory.
        source: its name.
        dialect: the fork, where the user names it.

    Raises:
        FormatError: there is no such dialect.
    """
    tags, asked = Tags(data, source), told(dialect)
    try:
        layers = [_raw_layer(tags, part) for part in tags.fields(0, len(data)) if _is_layer(part)]
        plain = {id(raw): not forks_with_type(raw.type) and _clean(tags, _LAYER, raw.parts, None) for raw in layers}
        usual = {part.number for raw in layers if plain[id(raw)] for part in raw.parts}
        strange = [] if asked else [_of_raw(tags, raw, usual) for raw in layers if not plain[id(raw)]]
    except BinaryError:
        return asked or Guess()
    guess = asked or _decide([item for item in strange if item.forks])
    own = dialects().get(guess.dialect)
    return replace(guess, numbers="") if own is None or _contradicts(own, usual) else guess


def _is_layer(part: Field) -> bool:
    return part.number == _NET_LAYER and part.wire == BYTES


def _contradicts(own: Dialect, usual: Iterable[int]) -> bool:
    """Whether layers of BVLC Caffe have parameters under numbers that mean something else to the fork."""
    return any(number in own.names.get(_LAYER.name, {}) for number in usual)


def _raw_layer(tags: Tags, layer: Field) -> _Raw:
    parts = list(tags.fields(layer.value, layer.end))
    texts = {part.number: tags.data[part.value : part.end] for part in parts if part.number in (_NAME, _TYPE)}
    name, kind = (texts.get(number, b"").decode("utf-8", "replace") for number in (_NAME, _TYPE))
    small = tuple(part for part in parts if part.number != _BLOBS)
    return _Raw(kind, name, small, len(parts) - len(small), layer.start)


def _of_raw(tags: Tags, raw: _Raw, usual: Iterable[int]) -> _Evidence:
    classes, read = {own.name: _class(raw.type, own.name) for own in dialects().values()}, _reader(tags, raw)
    forks = {
        own.name: classes[own.name]
        for own in dialects().values()
        if _has_type(own, raw.type)
        and _ends_fit(classes[own.name], raw)
        and _numbers_fit(own, raw, classes[own.name])
        and not (_contradicts(own, usual) and _contradicts(own, (part.number for part in raw.parts)))
        and _clean(tags, _LAYER, raw.parts, own, foreign=raw.type in own.types)
        and (raw.type not in own.required or _states_required(own, read(own.name)))
    }
    exact = frozenset(name for name, cls in forks.items() if cls is not None and len(cls.BLOBS) == raw.blobs)
    where = Where(tags.source, offset=raw.start, layer=raw.name)
    numbers = tuple(f"#{part.number}" for part in raw.parts if part.number not in _LAYER.fields_by_number)
    return _Evidence(raw.type, numbers, frozenset(forks), where, read, exact)


def _reader(tags: Tags, raw: _Raw) -> Callable[[str], pb.LayerParameter | None]:
    data = b"".join(tags.data[part.start : part.end] for part in raw.parts)

    def read(dialect: str) -> pb.LayerParameter | None:
        try:
            return pb.LayerParameter.FromString(translate(data, dialect))
        except (DecodeError, BinaryError):
            return None

    return read


def _ends_fit(cls: type[Layer] | None, raw: _Raw) -> bool:
    """Whether the layer may have so many bottoms, tops and blobs."""
    if cls is None:
        return True
    numbers = Counter(part.number for part in raw.parts)
    bottom, top = (_LAYER.fields_by_name[name].number for name in ("bottom", "top"))
    return cls.takes(numbers[bottom], numbers[top]) and (not cls.BLOBS or raw.blobs <= len(cls.BLOBS))


def _numbers_fit(own: Dialect, raw: _Raw, cls: type[Layer] | None) -> bool:
    """Whether the numbers that BVLC Caffe does not have, or uses for something else, stand for the parameters."""
    for part in raw.parts:
        meant = own.field(_LAYER, part.number)
        if meant is None:
            return False
        name = meant if isinstance(meant, str) else meant.name
        usual = _LAYER.fields_by_number.get(part.number)
        unknown = raw.type in own.types and (cls is None or not _is_fork_param(cls.PARAM))
        if (usual is None or usual.name != name) and not unknown and (cls is None or name != cls.PARAM):
            return False
    return True


def _is_fork_param(name: str) -> bool:
    """Whether a field of LayerParameter is one that only forks have."""
    return bool(name) and is_fork_field(_LAYER.fields_by_name[name])


def _clean(tags: Tags, kind: Kind, parts: Iterable[Field], own: Dialect | None, *, foreign: bool = False) -> bool:
    """Whether every field inside is one of the dialect's, of the right wire type; without a dialect, BVLC's.

    Args:
        foreign: fields that the dialect has and the schema does not may be among them.
    """
    for part in parts:
        meant = own.field(kind, part.number) if own else _bvlc_field(kind, part.number)
        if meant is None or part.end - part.value > MAX_CHECKED:
            return False
        if isinstance(meant, str):
            if not foreign:
                return False
        elif not fits(meant, part.wire):
            return False
        elif meant.message_type is not None:
            inside = list(tags.fields(part.value, part.end))
            if not _clean(tags, meant.message_type, inside, own, foreign=foreign):
                return False
    return True


def _bvlc_field(kind: Kind, number: int) -> FieldKind | None:
    own = kind.fields_by_number.get(number)
    return None if own is None or is_fork_field(own) else own


# -- deciding ----------------------------------------------------------------------------------------------


def _decide(evidence: Sequence[_Evidence]) -> Guess:
    """The dialect that has most of the layers; of several, the most used, unless they disagree."""
    if not evidence:
        return Guess()
    major = {name for name, own in dialects().items() if not own.minor}
    enough = all(item.forks & major for item in evidence)
    ranks = {name: _rank(name, evidence) for name in dialects() if name in major or not enough}
    best = max(ranks.values())
    chosen, *others = (name for name, rank in ranks.items() if rank == best)
    differing = {name: _differ(chosen, name, evidence) for name in others}
    rivals = {name: layer for name, layer in differing.items() if layer is not None}
    first = next(iter(rivals.values()), None)
    return Guess(
        chosen,
        chosen,
        _reasons(chosen, evidence),
        tuple(name for name in others if name not in rivals),
        tuple(rivals),
        tuple(name for name in dialects() if name not in (chosen, *others) and _rank(name, evidence)[:2] == best[:2]),
        f'layer type "{first.type}"' if first else "",
        first.where if first else Where(),
    )


def _rank(name: str, evidence: Iterable[_Evidence]) -> tuple[int, int, int]:
    """Layers that the dialect has, those of them with just its number of blobs, and those that can be built.

    Where it gathers the layers of others it is not enough to have one that these can build.
    """
    have = exact = known = 0
    gathers = dialects()[name].minor
    for item in evidence:
        built = _class(item.type, name) is not None
        missed = gathers and not built and any(_class(item.type, other) for other in item.forks)
        have += name in item.forks and not missed
        exact += name in item.exact
        known += built
    return have, exact, known


def _class(kind: str, dialect: str) -> type[Layer] | None:
    try:
        return find_layer(kind, Context(dialect=dialect))
    except UnknownLayerError:
        return None


def _differ(one: str, other: str, evidence: Iterable[_Evidence]) -> _Evidence | None:
    """The first layer that two dialects read differently."""
    return next((item for item in evidence if _meaning(one, item) != _meaning(other, item)), None)


def _meaning(name: str, item: _Evidence) -> tuple[object, ...]:
    """What a dialect makes of a layer: its class, the fields, and the defaults of those not set."""
    own, cls, layer = dialects()[name], _class(item.type, name), item.read(name)
    if cls is None or layer is None:
        return ()
    return cls, layer.SerializePartialToString(deterministic=True), _unset(own, cls, layer)


def _unset(own: Dialect, cls: type[Layer], layer: pb.LayerParameter) -> dict[str, float]:
    """The dialect's own defaults of fields that the layer does not state."""
    found = {}
    for key, value in own.defaults.items():
        kind, _, name = key.partition(".")
        for param in _LAYER.fields:
            used = param.message_type is not None and param.message_type.name == kind
            if used and (layer.HasField(param.name) or param.name == cls.PARAM):
                stated = getattr(layer, param.name).HasField(name)
                found.update({} if stated else {key: value})
    return found


def _reasons(name: str, evidence: Iterable[_Evidence]) -> tuple[str, ...]:
    counts = Counter((item.type, item.facts) for item in evidence if name in item.forks)
    texts: dict[str, int] = {}
    for (kind, facts), count in counts.items():
        text = f"{kind} with {', '.join(facts)}" if facts else kind
        texts[text] = count
    shown = [f"{text} ({count} layers)" if count > 1 else text for text, count in texts.items()]
    more = [f"{len(shown) - MAX_REASONS} more"] if len(shown) > MAX_REASONS else []
    return (*shown[:MAX_REASONS], *more)
