"""Tables of labelled pictures as they lie on disk: CSV, TSV, JSON Lines and Parquet to raw columns."""

from __future__ import annotations

import codecs
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.data.records import ImageStore
from agegen.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

CSV_SUFFIXES = (".csv", ".tsv", ".txt")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (*CSV_SUFFIXES, *JSON_SUFFIXES, ".parquet")
# Names of columns with pictures, the likeliest first: data sets bring masks and depth maps beside them.
_PICTURE_COLUMNS = ("image", "img", "picture", "photo", "face", "images", "jpg", "png", "bytes")
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


@dataclass(frozen=True)
class ColumnStore:
    """Pictures inside a Parquet file: plain bytes, the Hugging Face form {bytes, path}, or lists of either."""

    column: Any

    def read(self, row: int) -> bytes:
        """Return the row's bytes."""
        content = _unwrap(self.column[row].as_py())
        if isinstance(content, dict):
            content = content.get("bytes")
        if not content:
            raise DataError("no picture in this row")
        return bytes(content)


def read_table(path: Path) -> RawTable:
    """Read a table by its name's ending; a folder is taken for Parquet shards.

    CSV may be separated by commas, semicolons or tabs, in UTF-8 (with or without BOM), UTF-16 or Latin-1.

    Raises:
        DataError: it can't be read.
    """
    if path.is_dir() or path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    return _read_json(path) if path.suffix.lower() in JSON_SUFFIXES else _read_csv(path)


def shorten(text: str) -> str:
    """Return text as an error may quote it: in one line of at most 200 characters, nothing unprintable."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    return printable if len(text) <= 200 else printable[:197] + "…"


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


def _read_parquet(path: Path) -> RawTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        table = pa.concat_tables([pq.read_table(shard) for shard in shards], promote_options="permissive")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"can't read {path} as Parquet: {shorten(str(error).splitlines()[0])}") from error
    table = _name_classes(table)
    picture = _choose_pictures(table)
    nested = [field.name for field in table.schema if pa.types.is_nested(field.type) or _holds_bytes(field.type)]
    # What can't be a label nor a group stays out: embeddings, boxes, masks.
    frame = table.drop_columns(nested).to_pandas()
    if picture is None:
        return RawTable(frame)
    column = table[picture]
    names = _list_names(column)
    if names is not None and "path" not in frame.columns:
        frame["path"] = names
    if _are_all_empty(column):
        return RawTable(frame)
    if names is None and "path" not in frame.columns:
        frame["path"] = [f"row-{row}" for row in range(len(frame))]
    elif frame["path"].duplicated().any():
        frame["path"] = [f"row-{row}/{name}" for row, name in enumerate(frame["path"])]
    return RawTable(frame, ColumnStore(column))


def _name_classes(table: Any) -> Any:
    """Put names in the place of class numbers, where the schema tells them (the Hugging Face form)."""
    import pyarrow as pa

    try:
        features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        classes = {name: feature["names"] for name, feature in features.items() if "names" in feature}
    except (KeyError, ValueError, TypeError, AttributeError):
        return table
    for name, words in classes.items():
        if name in table.column_names and pa.types.is_integer(table[name].type):
            cells = (
                None if cell is None or not 0 <= cell < len(words) else words[cell] for cell in table[name].to_pylist()
            )
            table = table.set_column(table.column_names.index(name), name, pa.array(cells, pa.string()))
    return table


def _choose_pictures(table: Any) -> str | None:
    """Return the column with the pictures, None where there is none."""
    found = [field.name for field in table.schema if _is_picture(field.type)]
    rank = {name: place for place, name in enumerate(_PICTURE_COLUMNS)}
    # Sorting is stable: among names that say nothing, the first column counts.
    return min(found, key=lambda name: rank.get(name.lower(), len(rank)), default=None)


def _is_picture(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_picture(kind.value_type)
    named = pa.types.is_struct(kind) and {"bytes", "path"} <= {inner.name for inner in kind}
    return named or _holds_bytes(kind)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _list_names(column: Any) -> list[str] | None:
    """Return the pictures' own names, None where the column has none; without copying the pictures."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_element(pc.if_else(pc.equal(pc.list_value_length(column), 0), None, column), 0)
    if not pa.types.is_struct(column.type):
        return None
    names = pc.struct_field(column, "path").to_pylist()
    return [name or f"row-{row}" for row, name in enumerate(names)]


def _are_all_empty(column: Any) -> bool:
    """Return whether a column of pictures holds paths alone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(column.type):
        return False
    return bool(pc.struct_field(column, "bytes").null_count == len(column))


def _unwrap(content: Any) -> Any:
    while isinstance(content, list):
        content = content[0] if content else None
    return content
