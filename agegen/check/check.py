"""What a data set hides: duplicates, conflicting labels, heaped ages, leaks, clusters, likely wrong labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.check.clusters import Straddle, list_clusters, measure_straddle
from agegen.check.heaping import HeapedAge, find_heaped_ages, measure_whipple
from agegen.check.pairs import Duplicates, Pair, describe_duplicates, describe_pairs
from agegen.check.suspects import Suspect, find_suspects
from agegen.data.duplicates import find_duplicates, find_mirrored, join_pairs, mirror_hashes
from agegen.data.labels import SMALL_GROUP, label_groups
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
