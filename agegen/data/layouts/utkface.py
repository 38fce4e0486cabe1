"""UTKFace: ``age_gender_race_datetime.jpg``, gender 0 male, 1 female (https://susanqq.github.io/UTKFace/)."""

from __future__ import annotations

import re
from pathlib import Path

from agegen.data.images import list_pictures
from agegen.data.labels import MAX_AGE
from agegen.data.manifests import ReadOptions
from agegen.data.records import Exclusion, FaceRecords, FileStore

NAME = "UTKFace"
RACES = ("White", "Black", "Asian", "Indian", "Other")
TERMS = "UTKFace, for non-commercial research purposes only (https://susanqq.github.io/UTKFace/)"
_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.")


def read(path: Path, options: ReadOptions) -> FaceRecords | None:  # noqa: ARG001 - names have no columns
    """Return the faces of a folder whose pictures are named as UTKFace's; the others are left out with a reason."""
    import pandas as pd

    paths = list_pictures(path)
    rows, excluded = [], []
    for index, file in enumerate(paths):
        relative = file.relative_to(path).as_posix()
        parsed = parse_name(file.name)
        if isinstance(parsed, str):
            excluded.append(Exclusion(relative, parsed))
        else:
            rows.append((relative, float(parsed[0]), parsed[1], parsed[2], index))
    if not rows:
        return None
    frame = pd.DataFrame(rows, columns=["path", "age", "female", "race", "row"])
    return FaceRecords(frame, FileStore(tuple(paths)), str(path), tuple(excluded), terms=TERMS, layout=NAME)


def parse_name(name: str) -> tuple[int, bool, str] | str:
    """Return (age, is female, race) of a name ``age_gender_race_datetime.jpg``, or why it has none."""
    match = _NAME.match(name)
    if not match:
        return "the name is not age_gender_race_datetime"
    age = int(match[1])
    if age > MAX_AGE:
        return f"age {age} is outside 0–{MAX_AGE}"
    return age, match[2] == "1", RACES[int(match[3])]
