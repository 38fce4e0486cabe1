"""Load datasets by what the user names: folders, tables, URLs, or ``demo``; several are joined."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agegen.data.labels import AGE_BOUNDS, fill_missing
from agegen.data.layouts import WEBDATASET_ADVICE, read_layout
from agegen.data.manifests import load_manifest
from agegen.data.records import SOURCE_COLUMN, FaceRecords, JoinedStore
from agegen.data.remote import fetch_parquet, is_remote
from agegen.data.tables import TABLE_SUFFIXES
from agegen.errors import DataError, format_count
from agegen.options import DEFAULT_READ_OPTIONS, ReadOptions

if TYPE_CHECKING:
    import pandas as pd

# PATH::WEIGHT, e.g. faces::0.5: how often training draws a face of this dataset, relative to 1 for the others.
_WEIGHT = re.compile(r"(.+)::(\d*\.?\d+)")


def resolve_data(data: Sequence[str] | None) -> tuple[str, ...]:
    """Return the datasets of ``--data``; by default ``$AGEGEN_DATA``, or else ``./data/utkface``.

    Raises:
        DataError: none of the three is available.
    """
    if data:
        return tuple(data)
    if chosen := os.environ.get("AGEGEN_DATA"):
        return (chosen,)
    if Path("data/utkface").is_dir():
        return ("data/utkface",)
    raise DataError(
        "no data. Give --data FOLDER, or put UTKFace (https://susanqq.github.io/UTKFace/, non-commercial research "
        "only) into ./data/utkface, or try agegen on drawn faces with --data demo."
    )


def make_absolute(data: Sequence[str]) -> tuple[str, ...]:
    """Return datasets as absolute paths with their weights; ``demo`` and addresses stay as they are."""
    named = (one.partition("::") for one in data)
    return tuple(
        (path if path == "demo" or is_remote(path) else str(Path(path).resolve())) + mark + weight
        for path, mark, weight in named
    )


def load_sources(data: Sequence[str], options: ReadOptions = DEFAULT_READ_OPTIONS) -> FaceRecords:
    """Load one or several datasets; ``PATH::0.5`` sets the weight with which training draws faces of a dataset.

    The records of several datasets have the name of the dataset in the column ``source`` and before each path.

    Raises:
        DataError: one of them is unusable.
    """
    parts = [_WEIGHT.fullmatch(one) for one in data]
    paths = [one if part is None else part[1] for one, part in zip(data, parts, strict=True)]
    weights = [1.0 if part is None else float(part[2]) for part in parts]
    if len(set(paths)) < len(paths):
        raise DataError("--data names the same dataset twice")
    if not all(weight > 0 for weight in weights):
        raise DataError("the weight of a dataset (--data PATH::WEIGHT) must be above 0")
    loaded = [load_records(path, options) for path in paths]
    if len(loaded) == 1:
        return loaded[0]
    names = _choose_names(paths)
    return replace(_join_records(loaded, names), weights=dict(zip(names, weights, strict=True)))


def load_records(data: str, options: ReadOptions = DEFAULT_READ_OPTIONS) -> FaceRecords:
    """Load one dataset: a folder in a known layout, a table, Parquet at a URL, or ``demo``.

    Raises:
        DataError: it does not exist, lacks a column, or has no usable face.
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
        advice = f". {WEBDATASET_ADVICE}" if path.suffix.lower() == ".tar" else ""
        raise DataError(f"cannot read {data}: agegen reads {', '.join(TABLE_SUFFIXES)} and folders of images{advice}")
    else:
        raise DataError(f"no data at {data}. Give a folder, a table ({', '.join(TABLE_SUFFIXES)}), or 'demo'.")
    if not len(records):
        first = f"; the first: {records.excluded[0].path}: {records.excluded[0].reason}" if records.excluded else ""
        raise DataError(f"no usable face in {data}: {len(records.excluded)} were excluded{first}")
    return records


def _choose_names(paths: list[str]) -> list[str]:
    """Return a short name per dataset: the last part of its path, with a number if names are equal."""
    names = [Path(path).stem if Path(path).suffix else Path(path).resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [f"{name}-{place}" for place, name in enumerate(names, start=1)]


def _join_records(loaded: list[FaceRecords], names: list[str]) -> FaceRecords:
    named = list(zip(loaded, names, strict=True))
    starts = [0]
    for records in loaded[:-1]:
        starts.append(starts[-1] + int(records.frame["row"].max()) + 1)
    layouts = [
        f"{name}: {records.layout or 'a table'}, {format_count(len(records), 'face')}" for records, name in named
    ]
    given = [name for records, name in named if "split" in records.frame.columns]
    partial = [f"the split of {', '.join(given)} is used; the other datasets have none, and agegen splits them"]
    return FaceRecords(
        _join_frames([records.frame for records in loaded], names, starts),
        JoinedStore(tuple(records.images for records in loaded), tuple(starts)),
        " + ".join(records.source for records in loaded),
        tuple(replace(item, path=f"{name}/{item.path}") for records, name in named for item in records.excluded),
        drawn=any(records.drawn for records in loaded),
        terms="; ".join(dict.fromkeys(records.terms for records in loaded if records.terms)),
        layout="; ".join([*layouts, "in total"]),
        notices=(
            *(f"{name}: {text}" for records, name in named for text in records.notices),
            *(partial if given and len(given) < len(named) else ()),
        ),
    )


def _join_frames(frames: list[pd.DataFrame], names: list[str], starts: list[int]) -> pd.DataFrame:
    """Return the frames below each other; ``starts`` are the first rows of each in the joined store."""
    import pandas as pd

    with_bounds = any(set(AGE_BOUNDS) <= set(frame.columns) for frame in frames)
    parts = []
    for frame, name, start in zip(frames, names, starts, strict=True):
        part = frame
        if with_bounds and AGE_BOUNDS[0] not in part.columns:
            part = part.assign(**dict.fromkeys(AGE_BOUNDS, part["age"]))
        paths = name + "/" + part["path"]
        parts.append(part.assign(path=paths, row=part["row"] + start, **{SOURCE_COLUMN: name}))
    joined = pd.concat(parts, ignore_index=True)
    gender_known = all(frame["female"].dtype == bool for frame in frames)
    joined = joined.astype({"female": bool if gender_known else float})
    # Columns that only some datasets have: groups, and the split, which is "" for datasets without one.
    return fill_missing(joined)
