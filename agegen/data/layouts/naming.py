"""What layouts share that keep labels in the names of files or folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from agegen.data.images import list_pictures
from agegen.data.manifests import ReadOptions, build_records
from agegen.data.records import FaceRecords
from agegen.data.tables import RawTable

# A layout is recognised by names where at least this share of the pictures is named so: a few strays are no reason to
# refuse a data set, a few matches none to take one.
_LEAST_SHARE = 0.5

Labels = dict[str, str]


def read_names(
    folder: Path,
    options: ReadOptions,
    layout: str,
    terms: str,
    parse: Callable[[str], Labels | None],
) -> FaceRecords | None:
    """Return the faces of a folder by ``parse``, from a picture's relative path to its labels; None for other names.

    Pictures without labels are left out with a reason.
    """
    import pandas as pd

    paths = [path.relative_to(folder).as_posix() for path in list_pictures(folder)]
    labels = [parse(path) for path in paths]
    known = sum(label is not None for label in labels)
    if not known or known < len(paths) * _LEAST_SHARE:
        return None
    rows = [{"path": path, **(label or {})} for path, label in zip(paths, labels, strict=True)]
    return build_records(RawTable(pd.DataFrame(rows).fillna("")), folder, str(folder), options, layout, terms)


def match_names(pattern: re.Pattern[str], read: Callable[[re.Match[str]], Labels]) -> Callable[[str], Labels | None]:
    """Return a parser of file names, without their folders, by a pattern."""

    def parse(path: str) -> Labels | None:
        match = pattern.fullmatch(Path(path).name)
        return None if match is None else read(match)

    return parse
