"""Check a dataset for duplicates, conflicting labels, heaped ages, leakage and label errors; write a clean manifest."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agegen.data.duplicates import find_duplicates, find_mirrored_duplicates, join_pairs, mirror_hashes
from agegen.data.labels import (
    AGE_CLASSES,
    IDENTITY_COLUMNS,
    SMALL_GROUP,
    Labels,
    format_age,
    format_gender,
    label_groups,
)
from agegen.data.loading import load_sources
from agegen.data.records import Exclusion, FaceRecords, locate_image
from agegen.data.scan import ProgressHook, Scan, ignore_progress, scan_images
from agegen.data.splits import SHARES, count_leaking_groups, number_identities
from agegen.datatools.config import CheckConfig
from agegen.datatools.convert import format_path, make_manifest
from agegen.datatools.label_issues import LabelIssue, find_label_issues
from agegen.errors import DataError, format_count
from agegen.evaluate.subject import EvaluationSubject, open_subject
from agegen.faces.alignment import AlignmentTemplate
from agegen.faces.detection import add_cropper
from agegen.faces.matching import LandmarkStats, make_crop_notices, make_margin_notices, match_crops
from agegen.files import replace_atomically
from agegen.machine import choose_compute

# Ages of one photo that differ by more years contradict each other.
CONFLICT_YEARS = 1.0
# Images with a shorter side below this, in pixels, show too little of a face.
TINY_SIDE = 48
# The time of capture in UTKFace's file names, here up to the second: 20170116174525125.
_CAPTURE_SECOND = re.compile(r"_(\d{14})\d{0,3}\.")
# The mean over 20 random splits is known to about a fifth of the standard deviation between splits.
_RANDOM_SPLITS = 20
# Years on each side of an age: fewer are noise, more reach the next heap, five years away.
_NEIGHBOURS = 3
# An age is heaped if its count exceeds that of its neighbours by this ratio, and chance by so many standard deviations.
_MIN_RATIO, _MIN_SIGMAS = 1.4, 4.0
# Faces larger or smaller by more than this share are reported; training enlarges and reduces them by up to 15 % anyway.
_OTHER_SIZE = 0.15


@dataclass(frozen=True)
class Pair:
    """Two images that are equal or near-duplicates.

    Attributes:
        first: the path of one image, and ``second`` that of the other.
        distance: how many bits of their hashes differ, 0–256; 0 also for equal files.
        same_file: whether the files are equal.
        ages: as labelled, and ``genders``; a dash if unknown.
        gap: years between the two ages or their brackets; NaN if one is unknown.
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
        """Whether both genders are known and differ."""
        return "–" not in self.genders and self.genders[0] != self.genders[1]

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form."""
        return asdict(self) | {"gap": None if np.isnan(self.gap) else self.gap, "conflicting": self.conflicting}


@dataclass(frozen=True)
class Duplicates:
    """Equal files and near-duplicates.

    Attributes:
        pairs: all of them.
        faces: the number of faces that have a duplicate.
        groups: the number of groups that they form.
        age_gap: the mean age difference of a pair in years; NaN without pairs.
        gender_gap: the share of pairs, 0–1, with different genders; NaN without pairs.
    """

    pairs: list[Pair]
    faces: int
    groups: int
    age_gap: float
    gender_gap: float

    @property
    def conflicts(self) -> list[Pair]:
        """The pairs whose labels contradict each other, largest age gap first."""
        found = [pair for pair in self.pairs if pair.conflicting]
        return sorted(found, key=lambda pair: (-np.nan_to_num(pair.gap), pair.first))

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form."""
        return {
            "pairs": [pair.to_json() for pair in self.pairs],
            "faces": self.faces,
            "groups": self.groups,
            "age_gap": None if np.isnan(self.age_gap) else round(self.age_gap, 3),
            "gender_gap": None if np.isnan(self.gender_gap) else round(self.gender_gap, 4),
        }


@dataclass(frozen=True)
class ClusterLeakage:
    """The data leakage that a random 80/10/10 split would cause for clusters of one kind.

    Attributes:
        kind: ``near-duplicates``, ``capture second``, or the column that identifies the person.
        clusters: the number of clusters of at least two faces.
        faces: the number of faces in them.
        largest: the number of faces in the largest.
        split_fraction: the share of these clusters, 0–1, whose faces are in more than one part of a random split.
        leak_fraction: the share of all test faces, 0–1, with a face of the same cluster in the training set.
    """

    kind: str
    clusters: int
    faces: int
    largest: int
    split_fraction: float
    leak_fraction: float

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form, with the fractions as ``torn`` and ``leaking``."""
        return {
            "kind": self.kind,
            "clusters": self.clusters,
            "faces": self.faces,
            "largest": self.largest,
            "torn": self.split_fraction,
            "leaking": self.leak_fraction,
        }


@dataclass(frozen=True)
class HeapedAge:
    """An age with more faces (``n``) than its neighbours suggest (``expected``)."""

    age: int
    n: int
    expected: float


@dataclass(frozen=True)
class GroupCount:
    """The number of faces in a group; ``small`` marks fewer than 30."""

    column: str
    value: str
    n: int
    small: bool


@dataclass(frozen=True)
class DataReport:
    """Everything that ``agegen data check`` finds.

    Attributes:
        source: the names of the datasets.
        faces: the number of usable faces.
        excluded: unusable files and rows, with reasons.
        tiny: images whose shorter side is below 48 pixels.
        groups: the sizes of the groups.
        duplicates: equal files and near-duplicates.
        mirrored: pairs in which one image is a near-duplicate of the other's mirror image.
        heaped: ages that stand out from their neighbours.
        whipple: Whipple's index of age heaping: 100 for none, 500 if all ages end in 0 or 5.
        cluster_leakage: the leakage that a random split would cause, by kind of cluster.
        leaking_groups: the number of near-duplicate groups in more than one of the dataset's own splits; None without
            splits.
        label_issues: likely label errors, likeliest first; None if no model was given.
        notices: how the data was read, and what looks wrong with it as a whole.
        frame: the labels, and ``records`` the images.
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
    cluster_leakage: list[ClusterLeakage]
    leaking_groups: int | None
    label_issues: list[LabelIssue] | None
    notices: tuple[str, ...]
    frame: pd.DataFrame = field(repr=False)
    records: FaceRecords = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form."""
        return {
            "source": self.source,
            "faces": self.faces,
            "excluded": [asdict(item) for item in self.excluded],
            "tiny": [asdict(item) for item in self.tiny],
            "groups": [asdict(group) for group in self.groups],
            "duplicates": self.duplicates.to_json(),
            "mirrored": [pair.to_json() for pair in self.mirrored],
            "heaped_ages": [asdict(age) for age in self.heaped],
            "whipple": None if np.isnan(self.whipple) else round(self.whipple, 1),
            "straddles": [leakage.to_json() for leakage in self.cluster_leakage],
            "leaks": self.leaking_groups,
            "notices": list(self.notices),
            "suspects": None if self.label_issues is None else [issue.to_json() for issue in self.label_issues],
        }


def check_data(config: CheckConfig, on_progress: ProgressHook = ignore_progress) -> DataReport:
    """Check datasets; with a model, also for label errors.

    Raises:
        AgegenError: the data or the model cannot be used at all.
    """
    scan = scan_images(add_cropper(load_sources(config.data, config.reading), None), None, on_progress)
    frame = scan.records.frame
    pairs = find_duplicates(scan.hashes, scan.sha256, on_progress)
    mirrored = find_mirrored_duplicates(scan.hashes, scan.sha256, on_progress)
    groups = join_pairs(len(scan.hashes), pairs)
    notices = _describe_data(scan)
    issues = None
    if (config.run, config.model, config.weights) != (None, None, None):
        subject = open_subject(
            config.data,
            config.run,
            config.model,
            config.weights,
            reading=config.reading,
            on_progress=on_progress,
            scan=scan,
        )
        issues, swapped = _check_labels(subject, config.device, on_progress)
        notices += [*swapped, *_describe_seen(subject)]
    ages = frame["age"].dropna().to_numpy()
    return DataReport(
        source=" + ".join(config.data),
        faces=len(frame),
        excluded=list(scan.records.excluded),
        tiny=find_tiny(scan),
        groups=count_groups(scan),
        duplicates=describe_duplicates(scan, pairs, groups),
        mirrored=describe_pairs(scan, mirrored, mirror_hashes(scan.hashes[mirrored[:, 1]])),
        heaped=find_heaped_ages(ages),
        whipple=compute_whipple(ages),
        cluster_leakage=[measure_leakage(kind, labels) for kind, labels in list_clusters(frame, groups).items()],
        leaking_groups=_count_leaking_groups(frame, groups),
        label_issues=issues,
        notices=tuple(notices),
        frame=frame,
        records=scan.records,
    )


def _count_leaking_groups(frame: pd.DataFrame, groups: NDArray[np.int64]) -> int | None:
    """Return how many groups of near-duplicates the data's own splits divide; None if no dataset has one."""
    if "split" not in frame.columns:
        return None
    return count_leaking_groups(frame.assign(group=groups)[frame["split"] != ""])


def _describe_data(scan: Scan) -> list[str]:
    layout = [f"data: {scan.records.layout}, {format_count(len(scan.records), 'face')}"] if scan.records.layout else []
    crops = [] if scan.records.drawn else _describe_crops(scan.records)
    return [*layout, *scan.records.notices, *crops]


def _describe_crops(records: FaceRecords) -> list[str]:
    """Return notices about uncropped photos, and crops unlike those that the bundled weights were trained on."""
    template = AlignmentTemplate()
    measured: list[LandmarkStats] = []
    trims = match_crops(records, template, measured)
    found = (text for stats in measured for text in (*make_crop_notices(stats), *make_margin_notices(stats, template)))
    trimmed = [
        f"the faces of {name} have {100 * box.side:.0f} % of the size that the bundled weights expect; `agegen eval` "
        "cuts out the matching part of each image"
        for name, box in trims.items()
        if abs(box.side - 1) > _OTHER_SIZE
    ]
    return list(dict.fromkeys([*found, *trimmed]))


def _check_labels(
    subject: EvaluationSubject, device: str, on_progress: ProgressHook
) -> tuple[list[LabelIssue], list[str]]:
    every = np.ones(len(subject.splits), dtype=bool)
    estimates, labels = subject.estimate(every, choose_compute(device), on_progress=on_progress)
    paths = subject.scan.records.frame["path"].to_numpy()
    return find_label_issues(estimates, labels, paths, subject.calibration)


def _describe_seen(subject: EvaluationSubject) -> list[str]:
    """Return a notice if the training has seen some of the faces, or if that is unknown."""
    seen = int(subject.seen.sum())
    notice = f"the model was trained on {seen:,} of these faces, in which it finds fewer label errors"
    return [*([notice] if seen else []), *subject.describe_overlap()]


def find_tiny(scan: Scan) -> list[Exclusion]:
    """Return the images that are too small to show much of a face."""
    names = scan.records.frame["path"]
    rows = np.flatnonzero(scan.sides < TINY_SIDE)
    return [
        Exclusion(str(names.iloc[row]), f"the shorter side has {format_count(int(scan.sides[row]), 'pixel')}")
        for row in rows
    ]


def count_groups(scan: Scan) -> list[GroupCount]:
    """Return the number of faces by age band, gender and each of the dataset's own group columns."""
    frame, counts = scan.records.frame, []
    for column, labels in label_groups(frame, scan.records.group_columns).items():
        for value, n in labels.value_counts(sort=False).items():
            # The age bands of all datasets, of which this one may have only some.
            if n:
                counts.append(GroupCount(column, str(value), int(n), int(n) < SMALL_GROUP))
    return counts


def describe_duplicates(scan: Scan, pairs: NDArray[np.int64], groups: NDArray[np.int64]) -> Duplicates:
    """Return the pairs (P, 2) of equal files and near-duplicates with their labels, and how far the labels disagree.

    ``groups`` (N,): the group number of each face.
    """
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
    """Return the pairs (P, 2) with their labels; ``seconds`` (P, 256) are the hashes of the second images."""
    names, labels = scan.records.frame["path"].to_numpy(), scan.records.labels
    return [
        Pair(
            str(names[first]),
            str(names[second]),
            int((scan.hashes[first] != hashed).sum()),
            scan.sha256[first] == scan.sha256[second],
            tuple(format_age(labels.low[row], labels.high[row]) for row in (first, second)),
            tuple(format_gender(labels.female[row]) for row in (first, second)),
            compute_age_gap(labels, first, second),
        )
        for (first, second), hashed in zip(pairs.tolist(), seconds, strict=True)
    ]


def compute_age_gap(labels: Labels, first: int, second: int) -> float:
    """Return the years between two ages or brackets; 0 if they overlap, NaN if one is unknown."""
    low, high = max(labels.low[first], labels.low[second]), min(labels.high[first], labels.high[second])
    known = not (np.isnan(labels.low[first]) or np.isnan(labels.low[second]))
    return round(float(max(low - high, 0.0)), 4) if known else float("nan")


def find_heaped_ages(ages: NDArray[Any]) -> list[HeapedAge]:
    """Return the ages (of n faces, in years) whose counts stand out from the medians of their neighbours."""
    counts = np.bincount(ages.astype(int), minlength=AGE_CLASSES)
    found = []
    for age in range(AGE_CLASSES):
        sides = counts[max(0, age - _NEIGHBOURS) : age], counts[age + 1 : age + 1 + _NEIGHBOURS]
        # The larger of both sides: at the end of a distribution, one of them is empty.
        expected = float(max(np.median(side) for side in sides if len(side)))
        excess = counts[age] - expected
        if excess > _MIN_SIGMAS * np.sqrt(expected + 1) and counts[age] >= _MIN_RATIO * expected:
            found.append(HeapedAge(age, int(counts[age]), expected))
    return found


def compute_whipple(ages: NDArray[Any]) -> float:
    """Return Whipple's index of ages that end in 0 and 5: 100 for no preference, 500 if all do; NaN without ages.

    It counts the ages 23 to 62. Source: United Nations, "Demographic Yearbook 1955".
    """
    inside = ages.astype(int)
    inside = inside[(inside >= 23) & (inside <= 62)]
    return float((inside % 5 == 0).mean() * 500) if len(inside) else float("nan")


def list_clusters(frame: pd.DataFrame, groups: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the cluster number of each face (N,), by kind of cluster; -1 if unknown.

    ``groups`` (N,): the near-duplicate group of each face.
    """
    clusters = {"near-duplicates": groups}
    for column in frame.columns:
        if str(column).lower() in IDENTITY_COLUMNS:
            clusters[str(column)] = number_identities(frame, column)
    seconds = frame["path"].map(_find_capture_second)
    if seconds.notna().mean() > 0.5:
        clusters["capture second"] = np.asarray(pd.factorize(seconds)[0], dtype=np.int64)
    return clusters


def _find_capture_second(path: Any) -> str | None:
    match = _CAPTURE_SECOND.search(str(path))
    return match[1] if match else None


def measure_leakage(kind: str, labels: NDArray[np.int64], seed: int = 0) -> ClusterLeakage:
    """Return the leakage of random splits for clusters, given as a number per face (N,), -1 for none."""
    rng = np.random.default_rng(seed)
    # Faces without a cluster are single.
    whole = np.where(labels >= 0, labels, labels.max(initial=0) + 1 + np.arange(len(labels)))
    _, index = np.unique(whole, return_inverse=True)
    sizes = np.bincount(index)
    separated, leaking = [], []
    for _ in range(_RANDOM_SPLITS):
        part = rng.choice(len(SHARES), len(labels), p=list(SHARES.values()))
        counts = np.stack([np.bincount(index, part == number, len(sizes)) for number in range(len(SHARES))])
        multiple = (counts > 0).sum(axis=0) > 1
        separated.append(multiple[sizes > 1].mean() if (sizes > 1).any() else 0.0)
        train, test = counts[list(SHARES).index("train")], part == list(SHARES).index("test")
        leaking.append((train[index[test]] > 0).mean() if test.any() else 0.0)
    return ClusterLeakage(
        kind=kind,
        clusters=int((sizes > 1).sum()),
        faces=int(sizes[sizes > 1].sum()),
        largest=int(sizes.max(initial=0)),
        split_fraction=round(float(np.mean(separated)), 4),
        leak_fraction=round(float(np.mean(leaking)), 4),
    )


def write_clean_manifest(path: Path, report: DataReport) -> tuple[int, int]:
    """Write the clean part of a dataset as a manifest, and ``NAME.left-out.csv`` with a reason for each other row.

    Paths inside the manifest's folder are relative to it, others absolute. Returns the number of rows of both files.

    Raises:
        DataError: the images are stored inside another file, so a manifest cannot refer to them.
    """
    paths = [locate_image(report.records.images, int(row)) for row in report.frame["row"]]
    if None in paths:
        raise DataError(f"cannot write a manifest: the images of {report.source} are stored inside another file")
    faulty = list_removals(report)
    removals = list(dict.fromkeys([*report.excluded, *faulty]))
    kept = ~report.frame["path"].isin({item.path for item in faulty})
    files = [format_path(file, path.parent) for file, clean in zip(paths, kept, strict=True) if clean and file]
    clean = make_manifest(report.frame[kept].drop(columns="row"), files)
    for target, table in (
        (path, clean),
        (path.with_name(f"{path.stem}.left-out.csv"), pd.DataFrame(removals, columns=["path", "reason"])),
    ):
        with replace_atomically(target) as temporary:
            table.to_csv(temporary, index=False)
    return len(clean), len(removals)


def list_removals(report: DataReport) -> list[Exclusion]:
    """Return which usable faces a clean manifest leaves out, with reasons.

    These are tiny images; of equal files and near-duplicates with the same labels all but the first; both
    images of conflicting pairs; and likely label errors, if a model was given.
    """
    removed: dict[str, str] = {item.path: item.reason for item in report.tiny}
    for pair in report.duplicates.pairs:
        if pair.conflicting:
            for name, other in ((pair.first, pair.second), (pair.second, pair.first)):
                removed.setdefault(name, f"the labels contradict those of the duplicate {other}")
    for issue in report.label_issues or ():
        removed.setdefault(issue.path, f"likely a label error: {issue.reason}")
    # Last, so that no clean image is removed as a copy of one that is itself removed.
    for pair in report.duplicates.pairs:
        if not pair.conflicting and pair.first not in removed:
            removed.setdefault(pair.second, f"a {'copy' if pair.same_file else 'near-duplicate'} of {pair.first}")
    return [Exclusion(path, reason) for path, reason in removed.items()]
