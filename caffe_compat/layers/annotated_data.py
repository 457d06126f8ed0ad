"""AnnotatedData: images with boxes from a database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffe_compat.data.images import Image, decode_image, raw_planes
from caffe_compat.data.random_numbers import generator, set_state, state_of
from caffe_compat.data.records import Records, open_records
from caffe_compat.data.resizing import resize_boxes, resize_image, resized_size, stretch_boxes
from caffe_compat.errors import VggcError
from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.base_data import ImageSource, to_tensor
from caffe_compat.layers.boxes import Floats, areas
from caffe_compat.layers.files import inner_name, inner_path, read_blob
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = "data_param.source"
ROW = 8
"""Values of a box in the label: item, group_label, instance_id, xmin, ymin, xmax, ymax, difficult."""
RANDOM = ("distort_param", "expand_param", "noise_param")
"""What transform_param may ask for and is not done here."""


class Window(NamedTuple):
    """The part of an image that is kept, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Item(NamedTuple):
    """A transformed record: (C, H, W), and rows (group_label, instance_id, xmin, ymin, xmax, ymax, difficult)."""

    image: Floats
    boxes: Floats


@register
class AnnotatedData(ImageSource):
    """Top 0: images (batch_size, C, H, W); top 1: their boxes (1, 1, boxes of the batch, 8).

    Rows (item of the batch, group_label, instance_id, xmin, ymin, xmax, ymax, difficult) of the AnnotatedDatum records
    in data_param.source, one row of -1 when no image of the batch has a box. Records without an annotation type give
    labels (batch_size) instead. Encoded images are resized by transform_param.resize_param; then the crop (in TEST of
    the middle, in TRAIN anywhere), means, scale, and in TRAIN or TEST `mirror` at random. Boxes follow: those outside
    the crop, or that fail emit_constraint, are left out, the others clipped. The batch has the size of its first image.
    Batch samplers, distort_param, expand_param and noise_param are refused when the layer runs.
    Without its database the layer takes H and W from crop and resize_param, C from the means. In yolo9000, which has
    an earlier version, boxes do not follow a resizing that keeps proportions; such a resize_mode is refused there.
    Source: annotated_data_layer.cpp, data_transformer.cpp of weiliu89/caffe, branch ssd, and choasup/caffe-yolo9000.
    """

    TYPE = "AnnotatedData"
    DIALECTS = ("ssd", "yolo9000")
    PARAM = "data_param"
    FORK_FIELDS = tuple(
        f"transform_param.{name}" for name in ("resize_param", "emit_constraint", "crop_h", "crop_w", *RANDOM)
    )
    TOPS = (1, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.transform = self.param.transform_param
        self.resize = self._resize()
        what = "both force_color and force_gray are set"
        fine = not (self.transform.force_color and self.transform.force_gray)
        self.check(fine, what, field="transform_param.force_gray", remedy="keep one")
        self.color = True if self.transform.force_color else False if self.transform.force_gray else None
        crop = self.transform.crop_size
        self.crop = (crop, crop) if crop else (self.transform.crop_h, self.transform.crop_w)
        what = f"a crop of {self.crop[0]} x {self.crop[1]}"
        fine = bool(self.crop[0]) == bool(self.crop[1])
        self.check(fine, what, field="transform_param.crop_h", remedy="state both crop_h and crop_w")
        self.generator = generator(self.seed, self.name, "resizing")
        self.records = self._open()
        with self._reading():
            self.first = pb.AnnotatedDatum.FromString(self.records.peek().value) if self.records else None
        super().setup(bottoms)
        self.mean = self._mean()
        self.check_means(self.image[0])
        annotated = self.param.annotated_data_param.HasField("anno_type")
        self.annotated = annotated or self.first is None or self.first.HasField("type")

    def _resize(self) -> pb.ResizeParameter | None:
        if not self.transform.HasField("resize_param"):
            return None
        resize, field = self.transform.resize_param, "transform_param.resize_param"
        what = f"resize_param has height {resize.height} and width {resize.width}"
        self.check(min(resize.height, resize.width) > 0, what, field=field, remedy="state both, > 0")
        what = f"resize_mode {pb.ResizeParameter.Resize_mode.Name(resize.resize_mode)}, which boxes do not follow"
        follows = resize.resize_mode == pb.ResizeParameter.WARP or self.context.dialect != "yolo9000"
        self.check(follows, what, field=f"{field}.resize_mode", remedy="use WARP")
        what = "FIT_SMALL_SIZE gives images of different sizes"
        fine = resize.resize_mode != pb.ResizeParameter.FIT_SMALL_SIZE or self.p.batch_size == 1
        self.check(fine, what, field=f"{field}.resize_mode", remedy="use batch_size 1")
        return resize

    # -- shapes --------------------------------------------------------------------------------------------

    def image_shape(self) -> Shape:
        channels, *size = self._first_size()
        if self.resize:
            size = list(resized_size(self.resize, *size)) if self.first else [self.resize.height, self.resize.width]
        height, width = (crop or whole for crop, whole in zip(self.crop, size, strict=True))
        what = f'the size of the images in "{self.p.source}" is not known without reading it'
        remedy = f"state transform_param.resize_param, or {self.as_input()}"
        self.check(height > 0 and width > 0, what, field=SOURCE, remedy=remedy)
        what = f"a crop of {height} x {width} is larger than the images, {size[0]} x {size[1]}"
        fine = not self.first or (height <= size[0] and width <= size[1])
        self.check(fine, what, field="transform_param.crop_size", remedy="crop less")
        return (channels, height, width)

    def _first_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image before it is transformed, H and W 0 where they are not known."""
        if self.first is None:
            means = len(self.transform.mean_value)
            return (1 if self.transform.force_gray else means if means > 1 else 3), 0, 0
        datum = self.first.datum
        if not datum.encoded:
            return datum.channels, datum.height, datum.width
        height, width, channels = self._decoded(datum).shape
        return channels, height, width

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        groups = self.first.annotation_group if self.first else []
        boxes = max(1, sum(len(group.annotation) for group in groups))
        label = (1, 1, boxes, ROW) if self.annotated else (self.p.batch_size,)
        return [(self.p.batch_size, *self.image), label][: self.tops]

    # -- records -------------------------------------------------------------------------------------------

    def _open(self) -> Records | None:
        """The database, None when it is not there or the net may not read it."""
        path = inner_name(self, self.p.source)
        if path is None:
            return None
        with self._reading():
            return open_records(path)

    def _decoded(self, datum: pb.Datum) -> Image:
        with self._reading():
            return decode_image(datum.data, self.color)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Errors of the database and its records become errors of this layer."""
        try:
            yield
        except (VggcError, DecodeError) as error:
            what = error.what if isinstance(error, VggcError) else f"a record is no AnnotatedDatum: {error}"
            remedy = error.remedy if isinstance(error, VggcError) else "write AnnotatedDatum records"
            raise self.error(f'"{self.p.source}": {what}', field=SOURCE, remedy=remedy) from error

    # -- running -------------------------------------------------------------------------------------------

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        records = self._running()
        with self._reading():
            data = [pb.AnnotatedDatum.FromString(record.value) for record in records.take(self.p.batch_size)]
        items = [self._transformed(datum) for datum in data]
        shapes = {item.image.shape for item in items}
        what = (
            f'images of "{self.p.source}" have the shapes {" and ".join(map(str, sorted(shapes)))} after transforming'
        )
        self.check(len(shapes) == 1, what, field=SOURCE, remedy="state transform_param.resize_param or crop_size")
        images = to_tensor(np.stack([item.image for item in items]))
        return [images, to_tensor(self._label(data, items))][: self.tops]

    def saved(self) -> dict[str, Any]:
        return {"records": self.records.place() if self.records else None, "random": state_of(self.generator)}

    def resume(self, saved: Mapping[str, Any]) -> None:
        if self.records and saved["records"] is not None:
            with self._reading():
                self.records.go_to(saved["records"])
        set_state(self.generator, saved["random"])

    def _running(self) -> Records:
        """The database, when everything that is asked for can be done."""
        what = f'the database "{self.p.source}" is not in the net\'s folder'
        remedy = f"put it there, or {self.as_input()}"
        if self.records is None:
            raise self.error(what, field=SOURCE, remedy=remedy)
        asked = [f"transform_param.{name}" for name in RANDOM if self.transform.HasField(name)]
        asked += ["annotated_data_param.batch_sampler"] * bool(self.param.annotated_data_param.batch_sampler)
        what = f"{asked[0] if asked else ''} changes images at random, which is not done here"
        self.check(not asked, what, field=asked[0] if asked else "", remedy="use the net's TEST layer, or remove it")
        return self.records

    def _label(self, data: Sequence[pb.AnnotatedDatum], items: Sequence[Item]) -> Floats:
        if not self.annotated:
            known = all(datum.datum.HasField("label") for datum in data)
            self.check(known, "a record has neither boxes nor a label", field=SOURCE, remedy="write the records anew")
            return np.array([datum.datum.label for datum in data], np.float32)
        typed = all(datum.HasField("type") for datum in data)
        self.check(typed, "a record has no annotation type", field=SOURCE, remedy="write the records with type BBOX")
        rows = [np.insert(item.boxes, 0, index, axis=1) for index, item in enumerate(items)]
        label = np.concatenate(rows)
        return (label if len(label) else np.full((1, ROW), -1, np.float32))[None, None]

    def _transformed(self, record: pb.AnnotatedDatum) -> Item:
        datum = record.datum
        if datum.encoded:
            image = self._decoded(datum)
            image = resize_image(image, self.resize, self.generator) if self.resize else image
            planes = image.transpose(2, 0, 1).astype(np.float32)
        else:
            what = "resize_param works on encoded images alone; a record holds raw ones"
            self.check(
                self.resize is None, what, field="transform_param.resize_param", remedy="store PNG or JPEG files"
            )
            with self._reading():
                planes = raw_planes(datum).astype(np.float32)
        window = self._window(planes.shape[1:])
        mirror = bool(self.transform.mirror and self.generator.integers(2))
        boxes = self._boxes(record, planes.shape[1:], window, mirror)
        return Item(self._normalised(planes, window, mirror, encoded=datum.encoded), boxes)

    def _window(self, size: Sequence[int]) -> Window:
        """What the crop leaves of an image of that height and width."""
        height, width = (crop or whole for crop, whole in zip(self.crop, size, strict=True))
        room = (size[0] - height, size[1] - width)
        what = f"a crop of {height} x {width} is larger than an image, {size[0]} x {size[1]}"
        self.check(min(room) >= 0, what, field="transform_param.crop_size", remedy="crop less")
        anywhere = self.phase == "TRAIN"
        top, left = (int(self.generator.integers(n + 1)) if anywhere else n // 2 for n in room)
        return Window(top, left, height, width)

    def _mean(self) -> Floats | None:
        """The mean image, (C, H, W)."""
        name = self.transform.mean_file
        if not name:
            return None
        shape, values = read_blob(
            self, inner_path(self, name, "transform_param.mean_file"), "transform_param.mean_file"
        )
        return values.reshape(shape[-3:])

    def _normalised(self, planes: Floats, window: Window, mirror: bool, *, encoded: bool) -> Floats:
        """(planes - mean) * scale inside the window; in encoded images the mean image is not mirrored with them."""
        mean = np.array(self.transform.mean_value or [0], np.float32).reshape(-1, 1, 1)
        if self.mean is not None:
            what = f"the mean image is {self.mean.shape}, an image {planes.shape}"
            fine = self.mean.shape == planes.shape and not (encoded and planes.shape[1:] != window[2:])
            remedy = "use the mean of these images, and no crop with encoded ones"
            self.check(fine, what, field="transform_param.mean_file", remedy=remedy)
            mean = self.mean[:, :, ::-1] if mirror and encoded else self.mean
        top, left, height, width = window
        part: Floats = (planes - mean)[:, top : top + height, left : left + width] * np.float32(self.transform.scale)
        return part[:, :, ::-1] if mirror else part

    # -- boxes ---------------------------------------------------------------------------------------------

    def _boxes(self, record: pb.AnnotatedDatum, size: Sequence[int], window: Window, mirror: bool) -> Floats:
        """Rows as in `Item` (DataTransformer::TransformAnnotation)."""
        listed = [
            (group.group_label, a.instance_id, a.bbox) for group in record.annotation_group for a in group.annotation
        ]
        rows = np.array([(g, i, b.xmin, b.ymin, b.xmax, b.ymax, b.difficult) for g, i, b in listed], np.float32)
        rows = rows.reshape(-1, ROW - 1)
        boxes, datum = rows[:, 2:6], record.datum
        if self.resize:
            what = f"a record states height {datum.height} and width {datum.width} for its image"
            fine = datum.height > 0 and datum.width > 0
            self.check(fine, what, field=SOURCE, remedy="write the records with the size of the images")
            boxes = resize_boxes(boxes, self.resize, datum.height, datum.width)
        edges = (window.left, window.top, window.left + window.width, window.top + window.height)
        kept = np.asarray(np.array(edges) / np.array([size[1], size[0]] * 2), np.float32)
        stays = self._emitted(boxes, kept) & ~np.any((boxes[:, :2] >= kept[2:]) | (boxes[:, 2:] <= kept[:2]), axis=1)
        boxes = ((boxes - np.tile(kept[:2], 2)) / np.tile(kept[2:] - kept[:2], 2)).clip(0, 1)
        stays &= areas(boxes) > 0
        if mirror:
            boxes = np.column_stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]])
        if self.resize:
            boxes = self._stretched(boxes, datum, kept)
        rows[:, 2:6] = boxes
        return np.asarray(rows[stays])

    def _stretched(self, boxes: Floats, datum: pb.Datum, kept: Floats) -> Floats:
        assert self.resize is not None
        try:
            return stretch_boxes(boxes, self.resize, (datum.height, datum.width), kept)
        except ValueError as error:
            remedy = "crop more, or state smaller scales"
            raise self.error(str(error), field="transform_param.resize_param", remedy=remedy) from error

    def _emitted(self, boxes: Floats, kept: Floats) -> NDArray[np.bool_]:
        """Which boxes the emit_constraint lets pass (MeetEmitConstraint)."""
        if not self.transform.HasField("emit_constraint"):
            return np.ones(len(boxes), bool)
        rule = self.transform.emit_constraint
        if rule.emit_type == pb.EmitConstraint.CENTER:
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            return np.asarray(np.all((centres >= kept[:2]) & (centres <= kept[2:]), axis=1))
        common = np.concatenate([np.maximum(boxes[:, :2], kept[:2]), np.minimum(boxes[:, 2:], kept[2:])], 1)
        shared, own = areas(common), areas(boxes)
        covered = np.divide(shared, own, out=np.zeros_like(own), where=shared > 0)
        return np.asarray(covered > np.float32(rule.emit_overlap))
