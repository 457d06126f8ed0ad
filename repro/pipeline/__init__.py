"""From image sets to batches, as Sect. 3.1 of arXiv:1409.1556 trains: rescale, crop, flip, colour, mean."""

from repro.pipeline.augment import Augment, Centre
from repro.pipeline.colour import Colour, Statistics, statistics
from repro.pipeline.loader import Batch, Loader

__all__ = ["Augment", "Batch", "Centre", "Colour", "Loader", "Statistics", "statistics"]
