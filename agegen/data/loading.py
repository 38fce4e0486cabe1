"""From what the user names (a folder, a manifest, 'demo') to the records of its faces."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from agegen.data.images import is_image_name
from agegen.data.labels import MAX_AGE
from agegen.data.records import Exclusion, FaceRecords, FileStore
from agegen.errors import DataError

if TYPE_CHECKING:
    pass

UTKFACE_RACES = ("White", "Black", "Asian", "Indian", "Other")

UTKFACE_TERMS = "UTKFace, for non-commercial research purposes only (https://susanqq.github.io/UTKFace/)"

_UTKFACE_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.")

MANIFEST_SUFFIXES = (".csv", ".parquet")


def resolve_data(data: str | None) -> str:
    """Return what ``--data`` names: the option, else ``$AGEGEN_DATA``, else ``./data/utkface``.

    Raises:
        DataError: none of the three is there.
    """
    if chosen := data or os.environ.get("AGEGEN_DATA"):
        return chosen
    if Path("data/utkface").is_dir():
        return "data/utkface"
    raise DataError(
        "no data: give --data FOLDER, or put UTKFace (https://susanqq.github.io/UTKFace/, non-commercial "
        "research only) into ./data/utkface, or try everything on drawn faces with --data demo"
    )


def load_records(data: str) -> FaceRecords:
    """Load a folder in UTKFace naming, a CSV or Parquet manifest, or the drawn set (``demo``).

    Raises:
        DataError: nothing is there, columns are missing, or no usable record is left.
    """
    path = Path(data)
    if data == "demo":
        from agegen.data.demo import draw_records

        return draw_records()
    if path.is_dir():
        records = _load_folder(path)
    elif path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file():
        from agegen.data.manifests import load_manifest

        records = load_manifest(path)
    else:
        raise DataError(f"no data at {data}: give a folder, a .csv or .parquet manifest, or 'demo'")
    if not len(records):
        first = f"; the first: {records.excluded[0].path}: {records.excluded[0].reason}" if records.excluded else ""
        raise DataError(f"no usable face in {data}: {len(records.excluded)} were left out{first}")
    return records


def parse_utkface_name(name: str) -> tuple[int, bool, str] | str:
    """Return (age, is female, race) of a name ``age_gender_race_datetime.jpg``, or why it has none."""
    match = _UTKFACE_NAME.match(name)
    if not match:
        return "the name is not age_gender_race_datetime"
    age = int(match[1])
    if age > MAX_AGE:
        return f"age {age} is outside 0–{MAX_AGE}"
    return age, match[2] == "1", UTKFACE_RACES[int(match[3])]


def _load_folder(folder: Path) -> FaceRecords:
    import pandas as pd

    paths = sorted(path for path in folder.rglob("*") if is_image_name(path))
    rows, excluded = [], []
    for index, path in enumerate(paths):
        relative = path.relative_to(folder).as_posix()
        parsed = parse_utkface_name(path.name)
        if isinstance(parsed, str):
            excluded.append(Exclusion(relative, parsed))
        else:
            rows.append((relative, float(parsed[0]), parsed[1], parsed[2], index))
    frame = pd.DataFrame(rows, columns=["path", "age", "female", "race", "row"])
    return FaceRecords(frame, FileStore(tuple(paths)), str(folder), tuple(excluded), terms=UTKFACE_TERMS)
