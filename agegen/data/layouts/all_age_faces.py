"""All-Age-Faces: ``NNNNNAyy.jpg``, person and age; numbers 0 to 7380 are female, the others male.

Source: Cheng et al., "Exploiting Effective Facial Patches for Robust Gender Recognition", Tsinghua Science and
Technology 2019 (https://github.com/JingchunCheng/All-Age-Faces-Dataset).
"""

from __future__ import annotations

import re
from pathlib import Path

from agegen.data.layouts.naming import match_names, read_names
from agegen.data.manifests import ReadOptions
from agegen.data.records import FaceRecords

NAME = "All-Age-Faces"
TERMS = "All-Age-Faces, for academic research (https://github.com/JingchunCheng/All-Age-Faces-Dataset)"
_LAST_FEMALE = 7380
_PARSE = match_names(
    re.compile(r"(\d{5})A(\d{2,3})\.\w+"),
    lambda match: {"age": match[2], "gender": "female" if int(match[1]) <= _LAST_FEMALE else "male"},
)


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of a folder whose pictures are named so."""
    return read_names(path, options, NAME, TERMS, _PARSE)
