"""The leak-free split: near-duplicates on one side, stratified, the same for the same data and seed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agegen.data.duplicates import group_duplicates
from agegen.data.labels import SPLITS
from agegen.data.records import Exclusion
from agegen.data.scan import Scan
from agegen.errors import DataError
from agegen.files import replace_atomically

if TYPE_CHECKING:
    import pandas as pd

SPLIT_COLUMNS = ["path", "sha256", "group", "split"]

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def split_scan(scan: Scan, seed: int) -> pd.DataFrame:
    """Return a split (columns path, sha256, group, split) of scanned pictures, one row each, in their order.

    Where the data brings a column ``split`` it is kept. Otherwise 80/10/10, stratified by age band
    (tens of years) and gender. Pictures are ordered by a hash of the seed and their content, never
    by name or position, so that the same data gives the same split wherever it lies.
    """
    import pandas as pd

    frame = scan.records.frame
    groups = group_duplicates(scan.hashes, scan.sha256)
    names = frame["split"].to_numpy() if "split" in frame.columns else _assign_groups(scan, groups, seed)
    columns = {"path": frame["path"], "sha256": scan.sha256, "group": groups, "split": names}
    return pd.DataFrame(columns)


def count_leaking_groups(split: pd.DataFrame) -> int:
    """Return how many near-duplicate groups have members in more than one split."""
    return int((split.groupby("group")["split"].nunique() > 1).sum())


def apply_split(scan: Scan, split: pd.DataFrame, origin: str) -> tuple[Scan, pd.DataFrame]:
    """Return the scanned pictures that a split names, and its rows, in the same order.

    A picture is matched by its path and must have the checksum that it had then. Pictures that only one
    of the two has join ``records.excluded``.

    Raises:
        DataError: no path matches, or a file has changed since the split was made.
    """
    rows = split.set_index("path")
    paths = scan.records.frame["path"]
    known = paths.isin(rows.index).to_numpy()
    if not known.any():
        raise DataError(f"no picture of {scan.records.source} is in {origin}; is it the split of other data?")
    left_out = tuple(Exclusion(str(path), f"not in {origin}") for path in paths[~known])
    lost = tuple(Exclusion(path, f"in {origin}, but not in the data") for path in sorted(set(rows.index) - set(paths)))
    scan = scan.select(known)
    scan = replace(scan, records=replace(scan.records, excluded=scan.records.excluded + left_out + lost))
    rows = rows.loc[scan.records.frame["path"]].reset_index()
    changed = np.flatnonzero(rows["sha256"].to_numpy() != np.array(scan.sha256))
    if len(changed):
        raise DataError(
            f"{len(changed)} pictures differ from those in {origin}, the first: {rows['path'][changed[0]]}; "
            "restore the files or make a new split"
        )
    return scan, rows[SPLIT_COLUMNS]


def read_split(path: Path) -> pd.DataFrame:
    """Read a ``split.csv``.

    Raises:
        DataError: it isn't there, isn't CSV, or lacks a column or a known split name.
    """
    import pandas as pd

    try:
        split = pd.read_csv(path, dtype={"path": str, "sha256": str, "split": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"can't read the split {path}: {error}") from error
    missing = [name for name in SPLIT_COLUMNS if name not in split.columns]
    if missing:
        raise DataError(f"{path} is no split file: it has no column {', '.join(missing)}")
    if unknown := set(split["split"]) - set(SPLITS):
        raise DataError(f"{path} has the unknown split '{sorted(unknown)[0]}'; known are {', '.join(SPLITS)}")
    if split["path"].duplicated().any():
        raise DataError(f"{path} names {split['path'][split['path'].duplicated()].iloc[0]} twice")
    return split


def write_split(path: Path, split: pd.DataFrame) -> None:
    """Write a split as CSV, whole or not at all."""
    with replace_atomically(path) as temporary:
        split.to_csv(temporary, index=False)


def fingerprint_split(split: pd.DataFrame) -> str:
    """Return a SHA-256 of which content lies in which split, whatever the files' names and order."""
    lines = sorted(f"{digest} {name}" for digest, name in zip(split["sha256"], split["split"], strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _assign_groups(scan: Scan, groups: np.ndarray, seed: int) -> list[str]:
    """Give each group, in stratified order, to the split that lacks most of its share so far."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[int(group)].append(index)
    bands = (scan.records.frame["age"] // 10).astype(int).to_numpy()
    female = scan.records.frame["female"].to_numpy()

    def make_key(indices: list[int]) -> tuple[int, bool, str]:
        first = min(indices, key=lambda index: scan.sha256[index])
        draw = hashlib.sha256(f"{seed}:{scan.sha256[first]}".encode()).hexdigest()
        return int(bands[first]), bool(female[first]), draw

    names = [""] * len(groups)
    counts = dict.fromkeys(SHARES, 0)
    seen = 0
    for indices in sorted(members.values(), key=make_key):
        seen += len(indices)
        name = max(SHARES, key=lambda split: SHARES[split] * seen - counts[split])
        counts[name] += len(indices)
        for index in indices:
            names[index] = name
    return names
