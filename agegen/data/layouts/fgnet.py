"""FG-NET: ``001A02.JPG``, person and age, with a letter where several pictures share both; no gender.

Source: Panis et al., "Overview of research on facial ageing using the FG-NET ageing database", IET Biometrics 2016.
"""

from __future__ import annotations

import re
from pathlib import Path

from agegen.data.layouts.naming import match_names, read_names
from agegen.data.manifests import ReadOptions
from agegen.data.records import FaceRecords

NAME = "FG-NET"
TERMS = "FG-NET, for research purposes"
_PARSE = match_names(
    re.compile(r"(\d{3})A(\d{2})[a-z]?\.\w+", re.IGNORECASE),
    lambda match: {"age": match[2], "identity": match[1]},
)


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of a folder whose pictures are named so; a person's pictures stay on one side of a split."""
    return read_names(path, options, NAME, TERMS, _PARSE)
