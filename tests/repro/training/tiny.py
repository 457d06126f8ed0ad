"""A net and images that train in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from caffe_compat.module import Net
from repro.training.group import Group
from repro.training.nets import TrainingNet, training_net
from repro.training.passes import Batch, Passes
from repro.training.settings import Settings
from repro.training.update import Momentum

NET = """
name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "fc1" type: "InnerProduct" bottom: "pool1" top: "fc1" inner_product_param { num_output: 16 } }
layer { name: "relu2" type: "ReLU" bottom: "fc1" top: "fc1" }
layer { name: "drop" type: "Dropout" bottom: "fc1" top: "fc1" }
layer { name: "fc2" type: "InnerProduct" bottom: "fc1" top: "fc2" inner_product_param { num_output: 3 } }
layer { name: "prob" type: "Softmax" bottom: "fc2" top: "prob" }
"""
CLASSES = 3


def write_net(folder: Path, text: str = NET) -> Path:
    path = folder / "tiny.prototxt"
    path.write_text(text)
    return path


def write_images(folder: Path, each: int = 12, seed: int = 0) -> Path:
    """Images of 10x12 in three classes, each mostly of one colour, in `train` and `val`."""
    generator = np.random.default_rng(seed)
    for split, count in (("train", each), ("val", each // 2)):
        for label in range(CLASSES):
            place = folder / "images" / split / f"c{label}"
            place.mkdir(parents=True)
            for number in range(count):
                image = generator.integers(0, 120, (10, 12, 3), dtype=np.uint8)
                image[..., label] += 100
                cv2.imwrite(str(place / f"{number}.png"), image)
    return folder / "images"


def settings(folder: Path, **more: object) -> Settings:
    """A short run on the tiny net and images, which must be there."""
    values = {"batch": 8, "rate": 0.002, "scale": (9,), "max_epochs": 3, "display": 2, "init": "msra", "workers": 1}
    found = {"net": str(folder / "tiny.prototxt"), "data": str(folder / "images"), **values, **more}
    return Settings(**found)  # type: ignore[arg-type]


class Fixture:
    """A net with its passes, on random images."""

    def __init__(self, folder: Path, micro: int, text: str = NET, **more: object) -> None:
        self.settings = settings(folder, **more)
        self.info: TrainingNet = training_net(write_net(folder, text), CLASSES, init=self.settings.init)
        self.net = Net(self.info.graph("TRAIN", micro), seed=1)
        self.update = Momentum(self.net, self.settings.momentum, self.settings.weight_decay)
        self.passes = Passes(self.info, self.net, self.update, self.settings, Group(), micro)

    def batch(self, iteration: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(iteration)
        images: Tensor = torch.randn(self.settings.batch, 3, 8, 8, generator=generator)
        return Batch(iteration, images, torch.arange(self.settings.batch) % CLASSES)

    def gradients(self) -> list[Tensor]:
        return [blob.grad.clone() for blob in self.update.blobs if blob.grad is not None]

    def batches(self, count: int) -> Iterator[Batch]:
        return map(self.batch, range(count))
