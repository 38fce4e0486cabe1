"""Write a leak-free split alone, so that others train and test on the same faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agegen.data.labels import SPLITS
from agegen.data.manifests import DEFAULT_READ_OPTIONS, ReadOptions
from agegen.data.records import Exclusion
from agegen.data.scan import ProgressHook, ignore_progress, scan_images
from agegen.data.splits import (
    apply_protocol,
    count_leaking_groups,
    find_protocol,
    fingerprint_split,
    split_scan,
    write_split,
)
from agegen.errors import AgegenError
from agegen.faces.matching import load_cropped


@dataclass(frozen=True)
class SplitConfig:
    """Options of ``agegen split``; ``protocol`` chooses the ages and the fractions of a published comparison."""

    data: tuple[str, ...]
    out: Path
    seed: int = 0
    protocol: str | None = None
    detector: str | None = None
    reading: ReadOptions = DEFAULT_READ_OPTIONS


@dataclass(frozen=True)
class SplitResult:
    """A split that was written.

    Attributes:
        counts: faces in each part.
        doubles: faces with a near-duplicate, or with another picture of the same person.
        leaks: groups of these that lie in more than one part, as only a split that the data brings can have.
        fingerprint: of which content lies in which part; runs and cards name theirs so.
        notices: what the user should know of the data.
        excluded: pictures that were left out.
    """

    counts: dict[str, int]
    doubles: int
    leaks: int
    fingerprint: str
    notices: tuple[str, ...]
    excluded: tuple[Exclusion, ...]


def write_data_split(config: SplitConfig, on_progress: ProgressHook = ignore_progress) -> SplitResult:
    """Split data sets as ``agegen train`` does with the same seed, and write ``split.csv``.

    Its columns: ``path``, ``sha256`` of the file, ``group`` (near-duplicates and the pictures of one person share
    theirs), ``split`` (train, val, test), ``hash`` (perceptual, 256 bits).

    Raises:
        AgegenError: the data can't be used, or the file can't be written.
    """
    if config.out.suffix.lower() != ".csv":
        raise AgegenError(f"{config.out}: give a name that ends in .csv")
    scan = scan_images(load_cropped(config.data, config.reading, config.detector), None, on_progress)
    shares = None
    if config.protocol is not None:
        protocol = find_protocol(config.protocol)
        scan, shares = apply_protocol(scan, protocol), protocol.shares
    split = split_scan(scan, config.seed, shares)
    write_split(config.out, split)
    return SplitResult(
        counts={name: int((split["split"] == name).sum()) for name in SPLITS},
        doubles=int(np.count_nonzero(split["group"].duplicated(keep=False))),
        leaks=count_leaking_groups(split),
        fingerprint=fingerprint_split(split),
        notices=scan.records.notices,
        excluded=scan.records.excluded,
    )
