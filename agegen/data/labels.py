"""Labels: the range of ages, the groups that faces fall into, and what one would say without looking."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

MAX_AGE = 116

AGE_CLASSES = MAX_AGE + 1

SMALL_GROUP = 30

_AGE_BANDS = (0, 3, 10, 20, 30, 40, 50, 60, 70, 80, AGE_CLASSES)


@dataclass(frozen=True)
class Baseline:
    """What one would say without looking: the training split's median age and majority gender."""

    age: float
    female: bool


SPLITS = ("train", "val", "test")


def find_baseline(train: pd.DataFrame) -> Baseline:
    """Return the baseline of a training split (columns age, female)."""
    return Baseline(float(train["age"].median()), bool(train["female"].mean() >= 0.5))


def label_groups(frame: pd.DataFrame, groups: list[str]) -> dict[str, pd.Series]:
    """Return each grouping's label per face: age band, gender, then the data's own columns."""
    import pandas as pd

    names = [f"{low}–{high - 1}" for low, high in pairwise(_AGE_BANDS)]
    bands = pd.cut(frame["age"], _AGE_BANDS, right=False, labels=names)
    gender = frame["female"].map({True: "female", False: "male"}).astype("category")
    own = {name: frame[name].astype(str).astype("category") for name in groups}
    return {"age_band": bands, "gender": gender, **own}
