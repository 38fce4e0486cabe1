"""Manifests: CSV and Parquet tables of labelled pictures, as people really write them."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.data.labels import MAX_AGE
from agegen.data.records import Exclusion, FaceRecords, FileStore, ImageStore
from agegen.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_GENDERS = {"male": False, "m": False, "0": False, "female": True, "f": True, "1": True}

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

_NEEDED = ("path", "age", "gender")

_SEPARATORS = (",", ";", "\t")

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)

# Longer headers and names belong to no table of faces.
_LONGEST_HEADER, _LONGEST_NAME = 100_000, 4096


@dataclass(frozen=True)
class ColumnStore:
    """Pictures inside a Parquet file, in the Hugging Face form {bytes, path}."""

    column: Any

    def read(self, row: int) -> bytes:
        """Return the row's bytes."""
        content = (self.column[row].as_py() or {}).get("bytes")
        if not content:
            raise DataError("no picture in this row")
        return bytes(content)


def load_manifest(path: Path) -> FaceRecords:
    """Load a manifest; rows that can't be used are listed as exclusions, with the reason.

    CSV may be separated by commas, semicolons or tabs, in UTF-8 (with or without BOM) or Latin-1.

    Raises:
        DataError: it can't be read, or lacks a column.
    """
    frame, images = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    frame.columns = [str(name).strip() for name in frame.columns]
    missing = [name for name in _NEEDED if name not in frame.columns]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; it has {_shorten(', '.join(frame.columns))}")
    frame["row"] = range(len(frame))
    if images is None:
        images = FileStore(tuple(path.parent / _clean_name(name) for name in frame["path"]))
    reasons = explain_rows(frame, in_files=isinstance(images, FileStore))
    frame, excluded = _parse_labels(frame, reasons)
    return FaceRecords(frame, images, str(path), tuple(excluded))


def explain_rows(frame: pd.DataFrame, in_files: bool) -> pd.Series:
    """Return per row of a raw manifest why it can't be used, "" where it can."""
    import pandas as pd

    ages = pd.to_numeric(frame["age"], errors="coerce").astype(float)
    reasons = pd.Series("", index=frame.index)
    reasons[frame["gender"].map(_parse_gender).isna()] = "gender is none of male, female, m, f, 0, 1"
    reasons[~ages.between(0, MAX_AGE)] = f"age is no number in 0–{MAX_AGE}"
    if "split" in frame.columns:
        reasons[frame["split"].map(_parse_split).isna()] = "split is none of train, val, test"
    if in_files:
        names = frame["path"].map(str)
        reasons[names.duplicated()] = "the path is named twice"
        problems = names.map(_explain_path)
        reasons = problems.where(problems != "", reasons)
    return reasons


def _read_csv(path: Path) -> tuple[pd.DataFrame, ImageStore | None]:
    import pandas as pd

    encoding, separator = _sniff(path)
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding=encoding, sep=separator)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, OSError, csv.Error) as error:
        raise DataError(f"can't read {path} as CSV: {_shorten(str(error).splitlines()[0])}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"can't read {path} as CSV: its rows have more cells than its header")
    return frame, None


def _sniff(path: Path) -> tuple[str, str]:
    """Return a CSV file's encoding and separator."""
    try:
        with path.open("rb") as file:
            header = file.readline(_LONGEST_HEADER)
            encoding = "utf-8-sig" if _is_utf8(file, header) else "latin-1"
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    if b"\x00" in header or len(header) >= _LONGEST_HEADER:
        raise DataError(f"can't read {path} as CSV: its first line is no header")
    text = header.decode(encoding, errors="replace")
    separator = max(_SEPARATORS, key=text.count)
    try:
        names = [name.strip() for name in next(csv.reader(text.splitlines()[:1], delimiter=separator), [])]
    except csv.Error as error:
        raise DataError(f"can't read {path} as CSV: {error}") from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path} has the column '{_shorten(twice[0])}' twice")
    return encoding, separator


def _is_utf8(file: Any, header: bytes) -> bool:
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(header)
        while block := file.read(1 << 20):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _read_parquet(path: Path) -> tuple[pd.DataFrame, ImageStore | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"can't read {path} as Parquet: {_shorten(str(error).splitlines()[0])}") from error
    for field in table.schema:
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {inner.name for inner in field.type}:
            column = table[field.name]
            frame = table.drop_columns([field.name]).to_pandas()
            names = [(value.as_py() or {}).get("path") for value in column]
            frame["path"] = [name or f"row-{index}" for index, name in enumerate(names)]
            return frame, ColumnStore(column)
    return table.to_pandas(), None


def _parse_labels(frame: pd.DataFrame, reasons: pd.Series) -> tuple[pd.DataFrame, list[Exclusion]]:
    import pandas as pd

    bad = reasons != ""
    excluded = [
        Exclusion(_shorten(str(name)), reason) for name, reason in zip(frame["path"][bad], reasons[bad], strict=True)
    ]
    frame = frame[~bad].reset_index(drop=True)
    ages = pd.to_numeric(frame["age"], errors="coerce").astype(float)
    frame = frame.assign(age=ages, female=frame["gender"].map(_parse_gender)).drop(columns="gender")
    if "split" in frame.columns:
        frame["split"] = frame["split"].map(_parse_split)
    return frame.astype({"path": str, "female": bool}), excluded


def _parse_gender(value: Any) -> bool | None:
    text = str(value).strip().lower()
    # A column of numbers with gaps comes as floats.
    return _GENDERS.get(text.removesuffix(".0"))


def _parse_split(value: Any) -> str | None:
    return _SPLIT_NAMES.get(str(value).strip().lower())


def _explain_path(name: str) -> str:
    if not name.strip():
        return "the path is empty"
    if len(name) > _LONGEST_NAME or "\x00" in name:
        return "the path is no file name"
    if _URL.match(name):
        return "the path is a URL; agegen reads local files only"
    if Path(os.path.normpath(name)).parts[:1] == (os.pardir,):
        return "the path leads out of the manifest's folder"
    return ""


def _clean_name(name: Any) -> str:
    """Return a name that a path can be made from; what it can't be is explained by :func:`explain_rows`."""
    text = str(name)
    return text if len(text) <= _LONGEST_NAME and "\x00" not in text else "unusable"


def _shorten(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    return printable if len(text) <= 200 else printable[:197] + "…"
