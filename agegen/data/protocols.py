"""Protocols: which faces published comparisons use, and how many of them they test on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from agegen.data.labels import MAX_AGE
from agegen.data.records import Exclusion
from agegen.data.scan import Scan
from agegen.errors import AgegenError, DataError


@dataclass(frozen=True)
class Protocol:
    """One way of testing.

    Attributes:
        name: as ``--protocol`` has it.
        low: the least age in years, and ``high`` the greatest, both included.
        shares: of the faces, in each part of the split.
        note: what must be known of numbers that come from it.
    """

    name: str
    low: float
    high: float
    shares: dict[str, float]
    note: str

    def describe(self, kept: int, total: int) -> str:
        """Return in one line what it makes of a data set."""
        parts = ", ".join(f"{share:.0%} {name}" for name, share in self.shares.items())
        ages = f"{self.low:.0f}–{self.high:.0f}"
        return f"protocol {self.name}: {kept:,} of {total:,} faces (ages {ages}), {parts}; {self.note}"


# A fifth is tested on; of the rest a tenth chooses the epoch, where the papers train on all of it or don't say.
_SHARES = {"train": 0.72, "val": 0.08, "test": 0.2}
_NOTE = (
    "the exact split that was published isn't public, so this one has its fraction, and no near-duplicates across its "
    "parts, which flatter random splits"
)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # 13,144 and 3,287 of 16,431 faces. Sources: Cao et al., "Rank consistent ordinal regression for neural
        # networks with application to age estimation" (CORAL), 2020; Shin et al., "Moving Window Regression: A Novel
        # Approach to Ordinal Regression", CVPR 2022.
        Protocol("utkface-21-60", 21, 60, _SHARES, _NOTE),
        Protocol("utkface-full", 0, MAX_AGE, _SHARES, _NOTE),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of a name.

    Raises:
        AgegenError: there is none.
    """
    if name not in PROTOCOLS:
        raise AgegenError(f"--protocol is one of {', '.join(PROTOCOLS)}, not '{name}'")
    return PROTOCOLS[name]


def keep_ages(scan: Scan, protocol: Protocol) -> Scan:
    """Return the pictures of exact ages that a protocol uses; the others join ``records.excluded``, counted by kind.

    Raises:
        DataError: there are none.
    """
    labels = scan.records.labels
    inside = labels.exact & (labels.low >= protocol.low) & (labels.high <= protocol.high)
    if not inside.any():
        raise DataError(f"no face of {scan.records.source} has an age of {protocol.low:.0f} to {protocol.high:.0f}")
    kept = scan.select(np.asarray(inside, dtype=bool))
    notice = protocol.describe(len(kept.records), len(scan.records))
    left = tuple(
        Exclusion(str(path), f"not of the ages of {protocol.name}")
        for path in scan.records.frame["path"][np.logical_not(inside)]
    )
    records = replace(kept.records, notices=(*kept.records.notices, notice), excluded=(*kept.records.excluded, *left))
    return replace(kept, records=records)
