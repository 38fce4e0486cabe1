"""Age heaping: ages that people write down more often than they occur."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import AGE_CLASSES

# So many years on each side: fewer would be noise, more would span the next heap, five years on.
_NEIGHBOURS = 3
# An age is heaped where its count is so many times its neighbours', and that far beyond chance.
_LEAST_RATIO, _LEAST_SIGMAS = 1.4, 4.0


@dataclass(frozen=True)
class HeapedAge:
    """An age with more faces than its neighbours let one expect: ``n`` against ``expected``."""

    age: int
    n: int
    expected: float


def find_heaped_ages(ages: NDArray[Any]) -> list[HeapedAge]:
    """Return the ages (of n faces, years) that stand out from the medians of three neighbours on each side."""
    counts = np.bincount(ages.astype(int), minlength=AGE_CLASSES)
    found = []
    for age in range(AGE_CLASSES):
        sides = counts[max(0, age - _NEIGHBOURS) : age], counts[age + 1 : age + 1 + _NEIGHBOURS]
        # The larger of both sides: at the edge of a distribution one of them is empty.
        expected = float(max(np.median(side) for side in sides if len(side)))
        excess = counts[age] - expected
        if excess > _LEAST_SIGMAS * np.sqrt(expected + 1) and counts[age] >= _LEAST_RATIO * expected:
            found.append(HeapedAge(age, int(counts[age]), expected))
    return found


def measure_whipple(ages: NDArray[Any]) -> float:
    """Return Whipple's index of heaping on 0 and 5: 100 without, 500 where every age ends so; NaN for no ages.

    Source: United Nations, "Demographic Yearbook 1955"; counts the ages 23 to 62.
    """
    inside = ages.astype(int)
    inside = inside[(inside >= 23) & (inside <= 62)]
    return float((inside % 5 == 0).mean() * 500) if len(inside) else float("nan")
