"""What a data set hides: duplicates, conflicting labels, heaped ages, leaks, clusters, likely wrong labels."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agegen.data.duplicates import find_duplicates, find_mirrored, join_pairs, mirror_hashes
from agegen.data.labels import (
    AGE_BOUNDS,
    AGE_CLASSES,
    IDENTITY_COLUMNS,
    SMALL_GROUP,
    Labels,
    format_age,
    format_gender,
    label_groups,
    write_labels,
)
from agegen.data.loading import load_sources
from agegen.data.manifests import DEFAULT_READ_OPTIONS, ReadOptions
from agegen.data.records import Exclusion, FaceRecords, locate_picture
from agegen.data.scan import ProgressHook, Scan, ignore_progress, scan_images
from agegen.data.splits import SHARES, count_leaking_groups, number_persons
from agegen.datatools.label_issues import LabelIssue, find_label_issues
from agegen.errors import DataError
from agegen.faces.matching import make_crop_notices, measure_dataset
from agegen.files import replace_atomically
from agegen.model.weights import find_checkpoint

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


# UTKFace's names hold the time of capture to the millisecond: 20170116174525125.
_MOMENT = re.compile(r"_(\d{14})\d{0,3}\.")
# The mean of so many random splits is known to about a fifth of one split's own scatter.
_REPEATS = 20


@dataclass(frozen=True)
class ClusterLeakage:
    """What a random 80/10/10 split would do to clusters of a kind.

    Attributes:
        kind: ``near-duplicates``, ``capture second``, or the column that names the person.
        clusters: of at least two faces, ``faces`` in them, ``largest`` of them.
        torn: the share of these clusters, 0–1, that lie in more than one part of a random split.
        leaking: the share of all test faces, 0–1, that have a fellow in the training part.
    """

    kind: str
    clusters: int
    faces: int
    largest: int
    torn: float
    leaking: float


def list_clusters(frame: pd.DataFrame, groups: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the cluster number of each face (N,), by kind; -1 for a face of which it isn't known."""
    import pandas as pd

    clusters = {"near-duplicates": groups}
    for column in frame.columns:
        if str(column).lower() in IDENTITY_COLUMNS:
            clusters[str(column)] = number_persons(frame[column])
    moments = frame["path"].map(_find_moment)
    if moments.notna().mean() > 0.5:
        clusters["capture second"] = np.asarray(pd.factorize(moments)[0], dtype=np.int64)
    return clusters


def measure_straddle(kind: str, labels: NDArray[np.int64], seed: int = 0) -> ClusterLeakage:
    """Return what random splits (the mean of 20) do to clusters given as a number per face, -1 for none."""
    rng = np.random.default_rng(seed)
    known = labels >= 0
    # Faces without a cluster are one each.
    whole = np.where(known, labels, labels.max(initial=0) + 1 + np.arange(len(labels)))
    _, index = np.unique(whole, return_inverse=True)
    sizes = np.bincount(index)
    torn, leaking = [], []
    for _ in range(_REPEATS):
        part = rng.choice(len(SHARES), len(labels), p=list(SHARES.values()))
        parts = np.stack([np.bincount(index, part == number, len(sizes)) for number in range(len(SHARES))])
        multiple = (parts > 0).sum(axis=0) > 1
        torn.append(multiple[sizes > 1].mean() if (sizes > 1).any() else 0.0)
        test = part == list(SHARES).index("test")
        leaking.append((parts[0][index[test]] > 0).mean() if test.any() else 0.0)
    return ClusterLeakage(
        kind=kind,
        clusters=int((sizes > 1).sum()),
        faces=int(sizes[sizes > 1].sum()),
        largest=int(sizes.max(initial=0)),
        torn=round(float(np.mean(torn)), 4),
        leaking=round(float(np.mean(leaking)), 4),
    )


def _find_moment(path: Any) -> str | None:
    match = _MOMENT.search(str(path))
    return match[1] if match else None


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


# Pictures with a shorter side below it hold too little of a face.
TINY_SIDE = 48


@dataclass(frozen=True)
class CheckConfig:
    """Options of ``agegen data check``; with ``run`` or ``model``, a trained model looks for wrong labels."""

    data: tuple[str, ...]
    run: Path | None = None
    model: str | None = None
    device: str = "auto"
    reading: ReadOptions = DEFAULT_READ_OPTIONS
    weights: str | None = None


@dataclass(frozen=True)
class GroupCount:
    """How many faces a group has; ``small`` where they are fewer than 30."""

    column: str
    value: str
    n: int
    small: bool


@dataclass(frozen=True)
class DataReport:
    """All that ``agegen data check`` finds.

    Attributes:
        excluded: files and rows that can't be used, each with its reason.
        tiny: pictures whose shorter side is below 48 pixels.
        mirrored: pairs of which one is the mirror image of the other, or nearly.
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
    mirrored: list[Pair]
    heaped: list[HeapedAge]
    whipple: float
    straddles: list[ClusterLeakage]
    leaks: int | None
    suspects: list[LabelIssue] | None
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
                "pairs": [pair.to_json() for pair in pairs.pairs],
                "faces": pairs.faces,
                "groups": pairs.groups,
                "age_gap": None if np.isnan(pairs.age_gap) else round(pairs.age_gap, 3),
                "gender_gap": None if np.isnan(pairs.gender_gap) else round(pairs.gender_gap, 4),
            },
            "mirrored": [pair.to_json() for pair in self.mirrored],
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
    mirrored = find_mirrored(scan.hashes, scan.sha256, on_progress)
    groups = join_pairs(len(scan.hashes), pairs)
    clusters = list_clusters(frame, groups)
    suspects, notices = None, [*scan.records.notices, *make_crop_notices(measure_dataset(scan.records))]
    if scan.records.layout:
        notices.insert(0, f"data: {scan.records.layout}, {len(frame):,} faces")
    if (config.run, config.model, config.weights) != (None, None, None):
        checkpoint = find_checkpoint(config.model, config.run, config.weights)
        suspects, swapped = find_label_issues(checkpoint, scan, config.device, on_progress)
        notices += [swapped] if swapped else []
    return DataReport(
        source=" + ".join(config.data),
        faces=len(frame),
        excluded=list(scan.records.excluded),
        tiny=find_tiny(scan),
        groups=count_groups(scan),
        duplicates=describe_duplicates(scan, pairs, groups),
        mirrored=describe_pairs(scan, mirrored, mirror_hashes(scan.hashes[mirrored[:, 1]])),
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


def list_removals(report: DataReport) -> list[Exclusion]:
    """Return what a clean manifest leaves out, each with its reason.

    Unusable and tiny pictures; of equal files and agreeing near-duplicates all but the first; of conflicting
    ones both; and likely wrong labels, where a model looked.
    """
    removed: dict[str, str] = {item.path: item.reason for item in [*report.excluded, *report.tiny]}
    for pair in report.duplicates.pairs:
        if pair.conflicting:
            for name, other in ((pair.first, pair.second), (pair.second, pair.first)):
                removed.setdefault(name, f"its labels contradict those of its duplicate {other}")
    for suspect in report.suspects or ():
        removed.setdefault(suspect.path, f"likely a wrong label: {suspect.reason}")
    # Last, so that no good picture goes as the copy of one that goes itself.
    for pair in report.duplicates.pairs:
        if not pair.conflicting and pair.first not in removed:
            removed.setdefault(pair.second, f"a {'copy' if pair.same_file else 'near-duplicate'} of {pair.first}")
    return [Exclusion(path, reason) for path, reason in removed.items()]


def write_clean_manifest(path: Path, report: DataReport) -> tuple[int, int]:
    """Write what is clean as a manifest, and beside it ``NAME.left-out.csv`` with a reason for every other row.

    Paths are relative to the manifest's folder where they lie in it, absolute elsewhere. Returns how many rows
    each of the two has.

    Raises:
        DataError: the pictures lie inside a file, not in files of their own.
    """
    paths = [locate_picture(report.records.images, int(row)) for row in report.frame["row"]]
    if None in paths:
        raise DataError(f"{report.source} holds its pictures inside; a manifest can't name them")
    removals = list_removals(report)
    kept = ~report.frame["path"].isin({item.path for item in removals})
    frame = report.frame[kept]
    files = [file.absolute() for file, stays in zip(paths, kept, strict=True) if stays and file is not None]
    base = path.absolute().parent
    places = [str(file.relative_to(base) if file.is_relative_to(base) else file) for file in files]
    ages, genders = write_labels(frame)
    clean = frame.drop(columns=["row", "female", "age", *AGE_BOUNDS], errors="ignore").assign(path=places)
    clean.insert(1, "age", ages)
    clean.insert(2, "gender", genders)
    for target, table in (
        (path, clean),
        (path.with_name(f"{path.stem}.left-out.csv"), pd.DataFrame(removals, columns=["path", "reason"])),
    ):
        with replace_atomically(target) as temporary:
            table.to_csv(temporary, index=False)
    return len(clean), len(removals)
