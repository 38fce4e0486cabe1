"""Rows of predictions as JSON, JSON Lines or CSV, written as they are ready and resumed after an interruption."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, Protocol

from agegen.data.records import BOX_COLUMNS
from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically
from agegen.predict.results import GIVEN, UNREADABLE, FacePrediction, PhotoPrediction
from agegen.render.gallery import GalleryAbout, GalleryWriter, open_gallery

# The columns that CSV always has: fields of a row, without those of JSON only, in separate columns or on request.
CSV_COLUMNS = [
    *(
        field.name
        for field in fields(FacePrediction)
        if field.name not in ("box", "landmarks", "gender_threshold", "under", "distribution")
    ),
    *BOX_COLUMNS,
]
_TEXT_COLUMNS = {field.name for field in fields(FacePrediction) if "str" in str(field.type)}
# Spreadsheets execute cells that begin like this, and file names may; an apostrophe in front marks them as text.
_FORMULA = ("=", "+", "-", "@")
# json.dumps would create an encoder for each row.
_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
# The columns that must be the same in all rows of a resumed output.
ORIGIN_COLUMNS = ("model", "detector", "options")


class RowWriter(Protocol):
    """Writes the rows of one photo at a time."""

    def write(self, photo: PhotoPrediction) -> None:
        """Write the rows of a photo, all or none of them."""

    def close(self) -> None:
        """Complete the output."""


@contextmanager
def open_writer(
    kind: str, target: str, stdout: BinaryIO, resume: bool = False, extra_columns: Sequence[str] = ()
) -> Iterator[RowWriter]:
    """Open a writer of ``kind`` (json, jsonl or csv) to a file, or to ``stdout`` if ``target`` is ``-``.

    ``extra_columns``: the columns that CSV has on request; see :func:`list_extra_columns`.

    JSON files appear complete at the end or not at all; the other two grow row by row.

    Raises:
        AgegenError: the file cannot be written.
    """
    if target == "-":
        writer = _create_writer(kind, stdout, "stdout", True, extra_columns)
        yield writer
        writer.close()
    elif kind == "json":
        with replace_atomically(Path(target)) as temporary, temporary.open("wb") as stream:
            writer = JsonWriter(stream, target)
            yield writer
            writer.close()
    else:
        header = not (resume and Path(target).exists())
        with _open_file(Path(target), append=not header) as stream:
            yield _create_writer(kind, stream, target, header, extra_columns)


def list_extra_columns(under: Sequence[int], distribution: bool) -> list[str]:
    """Return the columns that CSV and Parquet have on request."""
    return [f"under_{age}" for age in under] + (["distribution"] if distribution else [])


def make_cells(row: FacePrediction) -> dict[str, Any]:
    """Return the values of a row by column, the bounding box and the shares in separate columns."""
    shares = {f"under_{age}": share for age, share in row.under}
    return row.list_values() | dict(zip(BOX_COLUMNS, row.box or (None,) * 4, strict=True)) | shares


def format_row(row: FacePrediction) -> str:
    """Return a row as JSON on one line; file names that are not UTF-8 are escaped."""
    text = _encode_json(row.to_json())
    return text if _is_utf8(text) else json.dumps(row.to_json(), allow_nan=False)


class _StreamWriter:
    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def close(self) -> None:
        """Do nothing: an output of complete rows is complete."""

    def _write_text(self, text: str) -> None:
        try:
            # One call and one flush, so that an interruption leaves all rows of a photo or none.
            self._stream.write(text.encode("utf-8", errors="surrogateescape"))
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise AgegenError(f"cannot write {self._name}: {error.strerror or error}") from error


class ReportWriter:
    """The page of ``--report``, in addition to rows."""

    def __init__(self, gallery: GalleryWriter) -> None:
        self._gallery = gallery

    def write(self, photo: PhotoPrediction) -> None:
        """Add the faces of a photo with their crops, or the reason why it has none."""
        for row, crop in zip_longest(photo.list_rows(), photo.crops):
            self._gallery.add(vars(row), crop, photo.photo_size)
        self._gallery.flush()

    def close(self) -> None:
        """Do nothing: the page is written when its context ends."""


@contextmanager
def open_report(
    path: Path, about: GalleryAbout, earlier: Iterable[Mapping[str, Any]] = (), resume: bool = False
) -> Iterator[ReportWriter]:
    """Open the page of ``--report``; ``earlier`` are the rows of the part that is finished, if it is resumed.

    Raises:
        AgegenError: the page cannot be written.
    """
    with open_gallery(path, about, resume) as gallery:
        for row in earlier:
            gallery.add(row)
        yield ReportWriter(gallery)


class JsonLinesWriter(_StreamWriter):
    """One JSON object per line."""

    def write(self, photo: PhotoPrediction) -> None:
        """Write the rows of a photo."""
        self._write_text("".join(format_row(row) + "\n" for row in photo.list_rows()))


class JsonWriter(_StreamWriter):
    """One JSON array."""

    _started = False

    def write(self, photo: PhotoPrediction) -> None:
        """Write the rows of a photo."""
        start = ",\n  " if self._started else "[\n  "
        self._started = True
        self._write_text(start + ",\n  ".join(format_row(row) for row in photo.list_rows()))

    def close(self) -> None:
        """End the array."""
        self._write_text("\n]\n" if self._started else "[]\n")


class CsvWriter(_StreamWriter):
    """CSV with a header; the bounding box in four columns, a distribution as 117 numbers in one."""

    def __init__(self, stream: BinaryIO, name: str, header: bool = True, extra_columns: Sequence[str] = ()) -> None:
        super().__init__(stream, name)
        self._columns = [*CSV_COLUMNS, *extra_columns]
        if header:
            self._write_text(",".join(self._columns) + "\n")

    def write(self, photo: PhotoPrediction) -> None:
        """Write the rows of a photo."""
        lines = []
        for row in photo.list_rows():
            cells = make_cells(row)
            cells["distribution"] = " ".join(f"{share:g}" for share in row.distribution or ())
            lines.append(_format_cells([cells.get(name) for name in self._columns]))
        self._write_text("".join(lines))


def _create_writer(kind: str, stream: BinaryIO, name: str, header: bool, extra_columns: Sequence[str]) -> RowWriter:
    if kind == "csv":
        return CsvWriter(stream, name, header, extra_columns)
    return JsonWriter(stream, name) if kind == "json" else JsonLinesWriter(stream, name)


def _open_file(path: Path, append: bool) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab" if append else "wb")
    except OSError as error:
        raise AgegenError(f"cannot write {path}: {error.strerror or error}") from error


def _format_cells(cells: list[Any]) -> str:
    """Return a line of CSV, with a line end."""
    text = io.StringIO()
    cells = [f"'{cell}" if isinstance(cell, str) and _looks_like_formula(cell) else cell for cell in cells]
    # With this line end the csv module also quotes carriage returns in names; Python 3.11 does not otherwise.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _looks_like_formula(cell: str) -> bool:
    """Return whether a spreadsheet would execute a cell, with or without leading apostrophes."""
    return cell.lstrip("'").startswith(_FORMULA)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class _Record(NamedTuple):
    """A row of an existing output: its file, its text, the origin columns, and whether the file was readable."""

    file: str
    line: str
    origin: dict[str, str]
    readable: bool


def load_resume_state(
    kind: str, path: Path, origin: Mapping[str, str] = MappingProxyType({}), extra_columns: Sequence[str] = ()
) -> set[str]:
    """Prepare an interrupted output for more rows, and return the files that are finished in it.

    Removes an incomplete last line and the rows of the last file, which may not be all of its rows.

    Args:
        kind: ``jsonl`` or ``csv``.
        path: the output; it need not exist.
        origin: the values that its rows must have: ``model``, ``detector`` and ``options``.
        extra_columns: the columns that CSV has on request.

    Raises:
        AgegenError: the file is unreadable, not such an output, or written with another model, detector or options.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise AgegenError(f"cannot read {path}: {error.strerror}") from error
    text = content[: content.rfind(b"\n") + 1].decode("utf-8", errors="surrogateescape")
    if not text:
        path.unlink(missing_ok=True)
        return set()
    columns = [*CSV_COLUMNS, *extra_columns]
    records = _read_csv(text, path, columns) if kind == "csv" else _read_json_lines(text, path)
    _check_origin(records, path, origin)
    last = records[-1].file if records else None
    finished = [record for record in records if record.file != last]
    header = ",".join(columns) + "\n" if kind == "csv" else ""
    lines = "".join(record.line for record in finished)
    with replace_atomically(path) as temporary:
        temporary.write_bytes((header + lines).encode("utf-8", errors="surrogateescape"))
    return {record.file for record in finished}


def read_rows(kind: str, target: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an output that :func:`load_resume_state` has prepared, in their JSON form.

    Args:
        kind: ``jsonl`` or ``csv``, of which numbers and bounding boxes are parsed.
        target: the file; it need not exist.
    """
    if not Path(target).exists():
        return
    with Path(target).open(encoding="utf-8", errors="surrogateescape", newline="\n" if kind == "jsonl" else "") as file:
        if kind == "jsonl":
            yield from map(json.loads, file)
            return
        for row in csv.DictReader(file):
            cells = {name: _parse_cell(name, cell) for name, cell in row.items() if cell}
            box = tuple(cells.get(name) for name in BOX_COLUMNS)
            yield cells | ({} if None in box else {"box": box})


def _parse_cell(name: str, cell: str) -> Any:
    if name in _TEXT_COLUMNS:
        return cell[1:] if cell[:1] == "'" and _looks_like_formula(cell) else cell
    return json.loads(cell) if name in CSV_COLUMNS else cell


def _check_origin(records: list[_Record], path: Path, origin: Mapping[str, str]) -> None:
    for record in records:
        for name, wanted in origin.items():
            found = record.origin[name]
            # Unreadable files have no model or detector, and given faces were not found by the detector.
            if found != wanted and found != GIVEN and record.readable:
                none = "default" if name == "options" else "none"
                raise AgegenError(
                    f"cannot resume {path}: its rows were written with {name} '{found or none}', not "
                    f"'{wanted or none}'. Use the same {name}, or write to another file."
                )


def _read_json_lines(text: str, path: Path) -> list[_Record]:
    records = []
    # Not splitlines: names may contain other line ends of Unicode, which JSON does not escape.
    for line in text.removesuffix("\n").split("\n"):
        try:
            row = json.loads(line)
            origin = {name: str(row.get(name) or "") for name in ORIGIN_COLUMNS}
            records.append(_Record(str(row["file"]), line + "\n", origin, row["status"] != UNREADABLE))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"cannot resume {path}: not an output of `agegen predict --jsonl`") from error
    return records


def _read_csv(text: str, path: Path, columns: list[str]) -> list[_Record]:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, None)
    if header != columns and header is not None and header[: len(CSV_COLUMNS)] == CSV_COLUMNS:
        raise DataError(f"cannot resume {path}: it was written with different --under or --distribution options")
    if header != columns:
        raise DataError(f"cannot resume {path}: not an output of `agegen predict --csv`")
    places = {name: columns.index(name) for name in ORIGIN_COLUMNS}
    records = []
    for quoted in reader:
        cells = [cell[1:] if cell[:1] == "'" and _looks_like_formula(cell) else cell for cell in quoted]
        origin = {name: cells[place] if place < len(cells) else "" for name, place in places.items()}
        file = cells[0] if cells else ""
        records.append(_Record(file, _format_cells(cells), origin, cells[1:2] != [UNREADABLE]))
    return records
