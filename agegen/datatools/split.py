"""Write a leak-free split to a file, so that others can train and test on the same faces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agegen.data.labels import SPLITS
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
from agegen.datatools.config import SplitConfig
from agegen.errors import AgegenError
from agegen.faces.matching import load_cropped


@dataclass(frozen=True)
class SplitResult:
    """A split that was written.

    Attributes:
        counts: the number of faces in each part.
        doubles: the number of faces with a near-duplicate or with another image of the same person.
        leaks: the number of groups of these in more than one part; 0 unless the split comes with the data.
        fingerprint: of which content is in which part, as run folders and model cards have it.
        notices: what the user should know about the data.
        excluded: images that were left out, with reasons.
    """

    counts: dict[str, int]
    doubles: int
    leaks: int
    fingerprint: str
    notices: tuple[str, ...]
    excluded: tuple[Exclusion, ...]


def write_data_split(config: SplitConfig, on_progress: ProgressHook = ignore_progress) -> SplitResult:
    """Split datasets as ``agegen train`` does with the same seed, and write the split as CSV.

    Columns: ``path``, ``sha256`` of the file, ``group`` (shared by near-duplicates and by the images of one person),
    ``split`` (train, val, test), ``hash`` (perceptual, 256 bits).

    Raises:
        AgegenError: the data cannot be used, or the file cannot be written.
    """
    if config.out.suffix.lower() != ".csv":
        raise AgegenError(f"{config.out}: the output file name must end in .csv")
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
