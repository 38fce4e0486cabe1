"""Tables of labels: CSV, TSV, JSON Lines, and Parquet, whose images may be inside."""

from __future__ import annotations

import codecs
import csv
import json
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.data.records import ImageStore
from agegen.errors import DataError, shorten
from agegen.machine import measure_free_memory

if TYPE_CHECKING:
    import pandas as pd


# Names of columns with pictures, the likeliest first: data sets bring masks and depth maps beside them.
_PICTURE_COLUMNS = ("image", "img", "picture", "photo", "face", "images", "jpg", "png", "bytes")
# Of the free memory: what encoded pictures may take, for decoded ones and a model want their part of it too.
_KEPT_SHARE = 0.25
# Row groups that are kept once read: threads that walk through the rows together are never further apart.
_GROUPS_KEPT = 4


@dataclass(frozen=True)
class ColumnStore:
    """Pictures of a Parquet file in memory: plain bytes, the Hugging Face form {bytes, path}, or lists of either."""

    column: Any

    def read(self, row: int) -> bytes:
        """Return the row's bytes."""
        return extract_image(self.column[row])


@dataclass(frozen=True)
class GroupStore:
    """Pictures of Parquet files that memory has no room for: their row group is read when one of it is asked for.

    ``groups``: file, number in it, and first row, of each group. Made for walking through the rows in order.
    """

    groups: tuple[tuple[Path, int, int], ...]
    column: str
    _kept: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)

    def read(self, row: int) -> bytes:
        """Return the row's bytes; raises DataError where the file can't be read any more."""
        which = bisect_right(self.groups, row, key=lambda group: group[2]) - 1
        column = self._kept.get(which)
        if column is None:
            column = self._read_group(which)
            # Threads may do so at once: then a group is read twice, and none is wrong.
            for old in list(self._kept)[: 1 - _GROUPS_KEPT]:
                self._kept.pop(old, None)
            self._kept[which] = column
        return extract_image(column[row - self.groups[which][2]])

    def _read_group(self, which: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path, number, _ = self.groups[which]
        try:
            return pq.ParquetFile(path).read_row_group(number, columns=[self.column])[self.column]
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(f"can't read {path}: {shorten(str(error))}") from error


def read_parquet(path: Path) -> tuple[pd.DataFrame, ImageStore | None]:
    """Read a file, or a folder of shards: the columns that can be labels or groups, and the pictures in it, if any.

    Raises:
        DataError: it can't be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        schema = pa.unify_schemas([pq.read_schema(shard) for shard in shards], promote_options="permissive")
        picture = find_image_column(schema)
        # What can't be a label nor a group stays out: embeddings, boxes, masks.
        plain = [part.name for part in schema if not pa.types.is_nested(part.type) and not _holds_bytes(part.type)]
        frame = _name_classes(_read_columns(shards, plain)).to_pandas()
        if picture is None:
            return frame, None
        groups, size = _list_groups(shards, picture)
        kept = size <= measure_free_memory() * _KEPT_SHARE
        table = _read_columns(shards, [picture] if kept else _name_paths(schema, picture))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"can't read {path} as Parquet: {shorten(str(error).splitlines()[0])}") from error
    column = table[picture] if picture in table.column_names else None
    return _join_pictures(frame, column, ColumnStore(column) if kept else GroupStore(groups, picture))


def _read_columns(shards: list[Path], names: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Not `read_table`, which takes the inner names of nested columns for their own.
    parts = [pq.ParquetFile(shard).read(columns=names) for shard in shards]
    return pa.concat_tables(parts, promote_options="permissive")


def _list_groups(shards: list[Path], column: str) -> tuple[tuple[tuple[Path, int, int], ...], int]:
    """Return (file, number, first row) of each row group, and how many bytes a column takes in all of them."""
    import pyarrow.parquet as pq

    groups, start, size = [], 0, 0
    for shard in shards:
        notes = pq.read_metadata(shard)
        for number in range(notes.num_row_groups):
            group = notes.row_group(number)
            groups.append((shard, number, start))
            start += group.num_rows
            parts = (group.column(place) for place in range(group.num_columns))
            size += sum(
                part.total_uncompressed_size for part in parts if part.path_in_schema.partition(".")[0] == column
            )
    return tuple(groups), size


def _name_paths(schema: Any, picture: str) -> list[str]:
    """Return the column of the pictures' own names, apart from their bytes; none where there is no such."""
    import pyarrow as pa

    return [f"{picture}.path"] if pa.types.is_struct(schema.field(picture).type) else []


def _join_pictures(frame: pd.DataFrame, column: Any, images: ImageStore) -> tuple[pd.DataFrame, ImageStore | None]:
    """Return a table with a name for each picture: its path, or its row's number; ``column`` None says nothing."""
    names = None if column is None else list_image_names(column)
    if names is not None and "path" not in frame.columns:
        frame["path"] = names
    if column is not None and _are_all_empty(column):
        return frame, None
    if names is None and "path" not in frame.columns:
        frame["path"] = [f"row-{row}" for row in range(len(frame))]
    elif frame["path"].duplicated().any():
        frame["path"] = [f"row-{row}/{name}" for row, name in enumerate(frame["path"])]
    return frame, images


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


def find_image_column(schema: Any) -> str | None:
    """Return the column with the pictures, None where there is none."""
    found = [part.name for part in schema if _is_picture(part.type)]
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


def list_image_names(column: Any) -> list[str] | None:
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
    held = [part.name for part in column.type]
    return "bytes" in held and bool(pc.struct_field(column, "bytes").null_count == len(column))


def extract_image(cell: Any) -> bytes:
    """Return a picture from a cell of Arrow.

    Raises:
        DataError: there is none.
    """
    content = cell.as_py()
    while isinstance(content, list):
        content = content[0] if content else None
    if isinstance(content, dict):
        content = content.get("bytes")
    if not content:
        raise DataError("no picture in this row")
    return bytes(content)


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
