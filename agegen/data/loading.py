"""From what the user names (folders, manifests, 'demo') to the records of their faces."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agegen.data.labels import AGE_BOUNDS
from agegen.data.layouts import read_layout
from agegen.data.manifests import load_manifest
from agegen.data.records import SOURCE_COLUMN, FaceRecords, JoinedStore
from agegen.data.remote import fetch_parquet, is_remote
from agegen.data.tables import TABLE_SUFFIXES
from agegen.errors import DataError
from agegen.options import DEFAULT_READ_OPTIONS, ReadOptions

# PATH::0.5: how often a face of this data set is drawn, beside 1 for the others.
_WEIGHT = re.compile(r"(.+)::(\d*\.?\d+)")


def resolve_data(data: Sequence[str] | None) -> tuple[str, ...]:
    """Return the data sets that ``--data`` names: the option, else ``$AGEGEN_DATA``, else ``./data/utkface``.

    Raises:
        DataError: none of the three is there.
    """
    if data:
        return tuple(data)
    if chosen := os.environ.get("AGEGEN_DATA"):
        return (chosen,)
    if Path("data/utkface").is_dir():
        return ("data/utkface",)
    raise DataError(
        "no data: give --data FOLDER, or put UTKFace (https://susanqq.github.io/UTKFace/, non-commercial "
        "research only) into ./data/utkface, or try everything on drawn faces with --data demo"
    )


def load_records(data: str, options: ReadOptions = DEFAULT_READ_OPTIONS) -> FaceRecords:
    """Load one data set: a folder in a layout that is known, a table, Parquet at an address, or ``demo``.

    Raises:
        DataError: nothing is there, columns are missing, or no usable record is left.
    """
    if data == "demo":
        from agegen.data.demo import draw_records

        return draw_records()
    if is_remote(data):
        return replace(load_records(str(fetch_parquet(data)), options), source=data)
    path = Path(data)
    if path.is_dir():
        records = read_layout(path, options)
    elif path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
        records = load_manifest(path, options)
    elif path.is_file():
        raise DataError(f"can't read {data}: agegen reads {', '.join(TABLE_SUFFIXES)} and folders of pictures")
    else:
        raise DataError(f"no data at {data}: give a folder, a table ({', '.join(TABLE_SUFFIXES)}), or 'demo'")
    if not len(records):
        first = f"; the first: {records.excluded[0].path}: {records.excluded[0].reason}" if records.excluded else ""
        raise DataError(f"no usable face in {data}: {len(records.excluded)} were left out{first}")
    return records


def load_sources(data: Sequence[str], options: ReadOptions = DEFAULT_READ_OPTIONS) -> FaceRecords:
    """Load one data set or several together; ``PATH::0.5`` weighs how often a face of a set is drawn.

    Each face of several keeps the name of its set in the column ``source``, and in front of its path.

    Raises:
        DataError: one of them can't be used.
    """
    parts = [_WEIGHT.fullmatch(one) for one in data]
    paths = [one if part is None else part[1] for one, part in zip(data, parts, strict=True)]
    weights = [1.0 if part is None else float(part[2]) for part in parts]
    if len(set(paths)) < len(paths):
        raise DataError("the same data is named twice")
    if not all(weight > 0 for weight in weights):
        raise DataError("the weight of a data set, PATH::WEIGHT, must be above 0")
    loaded = [load_records(path, options) for path in paths]
    if len(loaded) == 1:
        return loaded[0]
    names = _name_sources(paths)
    return replace(_join(loaded, names), weights=dict(zip(names, weights, strict=True)))


def _name_sources(paths: list[str]) -> list[str]:
    """Return a short name per data set: the last part of its path, or as much as tells them apart."""
    names = [Path(path).stem if Path(path).suffix else Path(path).resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [f"{name}-{place}" for place, name in enumerate(names, start=1)]


def _join(loaded: list[FaceRecords], names: list[str]) -> FaceRecords:
    import pandas as pd

    frames, starts, start = [], [], 0
    bounded = any(set(AGE_BOUNDS) <= set(records.frame.columns) for records in loaded)
    split = all("split" in records.frame.columns for records in loaded)
    for records, name in zip(loaded, names, strict=True):
        frame = records.frame.drop(columns=[] if split else ["split"], errors="ignore")
        if bounded and AGE_BOUNDS[0] not in frame.columns:
            frame = frame.assign(**dict.fromkeys(AGE_BOUNDS, frame["age"]))
        paths = name + "/" + frame["path"]
        frames.append(frame.assign(path=paths, row=frame["row"] + start, **{SOURCE_COLUMN: name}))
        starts.append(start)
        start += int(records.frame["row"].max()) + 1
    joined = pd.concat(frames, ignore_index=True)
    if all(records.frame["female"].dtype == bool for records in loaded):
        joined = joined.astype({"female": bool})
    else:
        joined = joined.astype({"female": float})
    own = [column for column in joined.columns if column not in frames[0].columns or joined[column].isna().any()]
    for column in own:
        if joined[column].dtype == object:
            joined[column] = joined[column].fillna("")
    prefixed = [
        replace(item, path=f"{name}/{item.path}")
        for records, name in zip(loaded, names, strict=True)
        for item in records.excluded
    ]
    return FaceRecords(
        joined,
        JoinedStore(tuple(records.images for records in loaded), tuple(starts)),
        " + ".join(records.source for records in loaded),
        tuple(prefixed),
        drawn=any(records.drawn for records in loaded),
        terms="; ".join(dict.fromkeys(records.terms for records in loaded if records.terms)),
        layout="; ".join(
            f"{name}: {records.layout or 'a table'}, {len(records):,} faces"
            for records, name in zip(loaded, names, strict=True)
        )
        + "; in all",
        notices=tuple(
            f"{name}: {text}" for records, name in zip(loaded, names, strict=True) for text in records.notices
        ),
    )
