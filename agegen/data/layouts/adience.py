"""Adience: ``fold_0_data.txt`` … ``fold_4_data.txt``, tab-separated, beside ``faces/`` or ``aligned/``.

Age ``(25, 32)``, gender ``f``, ``m`` or ``u``; a picture lies at ``faces/USER/coarse_tilt_aligned_face.FACE.IMAGE``
or ``aligned/USER/landmark_aligned_face.FACE.IMAGE``. Rows with an age outside the eight brackets (single years,
``None``) are read as they stand.
Source: Eidinger, Enbar, Hassner, "Age and Gender Estimation of Unfiltered Faces", IEEE TIFS 2014.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agegen.data.manifests import ReadOptions, build_records
from agegen.data.records import FaceRecords
from agegen.data.tables import RawTable, read_table

if TYPE_CHECKING:
    import pandas as pd

NAME = "Adience"
TERMS = "Adience, for research purposes (https://talhassner.github.io/home/projects/Adience/Adience-data.html)"
_FORMS = (("aligned", "landmark_aligned_face"), ("faces", "coarse_tilt_aligned_face"))


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of all folds; the photographers' numbers, ``user_id``, keep their pictures on one side."""
    import pandas as pd

    tables = sorted(path.glob("fold_*_data.txt"))
    tables = [table for table in tables if "frontal" not in table.name]
    if not tables:
        return None
    frame = pd.concat([read_table(table).frame for table in tables], ignore_index=True)
    folder, prefix = next(((folder, prefix) for folder, prefix in _FORMS if (path / folder).is_dir()), _FORMS[1])
    names = frame["user_id"] + f"/{prefix}." + frame["face_id"] + "." + frame["original_image"]
    raw = pd.DataFrame({"path": f"{folder}/" + names, "age": frame["age"], "gender": frame["gender"]})
    raw["subject"] = _read_subjects(frame)
    return build_records(RawTable(raw), path, str(path), options, NAME, TERMS)


def _read_subjects(frame: pd.DataFrame) -> pd.Series:
    """Return whose album a face is from: who is in one album may be in it many times."""
    return frame["user_id"].astype(str)
