"""Write labelled datasets of any layout as one manifest: CSV, or Parquet with the images inside."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.data.labels import AGE_BOUNDS, fill_missing, format_labels
from agegen.data.loading import load_sources
from agegen.data.records import Exclusion, FaceRecords, locate_image
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.datatools.config import ConvertConfig
from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically

if TYPE_CHECKING:
    import pandas as pd

# Rows in memory at once; with embedded images, 10 MB of face crops or 100 MB of photos.
_ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class ConvertResult:
    """The number of rows written, and the excluded rows with reasons."""

    rows: int
    excluded: list[Exclusion]


def convert_data(config: ConvertConfig, on_progress: ProgressHook = ignore_progress) -> ConvertResult:
    """Write one manifest of all datasets in parts; only the labels and a part of the images are in memory.

    Columns: ``path`` (relative to the manifest if inside its folder; with ``embed``, ``image`` with the image and its
    original name), ``age`` (``25`` or ``20-29``, empty if unknown), ``gender``, and all other columns of the datasets.

    Raises:
        AgegenError: the data cannot be used, the output is not a .csv or .parquet file, or the images are stored inside
            another file and are not embedded.
    """
    suffix = config.out.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise AgegenError(f"{config.out}: the output file name must end in .csv or .parquet")
    if config.embed and suffix == ".csv":
        raise AgegenError("--embed requires a Parquet file: the output file name must end in .parquet")
    records = load_sources(config.data, config.reading)
    parts = _iter_parts(records, None if config.embed else config.out.parent, on_progress)
    excluded = list(records.excluded)
    with replace_atomically(config.out) as temporary:
        if suffix == ".csv":
            rows = _write_csv(temporary, parts)
        else:
            rows = _write_parquet(temporary, parts, records if config.embed else None, excluded)
    return ConvertResult(rows, excluded)


def _iter_parts(records: FaceRecords, folder: Path | None, on_progress: ProgressHook) -> Iterator[pd.DataFrame]:
    """Yield the manifest in parts, with paths relative to ``folder``, or original names for None.

    The index is that of the records.
    """
    frame = records.frame
    if "split" in frame.columns and (frame["split"] == "").any():
        # A manifest has a split for all faces or for none.
        frame = frame.drop(columns="split")
    for start in range(0, len(frame), _ROWS_AT_ONCE):
        part = frame.iloc[start : start + _ROWS_AT_ONCE]
        paths = list(part["path"]) if folder is None else [_locate_image(records, row, folder) for row in part["row"]]
        yield make_manifest(part.drop(columns="row"), paths)
        on_progress("writing rows", start + len(part), len(frame))


def _locate_image(records: FaceRecords, row: int, folder: Path) -> str:
    """Return the path of an image for a manifest in ``folder``.

    Raises:
        DataError: the image is stored inside another file.
    """
    path = locate_image(records.images, int(row))
    if path is None:
        raise DataError(f"the images of {records.source} are stored inside another file. Write Parquet with --embed.")
    return format_path(path, folder)


def format_path(path: Path, folder: Path) -> str:
    """Return the path of a file for a manifest in ``folder``: relative if the file is inside it, else absolute."""
    path, base = path.absolute(), folder.absolute()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else os.fspath(path)


def make_manifest(frame: pd.DataFrame, paths: list[str]) -> pd.DataFrame:
    """Return labelled faces as a manifest: the columns path, age and gender, then all others of the frame."""
    ages, genders = format_labels(frame)
    others = frame.drop(columns=["path", "age", "female", *AGE_BOUNDS], errors="ignore")
    manifest = fill_missing(others.astype(object))
    for place, (name, values) in enumerate({"path": paths, "age": ages, "gender": genders}.items()):
        manifest.insert(place, name, values)
    return manifest


def _write_csv(target: Path, parts: Iterator[pd.DataFrame]) -> int:
    """Write the parts of a manifest; return the number of rows."""
    rows = 0
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for part in parts:
            if not rows:
                writer.writerow(part.columns)
            writer.writerows(part.itertuples(index=False, name=None))
            rows += len(part)
    return rows


def _write_parquet(
    target: Path, parts: Iterator[pd.DataFrame], embedded: FaceRecords | None, excluded: list[Exclusion]
) -> int:
    """Write the parts of a manifest, with the images of ``embedded`` if given; return the number of rows.

    Rows with unreadable images are added to ``excluded``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, writer = 0, None
    try:
        for part in parts:
            # All as text: a column may have numbers in one part and nothing in another.
            table = pa.table({str(name): pa.array(part[name].astype(str), pa.string()) for name in part.columns})
            if embedded is not None:
                table = _embed_images(table, part, embedded, excluded)
            if writer is None:
                writer = pq.ParquetWriter(target, table.schema)
            writer.write_table(table)
            rows += len(table)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _embed_images(table: Any, part: pd.DataFrame, records: FaceRecords, excluded: list[Exclusion]) -> Any:
    """Return a table with images instead of paths; rows with unreadable images are left out."""
    import pyarrow as pa

    images, kept = [], []
    for place, index in enumerate(part.index):
        name = str(part["path"].iloc[place])
        try:
            images.append({"bytes": records.read(int(index)), "path": name})
            kept.append(place)
        except DataError as error:
            excluded.append(Exclusion(name, str(error)))
    image_type = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = table.take(kept).drop_columns(["path"]).add_column(0, "image", pa.array(images, image_type))
    # With these, the Hub's viewer and the `datasets` library show the images.
    features = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in table.column_names if name != "image"}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
