"""What Caffe's data layers have in common (base_data_layer.cpp, data_transformer.cpp)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.random_numbers import draw_from, generator, set_state, state_of
from caffe_compat.data.sources import Item, Source, ahead, side_by_side
from caffe_compat.data.transform import Transform
from caffe_compat.errors import ConversionError, LayerError, VggcError
from caffe_compat.layers.base import Layer, OnnxWriter, Shape
from caffe_compat.layers.files import inner_file, inner_path, read_blob

if TYPE_CHECKING:
    from torch import Tensor


Floats = NDArray[np.float32]
MEAN = "transform_param.mean_file"


class SourceLayer(Layer):
    """Base of layers without bottoms that bring data into the net."""

    BOTTOMS = (0, 0)
    BACKWARD = False

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        raise ConversionError(
            f"{self.TYPE} reads data, an ONNX model takes it as input", where=self.where("type"), remedy=self.as_input()
        )

    @property
    def seed(self) -> int:
        """What random numbers follow from, beside the layer's name: `context.state["seed"]`."""
        return int(self.context.state.get("seed", 0))

    def as_input(self) -> str:
        """The remedy that always works."""
        return f"replace this layer by an Input layer with top {', '.join(self.param.top) or 'of that name'}"


def check_means(layer: Layer) -> None:
    """A mean is stated in one way (DataTransformer's constructor)."""
    transform = layer.param.transform_param
    both = transform.HasField("mean_file") and len(transform.mean_value) > 0
    what = "transform_param has both mean_file and mean_value"
    layer.check(not both, what, field="transform_param.mean_value", remedy="keep one of them")


class ImageSource(SourceLayer):
    """Base of layers that read and transform images: top 0 (batch, C, H, W), top 1 labels (batch)."""

    TOPS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_means(self)
        what = "batch_size is 0"
        self.check(self.p.batch_size > 0, what, field=f"{self.PARAM}.batch_size", remedy="state a positive batch_size")
        self.image = self.image_shape()

    def image_shape(self) -> Shape:
        """(C, H, W) of the transformed images.

        Raises:
            LayerError: it is not known without reading the source.
        """
        raise NotImplementedError(self.TYPE)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        batch = self.p.batch_size
        return [(batch, *self.image), (batch,)][: self.tops]

    def mean_shape(self) -> Shape | None:
        """(C, H, W) of the mean file, None when none is stated or it is not there."""
        mean = self.read_mean()
        return None if mean is None else mean.shape

    def read_mean(self) -> Floats | None:
        """The mean image (C, H, W), None when none is stated or it is not there."""
        transform = self.param.transform_param
        path = inner_file(self, transform.mean_file) if transform.HasField("mean_file") else None
        if path is None:
            return None
        shape, values = read_blob(self, path, MEAN)
        what = f'the mean in "{path.name}" has shape {shape}; it must be (1, C, H, W)'
        fine = len(shape) >= 3 and all(size == 1 for size in shape[:-3])
        self.check(fine, what, field=MEAN, remedy="use the mean of these images")
        return values.reshape(shape[-3:])

    @contextmanager
    def reading(self, field: str = "source") -> Iterator[None]:
        """Errors of what the layer reads become errors of the layer, at a field of its parameters."""
        try:
            yield
        except LayerError:
            raise
        except VggcError as error:
            place = f"{error.where}: " if str(error.where) else ""
            what = f'"{self.p.source}": {place}{error.what}'
            raise self.error(what, field=f"{self.PARAM}.{field}", remedy=error.remedy) from error

    def check_means(self, channels: int) -> None:
        """One mean_value for all channels, or one each."""
        given = len(self.param.transform_param.mean_value)
        what = f"{given} mean_value entries for {channels} channel(s)"
        remedy = "state one, or one per channel"
        self.check(given in (0, 1, channels), what, field="transform_param.mean_value[0]", remedy=remedy)


class TransformedSource(ImageSource):
    """Base of layers that read images one after another and put each through transform_param.

    While the source is not there, or is not in a folder that the net may read, shapes are those that the net states.
    The batch has the shape of its first image; in the TRAIN phase the next one is read while the net works. Random
    numbers follow from the layer's name and `context.state["seed"]`. With `context.state["share"] = (rank, count)`, for
    training by several processes, a layer of the TRAIN phase takes every count-th image, from the rank-th on
    (DataLayer::Skip).
    """

    TRANSFORM: ClassVar[type[Transform]] = Transform

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.transform = self.TRANSFORM(self.param.transform_param, self.phase == "TRAIN", self.read_mean())
        self.source: Source | None = None
        self.first: Item | None = None
        with self.reading():
            self.source = self.open_source()
            if self.source is not None:
                self.first = self.first_item(self.source)
        share: tuple[int, int] = self.context.state.get("share", (0, 1))
        self.rank, self.count = share if self.phase == "TRAIN" else (0, 1)
        self.numbers = generator(self.seed, self.name, "transform", str(self.rank))
        self.random = draw_from(self.numbers)
        self.started = False
        self.coming: Future[tuple[Floats, Floats]] | None = None
        self.before: dict[str, Any] = {}
        super().setup(bottoms)

    def open_source(self) -> Source | None:
        """The source at its beginning; None when it is not there or the net may not read it."""
        raise NotImplementedError(self.TYPE)

    def first_item(self, source: Source) -> Item | None:
        """The first image; None to believe what the net states."""
        return source.load(source.peek())

    def declared_shape(self) -> Shape:
        """`image_shape` as far as the net states it."""
        raise NotImplementedError(self.TYPE)

    def image_shape(self) -> Shape:
        if self.first is None:
            return self.declared_shape()
        return self.transformed_shape(self.first)

    def transformed_shape(self, item: Item) -> Shape:
        """Shape of an image after the transformation, which checks it."""
        try:
            return self.transform.shape(item.image.shape)
        except VggcError as error:
            field = "crop_size" if "crop_size" in error.what else "mean_file" if self.transform.mean is not None else ""
            field = field or "mean_value[0]"
            raise self.error(error.what, field=f"transform_param.{field}", remedy=error.remedy) from error

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        coming, self.coming = self.coming, None
        images, labels = coming.result() if coming else self.batch()
        if self.phase == "TRAIN":
            self.before = self.stand()
            self.coming = ahead(self.batch)
        return [to_tensor(images, copy=False), to_tensor(labels, copy=False)][: self.tops]

    def saved(self) -> dict[str, Any]:
        return self.before if self.coming else self.stand()

    def stand(self) -> dict[str, Any]:
        """Where the next batch that is read begins."""
        source = self.source.place() if self.source else None
        return {"started": self.started, "source": source, "random": state_of(self.numbers)}

    def resume(self, saved: Mapping[str, Any]) -> None:
        coming, self.coming = self.coming, None
        if coming:
            coming.exception()  # another thread reads the source until then
        if self.source and saved["source"] is not None:
            with self.reading():
                self.source.go_to(saved["source"])
        set_state(self.numbers, saved["random"])
        self.started = bool(saved["started"])

    def batch(self) -> tuple[Floats, Floats]:
        """The next images and labels."""
        source = self.running()
        with self.reading():
            entries = [entry for _ in range(self.p.batch_size) for entry in self.next_entry(source)]
            draws = [self.transform.draws(self.random) for _ in entries]
            first = self.transformed_shape(source.load(entries[0]))
            images = np.empty((len(entries), *first), np.float32)
            labels = side_by_side(lambda each: self.load(source, *each), zip(entries, draws, images, strict=True))
        return images, np.array(labels, np.float32)

    def next_entry(self, source: Source) -> list[Any]:
        """The next entry of this process's share."""
        source.skip(self.rank)
        entry = source.take(1)
        source.skip(self.count - self.rank - 1)
        return entry

    def load(self, source: Source, entry: Any, draws: Sequence[int], target: Floats) -> int:
        """Put an entry's image after the transformation into its place; returns its label."""
        item = source.load(entry)
        shape = self.transformed_shape(item)
        what = f'"{self.p.source}" has images of shape {target.shape} and {shape} in one batch'
        remedy = "state a crop_size, resize them, or use batch_size 1"
        self.check(shape == target.shape, what, field=f"{self.PARAM}.source", remedy=remedy)
        self.transform.write(item.image, draws, target)
        return item.label

    def running(self) -> Source:
        """The source, when all that is needed is there.

        Raises:
            LayerError: something is not.
        """
        if self.source is None:
            field = f"{self.PARAM}.source"
            path = inner_path(self, self.p.source, field)
            raise self.error(f'"{path}" does not exist', field=field, remedy=f"write it, or {self.as_input()}")
        mean = self.param.transform_param.mean_file
        if mean and self.transform.mean is None:
            path = inner_path(self, mean, MEAN)
            raise self.error(f'"{path}" does not exist', field=MEAN, remedy="write it with vggc data mean")
        if not self.started:
            self.started = True
            with self.reading():
                self.start(self.source)
        return self.source

    def start(self, source: Source) -> None:
        """Go to the first entry that is used."""


def to_tensor(array: np.ndarray, *, copy: bool = True) -> Tensor:
    """A tensor in torch's default type, on its default device; of its own memory, or of the array's."""
    import torch

    values: Any = np.array(array) if copy else array
    return torch.as_tensor(values, dtype=torch.get_default_dtype())
