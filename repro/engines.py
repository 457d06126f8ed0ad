"""What runs a net: PyTorch, or ONNX Runtime, which on a processor is faster for most nets."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from caffe_compat.compiling import compiled
from caffe_compat.dense import dense_net
from caffe_compat.errors import VggcError
from caffe_compat.module import Net
from converters.model import Model
from converters.onnx_running import file_session, model_session
from repro.models import Classifier

AUTO, TORCH, ONNX = "auto", "torch", "onnxruntime"
ENGINES = (AUTO, TORCH, ONNX)
NAMES = {TORCH: "PyTorch", ONNX: "ONNX Runtime"}
AGREE = 1e-5
"""Largest difference of posteriors with which `auto` takes the faster engine."""
AT_ONCE = 2**17
"""Pixels that ONNX Runtime takes at once: whose activations stay in a processor's caches."""
TRIALS = 2
"""Timed runs of each engine."""


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        engine: one of `ENGINES`.
        device: torch's name of it, "" for the first GPU or else the processor.
        amp: PyTorch in half precision where that is safe (bfloat16 on processors).
        channels_last: PyTorch with channels innermost; None: on processors, where that is faster.
        compiled: PyTorch with torch.compile, parameters as constants.
    """

    engine: str = AUTO
    device: str = ""
    amp: bool = False
    channels_last: bool | None = None
    compiled: bool = False

    def place(self) -> torch.device:
        """The device; of several processes that torchrun has started on a machine each has its own GPU.

        Raises:
            VggcError: there is none of that name.
        """
        name = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if name == "cuda" and "LOCAL_RANK" in os.environ:
            name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise VggcError(f'no device "{name}"', remedy="use cpu, or cuda where there is a GPU") from error
        return device


class Engine(Protocol):
    """Runs a net on crops and on whole images.

    Attributes:
        name: of `NAMES`.
        device: where it wants its input.
    """

    name: str
    device: torch.device

    def run(self, x: Tensor, blobs: Sequence[str], whole: bool) -> list[Tensor]:
        """The blobs for a batch (N, C, H, W), float32.

        Args:
            whole: images of any size, through the net for whole images; else crops.
        """


class TorchEngine:
    """PyTorch on any device; the nets for crops and for whole images share their weights."""

    name = TORCH

    def __init__(self, model: Classifier, settings: Settings) -> None:
        self.device = settings.place()
        self._amp, self._compiled = settings.amp, settings.compiled
        arrays = model.model.arrays if model.model else {}
        net = Net(model.graph, {key: blob.values for key, blob in arrays.items()}).to(self.device)
        stated, usual = settings.channels_last, self.device.type == "cpu"
        self._last = usual if stated is None else stated
        self._net, self._blob = net.channels_last() if self._last else net, model.blob
        self._forms: dict[bool, Any] = {}

    @torch.inference_mode()
    def run(self, x: Tensor, blobs: Sequence[str], whole: bool) -> list[Tensor]:
        if self._last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, enabled=self._amp):
            found = self._form(whole)({self._blob: x}, blobs=list(blobs))
        return [found[blob].float() for blob in blobs]

    def _form(self, whole: bool) -> Any:
        if whole not in self._forms:
            net: nn.Module = dense_net(self._net) if whole else self._net
            self._forms[whole] = compiled(net) if self._compiled else net
        return self._forms[whole]


class OnnxEngine:
    """ONNX Runtime on the processor, with the net exported in memory, or an ONNX file as it is.

    Args:
        model: the net.
        blobs: those that may be asked for.
    """

    name = ONNX
    device = torch.device("cpu")

    def __init__(self, model: Classifier, blobs: Sequence[str]) -> None:
        self._model, self._blobs = model, tuple(blobs)
        self._sessions: dict[bool, Any] = {}

    def run(self, x: Tensor, blobs: Sequence[str], whole: bool) -> list[Tensor]:
        session = self.session(whole)
        values = np.ascontiguousarray(x.numpy())
        fixed = 0 if whole else self._model.batch
        size = fixed or max(1, AT_ONCE // (values.shape[2] * values.shape[3]))
        padded = _padded(values, fixed) if fixed else values
        parts = [padded[start : start + size] for start in range(0, len(padded), size)]
        found = [session(list(blobs), {self._model.blob: part}) for part in parts]
        joined = [np.concatenate(each) if len(each) > 1 else each[0] for each in zip(*found, strict=True)]
        return [torch.from_numpy(each[: len(values)]) for each in joined]

    def session(self, whole: bool) -> Any:
        """What runs crops or whole images; made when first asked for."""
        if whole not in self._sessions:
            self._sessions[whole] = self._made(whole)
        return self._sessions[whole]

    def _made(self, whole: bool) -> Any:
        threads = torch.get_num_threads()
        if self._model.file is not None and not whole:
            return file_session(self._model.file, threads)
        model = self._model.dense if whole else self._model.model
        assert isinstance(model, Model)
        return model_session(model, self._blobs, open_size=whole, threads=threads)


def _padded(values: np.ndarray, batch: int) -> np.ndarray:
    """Values with zeros behind them, up to a multiple of the only batch size that a file takes."""
    missing = -len(values) % batch
    return np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)]) if missing else values


# -- choosing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """An engine, and why it was taken."""

    engine: Engine
    said: str


def engines(model: Classifier, settings: Settings, blobs: Sequence[str], whole: Sequence[bool]) -> list[Engine]:
    """The engines to choose from: one, or with `auto` all that can run this net.

    Args:
        blobs: those that will be asked for.
        whole: of `Engine.run`, the values that will be asked for.

    Raises:
        VggcError: the engine asked for cannot run it.
    """
    makers: dict[str, Callable[[], Engine]] = {
        TORCH: partial(TorchEngine, model, settings),
        ONNX: partial(OnnxEngine, model, blobs),
    }
    if model.file is not None and True not in whole and settings.engine == AUTO:
        return [_ready(makers[ONNX](), whole)]
    if settings.engine != AUTO:
        return [_ready(makers[settings.engine](), whole)]
    plain = not (settings.amp or settings.compiled or settings.channels_last) and settings.place().type == "cpu"
    found: list[Engine] = [makers[TORCH]()]
    if plain:
        with suppress(VggcError):
            found.append(_ready(makers[ONNX](), whole))
    return found


def _ready(engine: Engine, whole: Sequence[bool]) -> Engine:
    """The engine, with its sessions made."""
    if isinstance(engine, OnnxEngine):
        for each in whole:
            engine.session(each)
    return engine


def only(engine: Engine) -> Choice:
    """An engine without another to compare it with."""
    return Choice(engine, NAMES[engine.name])


def choose(found: Sequence[Engine], x: Tensor, blob: str, whole: bool) -> Choice:
    """The faster of two engines on a batch, if its values of `blob` agree with the first one's within `AGREE`."""
    runs = {engine.name: partial(engine.run, x, [blob], whole) for engine in found}
    first, other = found
    apart = float((runs[first.name]()[0] - runs[other.name]()[0]).abs().max())
    seconds = {name: min(_timed(run) for _ in range(TRIALS)) for name, run in runs.items()}
    best = min(found, key=lambda engine: seconds[engine.name]) if apart <= AGREE else first
    return Choice(best, _reason(best.name, seconds, apart, len(x)))


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _reason(best: str, seconds: Mapping[str, float], apart: float, batch: int) -> str:
    other = next(name for name in seconds if name != best)
    if apart > AGREE:
        return f"{NAMES[best]}, as {NAMES[other]} differs by {apart:.1e}"
    times = f"{seconds[best] * 1e3:.3g} ms for a batch of {batch} against {seconds[other] * 1e3:.3g} ms"
    return f"{NAMES[best]}: {times} in {NAMES[other]}, which agree within {AGREE:g} ({apart:.1e})"
