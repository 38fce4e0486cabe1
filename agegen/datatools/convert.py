"""Write labelled data sets, whatever their layout, as one manifest: CSV, or Parquet with the pictures inside."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.data.labels import AGE_BOUNDS, format_labels
from agegen.data.loading import load_sources
from agegen.data.manifests import DEFAULT_READ_OPTIONS, ReadOptions
from agegen.data.records import Exclusion, FaceRecords, locate_image
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically

if TYPE_CHECKING:
    import pandas as pd

# Rows that are written at once; with pictures inside some 10 MB of faces, 100 MB of photographs.
_ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class ConvertConfig:
    """Options of ``agegen data convert``; ``embed`` puts the pictures into the file, in the Hugging Face form."""

    data: tuple[str, ...]
    out: Path
    embed: bool = False
    reading: ReadOptions = DEFAULT_READ_OPTIONS


@dataclass(frozen=True)
class ConvertResult:
    """How many rows were written, and which were left out, each with its reason."""

    rows: int
    excluded: list[Exclusion]


def convert_data(config: ConvertConfig, on_progress: ProgressHook = ignore_progress) -> ConvertResult:
    """Write one manifest of all data sets, in parts: memory holds the labels and a part of the pictures.

    Columns: ``path`` (relative to the manifest where it can be; with ``embed`` the picture's own name), ``age``
    (``25`` or ``20-29``, empty where it isn't known), ``gender``, and all further ones.

    Raises:
        AgegenError: the data can't be used, the name ends otherwise, or pictures lie inside a file and aren't embedded.
    """
    suffix = config.out.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise AgegenError(f"{config.out}: give a name that ends in .csv or .parquet")
    if config.embed and suffix == ".csv":
        raise AgegenError("--embed puts pictures into Parquet; give a name that ends in .parquet")
    records = load_sources(config.data, config.reading)
    excluded = list(records.excluded)
    with replace_atomically(config.out) as temporary:
        if suffix == ".csv":
            rows = _write_csv(temporary, config, records, on_progress)
        else:
            rows = _write_parquet(temporary, config, records, excluded, on_progress)
    return ConvertResult(rows, excluded)


def _split_rows(config: ConvertConfig, records: FaceRecords, on_progress: ProgressHook) -> Iterator[pd.DataFrame]:
    """Yield the manifest's rows in parts; the index stays that of the records."""
    frame = records.frame
    for start in range(0, len(frame), _ROWS_AT_ONCE):
        part = frame.iloc[start : start + _ROWS_AT_ONCE]
        ages, genders = format_labels(part)
        paths = list(part["path"]) if config.embed else [_name_file(config, records, row) for row in part["row"]]
        kept = part.drop(columns=["path", "row", "age", "female", *AGE_BOUNDS], errors="ignore")
        kept.insert(0, "path", paths)
        kept.insert(1, "age", ages)
        kept.insert(2, "gender", genders)
        yield kept
        on_progress("writing rows", start + len(part), len(frame))


def _name_file(config: ConvertConfig, records: FaceRecords, row: int) -> str:
    """Return a picture's path as the manifest names it.

    Raises:
        DataError: it lies inside a file.
    """
    path = locate_image(records.images, int(row))
    if path is None:
        raise DataError(f"{records.source} holds its pictures inside; write Parquet with --embed")
    path, base = path.absolute(), config.out.absolute().parent
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else os.fspath(path)


def _write_csv(target: Path, config: ConvertConfig, records: FaceRecords, on_progress: ProgressHook) -> int:
    rows = 0
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for part in _split_rows(config, records, on_progress):
            if not rows:
                writer.writerow(part.columns)
            writer.writerows(part.itertuples(index=False, name=None))
            rows += len(part)
    return rows


def _write_parquet(
    target: Path, config: ConvertConfig, records: FaceRecords, excluded: list[Exclusion], on_progress: ProgressHook
) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, writer = 0, None
    try:
        for part in _split_rows(config, records, on_progress):
            # As text: parts of one column may hold numbers here and nothing there.
            texts = {str(name): pa.array(part[name].astype(str), pa.string()) for name in part.columns}
            table = pa.table(texts)
            if config.embed:
                table = _embed(table, part, records, excluded)
            if writer is None:
                writer = pq.ParquetWriter(target, table.schema)
            writer.write_table(table)
            rows += len(table)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _embed(table: Any, part: pd.DataFrame, records: FaceRecords, excluded: list[Exclusion]) -> Any:
    """Return a table with the pictures in place of their paths; rows whose picture can't be read are left out."""
    import pyarrow as pa

    pictures, kept = [], []
    for place, index in enumerate(part.index):
        name = str(part["path"].iloc[place])
        try:
            pictures.append({"bytes": records.read(int(index)), "path": name})
            kept.append(place)
        except DataError as error:
            excluded.append(Exclusion(name, str(error)))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = table.take(kept).drop_columns(["path"]).add_column(0, "image", pa.array(pictures, kind))
    # By which the Hub's own reader shows them as pictures.
    features = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in table.column_names if name != "image"}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
