"""APPA-REAL: ``gt_avg_train.csv``, ``gt_avg_valid.csv``, ``gt_avg_test.csv`` beside ``train/``, ``valid/``, ``test/``.

One row a picture: ``file_name``, ``num_ratings``, ``apparent_age_avg``, ``apparent_age_std``, ``real_age``; no gender.
For each ``X.jpg`` there is a cropped and turned ``X.jpg_face.jpg``, which is taken where it is at hand.
``--age-column apparent_age_avg`` takes the age that people see. The files ``gt_train.csv`` … have a row a rating.
Source: Agustsson et al., "Apparent and real age estimation in still images with deep residual regressors on
APPA-REAL database", FG 2017.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agegen.data.manifests import ReadOptions, build_records
from agegen.data.records import FaceRecords
from agegen.data.tables import RawTable, read_table

NAME = "APPA-REAL"
TERMS = "APPA-REAL, for academic research (https://chalearnlap.cvc.uab.cat/dataset/26/description/)"
_PARTS = (("train", "train"), ("valid", "val"), ("test", "test"))


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of all parts, in the split that the data brings."""
    import pandas as pd

    frames = []
    for part, split in _PARTS:
        table = next(
            (path / f"gt{kind}_{part}.csv" for kind in ("_avg", "") if (path / f"gt{kind}_{part}.csv").is_file()), None
        )
        if table is not None:
            frame = read_table(table).frame.drop_duplicates("file_name", ignore_index=True)
            frames.append(frame.assign(path=[_place(path, part, name) for name in frame["file_name"]], split=split))
    if not frames:
        return None
    frame = pd.concat(frames, ignore_index=True)
    column = options.age_column or "real_age"
    kept = [name for name in ("path", column, "split") if name in frame.columns]
    return build_records(RawTable(frame[kept]), path, str(path), replace(options, age_column=column), NAME, TERMS)


def _place(folder: Path, part: str, name: str) -> str:
    face = f"{part}/{name}_face.jpg"
    return face if (folder / face).is_file() else f"{part}/{name}"
