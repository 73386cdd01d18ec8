"""How a ratio is measured: both sides in turn, several rounds, and the median."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    name      as in results.json;  value  what counts;  reach  as (">=" or "<=", bound); None = only for comparison
    measured, bound  both sides, medians in unit; None where there is only one
    """

    name: str
    value: float
    reach: tuple[str, float] | None
    measured: float | None = None
    bound: float | None = None
    unit: str = ""

    @property
    def is_reached(self) -> bool:
        """Does the value meet its limit?"""
        if self.reach is None:
            return True
        sign, limit = self.reach
        return self.value >= limit if sign == ">=" else self.value <= limit

    @property
    def wanted(self) -> str:
        """What was promised, as text."""
        return f"{self.reach[0]} {self.reach[1]:g}" if self.reach else ""


def in_turn(
    rounds: int, measured: Callable[[], float], bound: Callable[[], float]
) -> tuple[float, float, float]:
    """Measures two things in turn, so that what else happens on the machine happens to both.

    Returns
    -------
    The medians of both, and the median of the rounds' ratios.
    """
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = bound()
            pairs.append((measured(), second))
        else:
            pairs.append((measured(), bound()))
    return (
        median(first for first, _ in pairs),
        median(second for _, second in pairs),
        median(first / second for first, second in pairs),
    )
