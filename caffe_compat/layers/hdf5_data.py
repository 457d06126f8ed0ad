"""HDF5Data: rows of datasets in HDF5 files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.data.random_numbers import generator, set_state, state_of
from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.base_data import SourceLayer, to_tensor
from caffe_compat.layers.files import inner_path

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = "hdf5_data_param.source"
LARGEST_LIST = 2**26
"""Bytes of a list of files."""
DENSEST, SMALL = 2048, 2**24
"""No filter of HDF5 packs more bytes than DENSEST into one; datasets up to SMALL bytes are not looked at so."""


@register
class HDF5Data(SourceLayer):
    """Each top holds the next batch_size rows of the dataset of its name.

    `source` lists HDF5 files; they and it lie in the net's folder. Rows are taken file by file; a batch goes on into
    the next file, and into the first after the last. With `shuffle` the order of the files and of the rows in a file
    changes in every round. Only the rows of the batch are in memory. No transform_param is allowed.
    Source: hdf5_data_layer.cpp, hdf5.cpp.
    """

    TYPE = "HDF5Data"
    V1 = ("HDF5_DATA",)
    V0 = ("hdf5_data",)
    PARAM = "hdf5_data_param"
    TOPS = (1, None)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = "HDF5Data does not transform its data"
        fine = not self.param.HasField("transform_param")
        self.check(fine, what, field="transform_param", remedy="remove transform_param, transform the files")
        field = "hdf5_data_param.batch_size"
        self.check(self.p.batch_size > 0, "batch_size is 0", field=field, remedy="state a positive batch_size")
        self.generator = generator(self.seed, self.name, "shuffle")
        listed = self._listed()
        self.files = [listed[index] for index in self._order(len(listed))]
        self.file = self.row = 0
        self.rows = np.arange(0)
        self.row_shapes: list[Shape] | None = None
        self._load()

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(self.p.batch_size, *shape) for shape in self.row_shapes or ()]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        batch = [np.empty(shape, np.float32) for shape in self.top_shapes(())]
        done = 0
        while done < self.p.batch_size:
            rows = self.rows[self.row : self.row + self.p.batch_size - done]
            with self._open() as datasets:
                for target, dataset in zip(batch, datasets, strict=True):
                    target[done : done + len(rows)] = _take(dataset, rows)
            done += len(rows)
            self._advance(len(rows))
        return [to_tensor(array) for array in batch]

    def saved(self) -> dict[str, Any]:
        rows = {"rows": self.rows} if self.p.shuffle else {}
        place = {"files": list(self.files), "file": self.file, "row": self.row, "count": len(self.rows)}
        return {**place, **rows, "random": state_of(self.generator)}

    def resume(self, saved: Mapping[str, Any]) -> None:
        what = f'the files or rows of "{self.p.source}" are not those of the earlier run'
        known = sorted(saved["files"]) == sorted(self.files)
        self.check(known, what, field=SOURCE, remedy="use the same files")
        self.files, self.file = list(saved["files"]), int(saved["file"])
        self._load()
        self.check(len(self.rows) == saved["count"], what, field=SOURCE, remedy="use the same files")
        self.row = int(saved["row"])
        if self.p.shuffle:
            self.rows = np.array(saved["rows"])
        set_state(self.generator, saved["random"])

    # -- where it stands -----------------------------------------------------------------------------------

    def _listed(self) -> list[str]:
        """The names in the list, which white space separates."""
        path = inner_path(self, self.p.source, SOURCE)
        try:
            size = path.stat().st_size
            what = f'"{self.p.source}" has {size} bytes; a list of files has at most {LARGEST_LIST}'
            self.check(size <= LARGEST_LIST, what, field=SOURCE, remedy="name the list, not a data file")
            names = path.read_text(errors="surrogateescape").split()
        except OSError as error:
            remedy = f"write it, or {self.as_input()}"
            raise self.error(f'"{self.p.source}" cannot be read: {error}', field=SOURCE, remedy=remedy) from error
        self.check(bool(names), f'"{self.p.source}" lists no file', field=SOURCE, remedy="list at least one HDF5 file")
        return names

    def _order(self, count: int) -> np.ndarray:
        return self.generator.permutation(count) if self.p.shuffle else np.arange(count)

    def _advance(self, count: int) -> None:
        self.row += count
        if self.row < len(self.rows):
            return
        self.row = 0
        if len(self.files) == 1:
            self.rows = self._order(len(self.rows))
            return
        self.file = (self.file + 1) % len(self.files)
        if self.file == 0:
            self.files = [self.files[index] for index in self._order(len(self.files))]
        self._load()

    def _load(self) -> None:
        """Go to the first row of the present file."""
        with self._open() as datasets:
            self.rows = self._order(datasets[0].shape[0])

    # -- reading -------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[list[Any]]:
        """The datasets of the present file, in the order of the tops."""
        import h5py

        name = self.files[self.file]
        path = inner_path(self, name, SOURCE)
        try:
            with h5py.File(path, "r") as file:
                datasets = [self._dataset(file, top) for top in self.param.top]
                self._check_rows(name, datasets)
                yield datasets
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            remedy = "write the file anew, or remove it from the list"
            raise self.error(f'"{name}" cannot be read: {error}', field=SOURCE, remedy=remedy) from error

    def _dataset(self, file: Any, top: str) -> Any:
        """A dataset of numbers that lies in the file itself and is as large as it says."""
        import h5py

        here = f'dataset "{top}" of "{self.files[self.file]}"'
        link = file.get(top, getlink=True)
        found: Any = None if isinstance(link, h5py.ExternalLink) else file.get(top)
        fine = link is not None and (found is None or isinstance(found, h5py.Dataset))
        self.check(fine, f"{here} does not exist", field="top", remedy="name the tops as the datasets")
        local = found is not None and found.file.filename == file.filename
        local = local and not found.external and not found.is_virtual
        self.check(local, f"{here} lies in another file", field=SOURCE, remedy="copy it into the listed file")
        what = f"{here} has shape {found.shape} and type {found.dtype}"
        fine = bool(found.shape) and found.dtype.kind in "fiu"
        self.check(fine, what, field=SOURCE, remedy="store numbers, one row per item")
        stored = found.id.get_storage_size()
        what = f"{here} claims {found.nbytes} bytes but stores {stored}"
        self.check(found.nbytes <= max(SMALL, DENSEST * stored), what, field=SOURCE, remedy="write the file anew")
        return found

    def _check_rows(self, name: str, datasets: Sequence[Any]) -> None:
        """As many rows in each dataset, and rows as in the first file."""
        counts = {dataset.shape[0] for dataset in datasets}
        what = f'the datasets of "{name}" have {" and ".join(map(str, sorted(counts)))} rows'
        fine = len(counts) == 1 and counts != {0}
        self.check(fine, what, field=SOURCE, remedy="store the same number of rows, at least one, under each name")
        shapes = [tuple(dataset.shape[1:]) for dataset in datasets]
        self.row_shapes = self.row_shapes or shapes
        what = f'rows of shape {shapes} in "{name}", {self.row_shapes} in the file before'
        self.check(shapes == self.row_shapes, what, field=SOURCE, remedy="store rows of one shape in all files")


def _take(dataset: Any, rows: np.ndarray) -> np.ndarray:
    """Some rows; HDF5 wants them in rising order."""
    rising = np.sort(rows)
    taken = dataset[rising[0] : rising[-1] + 1] if rising[-1] - rising[0] + 1 == len(rows) else dataset[rising]
    values: np.ndarray = taken[np.searchsorted(rising, rows)].astype(np.float32)
    return values
