"""The leak-free split: near-duplicates on one side, stratified, the same for the same data and seed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agegen.data.duplicates import find_duplicates, has_near_duplicate, join_pairs
from agegen.data.labels import MAX_AGE, SPLITS, UNUSED
from agegen.data.records import Exclusion
from agegen.data.scan import HASH_BITS, Scan
from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically

if TYPE_CHECKING:
    import pandas as pd


SPLIT_COLUMNS = ["path", "sha256", "group", "split"]
# Perceptual hashes, by which later data is searched for near-duplicates; splits of older runs lack them.
HASH_COLUMN = "hash"
# The usual shares: of 20,000 faces 2,000 to test on, where a gender accuracy is known to one point.
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def split_scan(scan: Scan, seed: int, shares: dict[str, float] | None = None) -> pd.DataFrame:
    """Return a split (columns path, sha256, group, split, hash) of scanned pictures, one row each, in their order.

    Faces of one group lie on one side: near-duplicates, and where a column names the person, all of that person.

    Where the data brings a column ``split`` it is kept, unless ``shares`` are given. Otherwise 80/10/10 or these,
    stratified by age band (tens of years) and gender. Pictures are ordered by a hash of the seed and their content,
    never by name or position, so that the same data gives the same split wherever it lies.
    """
    frame = scan.records.frame
    groups = group_faces(scan)
    kept = shares is None and "split" in frame.columns
    names = frame["split"].to_list() if kept else assign_groups(scan, groups, seed, shares or SHARES)
    return tabulate_split(scan, groups, names)


def tabulate_split(scan: Scan, groups: NDArray[np.int64], names: Sequence[str]) -> pd.DataFrame:
    """Return a split (columns path, sha256, group, split, hash) from the group and the part (N,) of each face."""
    import pandas as pd

    hashes = [np.packbits(bits).tobytes().hex() for bits in scan.hashes]
    paths = scan.records.frame["path"]
    return pd.DataFrame({"path": paths, "sha256": scan.sha256, "group": groups, "split": names, HASH_COLUMN: hashes})


def group_faces(scan: Scan) -> NDArray[np.int64]:
    """Return a group number (N,) per face: near-duplicates and the pictures of one person share theirs."""
    pairs = [find_duplicates(scan.hashes, scan.sha256)]
    for column in scan.records.identity_columns:
        persons = number_identities(scan.records.frame[column])
        order = np.argsort(persons, kind="stable")
        order = order[persons[order] >= 0]
        same = persons[order[1:]] == persons[order[:-1]]
        pairs.append(np.stack([order[:-1][same], order[1:][same]], axis=1))
    return join_pairs(len(scan.hashes), np.concatenate(pairs))


def number_identities(names: pd.Series) -> NDArray[np.int64]:
    """Return the number (N,) of each face's person, -1 where the name is empty or missing."""
    import pandas as pd

    known = names.notna() & ~names.astype(str).str.strip().str.lower().isin(("", "nan", "none", "unknown"))
    return np.asarray(pd.factorize(names.where(known))[0], dtype=np.int64)


def find_training_overlap(
    split: pd.DataFrame, sha256: Sequence[str], hashes: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """Return which pictures (N,) a training saw: in its training part, or a near-duplicate of one there.

    Args:
        split: of the training.
        sha256: of each picture.
        hashes: perceptual ones (N, 256); None, or a split without them, finds only what the split knows.
    """
    trained = split["split"] == "train"
    groups = set(split["group"][trained])
    seen_before = set(split["sha256"][trained]) | set(split["sha256"][split["group"].isin(groups)])
    seen = np.array([digest in seen_before for digest in sha256], dtype=bool)
    if hashes is not None and HASH_COLUMN in split.columns and len(hashes) and trained.any():
        unsure = np.flatnonzero(~seen)
        seen[unsure] = has_near_duplicate(hashes[unsure], unpack_hashes(split[HASH_COLUMN][trained]))
    return seen


def unpack_hashes(texts: Iterable[str]) -> NDArray[np.bool_]:
    """Return hashes (N, 256) from their hexadecimal form."""
    packed = np.frombuffer(b"".join(bytes.fromhex(text) for text in texts), dtype=np.uint8)
    return np.unpackbits(packed.reshape(-1, HASH_BITS // 8), axis=1).astype(bool)


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
    return scan, rows[[*SPLIT_COLUMNS, *([HASH_COLUMN] if HASH_COLUMN in rows.columns else [])]]


def read_split(path: Path) -> pd.DataFrame:
    """Read a ``split.csv``.

    Raises:
        DataError: it isn't there, isn't CSV, or lacks a column or a known split name.
    """
    import pandas as pd

    try:
        split = pd.read_csv(
            path, dtype={"path": str, "sha256": str, "split": str, HASH_COLUMN: str}, keep_default_na=False
        )
    except (OSError, ValueError) as error:
        raise DataError(f"can't read the split {path}: {error}") from error
    missing = [name for name in SPLIT_COLUMNS if name not in split.columns]
    if missing:
        raise DataError(f"{path} is no split file: it has no column {', '.join(missing)}")
    if unknown := set(split["split"]) - {*SPLITS, UNUSED}:
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


def assign_folds(
    scan: Scan, groups: NDArray[np.int64], count: int, seed: int, inside: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Return the fold (N,), 1 to ``count``, of each face: of even size, groups whole, ages and genders alike in all.

    Faces that are not ``inside`` (N,) are in fold 0, which is none.

    Raises:
        DataError: there are fewer groups than folds.
    """
    rows = np.arange(len(groups)) if inside is None else np.flatnonzero(inside)
    if (found := len(set(groups[rows].tolist()))) < count:
        raise DataError(f"{found} faces that are no near-duplicates of each other don't make {count} folds")
    shares = {str(number): 1 / count for number in range(1, count + 1)}
    folds = np.zeros(len(groups), dtype=np.int64)
    folds[rows] = [int(name) for name in assign_groups(scan, groups, seed, shares, rows)]
    return folds


def make_fold_split(scan: Scan, groups: NDArray[np.int64], folds: NDArray[np.int64], fold: int, seed: int) -> list[str]:
    """Return the split (N names) that tests on a fold; of the other folds, the usual share validates."""
    rest = np.flatnonzero((folds != fold) & (folds > 0))
    share = SHARES["val"] / (SHARES["train"] + SHARES["val"])
    dealt = assign_groups(scan, groups, seed, {"train": 1 - share, "val": share}, rest)
    names = np.where(folds == fold, "test", UNUSED).astype(object)
    names[rest] = dealt
    return [str(name) for name in names]


def assign_groups(
    scan: Scan, groups: NDArray[np.int64], seed: int, shares: dict[str, float], chosen: NDArray[np.int64] | None = None
) -> list[str]:
    """Give each group, in stratified order, to the part that lacks most of its share so far; return a name per face.

    Data sets are dealt out one after the other, so that each has the split that it would have alone. ``chosen`` are
    the faces to deal, by default all.
    """
    rows = np.arange(len(groups)) if chosen is None else chosen
    members: dict[int, list[int]] = defaultdict(list)
    for index in rows.tolist():
        members[int(groups[index])].append(index)
    labels = scan.records.labels
    # Faces without an age are a band of their own, those without a gender a gender.
    bands = np.nan_to_num(labels.middle // 10, nan=-1).astype(int)
    female = np.nan_to_num(labels.female, nan=-1).astype(int)
    sources = {name: place for place, name in enumerate(scan.records.sources)}
    origins = {index: sources[scan.records.name_source(index)] for index in rows.tolist()}

    def make_key(indices: list[int]) -> tuple[int, int, int, str]:
        first = min(indices, key=lambda index: (origins[index], scan.sha256[index]))
        draw = hashlib.sha256(f"{seed}:{scan.sha256[first]}".encode()).hexdigest()
        return origins[first], int(bands[first]), int(female[first]), draw

    names: dict[int, str] = {}
    ordered = sorted(((make_key(indices), indices) for indices in members.values()), key=lambda pair: pair[0])
    for _, dealt in groupby(ordered, key=lambda pair: pair[0][0]):
        counts, seen = dict.fromkeys(shares, 0), 0
        for _, indices in dealt:
            seen += len(indices)
            name = max(shares, key=lambda part: shares[part] * seen - counts[part])
            counts[name] += len(indices)
            names |= dict.fromkeys(indices, name)
    return [names[index] for index in rows.tolist()]


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


def apply_protocol(scan: Scan, protocol: Protocol) -> Scan:
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
