"""What a data set hides: duplicates, conflicting labels, heaped ages, leaks, clusters, likely wrong labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agegen.check.clusters import Straddle, list_clusters, measure_straddle
from agegen.check.heaping import HeapedAge, find_heaped_ages, measure_whipple
from agegen.check.suspects import Suspect, find_suspects
from agegen.data.duplicates import find_duplicates, join_pairs
from agegen.data.labels import SMALL_GROUP, Labels, format_age, format_gender, label_groups
from agegen.data.loading import load_sources
from agegen.data.manifests import PLAIN, ReadOptions
from agegen.data.records import Exclusion, FaceRecords
from agegen.data.scan import ProgressHook, Scan, ignore_progress, scan_images
from agegen.data.splits import count_leaking_groups
from agegen.faces.matching import describe_crops, survey_crops
from agegen.model.weights import find_checkpoint

if TYPE_CHECKING:
    import pandas as pd

# Pictures with a shorter side below it hold too little of a face.
TINY_SIDE = 48
# Labels of one photograph that are further apart, in years, contradict each other.
CONFLICT_YEARS = 1.0


@dataclass(frozen=True)
class CheckConfig:
    """Options of ``agegen data check``; with ``run`` or ``model``, a trained model looks for wrong labels."""

    data: tuple[str, ...]
    run: Path | None = None
    model: str | None = None
    device: str = "auto"
    reading: ReadOptions = PLAIN
    weights: str | None = None


@dataclass(frozen=True)
class GroupCount:
    """How many faces a group has; ``small`` where they are fewer than 30."""

    column: str
    value: str
    n: int
    small: bool


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
    ages: tuple[str, str]
    genders: tuple[str, str]
    gap: float

    @property
    def conflicting(self) -> bool:
        """Whether the two labels contradict each other."""
        return self.gap > CONFLICT_YEARS or self.genders_differ

    @property
    def genders_differ(self) -> bool:
        """Whether both genders are known and not the same."""
        return "–" not in self.genders and self.genders[0] != self.genders[1]


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


@dataclass(frozen=True)
class DataReport:
    """All that ``agegen data check`` finds.

    Attributes:
        excluded: files and rows that can't be used, each with its reason.
        tiny: pictures whose shorter side is below 48 pixels.
        heaped: ages that stand out from their neighbours; ``whipple`` is Whipple's index (100: none, 500: all).
        straddles: how much of the data, by kind of cluster, a random split would tear apart.
        leaks: groups of near-duplicates in more than one of the data's own splits; None without splits.
        suspects: likely wrong labels, the likeliest first; None where no model looked.
        notices: how the data was read, and what looks wrong with it as a whole.
    """

    source: str
    faces: int
    excluded: list[Exclusion]
    tiny: list[Exclusion]
    groups: list[GroupCount]
    duplicates: Duplicates
    heaped: list[HeapedAge]
    whipple: float
    straddles: list[Straddle]
    leaks: int | None
    suspects: list[Suspect] | None
    notices: tuple[str, ...]
    frame: pd.DataFrame = field(repr=False)
    records: FaceRecords = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form."""
        pairs = self.duplicates
        return {
            "source": self.source,
            "faces": self.faces,
            "excluded": [asdict(item) for item in self.excluded],
            "tiny": [asdict(item) for item in self.tiny],
            "groups": [asdict(group) for group in self.groups],
            "duplicates": {
                "pairs": [
                    asdict(pair) | {"gap": None if np.isnan(pair.gap) else pair.gap, "conflicting": pair.conflicting}
                    for pair in pairs.pairs
                ],
                "faces": pairs.faces,
                "groups": pairs.groups,
                "age_gap": None if np.isnan(pairs.age_gap) else round(pairs.age_gap, 3),
                "gender_gap": None if np.isnan(pairs.gender_gap) else round(pairs.gender_gap, 4),
            },
            "heaped_ages": [asdict(age) for age in self.heaped],
            "whipple": None if np.isnan(self.whipple) else round(self.whipple, 1),
            "straddles": [asdict(straddle) for straddle in self.straddles],
            "leaks": self.leaks,
            "notices": list(self.notices),
            "suspects": None if self.suspects is None else [asdict(suspect) for suspect in self.suspects],
        }


def check_data(config: CheckConfig, on_progress: ProgressHook = ignore_progress) -> DataReport:
    """Check a data set.

    Raises:
        AgegenError: the data or the run can't be used at all.
    """
    scan = scan_images(load_sources(config.data, config.reading), None, on_progress)
    frame = scan.records.frame
    pairs = find_duplicates(scan.hashes, scan.sha256, on_progress)
    groups = join_pairs(len(scan.hashes), pairs)
    clusters = list_clusters(frame, groups)
    suspects, notices = None, [*scan.records.notices, *describe_crops(survey_crops(scan.records))]
    if scan.records.layout:
        notices.insert(0, f"data: {scan.records.layout}, {len(frame):,} faces")
    if (config.run, config.model, config.weights) != (None, None, None):
        checkpoint = find_checkpoint(config.model, config.run, config.weights)
        suspects, swapped = find_suspects(checkpoint, scan, config.device, on_progress)
        notices += [swapped] if swapped else []
    return DataReport(
        source=" + ".join(config.data),
        faces=len(frame),
        excluded=list(scan.records.excluded),
        tiny=find_tiny(scan),
        groups=count_groups(scan),
        duplicates=describe_duplicates(scan, pairs, groups),
        heaped=find_heaped_ages(frame["age"].dropna().to_numpy()),
        whipple=measure_whipple(frame["age"].dropna().to_numpy()),
        straddles=[measure_straddle(kind, labels) for kind, labels in clusters.items()],
        leaks=count_leaking_groups(frame.assign(group=groups)) if "split" in frame.columns else None,
        suspects=suspects,
        notices=tuple(notices),
        frame=frame,
        records=scan.records,
    )


def find_tiny(scan: Scan) -> list[Exclusion]:
    """Return the pictures that are too small to show much of a face."""
    names = scan.records.frame["path"]
    rows = np.flatnonzero(scan.sides < TINY_SIDE)
    return [Exclusion(str(names.iloc[row]), f"its shorter side has {scan.sides[row]} pixels") for row in rows]


def count_groups(scan: Scan) -> list[GroupCount]:
    """Return how many faces each age band, gender and group of the data's own has."""
    frame, counts = scan.records.frame, []
    for column, labels in label_groups(frame, scan.records.group_columns).items():
        for value, n in labels.value_counts(sort=False).items():
            counts.append(GroupCount(column, str(value), int(n), int(n) < SMALL_GROUP))
    return counts


def describe_duplicates(scan: Scan, pairs: NDArray[np.int64], groups: NDArray[np.int64]) -> Duplicates:
    """Return the pairs (P, 2) and equal files with their labels, and how far these disagree."""
    frame = scan.records.frame
    names, labels = frame["path"].to_numpy(), scan.records.labels
    ages = [format_age(low, high) for low, high in zip(labels.low, labels.high, strict=True)]
    genders = [format_gender(female) for female in labels.female]
    digests = np.array(scan.sha256)
    found = [
        Pair(
            str(names[first]),
            str(names[second]),
            int((scan.hashes[first] != scan.hashes[second]).sum()),
            bool(digests[first] == digests[second]),
            (ages[first], ages[second]),
            (genders[first], genders[second]),
            measure_gap(labels, first, second),
        )
        for first, second in pairs.tolist()
    ]
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


def measure_gap(labels: Labels, first: int, second: int) -> float:
    """Return how many years lie between two ages or brackets; 0 where they touch, NaN where one isn't known."""
    low, high = max(labels.low[first], labels.low[second]), min(labels.high[first], labels.high[second])
    known = not (np.isnan(labels.low[first]) or np.isnan(labels.low[second]))
    return round(float(max(low - high, 0.0)), 4) if known else float("nan")
