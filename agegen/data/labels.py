"""Labels: ages (exact, in brackets, or missing), genders, the groups that faces fall into, and the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

# UTKFace's oldest; few people have lived longer.
MAX_AGE = 116
AGE_CLASSES = MAX_AGE + 1
SPLITS = ("train", "val", "test")
# In a split file: faces that a training leaves alone.
UNUSED = "unused"
# Groups of fewer faces are marked: a share of 29 moves by 3 points with a single face.
SMALL_GROUP = 30
# Childhood is told apart more finely: three years change a face more there than thirty do later.
_AGE_BANDS = (0, 3, 10, 20, 30, 40, 50, 60, 70, 80, AGE_CLASSES)
# Columns that name a person: whoever is in one part of a split must be in no other, and in no table by name.
IDENTITY_COLUMNS = (
    "identity",
    "subject",
    "person",
    "person_id",
    "subject_id",
    "celebrity",
    "celebrity_id",
    "name",
    "id",
)
# A column of more values than this is no grouping that anyone reads; each costs a bootstrap.
MOST_GROUPS = 50
# So few values are a grouping even of a handful of faces.
_FEW_GROUPS = 5
# Columns of a frame that hold labels; age_from and age_to are there where some ages are no exact ones.
AGE_BOUNDS = ("age_from", "age_to")


@dataclass(frozen=True)
class SoftLabels:
    """What teachers estimate of N faces, float32: age distributions (N, 117) and P(female) (N,); NaN where none did."""

    ages: NDArray[np.float32]
    female: NDArray[np.float32]

    def pick(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> SoftLabels:
        """Return the estimates of some faces."""
        return SoftLabels(self.ages[rows], self.female[rows])


@dataclass(frozen=True)
class Labels:
    """Labels of N faces, float32 (N,) each.

    Attributes:
        low: the least age in years that the label allows, and ``high`` the greatest, both included: equal where
            the age is exact, NaN where there is none.
        female: 0 or 1; NaN where it isn't known.
        soft: what teachers estimate of the same faces, if there are any.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    female: NDArray[np.float32]
    soft: SoftLabels | None = None

    def __len__(self) -> int:
        return len(self.low)

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Which faces (N,) have an exact age."""
        return np.equal(self.low, self.high)

    @property
    def bracketed(self) -> NDArray[np.bool_]:
        """Which faces (N,) have a bracket of ages."""
        return np.less(self.low, self.high)

    @property
    def gendered(self) -> NDArray[np.bool_]:
        """Which faces (N,) have a gender."""
        return ~np.isnan(self.female)

    @property
    def middle(self) -> NDArray[np.float32]:
        """The exact age or the middle of the bracket (N,) in years; NaN where there is neither."""
        return np.asarray((self.low + self.high) / 2, dtype=np.float32)

    def pick(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Labels:
        """Return the labels of some faces."""
        soft = None if self.soft is None else self.soft.pick(rows)
        return Labels(self.low[rows], self.high[rows], self.female[rows], soft)


def read_labels(frame: pd.DataFrame) -> Labels:
    """Return the labels of a frame: columns ``age`` (exact, else NaN), ``female``, and age_from and age_to if any."""
    low, high = AGE_BOUNDS if set(AGE_BOUNDS) <= set(frame.columns) else ("age", "age")
    least, greatest, female = (
        frame[name].to_numpy(dtype="float32", na_value=float("nan")) for name in (low, high, "female")
    )
    return Labels(least, greatest, female)


def format_age(low: float, high: float) -> str:
    """Return an age as people read it: 25, 20–29, or a dash where it isn't known."""
    if low != low:
        return "–"
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def format_gender(female: float) -> str:
    """Return female, male, or a dash where it isn't known."""
    return "–" if female != female else "female" if female > 0.5 else "male"


def format_labels(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return ages and genders as a manifest has them: brackets with a hyphen, nothing for what isn't known."""
    labels = read_labels(frame)
    ages = [format_age(low, high) for low, high in zip(labels.low, labels.high, strict=True)]
    genders = [format_gender(female) for female in labels.female]
    return ["" if age == "–" else age.replace("–", "-") for age in ages], [one.replace("–", "") for one in genders]


@dataclass(frozen=True)
class Baseline:
    """What one would say without looking: the training split's median age and majority gender."""

    age: float
    female: bool


def compute_baseline(train: pd.DataFrame) -> Baseline:
    """Return the baseline of a training split; of brackets the middles count where no age is exact."""
    labels = read_labels(train)
    ages = labels.middle[labels.exact] if labels.exact.any() else labels.middle[labels.bracketed]
    known = labels.female[labels.gendered]
    return Baseline(float(np.median(ages)) if len(ages) else 0.0, bool(len(known) and known.mean() >= 0.5))


def choose_groups(frame: pd.DataFrame, columns: list[str]) -> tuple[list[str], list[str]]:
    """Return which columns group faces, and which don't: what names persons or has a value for nearly each face."""
    chosen: list[str] = []
    left: list[str] = []
    for name in columns:
        values = frame[name].nunique()
        grouping = (
            values <= min(MOST_GROUPS, max(_FEW_GROUPS, len(frame) // 2)) and name.lower() not in IDENTITY_COLUMNS
        )
        (chosen if grouping else left).append(name)
    return chosen, left


def band_ages(ages: NDArray[np.float64], frame: pd.DataFrame) -> pd.Series:
    """Return the band of each age (N,) in years, for the rows of a frame."""
    import pandas as pd

    names = [f"{low}–{high - 1}" for low, high in pairwise(_AGE_BANDS)]
    return pd.Series(pd.cut(ages, _AGE_BANDS, right=False, labels=names), index=frame.index)


def label_groups(frame: pd.DataFrame, groups: list[str]) -> dict[str, pd.Series]:
    """Return each grouping's label per face: age band, gender, then the data's own columns.

    A bracket falls into the band that holds it whole, else it is a band of its own; what isn't known is in none.
    """
    import pandas as pd

    labels = read_labels(frame)
    names = [f"{low}–{high - 1}" for low, high in pairwise(_AGE_BANDS)]
    low, high = (
        pd.cut(pd.Series(ages, index=frame.index), _AGE_BANDS, right=False, labels=names)
        for ages in (labels.low, labels.high)
    )
    bands = low.astype(object).where(low.astype(object) == high.astype(object))
    wide = bands.isna() & pd.Series(labels.bracketed, index=frame.index)
    own_bands = [f"{a:.0f}–{b:.0f}" for a, b in zip(labels.low[wide], labels.high[wide], strict=True)]
    bands[wide] = own_bands
    every = sorted({*names, *own_bands}, key=lambda name: (int(name.split("–")[0]), int(name.split("–")[1])))
    known = [None if value != value else format_gender(value) for value in labels.female]
    gender = pd.Series(known, index=frame.index, dtype=object).astype("category")
    own = {name: frame[name].astype(str).astype("category") for name in groups}
    return {"age_band": bands.astype(pd.CategoricalDtype(every, ordered=True)), "gender": gender, **own}
