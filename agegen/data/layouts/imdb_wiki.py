"""IMDB-WIKI: ``imdb.mat`` or ``wiki.mat`` beside the pictures.

Fields ``dob`` (Matlab's serial day), ``photo_taken`` (a year), ``full_path``, ``gender`` (0 female, 1 male), ``name``,
``face_score``, ``second_face_score``. The age is that in the middle of the year of the photograph. Rows without a face,
or with a second one, are left out.
Source: Rothe, Timofte, Van Gool, "DEX: Deep EXpectation of apparent age from a single image", ICCV Workshops 2015.
"""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.data.manifests import ReadOptions, build_records
from agegen.data.records import Exclusion, FaceRecords
from agegen.data.tables import RawTable
from agegen.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

NAME = "IMDB-WIKI"
TERMS = "IMDB-WIKI, for academic research (https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/)"
_FILES = ("imdb.mat", "wiki.mat")
# Matlab counts days from the year 0, Python from the year 1.
_MATLAB_DAYS = 366


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of a folder with such a file.

    Raises:
        DataError: the file has another form.
    """
    from dataclasses import replace

    found = next((path / name for name in _FILES if (path / name).is_file()), None)
    if found is None:
        return None
    frame = _read_mat(found)
    reasons = np.where(~np.isfinite(frame["face_score"]), "no face", "")
    reasons = np.where(np.isfinite(frame["second_face_score"]) & (reasons == ""), "more than one face", reasons)
    kept = frame[reasons == ""].drop(columns=["face_score", "second_face_score"]).reset_index(drop=True)
    records = build_records(RawTable(kept), path, str(path), options, NAME, TERMS)
    out = (Exclusion(name, reason) for name, reason in zip(frame["path"], reasons, strict=True) if reason)
    return replace(records, excluded=(*out, *records.excluded))


def _read_mat(path: Path) -> pd.DataFrame:
    import pandas as pd
    from scipy.io import loadmat

    try:
        fields = loadmat(path)[path.stem][0, 0]
        column: dict[str, Any] = {name: fields[name].reshape(-1) for name in fields.dtype.names}
        return pd.DataFrame(
            {
                "path": [str(name[0]) for name in column["full_path"]],
                "age": [_find_age(*row) for row in zip(column["dob"], column["photo_taken"], strict=True)],
                "gender": [_name_gender(value) for value in column["gender"]],
                "identity": [str(name[0]) if len(name) else "" for name in column["name"]],
                "face_score": column["face_score"].astype(float),
                "second_face_score": column["second_face_score"].astype(float),
            }
        )
    except Exception as error:  # scipy's reader raises errors of its own beside the usual ones
        raise DataError(f"{path} is no file of IMDB-WIKI: {error}") from error


def _find_age(born: float, taken: float) -> str:
    """Return the age in whole years in the middle of the year of the photograph, as its makers reckon it."""
    day = int(born) - _MATLAB_DAYS
    if not 1 <= day <= date.max.toordinal():
        return "unknown"
    birth = date.min + timedelta(days=day - 1)
    middle = date(int(taken), 7, 1) if 1 <= int(taken) <= 9999 else birth
    years = middle.year - birth.year - ((middle.month, middle.day) < (birth.month, birth.day))
    return str(years)


def _name_gender(value: float) -> str:
    return "unknown" if not np.isfinite(value) else "male" if value == 1 else "female"
