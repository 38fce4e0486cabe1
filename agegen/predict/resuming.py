"""Outputs of ``agegen predict`` that go on: CSV and JSON Lines that an interruption left."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically
from agegen.predict.describing import GIVEN
from agegen.predict.results import UNREADABLE
from agegen.predict.rows import CSV_COLUMNS, format_cells, looks_like_formula

# What a resumed output must have in common with the rows that it has.
MADE_BY = ("model", "detector", "options")
_PLAIN = "none"


def take_up(
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
