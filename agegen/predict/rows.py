"""Rows of predictions as JSON, JSON Lines or CSV, written as they come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from agegen.errors import AgegenError
from agegen.files import replace_atomically
from agegen.predict.results import FacePrediction, PhotoPrediction

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
