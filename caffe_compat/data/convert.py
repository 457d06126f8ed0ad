"""From image files to a database, as convert_imageset does it, but in several threads and safe to interrupt.

The database grows in a hidden folder beside its target and gets its name when it is complete. When a run was
interrupted the next one goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from caffe_compat.data.images import Image, decode_image, encode_image, planes, read_image
from caffe_compat.data.lists import ImageList
from caffe_compat.data.random_numbers import generator
from caffe_compat.data.records import is_database
from caffe_compat.data.sources import begin
from caffe_compat.data.writers import WRITERS, RecordWriter
from caffe_compat.errors import FormatError, VggcError, Where, raise_all
from caffe_compat.schema import pb
from caffe_compat.writing import new_file, write_failed

CHUNK = 256
"""Records that are written at once."""
LONGEST_KEY = 511
"""Bytes, of LMDB."""
STATE, LOCK = "vggc-convert.json", "vggc-convert.lock"
Progress = Callable[[int, int], None]
"""Is told how many images are done, of how many."""


@dataclass(frozen=True)
class Settings:
    """How images become records; names as the flags of convert_imageset.

    Attributes:
        backend: "lmdb" or "leveldb".
        gray: one channel instead of three, also with `encoded`, where convert_imageset keeps coloured files.
        resize: height and width, zeros to leave images as they are.
        encoded: store files instead of pixels, in the format that the file's ending says.
        encode_type: store files in this format, "png", "jpg", ...
        shuffle: put the images into another order.
        seed: of that order.
        check_size: refuse images of different sizes.
        skip_unreadable: go on without images that cannot be read.
    """

    backend: str = "lmdb"
    gray: bool = False
    resize: tuple[int, int] = (0, 0)
    encoded: bool = False
    encode_type: str = ""
    shuffle: bool = False
    seed: int = 0
    check_size: bool = False
    skip_unreadable: bool = False


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        target: the folder.
        records: how many it holds.
        resumed: how many of them an earlier run has written.
        shape: of the first image, (C, H, W).
        varied: not all images have that shape.
        skipped: images that could not be read, with the reason.
    """

    target: str
    records: int
    resumed: int
    shape: tuple[int, ...]
    varied: bool
    skipped: tuple[str, ...]


def convert(
    images: ImageList,
    root: Path,
    target: Path,
    settings: Settings | None = None,
    *,
    force: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write a database of the images of a list.

    Args:
        images: names relative to `root`.
        root: the folder that no name leads out of.
        target: the folder to write.
        force: replace the target, if it is a database.
        restart: do not go on with what an interrupted run has left.

    Raises:
        FormatError: an image cannot be read, or settings do not fit; what is done so far is kept for the next run.
        VggcError: the target exists, cannot be written, or another run writes it.
    """
    settings = settings or Settings()
    _check_settings(settings)
    _check_target(target, force)
    with _part(target, restart) as part:
        job = _Job(images, root.absolute(), part, settings, progress)
        report = job.run(target)
        _put_in_place(part, target)
    return report


def _check_settings(settings: Settings) -> None:
    if settings.backend not in WRITERS:
        raise FormatError(f'no backend called "{settings.backend}"', remedy=f"backends: {', '.join(WRITERS)}")
    if bool(settings.resize[0]) != bool(settings.resize[1]):
        what = f"a height of {settings.resize[0]} and a width of {settings.resize[1]} to resize to"
        raise FormatError(what, remedy="give both, or none")
    if settings.encode_type and not settings.encode_type.isalnum():
        raise FormatError(f'"{settings.encode_type}" is no format of images', remedy="use png or jpg")


# -- the folder ------------------------------------------------------------------------------------------------


def _check_target(target: Path, force: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise VggcError("it exists already", where=str(target), remedy="choose another name, or use --force")
    if not is_database(target):
        raise VggcError("it exists and is no database", where=str(target), remedy="choose another name")


@contextmanager
def _part(target: Path, restart: bool) -> Iterator[Path]:
    """The hidden folder beside the target, for this run alone."""
    part = target.with_name(f".{target.name}.part")
    try:
        part.mkdir(exist_ok=True)
        if any(part.iterdir()) and not (part / LOCK).exists():
            raise VggcError("this folder is in the way", where=str(part), remedy="remove it")
        with open(part / LOCK, "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                what = "another run is writing this database"
                raise VggcError(what, where=str(target), remedy="wait until it is done") from error
            if restart:
                _empty(part)
            yield part
    except OSError as error:
        raise write_failed(target, error) from error


def _empty(part: Path) -> None:
    for entry in part.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _put_in_place(part: Path, target: Path) -> None:
    """Give the finished folder its name."""
    for name in (STATE, LOCK):
        (part / name).unlink(missing_ok=True)
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    if target.exists():
        os.rename(target, old)
    os.rename(part, target)
    if old.exists():
        shutil.rmtree(old)


# -- the records -----------------------------------------------------------------------------------------------


@dataclass
class _State:
    """What a run must know of the one before it.

    Attributes:
        fingerprint: of the list and the settings.
        shape: of the first image.
        varied: another one had another shape.
        skipped: index in the list -> why it could not be read.
    """

    fingerprint: str
    shape: list[int] = field(default_factory=list)
    varied: bool = False
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Made:
    """A record, or why there is none."""

    index: int
    value: bytes = b""
    shape: tuple[int, ...] = ()
    error: VggcError | None = None


class _Job:
    """One run."""

    def __init__(
        self, images: ImageList, root: Path, part: Path, settings: Settings, progress: Progress | None
    ) -> None:
        self.images, self.root, self.part, self.settings, self.progress = images, root, part, settings, progress
        self.order = list(range(len(images.names)))
        if settings.shuffle:
            self.order = generator(settings.seed, "convert").permutation(len(self.order)).tolist()
        self.state = self._state()

    def run(self, target: Path) -> Converted:
        writer = WRITERS[self.settings.backend](self.part)
        try:
            start = self._start(writer)
            resumed = start - len(self.state.skipped)
            self._write_from(start, writer)
        finally:
            writer.close()
        records = len(self.order) - len(self.state.skipped)
        if not records:
            raise FormatError("no image could be read", where=self.images.source, remedy="check the paths")
        skipped = tuple(self.state.skipped.values())
        return Converted(str(target), records, resumed, tuple(self.state.shape), self.state.varied, skipped)

    # -- going on --------------------------------------------------------------------------------------------

    def _fingerprint(self) -> str:
        """Of everything that records follow from, but the files' contents."""
        kept = {name: value for name, value in asdict(self.settings).items() if name != "skip_unreadable"}
        digest = hashlib.sha256(json.dumps([str(self.root), kept]).encode())
        digest.update(self.images.labels.tobytes())
        digest.update("\0".join(self.images.names).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _state(self) -> _State:
        """That of the run before, or a new one."""
        new, path = _State(self._fingerprint()), self.part / STATE
        if not path.exists():
            _empty(self.part)
            return new
        try:
            found = _State(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            found = _State("damaged")
        if found.fingerprint != new.fingerprint:
            what = "an interrupted run of another list or with other options has left its part of this database"
            remedy = f"use --restart to begin anew, or remove {self.part}"
            raise VggcError(what, where=str(self.part), remedy=remedy)
        return found

    def _start(self, writer: RecordWriter) -> int:
        """Position of the first image that is not written yet."""
        last = writer.last_key()
        start = 0 if last is None else int(last[:8]) + 1
        if last is not None and (start > len(self.order) or last != self._key(start - 1)):
            what = f"the record written last, {last!r}, is not of this list"
            raise VggcError(what, where=str(self.part), remedy="use --restart to begin anew")
        self.state.skipped = {index: why for index, why in self.state.skipped.items() if int(index) < start}
        return start

    # -- making records --------------------------------------------------------------------------------------

    def _write_from(self, start: int, writer: RecordWriter) -> None:
        """Make the records from a position on and add them; those of the next chunk are made meanwhile."""
        total = len(self.order)
        chunks = [range(first, min(first + CHUNK, total)) for first in range(start, total, CHUNK)]
        coming = [begin(self._make, chunk) for chunk in chunks[:1]]
        for number, chunk in enumerate(chunks, 1):
            made = list(coming.pop())
            coming += [begin(self._make, after) for after in chunks[number : number + 1]]
            self._write(writer, made)
            if self.progress:
                self.progress(chunk.stop, total)

    def _write(self, writer: RecordWriter, made: Sequence[_Made]) -> None:
        """Add records, up to the first that could not be made."""
        errors = [each.error for each in made if each.error]
        if errors and not self.settings.skip_unreadable:
            made = made[: next(at for at, each in enumerate(made) if each.error)]
        self._note(made)
        records = [(self._key(each.index), each.value) for each in made if not each.error]
        if records:
            writer.put(records)
        if not self.settings.skip_unreadable:
            raise_all(errors)

    def _note(self, made: Sequence[_Made]) -> None:
        """Keep in the state what these records show; it is written before them."""
        for each in made:
            if each.error:
                self.state.skipped[str(each.index)] = f"{each.error.where}: {each.error.what}"
                continue
            self.state.shape = self.state.shape or list(each.shape)
            self.state.varied |= list(each.shape) != self.state.shape
            if self.state.varied and self.settings.check_size:
                shape = tuple(self.state.shape)
                what = f'image "{self._name(each.index)}" has shape {each.shape}, the first one {shape}'
                raise FormatError(what, where=self.images.source, remedy="resize them, or leave --check-size out")
        with new_file(self.part / STATE) as file:
            file.write(json.dumps(asdict(self.state)).encode())

    def _name(self, position: int) -> str:
        return self.images.names[self.order[position]]

    def _key(self, position: int) -> bytes:
        key = f"{position:08d}_{self._name(position)}".encode(errors="surrogateescape")
        if len(key) > LONGEST_KEY:
            what = (
                f'the name "{self._name(position)[:80]}..." is longer than the {LONGEST_KEY - 9} bytes that fit a key'
            )
            raise FormatError(what, where=self.images.source, remedy="rename it, or name a deeper folder (--root)")
        return key

    def _make(self, position: int) -> _Made:
        try:
            self._key(position)
            path = self._path(self._name(position))
            image = read_image(path, not self.settings.gray, self.settings.resize)
            label = int(self.images.labels[self.order[position]])
            datum = self._datum(path, image)
            datum.label = label
            value = datum.SerializeToString()
        except VggcError as error:
            remedy = f"{error.remedy}; the next run goes on here, or use --skip-unreadable"
            where = error.where if str(error.where) else Where(self._name(position))
            return _Made(position, error=FormatError(error.what, where=where, remedy=remedy.removeprefix("; ")))
        return _Made(position, value, planes(image).shape)

    def _path(self, name: str) -> Path:
        path = Path(os.path.normpath(self.root / name))
        if not path.is_relative_to(self.root):
            what = f'"{name}" is outside the folder {self.root}'
            raise FormatError(what, where=self.images.source, remedy="name the folder that holds it (--root)")
        return path

    def _datum(self, path: Path, image: Image) -> pb.Datum:
        """The record without its label (ReadImageToDatum, CVMatToDatum)."""
        kind = self._encoding(path)
        if not kind:
            channels, height, width = planes(image).shape
            return pb.Datum(channels=channels, height=height, width=width, data=planes(image).tobytes(), encoded=False)
        if self._stays(path, kind):
            data = path.read_bytes()
            if not self.settings.gray or decode_image(data).shape[2] == 1:
                return pb.Datum(data=data, encoded=True)
        return pb.Datum(data=encode_image(image, kind), encoded=True)

    def _encoding(self, path: Path) -> str:
        """The format to store, "" for pixels."""
        if self.settings.encode_type or not self.settings.encoded:
            return self.settings.encode_type.lower()
        if not path.suffix:
            raise FormatError(f'"{path.name}" has no ending that tells its format', remedy="give --encode-type")
        return path.suffix[1:].lower()

    def _stays(self, path: Path, kind: str) -> bool:
        """Whether the file itself is what is wanted."""
        own = path.suffix[1:].lower()
        return not self.settings.resize[0] and (own == kind or (kind, own) == ("jpg", "jpeg"))
