"""Tables of labels: CSV, TSV, JSON Lines, and Parquet, which may also contain the images."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.data.images import is_hidden
from agegen.data.records import BOX_COLUMNS, ImageStore
from agegen.data.values import find_split
from agegen.errors import DataError, shorten
from agegen.machine import measure_free_memory

if TYPE_CHECKING:
    import pandas as pd

CSV_SUFFIXES = (".csv", ".tsv", ".txt")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
ARROW_SUFFIX = ".arrow"
SHARD_SUFFIXES = (".parquet", ARROW_SUFFIX)
TABLE_SUFFIXES = (*CSV_SUFFIXES, *JSON_SUFFIXES, *SHARD_SUFFIXES)
_SEPARATORS = (",", ";", "\t", "|")
# In bytes. A file with a longer first line is not a table of faces.
_MAX_HEADER = 100_000
# How many cells of a table of JSON may be empty for each that is not, unless the table has few cells at all. Rows of
# some megabytes that have all their own names would fill the memory.
_MAX_SPARSITY, _SMALL_TABLE = 20, 1_000_000
# Parquet stores equal rows in nearly no space: a file of some kilobytes may have billions, which would fill the memory.
# Names of images that are counted, the most similar rows of real tables, take more than a bit each.
_MAX_ROWS_PER_BYTE, _FEW_ROWS = 8, 100_000
# UTF-32 first: its mark begins with that of UTF-16.
_WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Bytes per character.
_WIDTHS = {"utf-32": 4, "utf-16": 2, "utf-32-le": 4, "utf-32-be": 4, "utf-16-le": 2, "utf-16-be": 2}
# Common names of image columns, the most likely first: a table may also have columns of masks or depth maps.
_IMAGE_COLUMNS = ("image", "img", "picture", "photo", "face", "images", "jpg", "png", "bytes")
# The names of a bounding box's columns in lower case, without separators and without a prefix: the corner with the
# smaller coordinates, and the opposite corner, the size, or (from the centre) the size. Each is the name of x and of y.
_CORNERS = (
    ("left", "top"),
    ("x0", "y0"),
    ("x1", "y1"),
    ("xmin", "ymin"),
    ("minx", "miny"),
    ("topleftx", "toplefty"),
    ("xtl", "ytl"),
)
_OPPOSITE = (
    *(("right", "bottom"), ("x1", "y1"), ("x2", "y2"), ("xmax", "ymax"), ("maxx", "maxy")),
    ("bottomrightx", "bottomrighty"),
    ("xbr", "ybr"),
)
_CENTRES = (("cx", "cy"), ("xc", "yc"), ("xcenter", "ycenter"), ("centerx", "centery"), ("xcentre", "ycentre"))
_SIZES = (("w", "h"), ("width", "height"), ("dx", "dy"))
# All ways to name a box, the most explicit first.
_BOX_FORMS = (
    *((corner, other, "corners") for corner, other in zip(_CORNERS, _OPPOSITE, strict=True)),
    *((corner, size, "size") for corner in (*_CORNERS, ("x", "y")) for size in _SIZES),
    *((centre, size, "centre") for centre in _CENTRES for size in _SIZES),
)
# Prefixes of these names. A table of people also has boxes of whole persons, with other prefixes.
_BOX_PREFIXES = (
    *("facebbox", "facebox", "facerectangle", "facerect", "faceroi", "face", "boundingbox", "bbox", "box", "bb"),
    *("rectangle", "rect", "roi", ""),
)
# Columns whose cells hold four numbers.
_BOX_LISTS = (
    *("facebox", "facebbox", "faceboundingbox", "facerectangle", "facerect", "facelocation", "faceroi"),
    *("box", "bbox", "boundingbox", "rectangle", "rect", "roi"),
)
# {"left": 10, "top": 20, …}; bounded, since a cell may have millions of letters.
_BOX_ENTRY = re.compile(r"['\"]?\b([A-Za-z]\w{0,30})['\"]?\s*[:=]\s*(-?[\d.]+(?:e[-+]?\d+)?)", re.IGNORECASE)
_BOX_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)
# Columns with the gray values of an image as text, and the form of a cell: at least 8×8 numbers.
_PIXEL_COLUMNS = ("pixels", "pixel", "image_pixels", "pixel_values")
_PIXELS = re.compile(r"\s*\[?(?:\s*\d{1,3}[\s,]){63,}[\d\s,]*\]?\s*")
# The largest fraction of the free memory for encoded images; decoded images and a model also need memory.
_MEMORY_FRACTION = 0.25
# Row groups to keep in memory: threads that read rows in order are never further apart.
_CACHED_GROUPS = 4


@dataclass(frozen=True)
class RawTable:
    """A table as it was read.

    Attributes:
        frame: its columns; the cells of text files are strings.
        images: the images, if the table contains them.
        decimal_comma: whether numbers have a decimal comma, as in CSV files with semicolons.
        origins: the name of the file that each row is from, if there are several.
    """

    frame: pd.DataFrame
    images: ImageStore | None = None
    decimal_comma: bool = False
    origins: list[str] | None = None


def read_table(path: Path) -> RawTable:
    """Read a table; its suffix determines the format.

    CSV may be separated by commas, semicolons, tabs or bars, and encoded in UTF-8, UTF-16, UTF-32 or Latin-1.

    Raises:
        DataError: the table cannot be read.
    """
    if path.suffix.lower() in SHARD_SUFFIXES:
        return read_shards(path.parent, [path])
    return _read_json(path) if path.suffix.lower() in JSON_SUFFIXES else _read_csv(path)


def _read_csv(path: Path) -> RawTable:
    import pandas as pd

    encoding, separator = _detect_csv_format(path)
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding=encoding, sep=separator)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, OSError, csv.Error) as error:
        raise DataError(f"cannot read {path} as CSV: {shorten(str(error).splitlines()[0])}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"cannot read {path} as CSV: its rows have more cells than its header")
    return RawTable(*_take_pixels(frame), decimal_comma=separator == ";")


def _take_pixels(frame: pd.DataFrame) -> tuple[pd.DataFrame, ImageStore | None]:
    """Return a table without its column of pixels, as Kaggle has faces, and these as images; None without it."""
    column = next((name for name in frame.columns if str(name).strip().lower() in _PIXEL_COLUMNS), None)
    if column is None or not len(frame) or not _PIXELS.fullmatch(str(frame[column].iloc[0])):
        return frame, None
    return frame.drop(columns=column), PixelStore(frame[column])


def _detect_csv_format(path: Path) -> tuple[str, str]:
    """Return the encoding and the separator of a CSV file."""
    try:
        with path.open("rb") as file:
            header = file.readline(_MAX_HEADER)
            encoding = _detect_wide_encoding(header) or ("utf-8-sig" if _is_utf8(file, header) else "latin-1")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if len(header) >= _MAX_HEADER:
        raise DataError(f"cannot read {path} as CSV: its first line is not a header")
    # Of the last character, the newline, readline returns only the first byte.
    width = _WIDTHS.get(encoding, 1)
    text = header[: len(header) // width * width].decode(encoding, errors="replace")
    if "\x00" in text:
        raise DataError(f"cannot read {path} as CSV: its first line is not a header, it is binary")
    separator = max(_SEPARATORS, key=text.count)
    try:
        names = [name.strip() for name in next(csv.reader(text.splitlines()[:1], delimiter=separator), [])]
    except csv.Error as error:
        raise DataError(f"cannot read {path} as CSV: {error}") from error
    if repeated := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path} has the column '{shorten(repeated[0])}' twice")
    return encoding, separator


def _detect_wide_encoding(header: bytes) -> str | None:
    """Return the encoding of a first line with several bytes per character, with or without a byte order mark."""
    for mark, encoding in _WIDE_MARKS.items():
        if header.startswith(mark):
            return encoding
    if b"\x00" not in header:
        return None
    # Of ASCII, all bytes but one of each character are zero.
    for encoding, width in ((name, width) for name, width in _WIDTHS.items() if name.endswith(("le", "be"))):
        zeros = [not any(header[place : len(header) // width * width : width]) for place in range(width)]
        if sum(zeros) == width - 1 and zeros[0] == encoding.endswith("be"):
            return encoding
    return None


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
    """Read JSON Lines, or a JSON array of objects."""
    import pandas as pd

    try:
        content = path.read_bytes()
        text = content.decode(json.detect_encoding(content))
        rows = json.loads(text) if text.lstrip().startswith("[") else _parse_json_lines(text)
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"cannot read {path} as JSON Lines: it is not one object per line")
        _check_density(path, rows)
        cells = [{_format_cell(name): _format_cell(cell) for name, cell in row.items()} for row in rows]
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path} as JSON Lines: it is not encoded in UTF-8") from error
    except RecursionError as error:
        raise DataError(f"cannot read {path} as JSON Lines: its lists are nested too deeply") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} as JSON Lines: {shorten(str(error))}") from error
    return RawTable(pd.DataFrame(cells).fillna(""))


def _check_density(path: Path, rows: list[dict[str, Any]]) -> None:
    """Raise DataError if rows of JSON have so many different names that their table would be nearly empty, and huge."""
    names = len({name for row in rows for name in row})
    entries = sum(map(len, rows))
    if len(rows) * names > max(_SMALL_TABLE, _MAX_SPARSITY * entries):
        raise DataError(f"cannot read {path} as JSON Lines: its {len(rows):,} rows have {names:,} different names")


def _parse_json_lines(text: str) -> list[Any]:
    """Parse one value per line; only \\n ends a line, since a text may contain other separators, such as U+2028."""
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
    return rows


def _format_cell(cell: Any) -> str:
    """Return a value of JSON as text; half of a surrogate pair, which no text file can contain, becomes ?."""
    text = json.dumps(cell) if isinstance(cell, list | dict) else "" if cell is None else str(cell)
    return text.encode("utf-8", errors="replace").decode("utf-8")


def find_shards(folder: Path) -> list[Path]:
    """Return the Parquet files of a dataset in a folder, or the Arrow files that ``save_to_disk`` wrote; [] if none.

    They are directly in the folder, in one folder below it (``data/``), or in one folder for each split. Files in
    several other folders are several datasets, or one in several forms: then the result is empty, too.
    """
    # Not by Path.rglob, which takes a second for each 100,000 images.
    shards = [
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        # `datasets` also leaves files with what it computed from the data, such as an order of the rows.
        if name.lower().endswith(SHARD_SUFFIXES) and not name.startswith("cache-")
    ]
    shards = sorted(path for path in shards if not is_hidden(path.relative_to(folder)))
    for suffix in SHARD_SUFFIXES:
        found = [path for path in shards if path.suffix.lower() == suffix]
        parents = dict.fromkeys(path.parent for path in found)
        if folder in parents:
            return [path for path in found if path.parent == folder]
        if len(parents) == 1 or (parents and all(find_split(parent.name) for parent in parents)):
            return found
    return []


def read_shards(folder: Path, shards: list[Path]) -> RawTable:
    """Read Parquet or Arrow files in a folder, one after the other, as one table.

    Raises:
        DataError: a file cannot be read.
    """
    import pyarrow as pa

    read = _read_arrow if shards[0].suffix.lower() == ARROW_SUFFIX else _read_parquet
    try:
        frame, images, counts = read(shards)
    except (pa.ArrowException, OSError, ValueError) as error:
        kind = "Arrow" if read is _read_arrow else "Parquet"
        name = folder if len(shards) > 1 else shards[0]
        raise DataError(f"cannot read {name} as {kind}: {shorten((str(error) or kind).splitlines()[0])}") from error
    names = [path.relative_to(folder).as_posix() for path in shards]
    origins = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    return RawTable(frame, images, origins=origins if len(shards) > 1 else None)


def _read_parquet(shards: list[Path]) -> tuple[pd.DataFrame, ImageStore | None, list[int]]:
    """Return the columns of labels and groups, the images if there are any, and the number of rows of each file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.unify_schemas([pq.read_schema(shard) for shard in shards], promote_options="permissive")
    counts = [pq.read_metadata(shard).num_rows for shard in shards]
    for shard, count in zip(shards, counts, strict=True):
        if count > max(_FEW_ROWS, _MAX_ROWS_PER_BYTE * shard.stat().st_size):
            raise DataError(f"cannot read {shard} as Parquet: {count:,} rows in so few bytes are all equal")
    image_column = find_image_column(schema)
    frame = _make_frame(_read_columns(shards, _list_plain_columns(schema)))
    if image_column is None:
        return frame, None, counts
    groups, size = _list_row_groups(shards, image_column)
    fits = size <= measure_free_memory() * _MEMORY_FRACTION
    table = _read_columns(shards, [image_column] if fits else _list_path_columns(schema, image_column))
    column = table[image_column] if image_column in table.column_names else None
    return *_add_paths(frame, column, ColumnStore(column) if fits else RowGroupStore(groups, image_column)), counts


def _read_arrow(shards: list[Path]) -> tuple[pd.DataFrame, ImageStore | None, list[int]]:
    """Return the same of Arrow files. Their images stay in the files, which are mapped into memory."""
    import pyarrow as pa

    tables = [_map_arrow(shard) for shard in shards]
    table = pa.concat_tables(tables, promote_options="permissive")
    image_column = find_image_column(table.schema)
    frame = _make_frame(table.select(_list_plain_columns(table.schema)))
    counts = [len(one) for one in tables]
    if image_column is None:
        return frame, None, counts
    return *_add_paths(frame, table[image_column], ColumnStore(table[image_column])), counts


def _map_arrow(path: Path) -> Any:
    """Return the table in an Arrow file: a stream, as `datasets` writes it, or a file with random access."""
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _list_plain_columns(schema: Any) -> list[str]:
    """Return the columns that can be labels, groups or bounding boxes: not embeddings or masks."""
    import pyarrow as pa

    plain = [part.name for part in schema if not pa.types.is_nested(part.type) and not _is_binary(part.type)]
    return [*plain, *(part.name for part in schema if _is_box_list(part))]


def _is_box_list(part: Any) -> bool:
    return _simplify(part.name) in _BOX_LISTS and _is_number_list(part.type)


def _make_frame(table: Any) -> pd.DataFrame:
    """Return a table as pandas has it; raises ArrowInvalid if a text is not UTF-8."""
    table.validate(full=True)
    # What pandas stored about its index and types is not needed, and may be damaged.
    frame: pd.DataFrame = _decode_class_labels(table).replace_schema_metadata(None).to_pandas()
    # As text, like the cells of other tables: lists cannot be counted as groups are.
    return frame.assign(**{part.name: frame[part.name].map(str) for part in table.schema if _is_box_list(part)})


def _read_columns(shards: list[Path], names: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # `pq.read_table` would confuse the fields of nested columns with columns of the same name.
    parts = [pq.ParquetFile(shard).read(columns=names) for shard in shards]
    return pa.concat_tables(parts, promote_options="permissive")


def _list_row_groups(shards: list[Path], column: str) -> tuple[tuple[tuple[Path, int, int], ...], int]:
    """Return (file, number in the file, first row) of each row group, and the size of a column in bytes."""
    import pyarrow.parquet as pq

    groups, start, size = [], 0, 0
    for shard in shards:
        metadata = pq.read_metadata(shard)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            groups.append((shard, number, start))
            start += group.num_rows
            parts = (group.column(place) for place in range(group.num_columns))
            size += sum(
                part.total_uncompressed_size for part in parts if part.path_in_schema.partition(".")[0] == column
            )
    return tuple(groups), size


def _list_path_columns(schema: Any, image_column: str) -> list[str]:
    """Return the field with the names of the images, which can be read without their bytes; [] if there is none."""
    import pyarrow as pa

    return [f"{image_column}.path"] if pa.types.is_struct(schema.field(image_column).type) else []


def _add_paths(frame: pd.DataFrame, column: Any, images: ImageStore) -> tuple[pd.DataFrame, ImageStore | None]:
    """Return a table with a unique ``path`` per image, and its images.

    Args:
        frame: the table.
        column: the Arrow column of images, or of their names only; None if the images have no names.
        images: the store of the images. It is dropped if the column has only paths, which are then those of files.
    """
    names = None if column is None else list_image_names(column)
    if names is not None and "path" not in frame.columns:
        frame["path"] = names
    if column is not None and _has_only_paths(column):
        return frame, None
    if names is None and "path" not in frame.columns:
        frame["path"] = [f"row-{row}" for row in range(len(frame))]
    elif frame["path"].duplicated().any():
        frame["path"] = [f"row-{row}/{name}" for row, name in enumerate(frame["path"])]
    return frame, images


def _has_only_paths(column: Any) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(column.type):
        return False
    fields = [part.name for part in column.type]
    return "bytes" in fields and bool(pc.struct_field(column, "bytes").null_count == len(column))


def _decode_class_labels(table: Any) -> Any:
    """Replace class numbers by their names, if the schema contains them in the form of Hugging Face datasets."""
    import pyarrow as pa

    try:
        features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        classes = {name: feature["names"] for name, feature in features.items() if "names" in feature}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return table
    for name, words in classes.items():
        is_named = isinstance(words, list) and all(isinstance(word, str) for word in words)
        if is_named and name in table.column_names and pa.types.is_integer(table[name].type):
            cells = (
                None if cell is None or not 0 <= cell < len(words) else words[cell] for cell in table[name].to_pylist()
            )
            table = table.set_column(table.column_names.index(name), name, pa.array(cells, pa.string()))
    return table


def find_image_column(schema: Any) -> str | None:
    """Return the name of the image column in an Arrow schema, None if there is none."""
    found = [part.name for part in schema if _is_image(part.type)]
    rank = {name: place for place, name in enumerate(_IMAGE_COLUMNS)}
    # `min` is stable: among columns with other names, the first is chosen.
    return min(found, key=lambda name: rank.get(name.lower(), len(rank)), default=None)


def _is_image(kind: Any) -> bool:
    """Return whether a type can hold images: bytes, Hugging Face's struct {bytes, path}, or a list of either."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_image(kind.value_type)
    is_hugging_face = pa.types.is_struct(kind) and {"bytes", "path"} <= {inner.name for inner in kind}
    return is_hugging_face or _is_binary(kind)


def _is_number_list(kind: Any) -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and not pa.types.is_nested(kind.value_type)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def list_image_names(column: Any) -> list[str] | None:
    """Return the names of the images in an Arrow column without copying the images; None if they have no names."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_element(pc.if_else(pc.equal(pc.list_value_length(column), 0), None, column), 0)
    if not pa.types.is_struct(column.type):
        return None
    names = pc.struct_field(column, "path").to_pylist()
    return [name or f"row-{row}" for row, name in enumerate(names)]


def extract_image(cell: Any) -> bytes:
    """Return the encoded image in a cell of an Arrow image column.

    Raises:
        DataError: the cell is empty.
    """
    content = cell.as_py()
    while isinstance(content, list):
        content = content[0] if content else None
    if isinstance(content, dict):
        content = content.get("bytes")
    if not content:
        raise DataError("no image in this row")
    return bytes(content)


@dataclass(frozen=True)
class PixelStore:
    """Square images whose pixels are numbers in the cells of a text table: gray values, or R, G, B of each pixel."""

    cells: pd.Series

    def read(self, row: int) -> bytes:
        """Return the image of a row as PNG; raises DataError if its cell has another form."""
        import cv2
        import numpy as np

        text = str(self.cells.iloc[row]).strip("[] \n").replace(",", " ")
        try:
            values = np.array(text.split(), dtype=np.uint8)
        except (ValueError, OverflowError) as error:
            raise DataError("the pixels are not numbers of 0–255") from error
        for channels in (1, 3):
            side = round((len(values) / channels) ** 0.5)
            if side and side * side * channels == len(values):
                # OpenCV expects blue first.
                return cv2.imencode(".png", values.reshape(side, side, channels)[..., ::-1])[1].tobytes()
        raise DataError(f"{len(values):,} pixels are not a square image")


@dataclass(frozen=True)
class ColumnStore:
    """Images of a Parquet file in memory, as an Arrow column."""

    column: Any

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row; raises DataError if it has none."""
        return extract_image(self.column[row])


@dataclass(frozen=True)
class RowGroupStore:
    """Images of Parquet files that do not fit into memory: row groups are read on demand, and the last few are cached.

    ``groups``: (file, number in the file, first row) of each row group. This is efficient if rows are read in order.
    """

    groups: tuple[tuple[Path, int, int], ...]
    column: str
    _cache: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row; raises DataError if it has none or the file can no longer be read."""
        which = bisect_right(self.groups, row, key=lambda group: group[2]) - 1
        column = self._cache.get(which)
        if column is None:
            column = self._read_group(which)
            # Not locked: two threads may read the same group at the same time, which is slower but correct.
            for old in list(self._cache)[: 1 - _CACHED_GROUPS]:
                self._cache.pop(old, None)
            self._cache[which] = column
        return extract_image(column[row - self.groups[which][2]])

    def _read_group(self, which: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path, number, _ = self.groups[which]
        try:
            return pq.ParquetFile(path).read_row_group(number, columns=[self.column])[self.column]
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(f"cannot read {path}: {shorten(str(error))}") from error


def find_boxes(frame: pd.DataFrame, decimal_comma: bool = False) -> tuple[list[str], pd.DataFrame] | None:
    """Return the columns with bounding boxes of faces, and the boxes; None if there are none.

    Recognized are columns with two corners, a corner and a size, or a centre and a size, such as ``left, top, right,
    bottom``, ``face_x0, face_y0, face_x1, face_y1`` or ``x, y, w, h``; and one column with four numbers, such as
    ``box``. The boxes have the columns ``left``, ``top``, ``right``, ``bottom`` and the index of ``frame``; invalid and
    missing ones are NaN.
    """
    own = {_simplify(name): str(name) for name in reversed(list(frame.columns))}
    for prefix in _BOX_PREFIXES:
        for first, second, form in _BOX_FORMS:
            names = [own.get(prefix + name, "") for name in (*first, *second)]
            if all(names):
                cells = frame[names].set_axis(range(4), axis=1).astype(str)
                if decimal_comma:
                    cells = cells.replace(",", ".", regex=True)
                boxes = _make_boxes(cells, form)
                return (names, boxes) if boxes.notna().any(axis=None) else None
    for name in (own[name] for name in _BOX_LISTS if name in own):
        if (listed := _read_box_lists(frame[name])) is not None:
            return [name], listed
    return None


def _simplify(name: Any) -> str:
    """Return a column name in lower case, only its letters and digits."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _read_box_lists(column: pd.Series) -> pd.DataFrame | None:
    """Return the boxes in the cells of a column, four numbers each; None if no cell has four."""
    import pandas as pd

    entries = [dict(_BOX_ENTRY.findall(str(cell))) for cell in column]
    if any(entries):
        # With names, the order does not matter.
        found = find_boxes(pd.DataFrame(entries, index=column.index))
        return None if found is None else found[1]
    numbers = [_BOX_NUMBER.findall(str(cell)) for cell in column]
    if not any(len(cell) == len(BOX_COLUMNS) for cell in numbers):
        return None
    rows = [cell if len(cell) == len(BOX_COLUMNS) else [None] * len(BOX_COLUMNS) for cell in numbers]
    cells = pd.DataFrame(rows, index=column.index)
    # Detectors write two corners, COCO a corner and a size, which is seldom two corners in every row, and the package
    # face_recognition top, right, bottom, left. Of the forms that fit every row, faces are about as wide as high.
    forms = {"corners": _make_boxes(cells, "corners"), "size": _make_boxes(cells, "size")}
    forms["clockwise"] = _make_boxes(cells[[3, 0, 1, 2]].set_axis(range(4), axis=1), "corners")
    full = cells.notna().all(axis=1)
    fitting = {form: boxes for form, boxes in forms.items() if boxes[full].notna().all(axis=None)}
    if "clockwise" in fitting and _measure_stretch(fitting["clockwise"]) < _measure_stretch(forms["size"]):
        return fitting["clockwise"]
    return fitting.get("corners", forms["size"])


def _measure_stretch(boxes: pd.DataFrame) -> float:
    """Return how far boxes are from squares: the mean factor between their sides."""
    width, height = boxes["right"] - boxes["left"], boxes["bottom"] - boxes["top"]
    ratio = width / height
    return float(ratio.where(ratio > 1, 1 / ratio).mean())


def _make_boxes(cells: pd.DataFrame, form: str) -> pd.DataFrame:
    """Return boxes as left, top, right, bottom from four columns of one of the forms; NaN for invalid ones."""
    import numpy as np
    import pandas as pd

    values = cells.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    low, high = values[:, :2], values[:, 2:]
    if form == "centre":
        low = low - high / 2
    if form != "corners":
        high = low + high
    boxes = np.concatenate([low, high], axis=1)
    valid = np.isfinite(boxes).all(axis=1) & (high > low).all(axis=1)
    return pd.DataFrame(np.where(valid[:, None], boxes, np.nan), columns=list(BOX_COLUMNS), index=cells.index)
