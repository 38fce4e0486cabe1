"""Pairs of pictures that are nearly the same, or mirror images, with what their labels say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import Labels, format_age, format_gender
from agegen.data.scan import Scan

# Labels of one photograph that are further apart, in years, contradict each other.
CONFLICT_YEARS = 1.0


@dataclass(frozen=True)
class Pair:
    """Two pictures of (nearly) the same content.

    Attributes:
        distance: 0–256 bits of their hashes, 0 also for equal files.
        ages: as the labels say them, and ``genders``; a dash where one isn't known.
        gap: years between the two ages, or between their brackets; NaN where one isn't known.
    """

    first: str
    second: str
    distance: int
    same_file: bool
    ages: tuple[str, ...]
    genders: tuple[str, ...]
    gap: float

    @property
    def conflicting(self) -> bool:
        """Whether the two labels contradict each other."""
        return self.gap > CONFLICT_YEARS or self.genders_differ

    @property
    def genders_differ(self) -> bool:
        """Whether both genders are known and not the same."""
        return "–" not in self.genders and self.genders[0] != self.genders[1]

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form."""
        return asdict(self) | {"gap": None if np.isnan(self.gap) else self.gap, "conflicting": self.conflicting}


@dataclass(frozen=True)
class Duplicates:
    """Equal files and near-duplicates.

    Attributes:
        pairs: all of them.
        faces: that have one.
        groups: that they form.
        age_gap: mean difference of the ages of a pair in years; NaN without pairs.
        gender_gap: the share of pairs, 0–1, that differ in gender; NaN without pairs.
    """

    pairs: list[Pair]
    faces: int
    groups: int
    age_gap: float
    gender_gap: float

    @property
    def conflicts(self) -> list[Pair]:
        """The pairs whose labels contradict each other, the widest apart first."""
        found = [pair for pair in self.pairs if pair.conflicting]
        return sorted(found, key=lambda pair: (-np.nan_to_num(pair.gap), pair.first))


def describe_duplicates(scan: Scan, pairs: NDArray[np.int64], groups: NDArray[np.int64]) -> Duplicates:
    """Return the pairs (P, 2) and equal files with their labels, and how far these disagree."""
    found = describe_pairs(scan, pairs, scan.hashes[pairs[:, 1]])
    sizes = np.bincount(groups, minlength=len(groups))
    gaps = [pair.gap for pair in found if not np.isnan(pair.gap)]
    known = [pair.genders_differ for pair in found if "–" not in pair.genders]
    return Duplicates(
        pairs=found,
        faces=int(sizes[sizes > 1].sum()),
        groups=int((sizes > 1).sum()),
        age_gap=float(np.mean(gaps)) if gaps else float("nan"),
        gender_gap=float(np.mean(known)) if known else float("nan"),
    )


def describe_pairs(scan: Scan, pairs: NDArray[np.int64], seconds: NDArray[np.bool_]) -> list[Pair]:
    """Return the pairs (P, 2) with their labels; ``seconds`` (P, bits) are the hashes that the second ones count by."""
    names, labels = scan.records.frame["path"].to_numpy(), scan.records.labels
    return [
        Pair(
            str(names[first]),
            str(names[second]),
            int((scan.hashes[first] != hashed).sum()),
            scan.sha256[first] == scan.sha256[second],
            tuple(format_age(labels.low[row], labels.high[row]) for row in (first, second)),
            tuple(format_gender(labels.female[row]) for row in (first, second)),
            measure_gap(labels, first, second),
        )
        for (first, second), hashed in zip(pairs.tolist(), seconds, strict=True)
    ]


def measure_gap(labels: Labels, first: int, second: int) -> float:
    """Return how many years lie between two ages or brackets; 0 where they touch, NaN where one isn't known."""
    low, high = max(labels.low[first], labels.low[second]), min(labels.high[first], labels.high[second])
    known = not (np.isnan(labels.low[first]) or np.isnan(labels.low[second]))
    return round(float(max(low - high, 0.0)), 4) if known else float("nan")
