"""Labels: ages (exact, in brackets, or missing), genders, soft labels, groups of faces, and the baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from agegen.errors import shorten

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

# In years. The oldest face in UTKFace; few people have lived longer.
MAX_AGE = 116
AGE_CLASSES = MAX_AGE + 1
SPLITS = ("train", "val", "test")
# In a split file: faces that a training does not use.
UNUSED = "unused"
# The columns of a label frame with the bounds of ages; present if some ages are not exact.
AGE_BOUNDS = ("age_from", "age_to")
# Columns that identify a person: all images of a person belong in one split, and no report lists persons.
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
# Groups with fewer faces are marked in reports: a share of 29 faces changes by 3 points with a single face.
SMALL_GROUP = 30
# A column with more values is not reported by group: nobody reads such a table, and each group costs a bootstrap.
MOST_GROUPS = 50
# Reports by more columns have thousands of lines. Of a table with many more, such as embeddings, the rest is not read.
MOST_GROUP_COLUMNS, MOST_COLUMNS = 30, 300
# A column with this few values is reported by group even for a handful of faces.
_FEW_GROUPS = 5
# In years; finer in childhood, where three years change a face more than thirty do later.
_AGE_BANDS = (0, 3, 10, 20, 30, 40, 50, 60, 70, 80, AGE_CLASSES)
_BAND_NAMES = [f"{low}–{high - 1}" for low, high in pairwise(_AGE_BANDS)]


@dataclass(frozen=True)
class SoftLabels:
    """Teachers' estimates for N faces, float32: age distributions (N, 117) and P(female) (N,), NaN for faces without.

    Attributes:
        ages: each row sums to 1.
        female: 0–1.
    """

    ages: NDArray[np.float32]
    female: NDArray[np.float32]

    def pick(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> SoftLabels:
        """Return the soft labels of some faces."""
        return SoftLabels(self.ages[rows], self.female[rows])


@dataclass(frozen=True)
class Labels:
    """Labels of N faces, float32 (N,) each.

    Attributes:
        low: lower bound of the age in years, and ``high`` the upper bound, both inclusive; equal for exact ages, NaN
            for unknown ones.
        female: 0 or 1; NaN if unknown.
        soft: soft labels of the same faces, if there are any.
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
        """The exact age or the middle of the bracket (N,) in years; NaN if unknown."""
        return np.asarray((self.low + self.high) / 2, dtype=np.float32)

    def pick(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Labels:
        """Return the labels of some faces."""
        soft = None if self.soft is None else self.soft.pick(rows)
        return Labels(self.low[rows], self.high[rows], self.female[rows], soft)

    def drop_ages(self) -> Labels:
        """Return the genders alone; see :func:`drop_ages` for frames."""
        unknown = np.full(len(self), np.nan, dtype=np.float32)
        return replace(self, low=unknown, high=unknown)


def read_labels(frame: pd.DataFrame) -> Labels:
    """Return the labels in a frame with the columns ``age`` (NaN if not exact), ``female``, and maybe the bounds."""
    low, high = AGE_BOUNDS if set(AGE_BOUNDS) <= set(frame.columns) else ("age", "age")
    lower, upper, female = (
        frame[name].to_numpy(dtype="float32", na_value=float("nan")) for name in (low, high, "female")
    )
    return Labels(lower, upper, female)


def format_labels(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return ages and genders as manifests write them: brackets with a hyphen, unknown labels empty."""
    labels = read_labels(frame)
    ages = [format_age(low, high) for low, high in zip(labels.low, labels.high, strict=True)]
    genders = [format_gender(female) for female in labels.female]
    return ["" if age == "–" else age.replace("–", "-") for age in ages], [one.replace("–", "") for one in genders]


def drop_ages(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a label frame in which all ages are unknown."""
    return frame.drop(columns=list(AGE_BOUNDS), errors="ignore").assign(age=float("nan"))


def fill_missing(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with "" for missing cells, except in columns of numbers."""
    import pandas as pd

    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    return frame.assign(**{str(name): frame[name].astype(object).where(frame[name].notna(), "") for name in texts})


def format_age(low: float, high: float) -> str:
    """Return an age for display: 25, 20–29, or a dash if it is unknown (NaN)."""
    if low != low:
        return "–"
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def format_gender(female: float) -> str:
    """Return female, male, or a dash if it is unknown (NaN)."""
    return "–" if female != female else "female" if female > 0.5 else "male"


@dataclass(frozen=True)
class Baseline:
    """The best constant estimate: the median age in years and the majority gender of the training split."""

    age: float
    female: bool


def compute_baseline(train: pd.DataFrame) -> Baseline:
    """Return the baseline of a training split; without exact ages, the median is that of the brackets' middles."""
    labels = read_labels(train)
    ages = labels.middle[labels.exact] if labels.exact.any() else labels.middle[labels.bracketed]
    known = labels.female[labels.gendered]
    return Baseline(float(np.median(ages)) if len(ages) else 0.0, bool(len(known) and known.mean() >= 0.5))


def choose_groups(frame: pd.DataFrame, columns: list[str]) -> tuple[list[str], list[str]]:
    """Return the columns to group reports by, and the others: those that identify persons or have too many values.

    Of many columns, the first 30 that can be used are.
    """
    most = min(MOST_GROUPS, max(_FEW_GROUPS, len(frame) // 2))
    chosen: list[str] = []
    others: list[str] = []
    for name in columns:
        is_grouping = len(chosen) < MOST_GROUP_COLUMNS and name.lower() not in IDENTITY_COLUMNS
        is_grouping = is_grouping and frame[name].nunique() <= most
        (chosen if is_grouping else others).append(name)
    return chosen, others


def band_ages(ages: NDArray[np.float64], frame: pd.DataFrame) -> pd.Series:
    """Return the age band, as a category, of each age (N,) in years, with the index of a frame of N rows."""
    import pandas as pd

    return pd.Series(pd.cut(ages, _AGE_BANDS, right=False, labels=_BAND_NAMES), index=frame.index)


def _name_groups(cells: pd.Series) -> pd.Series:
    """Return the cells of a column as categories that are printable; none for missing cells."""
    texts = cells.astype(str).where(cells.notna())
    return texts.map({text: shorten(text) for text in texts.dropna().unique()}).astype("category")


def label_groups(frame: pd.DataFrame, groups: list[str]) -> dict[str, pd.Series]:
    """Return the group of each face, as a category, by age band, by gender, and by each column in ``groups``.

    A bracket that fits into an age band belongs to it; any other bracket is its own band. Unknown labels have no group.
    """
    import pandas as pd

    labels = read_labels(frame)
    low, high = (
        pd.cut(pd.Series(ages, index=frame.index), _AGE_BANDS, right=False, labels=_BAND_NAMES)
        for ages in (labels.low, labels.high)
    )
    bands = low.astype(object).where(low.astype(object) == high.astype(object))
    wide = bands.isna() & pd.Series(labels.bracketed, index=frame.index)
    wide_names = [f"{a:.0f}–{b:.0f}" for a, b in zip(labels.low[wide], labels.high[wide], strict=True)]
    bands[wide] = wide_names
    ordered = sorted({*_BAND_NAMES, *wide_names}, key=lambda name: tuple(map(int, name.split("–"))))
    known = [None if value != value else format_gender(value) for value in labels.female]
    gender = pd.Series(known, index=frame.index, dtype=object).astype("category")
    columns = {name: _name_groups(frame[name]) for name in groups}
    return {"age_band": bands.astype(pd.CategoricalDtype(ordered, ordered=True)), "gender": gender, **columns}
