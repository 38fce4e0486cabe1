"""Tables of labelled pictures as they lie on disk: CSV, TSV, JSON Lines and Parquet to raw columns."""

from __future__ import annotations

import codecs
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.data.parquet import read_parquet
from agegen.data.records import ImageStore
from agegen.errors import DataError, shorten

if TYPE_CHECKING:
    import pandas as pd

CSV_SUFFIXES = (".csv", ".tsv", ".txt")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (*CSV_SUFFIXES, *JSON_SUFFIXES, ".parquet")
_SEPARATORS = (",", ";", "\t")
# A longer first line belongs to no table of faces.
_LONGEST_HEADER = 100_000
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class RawTable:
    """A table as it was read.

    Attributes:
        frame: its columns; cells of text files are text.
        images: the pictures, where they lie in the table.
        decimal_comma: whether numbers have a comma, as where semicolons separate.
    """

    frame: pd.DataFrame
    images: ImageStore | None = None
    decimal_comma: bool = False


def read_table(path: Path) -> RawTable:
    """Read a table by its name's ending; a folder is taken for Parquet shards.

    CSV may be separated by commas, semicolons or tabs, in UTF-8 (with or without BOM), UTF-16 or Latin-1.

    Raises:
        DataError: it can't be read.
    """
    if path.is_dir() or path.suffix.lower() == ".parquet":
        return RawTable(*read_parquet(path))
    return _read_json(path) if path.suffix.lower() in JSON_SUFFIXES else _read_csv(path)


def _read_csv(path: Path) -> RawTable:
    import pandas as pd

    encoding, separator = _sniff(path)
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding=encoding, sep=separator)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, OSError, csv.Error) as error:
        raise DataError(f"can't read {path} as CSV: {shorten(str(error).splitlines()[0])}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"can't read {path} as CSV: its rows have more cells than its header")
    return RawTable(frame, decimal_comma=separator == ";")


def _sniff(path: Path) -> tuple[str, str]:
    """Return a CSV file's encoding and separator."""
    try:
        with path.open("rb") as file:
            header = file.readline(_LONGEST_HEADER)
            encoding = "utf-16" if header.startswith(_UTF16) else "utf-8-sig" if _is_utf8(file, header) else "latin-1"
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    if (b"\x00" in header and encoding != "utf-16") or len(header) >= _LONGEST_HEADER:
        raise DataError(f"can't read {path} as CSV: its first line is no header")
    # A line of UTF-16 ends in two bytes, of which readline takes one.
    text = header[: len(header) // 2 * 2 if encoding == "utf-16" else None].decode(encoding, errors="replace")
    separator = max(_SEPARATORS, key=text.count)
    try:
        names = [name.strip() for name in next(csv.reader(text.splitlines()[:1], delimiter=separator), [])]
    except csv.Error as error:
        raise DataError(f"can't read {path} as CSV: {error}") from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path} has the column '{shorten(twice[0])}' twice")
    return encoding, separator


def _is_utf8(file: Any, header: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(header)
        while block := file.read(1 << 20):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _read_json(path: Path) -> RawTable:
    import pandas as pd

    try:
        text = path.read_text(encoding="utf-8-sig")
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {path} as JSON Lines: {shorten(str(error))}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"can't read {path} as JSON Lines: it holds no objects, one a line")
    frame = pd.DataFrame(rows)
    return RawTable(
        frame.map(lambda cell: "" if cell is None else cell if isinstance(cell, list | dict) else str(cell))
    )
