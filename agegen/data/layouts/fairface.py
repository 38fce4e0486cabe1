"""FairFace: ``fairface_label_train.csv`` and ``fairface_label_val.csv`` beside ``train/`` and ``val/``.

Columns ``file,age,gender,race,service_test``; nine brackets of ages, seven races.
Source: Kärkkäinen & Joo, "FairFace: Face Attribute Dataset for Balanced Race, Gender, and Age", WACV 2021.
"""

from __future__ import annotations

from pathlib import Path

from agegen.data.manifests import ReadOptions, build_records
from agegen.data.records import FaceRecords
from agegen.data.tables import RawTable, read_table

NAME = "FairFace"
TERMS = "FairFace, CC BY 4.0 (Kärkkäinen & Joo, WACV 2021); its photographs have Creative Commons licences of their own"
_TABLES = ("fairface_label_train.csv", "fairface_label_val.csv")


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces that the label files name, as far as their pictures are there."""
    import pandas as pd

    found = [path / name for name in _TABLES if (path / name).is_file()]
    if not found:
        return None
    frame = pd.concat([read_table(table).frame for table in found], ignore_index=True)
    # Which faces FairFace's authors showed to commercial services says nothing of a face.
    frame = frame.drop(columns="service_test", errors="ignore")
    return build_records(RawTable(frame), path, str(path), options, NAME, TERMS)
