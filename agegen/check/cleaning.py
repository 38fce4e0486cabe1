"""Leaving out what a check of a data set found: which files, why, and the clean manifest."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from agegen.check.check import DataReport
from agegen.data.labels import AGE_BOUNDS, write_labels
from agegen.data.records import Exclusion, locate_picture
from agegen.errors import DataError
from agegen.files import replace_atomically


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
