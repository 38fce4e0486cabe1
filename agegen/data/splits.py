"""Leak-free splits: stratified, reproducible, near-duplicates in one part; also folds, protocols, and split files."""

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
from agegen.data.records import SOURCE_COLUMN, Exclusion
from agegen.data.scan import HASH_BITS, Scan
from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically

if TYPE_CHECKING:
    import pandas as pd

# The column with perceptual hashes, by which near-duplicates in other data are found.
HASH_COLUMN = "hash"
SPLIT_COLUMNS = ["path", "sha256", "group", "split", HASH_COLUMN]
# The usual fractions. Of 20,000 faces 2,000 are tested on, which determines the gender accuracy within one point.
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
# Where the test set is given.
_VAL_SHARE = SHARES["val"] / (SHARES["train"] + SHARES["val"])
_TRAIN_AND_VAL = {"train": 1 - _VAL_SHARE, "val": _VAL_SHARE}
# Of the protocols: 20 % are the test set. Validation gets a tenth of the rest; the papers train on all of it, or do not
# say how they choose the epoch.
_PROTOCOL_SHARES = {"train": 0.72, "val": 0.08, "test": 0.2}
_PROTOCOL_NOTE = (
    "the published split is not public, so this one has only its fractions; it also keeps near-duplicates in one part, "
    "unlike random splits, whose metrics are therefore optimistic"
)


def split_scan(scan: Scan, seed: int, shares: dict[str, float] | None = None) -> pd.DataFrame:
    """Return a split of scanned images: the columns path, sha256, group, split and hash, one row per image, in order.

    Near-duplicates are in the same part, and so are all images of a person if a column identifies persons.

    If a dataset has a column ``split``, it is used, unless ``shares`` are given; if it has no validation faces, they
    are chosen from its training faces as in a random split. Otherwise the split is random with these fractions,
    80/10/10 by default, stratified by age band (10 years) and gender. It depends only on the seed and on the content of
    the images, not on their names or order.
    """
    frame = scan.records.frame
    groups = group_faces(scan)
    if shares is None and "split" in frame.columns:
        names = _complete_split(scan, groups, seed, frame["split"].to_list())
    else:
        names = assign_groups(scan, groups, seed, shares or SHARES)
    return tabulate_split(scan, groups, names)


def _complete_split(scan: Scan, groups: NDArray[np.int64], seed: int, names: list[str]) -> list[str]:
    """Return the names (N) of the given splits of some datasets, completed.

    Datasets without a split, whose names are "", get a random one; those without validation faces get some of their
    training faces as val.
    """
    parts = np.array(names, dtype=object)
    sources = np.array(scan.records.list_face_sources(), dtype=object)
    for source in scan.records.sources:
        rows = np.flatnonzero(sources == source)
        given = set(parts[rows])
        if given == {""}:
            parts[rows] = assign_groups(scan, groups, seed, SHARES, rows)
        elif given == {"train", "test"}:
            rows = rows[parts[rows] == "train"]
            parts[rows] = assign_groups(scan, groups, seed, _TRAIN_AND_VAL, rows)
    if "" in names:
        _join_parts(parts, groups, np.array(names, dtype=object) == "")
    return [str(name) for name in parts]


def _join_parts(parts: NDArray[np.object_], groups: NDArray[np.int64], assigned: NDArray[np.bool_]) -> None:
    """Move ``assigned`` faces (N,) with near-duplicates in a given split into the part of these."""
    given = dict(zip(groups[~assigned].tolist(), parts[~assigned], strict=True))
    for row in np.flatnonzero(assigned).tolist():
        parts[row] = given.get(int(groups[row]), parts[row])


def tabulate_split(scan: Scan, groups: NDArray[np.int64], names: Sequence[str]) -> pd.DataFrame:
    """Return a split in its columns from the group number (N,) and the name of the part (N,) of each image."""
    import pandas as pd

    hashes = [np.packbits(bits).tobytes().hex() for bits in scan.hashes]
    columns = (scan.records.frame["path"], scan.sha256, groups, names, hashes)
    return pd.DataFrame(dict(zip(SPLIT_COLUMNS, columns, strict=True)))


def group_faces(scan: Scan) -> NDArray[np.int64]:
    """Return a group number (N,) per image: the same for near-duplicates, and for images of the same person."""
    pairs = [find_duplicates(scan.hashes, scan.sha256)]
    for column in scan.records.identity_columns:
        persons = number_identities(scan.records.frame, column)
        order = np.argsort(persons, kind="stable")
        order = order[persons[order] >= 0]
        same = persons[order[1:]] == persons[order[:-1]]
        pairs.append(np.stack([order[:-1][same], order[1:][same]], axis=1))
    return join_pairs(len(scan.hashes), np.concatenate(pairs))


def number_identities(frame: pd.DataFrame, column: str) -> NDArray[np.int64]:
    """Return a number (N,) per person; -1 if the name is empty or unknown.

    Equal names in several datasets are different persons: most datasets number theirs from 0 or 1.
    """
    import pandas as pd

    names = frame[column]
    known = names.notna() & ~names.astype(str).str.strip().str.lower().isin(("", "nan", "none", "unknown"))
    if SOURCE_COLUMN in frame.columns:
        names = frame[SOURCE_COLUMN].astype(str) + "/" + names.astype(str)
    return np.asarray(pd.factorize(names.where(known))[0], dtype=np.int64)


def assign_groups(
    scan: Scan, groups: NDArray[np.int64], seed: int, shares: dict[str, float], chosen: NDArray[np.int64] | None = None
) -> list[str]:
    """Assign each group, in stratified order, to the part that is furthest below its fraction; return a name per image.

    Each dataset is split separately, so its split does not depend on the others. ``chosen`` are the rows of the images
    to assign; the default is all.
    """
    rows = np.arange(len(groups)) if chosen is None else chosen
    members: dict[int, list[int]] = defaultdict(list)
    for index in rows.tolist():
        members[int(groups[index])].append(index)
    labels = scan.records.labels
    # Unknown ages and unknown genders are strata, too.
    bands = np.nan_to_num(labels.middle // 10, nan=-1).astype(int)
    female = np.nan_to_num(labels.female, nan=-1).astype(int)
    numbers = {name: number for number, name in enumerate(scan.records.sources)}
    sources = [numbers[str(name)] for name in scan.records.list_face_sources()]

    def make_key(indices: list[int]) -> tuple[int, int, int, str]:
        first = min(indices, key=lambda index: (sources[index], scan.sha256[index]))
        random = hashlib.sha256(f"{seed}:{scan.sha256[first]}".encode()).hexdigest()
        return sources[first], int(bands[first]), int(female[first]), random

    names: dict[int, str] = {}
    ordered = sorted(((make_key(indices), indices) for indices in members.values()), key=lambda pair: pair[0])
    for _, of_source in groupby(ordered, key=lambda pair: pair[0][0]):
        counts, total = dict.fromkeys(shares, 0), 0
        for _, indices in of_source:
            total += len(indices)
            name = max(shares, key=lambda part: shares[part] * total - counts[part])
            counts[name] += len(indices)
            names |= dict.fromkeys(indices, name)
    return [names[index] for index in rows.tolist()]


def assign_folds(
    scan: Scan, groups: NDArray[np.int64], count: int, seed: int, inside: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Return the fold (N,) of each image, 1 to ``count``: of equal size, stratified, with undivided groups.

    Images that are not ``inside`` (N,) are in no fold and get 0.

    Raises:
        DataError: there are fewer groups than folds.
    """
    rows = np.arange(len(groups)) if inside is None else np.flatnonzero(inside)
    if (found := len(set(groups[rows].tolist()))) < count:
        raise DataError(f"{count} folds require at least {count} groups of near-duplicates, but there are only {found}")
    shares = {str(number): 1 / count for number in range(1, count + 1)}
    folds = np.zeros(len(groups), dtype=np.int64)
    folds[rows] = [int(name) for name in assign_groups(scan, groups, seed, shares, rows)]
    return folds


def make_fold_split(scan: Scan, groups: NDArray[np.int64], folds: NDArray[np.int64], fold: int, seed: int) -> list[str]:
    """Return the part (N names) of each image when one fold is the test set; the other folds are train and val."""
    rest = np.flatnonzero((folds != fold) & (folds > 0))
    names = np.where(folds == fold, "test", UNUSED).astype(object)
    names[rest] = assign_groups(scan, groups, seed, _TRAIN_AND_VAL, rest)
    return [str(name) for name in names]


def apply_split(scan: Scan, split: pd.DataFrame, origin: str) -> tuple[Scan, pd.DataFrame]:
    """Return the scanned images that are in a split, and the rows of the split in the same order.

    Images are matched by path, and their checksums must be unchanged. Images that are only in the data or only in the
    split are added to ``records.excluded``. ``origin`` names the split in messages.

    Raises:
        DataError: no path matches, or a file has changed since the split was made.
    """
    rows = split.set_index("path")
    paths = scan.records.frame["path"]
    known = paths.isin(rows.index).to_numpy()
    if not known.any():
        raise DataError(f"{origin} contains no image of {scan.records.source}. Is it the split of another dataset?")
    left_out = tuple(Exclusion(str(path), f"not in {origin}") for path in paths[~known])
    missing = tuple(
        Exclusion(path, f"in {origin}, but not in the data") for path in sorted(set(rows.index) - set(paths))
    )
    scan = scan.select(known)
    scan = replace(scan, records=replace(scan.records, excluded=scan.records.excluded + left_out + missing))
    rows = rows.loc[scan.records.frame["path"]].reset_index()
    changed = np.flatnonzero(rows["sha256"].to_numpy() != np.array(scan.sha256))
    if len(changed):
        raise DataError(
            f"{len(changed)} images have changed since {origin} was made, the first is {rows['path'][changed[0]]}. "
            "Restore the files or make a new split."
        )
    return scan, rows[SPLIT_COLUMNS]


def read_split(path: Path) -> pd.DataFrame:
    """Read a ``split.csv``.

    Raises:
        DataError: the file does not exist, is not CSV, lacks a column, or has an unknown part or a repeated path.
    """
    import pandas as pd

    texts = {name: str for name in SPLIT_COLUMNS if name != "group"}
    try:
        split = pd.read_csv(path, dtype=texts, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the split {path}: {error}") from error
    missing = [name for name in SPLIT_COLUMNS if name not in split.columns]
    if missing:
        raise DataError(f"{path} is not a split file: it has no column {', '.join(missing)}")
    if unknown := set(split["split"]) - {*SPLITS, UNUSED}:
        raise DataError(f"{path} has the unknown split '{sorted(unknown)[0]}'. Valid names: {', '.join(SPLITS)}.")
    if split["path"].duplicated().any():
        raise DataError(f"{path} contains {split['path'][split['path'].duplicated()].iloc[0]} twice")
    return split


def write_split(path: Path, split: pd.DataFrame) -> None:
    """Write a split as CSV, atomically."""
    with replace_atomically(path) as temporary:
        split.to_csv(temporary, index=False)


def fingerprint_split(split: pd.DataFrame) -> str:
    """Return a SHA-256 of which content is in which part, independent of file names and order."""
    lines = sorted(f"{digest} {name}" for digest, name in zip(split["sha256"], split["split"], strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fingerprint_labels(scan: Scan) -> str:
    """Return a SHA-256 of the labels of which content, independent of file names and order."""
    labels = scan.records.labels
    rows = zip(scan.sha256, labels.low, labels.high, labels.female, strict=True)
    lines = sorted(f"{digest} {low:.4f} {high:.4f} {female:.0f}" for digest, low, high, female in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def count_leaking_groups(split: pd.DataFrame) -> int:
    """Return the number of groups with images in more than one part."""
    return int((split.groupby("group")["split"].nunique() > 1).sum())


def find_training_overlap(split: pd.DataFrame, sha256: Sequence[str], hashes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which images (N,) overlap with a training: in its training part, or near-duplicates of images there.

    Args:
        split: of the training.
        sha256: of each image.
        hashes: perceptual hashes (N, 256).
    """
    trained = split["split"] == "train"
    groups = set(split["group"][trained])
    known = set(split["sha256"][split["group"].isin(groups)])
    seen = np.array([digest in known for digest in sha256], dtype=bool)
    if len(seen) and trained.any():
        others = np.flatnonzero(~seen)
        seen[others] = has_near_duplicate(hashes[others], unpack_hashes(split[HASH_COLUMN][trained]))
    return seen


def unpack_hashes(texts: Iterable[str]) -> NDArray[np.bool_]:
    """Return hashes (N, 256) from their hexadecimal form."""
    packed = np.frombuffer(b"".join(bytes.fromhex(text) for text in texts), dtype=np.uint8)
    return np.unpackbits(packed.reshape(-1, HASH_BITS // 8), axis=1).astype(bool)


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol from the literature.

    Attributes:
        name: the value of ``--protocol``.
        low: the lowest age in years, and ``high`` the highest, both inclusive.
        shares: the fraction of faces in each part of the split.
        note: how it differs from the published protocol.
    """

    name: str
    low: float
    high: float
    shares: dict[str, float]
    note: str

    def describe(self, kept: int, total: int) -> str:
        """Return one line on its effect on a dataset, for the user."""
        parts = ", ".join(f"{100 * share:.0f} % {name}" for name, share in self.shares.items())
        ages = f"{self.low:.0f}–{self.high:.0f}"
        return f"protocol {self.name}: {kept:,} of {total:,} faces (ages {ages}), {parts}; {self.note}"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # 13,144 and 3,287 of 16,431 faces. Sources: Cao et al., "Rank consistent ordinal regression for neural
        # networks with application to age estimation" (CORAL), 2020; Shin et al., "Moving Window Regression: A Novel
        # Approach to Ordinal Regression", CVPR 2022.
        Protocol("utkface-21-60", 21, 60, _PROTOCOL_SHARES, _PROTOCOL_NOTE),
        Protocol("utkface-full", 0, MAX_AGE, _PROTOCOL_SHARES, _PROTOCOL_NOTE),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name.

    Raises:
        AgegenError: the name is unknown.
    """
    if name not in PROTOCOLS:
        raise AgegenError(f"Invalid value for --protocol: '{name}'. Choose {' or '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def apply_protocol(scan: Scan, protocol: Protocol) -> Scan:
    """Return the images with an exact age that a protocol uses; the others are added to ``records.excluded``.

    Raises:
        DataError: no image remains.
    """
    labels = scan.records.labels
    inside = labels.exact & (labels.low >= protocol.low) & (labels.high <= protocol.high)
    if not inside.any():
        raise DataError(
            f"no face of {scan.records.source} has an exact age of {protocol.low:.0f} to {protocol.high:.0f}"
        )
    kept = scan.select(np.asarray(inside, dtype=bool))
    notice = protocol.describe(len(kept.records), len(scan.records))
    left_out = tuple(
        Exclusion(str(path), f"age not in {protocol.name}")
        for path in scan.records.frame["path"][np.logical_not(inside)]
    )
    records = replace(
        kept.records, notices=(*kept.records.notices, notice), excluded=(*kept.records.excluded, *left_out)
    )
    return replace(kept, records=records)
