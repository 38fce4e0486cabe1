"""LAGENDA and IMDB-clean: CSV tables of photographs, whose faces ``--detector`` or ``agegen data crop`` cuts out.

LAGENDA: ``lagenda_annotation.csv`` (``img_name``, ``age``, ``gender`` M/F, ``face_x0``, ``face_y0``, ``face_x1``,
``face_y1`` and the person's box; -1 where something isn't known). Source: Kuprashevich & Tolstykh, "MiVOLO:
Multi-input Transformer for Age and Gender Estimation", 2023.
IMDB-clean: ``imdb_train_new.csv``, ``imdb_valid_new.csv``, ``imdb_test_new.csv`` (``filename``, ``age``, ``gender``
M/F, ``x_min``, ``y_min``, ``x_max``, ``y_max``), also with ``_1024`` behind. Source: Lin et al., "FP-Age: Leveraging
Face Parsing Attention for Facial Age Estimation in the Wild", 2021.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agegen.data.manifests import ReadOptions, build_records
from agegen.data.records import FaceRecords
from agegen.data.tables import RawTable, read_table

if TYPE_CHECKING:
    import pandas as pd

NAME = "LAGENDA or IMDB-clean"
_LAGENDA, _IMDB = "LAGENDA", "IMDB-clean"
_TERMS = {
    _LAGENDA: "LAGENDA (https://wildchlamydia.github.io/lagenda/); its photographs are from Open Images, CC BY 2.0",
    _IMDB: "IMDB-clean, for research purposes (https://github.com/yiminglin-ai/imdb-clean)",
}
_PARTS = (("train", "train"), ("valid", "val"), ("test", "test"))


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of such a table: whole pictures, one row each; those of several people are left out."""
    import pandas as pd

    lagenda = sorted(path.glob("lagenda*annotation*.csv"))
    if lagenda:
        frame = read_table(lagenda[0]).frame.rename(columns={"img_name": "path"})
        return _build(_keep_single(frame[["path", "age", "gender"]]), path, options, _LAGENDA)
    frames = []
    for part, split in _PARTS:
        tables = sorted(path.glob(f"imdb_{part}_new*.csv"))
        if tables:
            frames.append(read_table(tables[0]).frame.rename(columns={"filename": "path"}).assign(split=split))
    if not frames:
        return None
    frame = pd.concat(frames, ignore_index=True)
    return _build(frame[["path", "age", "gender", "split"]], path, options, _IMDB)


def _keep_single(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop pictures with several people: which of them the label means can't be told from the picture alone."""
    return frame[~frame["path"].duplicated(keep=False)].reset_index(drop=True)


def _build(frame: pd.DataFrame, path: Path, options: ReadOptions, layout: str) -> FaceRecords:
    # -1 stands for what isn't known.
    frame = frame.assign(**{name: frame[name].replace({"-1": "", "-1.0": ""}) for name in ("age", "gender")})
    return build_records(RawTable(frame), path, str(path), options, layout, _TERMS[layout])
