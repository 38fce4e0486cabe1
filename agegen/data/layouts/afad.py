"""AFAD: folders ``age/111/`` (male) and ``age/112/`` (female).

Source: Niu et al., "Ordinal Regression with Multiple Output CNN for Age Estimation", CVPR 2016.
"""

from __future__ import annotations

import re
from pathlib import Path

from agegen.data.layouts.naming import Labels, read_names
from agegen.data.manifests import ReadOptions
from agegen.data.records import FaceRecords

NAME = "AFAD"
TERMS = "AFAD, for academic research (https://afad-dataset.github.io/)"
_PLACE = re.compile(r"(?:.*/)?(\d{1,3})/(11[12])/[^/]+")


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of such folders."""
    return read_names(path, options, NAME, TERMS, _parse)


def _parse(path: str) -> Labels | None:
    match = _PLACE.fullmatch(path)
    return None if match is None else {"age": match[1], "gender": "male" if match[2] == "111" else "female"}
