"""`python -m tests.bench.pipeline`: batches for the paper's training, against a DataLoader with PIL on the same cores.

Both decode JPEG, rescale to a smallest side drawn from [256;512], crop 224 x 224 at random, flip, shift colours,
subtract the mean and give NCHW float32 in batches. PIL's bilinear filter averages over all pixels of the source when it
makes an image smaller, OpenCV's takes two by two. That is a part of the difference; so PIL is timed a second time with
only the crop resized, which gives other pixels at the border of the crop but is the fastest that PIL has.
"""

from __future__ import annotations

import argparse
import os
import statistics as stats
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from repro.datasets import open_images
from repro.pipeline import Augment, Colour, Loader, statistics
from repro.rescaling import rescaled_size

HEIGHT, WIDTH, QUALITY = 375, 500, 90
CROP, SCALES = 224, (256, 512)
NEEDED = 1.5
"""Times as fast as the DataLoader with PIL."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="images to make")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=24, help="batches of one timing")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads, or processes of PIL"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vggc-bench-") as name:
        folder = make_images(Path(name), options.images)
        forms = contenders(folder, options.batch, options.workers)
        report(compare(forms, options), options)


def make_images(folder: Path, count: int) -> Path:
    """JPEGs with detail at every size, as photographs have."""
    generator = np.random.default_rng(0)
    (folder / "class").mkdir()
    for number in range(count):
        image = np.full((HEIGHT, WIDTH, 3), 110.0)
        for power in range(2, 9):
            noise = generator.normal(0, 45 * 0.72 ** (power - 2), (2**power * 3 // 4, 2**power, 3))
            image += cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        data = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
        (folder / "class" / f"{number}.jpg").write_bytes(data.tobytes())
    return folder


def contenders(folder: Path, batch: int, workers: int) -> dict[str, Callable[[], Iterator[Any]]]:
    """Each gives batches without end."""
    images = open_images(folder)
    found = statistics(images, most=16)
    ours = Augment(0, CROP, SCALES, found.mean, found.colour())
    paths = sorted((folder / "class").iterdir())

    def pillow(whole: bool) -> Iterator[Any]:
        data = Pictures(paths, found.mean[::-1].copy(), found.colour(), whole)
        return iter(DataLoader(data, batch, num_workers=workers, shuffle=False))

    return {
        "vggc": lambda: iter(Loader(images, ours, batch, workers=workers)),
        "PIL": lambda: pillow(True),
        "PIL, crop resized": lambda: pillow(False),
    }


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """The same by PIL, written as one would by hand."""

    def __init__(self, paths: list[Path], mean: np.ndarray, colour: Colour, whole: bool) -> None:
        self.paths, self.mean, self.colour, self.whole = paths, torch.tensor(mean), colour, whole

    def __len__(self) -> int:
        return 2**24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(self.paths[index % len(self.paths)]).convert("RGB")
        scale = int(torch.randint(SCALES[0], SCALES[1] + 1, ()))
        height, width = rescaled_size(image.height, image.width, scale)
        top, left = int(torch.randint(height - CROP + 1, ())), int(torch.randint(width - CROP + 1, ()))
        image = self.cropped(image, (width, height), left, top)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        shift = torch.tensor(self.colour.shift(torch.randn(3).tolist())[::-1].copy())
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        return pixels.sub_((self.mean - shift).float()[:, None, None]), 0

    def cropped(self, image: Image.Image, size: tuple[int, int], left: int, top: int) -> Image.Image:
        if self.whole:
            return image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + CROP, top + CROP))
        across, down = image.width / size[0], image.height / size[1]
        box = (left * across, top * down, (left + CROP) * across, (top + CROP) * down)
        return image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)


def compare(forms: dict[str, Callable[[], Iterator[Any]]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second of each, timed in turns."""
    speeds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, form in forms.items():
            speeds[name].append(speed(form(), options.batch, options.batches))
    return speeds


def speed(batches: Iterator[Any], size: int, count: int) -> float:
    """Images a second once the batches made ahead are used up."""
    for _ in range(2 * (os.cpu_count() or 1) + 2):
        next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    passed = time.perf_counter() - began
    if hasattr(batches, "close"):
        batches.close()
    return size * count / passed


def report(speeds: dict[str, list[float]], options: argparse.Namespace) -> None:
    best = stats.median(speeds["vggc"])
    print(
        f"{'pipeline':20} {'images/s':>9} {'range':>13} {'vggc is':>8}   ({options.workers} workers, {WIDTH}x{HEIGHT})"
    )
    for name, each in speeds.items():
        median = stats.median(each)
        print(f"{name:20} {median:9.0f} {min(each):6.0f}-{max(each):<6.0f} {best / median:7.2f}x")
    ratio = best / stats.median(speeds["PIL"])
    print(f"{'ok' if ratio >= NEEDED else 'TOO SLOW'}: {ratio:.2f} times as fast as PIL, needed {NEEDED}")
    raise SystemExit(ratio < NEEDED)


if __name__ == "__main__":
    main()
