"""The rate policy of Sect. 3.1: divide by 10 when validation accuracy stops improving, three times, then stop."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Plateau:
    """Where the policy stands.

    The paper does not say when accuracy has stopped improving: here, after `patience` validations in a row that do
    not exceed the best one so far by more than `threshold`.

    Attributes:
        best: highest accuracy so far, -1 before any.
        best_iteration: when that was.
        waited: validations since without a better one, or since the rate last fell.
        drops: how often the rate has been divided.
        done: accuracy has stopped improving after the last division.
    """

    best: float = -1.0
    best_iteration: int = 0
    waited: int = 0
    drops: int = 0
    done: bool = False

    def after(self, accuracy: float, iteration: int, *, patience: int, drops: int, threshold: float = 0.0) -> Plateau:
        """Where it stands after a validation; `drops` is how often the rate may be divided."""
        if accuracy > self.best + threshold:
            return replace(self, best=accuracy, best_iteration=iteration, waited=0)
        if self.waited + 1 < patience:
            return replace(self, waited=self.waited + 1)
        if self.drops < drops:
            return replace(self, waited=0, drops=self.drops + 1)
        return replace(self, waited=self.waited + 1, done=True)

    def rate(self, base: float, factor: float = 0.1) -> float:
        """The learning rate."""
        return base * factor**self.drops
