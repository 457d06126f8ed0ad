"""DummyData: blobs from fillers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.data.random_numbers import generator, set_state, state_of
from caffe_compat.fillers import fill, known, problem
from caffe_compat.layers.base import OnnxWriter, Shape, register
from caffe_compat.layers.base_data import SourceLayer, to_tensor
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

LEGACY = ("num", "channels", "height", "width")


@register
class DummyData(SourceLayer):
    """Each top is filled by its data_filler: constant ones once, others anew in every forward pass.

    No filler stands for zeros, one for all tops. Shapes are `shape` or num, channels, height, width; each once, or once
    for each top. Random values follow from the layer's name and `context.state["seed"]`. Source: dummy_data_layer.cpp.
    """

    TYPE = "DummyData"
    V1 = ("DUMMY_DATA",)
    PARAM = "dummy_data_param"
    TOPS = (1, None)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        legacy = any(self.has(name) for name in LEGACY)
        both = legacy and self.has("shape")
        what = "both shape and num, channels, height, width are stated"
        self.check(not both, what, field="dummy_data_param.shape[0]", remedy="keep shape")
        for name in LEGACY if legacy else ("shape",):
            self._check_count(name, (1, self.tops))
        self._check_count("data_filler", (0, 1, self.tops))
        self.shapes = [self._shape(top, legacy) for top in range(self.tops)]
        self._check_fillers()
        self.generator = generator(self.seed, self.name, "fillers")
        self.constants: dict[int, np.ndarray] = {}

    def _check_count(self, name: str, allowed: tuple[int, ...]) -> None:
        given = len(getattr(self.p, name))
        what = f"{given} {name} entries for {self.tops} top(s)"
        self.check(given in allowed, what, field=f"dummy_data_param.{name}[0]", remedy="state one, or one per top")

    def _shape(self, top: int, legacy: bool) -> Shape:
        lists = [getattr(self.p, name) for name in (LEGACY if legacy else ("shape",))]
        values = [entries[top if len(entries) > 1 else 0] for entries in lists]
        return tuple(values) if legacy else tuple(values[0].dim)

    def _filler(self, top: int) -> pb.FillerParameter:
        given = self.p.data_filler
        return given[top if len(given) > 1 else 0] if given else pb.FillerParameter()

    def _check_fillers(self) -> None:
        for top, shape in enumerate(self.shapes):
            why = problem(self._filler(top), shape)
            field = f"dummy_data_param.data_filler[{top}]"
            self.check(
                not why,
                f"data_filler of top {top}: {why}",
                field=field,
                remedy=f"fillers: {', '.join(sorted(known('bvlc')))}",
            )

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return list(self.shapes)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [to_tensor(self._values(top)) for top in range(self.tops)]

    def saved(self) -> dict[str, Any]:
        return {"random": state_of(self.generator)}

    def resume(self, saved: Mapping[str, Any]) -> None:
        set_state(self.generator, saved["random"])

    def _values(self, top: int) -> np.ndarray:
        filler = self._filler(top)
        if filler.type != "constant":
            return fill(filler, self.shapes[top], self.generator)
        if top not in self.constants:
            self.constants[top] = fill(filler, self.shapes[top], self.generator)
        return self.constants[top]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if any(self._filler(top).type != "constant" for top in range(self.tops)):
            super().to_onnx(g, bottoms, tops, blobs)
        for top, shape in enumerate(self.shapes):
            value = g.constant(np.array(self._filler(top).value, np.float32))
            g.op("Expand", [value, g.constant(np.array(shape, np.int64))], tops[top : top + 1])
