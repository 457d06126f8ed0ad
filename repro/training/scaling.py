"""The factor that keeps float16 gradients from vanishing (Micikevicius et al., "Mixed precision training", 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace

GROWTH = 2000
"""Updates without an overflow after which the factor is doubled."""


@dataclass(frozen=True)
class LossScale:
    """Attributes:
    used: whether losses are scaled at all.
    factor: by which they are; a power of two, so that scaling rounds nothing.
    good: updates since it last changed.
    """

    used: bool = False
    factor: float = 1.0
    good: int = 0

    @classmethod
    def start(cls, precision: str) -> LossScale:
        """At the beginning of a run."""
        return cls(True, 2.0**16) if precision == "float16" else cls()

    def after(self, finite: bool) -> LossScale:
        """After an update whose gradients were finite, or not: then it was left out."""
        if not finite:
            return replace(self, factor=self.factor / 2, good=0)
        if self.good + 1 < GROWTH:
            return replace(self, good=self.good + 1)
        return replace(self, factor=self.factor * 2, good=0)
