"""Rows of predictions as JSON, JSON Lines or CSV, written as they come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, Protocol

from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically
from agegen.predict.results import GIVEN, UNREADABLE, FacePrediction, PhotoPrediction

SIDES = ("left", "top", "right", "bottom")
# Of CSV: all that a row has but what has columns of its own, or is there on request.
CSV_COLUMNS = [
    *(
        field.name
        for field in fields(FacePrediction)
        if field.name not in ("box", "landmarks", "under", "distribution")
    ),
    *SIDES,
]
# A spreadsheet computes cells that begin so; an apostrophe before them says that they are text. Names of files may.
_FORMULA = ("=", "+", "-", "@")


class RowWriter(Protocol):
    """Writes the rows of one photograph at a time, whole."""

    def write(self, photo: PhotoPrediction) -> None:
        """Write a photograph's rows."""

    def close(self) -> None:
        """Write what ends the output."""


class _Writer:
    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def close(self) -> None:
        """Write what ends the output: nothing, where each row stands for itself."""

    def _emit(self, text: str) -> None:
        try:
            # One call and one flush: an interruption leaves a photograph's rows whole or away.
            self._stream.write(text.encode("utf-8", errors="surrogateescape"))
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise AgegenError(f"can't write {self._name}: {error.strerror or error}") from error


class JsonLinesWriter(_Writer):
    """One JSON object a line."""

    def write(self, photo: PhotoPrediction) -> None:
        """Write a photograph's rows."""
        self._emit("".join(format_row(row) + "\n" for row in photo.list_rows()))


class JsonWriter(_Writer):
    """One JSON array."""

    _written = False

    def write(self, photo: PhotoPrediction) -> None:
        """Write a photograph's rows."""
        start = ",\n  " if self._written else "[\n  "
        self._written = True
        self._emit(start + ",\n  ".join(format_row(row) for row in photo.list_rows()))

    def close(self) -> None:
        """End the array."""
        self._emit("\n]\n" if self._written else "[]\n")


class CsvWriter(_Writer):
    """CSV with a header; the box in four columns, a distribution as 117 numbers in one."""

    def __init__(self, stream: BinaryIO, name: str, header: bool = True, more: Sequence[str] = ()) -> None:
        super().__init__(stream, name)
        self._columns = [*CSV_COLUMNS, *more]
        if header:
            self._emit(",".join(self._columns) + "\n")

    def write(self, photo: PhotoPrediction) -> None:
        """Write a photograph's rows."""
        lines = []
        for row in photo.list_rows():
            cells = asdict(row) | dict(zip(SIDES, row.box or (None,) * 4, strict=True))
            cells |= {f"under_{age}": share for age, share in row.under}
            cells["distribution"] = " ".join(f"{share:g}" for share in row.distribution or ())
            lines.append(format_cells([cells.get(name) for name in self._columns]))
        self._emit("".join(lines))


def format_cells(cells: list[Any]) -> str:
    """Return a line of CSV, ended by a newline."""
    text = io.StringIO()
    cells = [f"'{cell}" if isinstance(cell, str) and looks_like_formula(cell) else cell for cell in cells]
    # With this line end the csv module quotes carriage returns in names too; Python 3.11 does not otherwise.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def looks_like_formula(cell: str) -> bool:
    """Return whether a spreadsheet would compute a cell, or one behind apostrophes."""
    return cell.lstrip("'").startswith(_FORMULA)


def format_row(row: FacePrediction) -> str:
    """Return a row as JSON on one line; names that aren't UTF-8 are escaped."""
    text = json.dumps(row.to_json(), ensure_ascii=False, allow_nan=False)
    return text if _is_utf8(text) else json.dumps(row.to_json(), allow_nan=False)


@contextmanager
def open_writer(
    kind: str, target: str, stdout: BinaryIO, resume: bool = False, more: Sequence[str] = ()
) -> Iterator[RowWriter]:
    """Open a writer of ``kind`` (json, jsonl or csv) to a file, or to ``stdout`` where ``target`` is ``-``.

    ``more``: columns of CSV beside those that it always has; see :func:`name_columns`.

    JSON files appear whole at the end or not at all; the other two grow row by row.

    Raises:
        AgegenError: the file can't be written.
    """
    if target == "-":
        writer = _make_writer(kind, stdout, "stdout", True, more)
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
            yield _make_writer(kind, stream, target, header, more)


def name_columns(under: Sequence[int], distribution: bool) -> list[str]:
    """Return the columns that CSV has on request."""
    return [f"under_{age}" for age in under] + (["distribution"] if distribution else [])


def _make_writer(kind: str, stream: BinaryIO, name: str, header: bool, more: Sequence[str]) -> RowWriter:
    if kind == "csv":
        return CsvWriter(stream, name, header, more)
    return JsonWriter(stream, name) if kind == "json" else JsonLinesWriter(stream, name)


def _open_file(path: Path, append: bool) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab" if append else "wb")
    except OSError as error:
        raise AgegenError(f"can't write {path}: {error.strerror or error}") from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# What a resumed output must have in common with the rows that it has.
MADE_BY = ("model", "detector", "options")
_PLAIN = "none"


def load_resume_state(
    kind: str, path: Path, made_by: Mapping[str, str] = MappingProxyType({}), more: Sequence[str] = ()
) -> set[str]:
    """Make an interrupted output ready to go on, and return the files that are finished in it.

    A torn last line goes, and so do the rows of the last file, which may not be whole. ``made_by`` holds what all rows
    must have: ``model``, ``detector`` and ``options``; ``more`` are the columns of CSV on request.

    Raises:
        AgegenError: it is no output of ``agegen predict`` in this form, its rows came from another model, detector or
            options, or it can't be read.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise AgegenError(f"can't read {path}: {error.strerror}") from error
    text = content[: content.rfind(b"\n") + 1].decode("utf-8", errors="surrogateescape")
    if not text:
        path.unlink(missing_ok=True)
        return set()
    columns = [*CSV_COLUMNS, *more]
    records = _read_csv(text, path, columns) if kind == "csv" else _read_lines(text, path)
    _check_origin(records, path, made_by)
    last = records[-1].file if records else None
    kept = [record.line for record in records if record.file != last]
    header = ",".join(columns) + "\n" if kind == "csv" else ""
    with replace_atomically(path) as temporary:
        temporary.write_bytes((header + "".join(kept)).encode("utf-8", errors="surrogateescape"))
    return {record.file for record in records if record.file != last}


class _Record(NamedTuple):
    """A row of an output: its file, its text, what estimated it, and whether anything was."""

    file: str
    line: str
    made_by: dict[str, str]
    judged: bool


def _check_origin(records: list[_Record], path: Path, made_by: Mapping[str, str]) -> None:
    for record in records:
        for name, wanted in made_by.items():
            # Of what couldn't be read nobody said anything, and faces that were given weren't found by the detector.
            if (found := record.made_by[name]) != wanted and record.judged and found != GIVEN:
                raise AgegenError(
                    f"{path} can't be gone on with: its rows came from the {name} '{found or _PLAIN}', "
                    f"and now it is '{wanted or _PLAIN}'; use that again, or write another file"
                )


def _read_lines(text: str, path: Path) -> list[_Record]:
    records = []
    # Not splitlines: names may hold what Unicode counts as line ends, and JSON leaves it as it is.
    for line in text.removesuffix("\n").split("\n"):
        try:
            row = json.loads(line)
            made_by = {name: str(row.get(name) or "") for name in MADE_BY}
            records.append(_Record(str(row["file"]), line + "\n", made_by, row["status"] != UNREADABLE))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no output of `agegen predict --jsonl`; --resume can't go on with it") from error
    return records


def _read_csv(text: str, path: Path, columns: list[str]) -> list[_Record]:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, None)
    if header != columns and header is not None and header[: len(CSV_COLUMNS)] == CSV_COLUMNS:
        raise DataError(f"{path} can't be gone on with: it was begun with other --under or --distribution")
    if header != columns:
        raise DataError(f"{path} is no output of `agegen predict --csv`; --resume can't go on with it")
    rows = ([cell[1:] if cell[:1] == "'" and looks_like_formula(cell) else cell for cell in cells] for cells in reader)
    places = {name: columns.index(name) for name in MADE_BY}
    return [
        _Record(
            cells[0] if cells else "",
            format_cells(cells),
            {name: cells[place] if place < len(cells) else "" for name, place in places.items()},
            cells[1:2] != [UNREADABLE],
        )
        for cells in rows
    ]
