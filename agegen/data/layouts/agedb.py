"""AgeDB: ``id_Name_age_gender.jpg``, e.g. ``0_MariaCallas_35_f.jpg``.

Source: Moschoglou et al., "AgeDB: the first manually collected, in-the-wild age database", CVPR Workshops 2017.
"""

from __future__ import annotations

import re
from pathlib import Path

from agegen.data.layouts.naming import match_names, read_names
from agegen.data.manifests import ReadOptions
from agegen.data.records import FaceRecords

NAME = "AgeDB"
TERMS = "AgeDB, for non-commercial research (https://ibug.doc.ic.ac.uk/resources/agedb/)"
_PARSE = match_names(
    re.compile(r"\d+_(.+)_(\d{1,3})_([fm])\.\w+"),
    lambda match: {"age": match[2], "gender": match[3], "identity": match[1]},
)


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of a folder whose pictures are named so; a person's pictures stay on one side of a split."""
    return read_names(path, options, NAME, TERMS, _PARSE)
