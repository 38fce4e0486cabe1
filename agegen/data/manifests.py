"""From a raw table of labelled pictures to records: which columns mean what, and which rows can be used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agegen.data.labels import AGE_BOUNDS, MAX_AGE
from agegen.data.records import Exclusion, FaceRecords, FileStore
from agegen.data.remote import is_remote
from agegen.data.tables import RawTable, read_table
from agegen.data.values import Age, choose_codes, is_missing, parse_age, parse_gender
from agegen.errors import DataError, shorten
from agegen.options import DEFAULT_READ_OPTIONS, ReadOptions

if TYPE_CHECKING:
    import pandas as pd

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
# How tables of faces call their columns, in any capitals; the likeliest first.
PATH_COLUMNS = (
    *("path", "file_name", "filename", "file", "file_path", "filepath", "img_path", "image_path", "image_name"),
    *("image_file", "image", "img", "img_name", "imgname", "picture", "photo", "photo_path", "face_path", "full_path"),
)
_ALIASES = {
    "path": PATH_COLUMNS,
    "age": ("age", "real_age", "ages", "age_range", "age_group", "age_bracket"),
    "gender": ("gender", "sex", "genders"),
    "age_low": ("age_low", "age_min", "min_age"),
    "age_high": ("age_high", "age_max", "max_age"),
    "split": ("split",),
}
# What file systems take; longer cells are no names.
_LONGEST_NAME = 4096
# Enough to see what kind of cells they are.
_QUOTED = 5
_Label = TypeVar("_Label")


def load_manifest(path: Path, options: ReadOptions = DEFAULT_READ_OPTIONS) -> FaceRecords:
    """Load a table of labelled pictures; rows that can't be used are listed as exclusions, with the reason.

    Raises:
        DataError: it can't be read, lacks a column, or one whose every cell is unknown.
    """
    table = read_table(path)
    base = path if path.is_dir() else path.parent
    return build_records(table, base, str(path), options)


def build_records(
    table: RawTable,
    base: Path,
    source: str,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
    layout: str = "",
    terms: str = "",
) -> FaceRecords:
    """Return the records of a raw table with a column of paths (relative to ``base``) and ages, genders, or both.

    Raises:
        DataError: it lacks a column, or one can't be understood at all.
    """
    frame = rename_columns(table.frame, options.age_column, source)
    if "path" not in frame.columns or not {"age", "gender", "age_low"} & set(frame.columns):
        wanted = "path" if "path" not in frame.columns else "age and no column gender"
        raise DataError(f"{source} has no column {wanted}; it has {shorten(', '.join(map(str, table.frame.columns)))}")
    frame["row"] = range(len(frame))
    images = table.images
    in_files = images is None
    if images is None:
        frame["path"] = frame["path"].map(clean_name)
        images = FileStore(tuple(base / shield_name(name) for name in frame["path"]))
    ages, age_reasons = _parse_ages(frame, table.decimal_comma, source)
    female, gender_reasons, coded = _parse_genders(frame, options.gender_codes, source)
    reasons = explain_rows(frame, ages, female, (age_reasons, gender_reasons), in_files)
    kept, excluded = _keep_usable(frame, ages, female, reasons)
    notices = tuple(_list_notices(ages, coded and options.gender_codes is None and layout == ""))
    return FaceRecords(kept, images, source, tuple(excluded), terms=terms, layout=layout, notices=notices)


def rename_columns(raw: pd.DataFrame, age_column: str | None, source: str) -> pd.DataFrame:
    """Return the table with agegen's own names for what it knows; the other columns keep theirs, without blanks.

    Raises:
        DataError: ``age_column`` isn't there.
    """
    frame = raw.copy()
    frame.columns = [str(name).strip() for name in frame.columns]
    if age_column is not None:
        if age_column not in frame.columns:
            raise DataError(f"{source} has no column {age_column}; it has {shorten(', '.join(frame.columns))}")
        frame = frame.drop(columns=[name for name in frame.columns if name == "age" != age_column])
        frame = frame.rename(columns={age_column: "age"})
    lower = {name.lower(): name for name in reversed(list(frame.columns))}
    names = {}
    for own, others in _ALIASES.items():
        if found := next((lower[other] for other in others if other in lower), None):
            names[found] = own
    frame = frame.rename(columns=names)
    # Names that agegen's own columns take; the user's keep theirs with a mark.
    taken = {"row", "female", "source", *AGE_BOUNDS} & set(frame.columns)
    frame = frame.rename(columns={name: f"{name}_" for name in taken})
    # pandas' own index, written without a name, says nothing.
    return frame.drop(columns=[name for name in frame.columns if name == "" or name.startswith("Unnamed: ")])


def explain_rows(
    frame: pd.DataFrame,
    ages: list[Age | None],
    female: list[bool | None],
    problems: tuple[list[str], list[str]],
    in_files: bool,
) -> pd.Series:
    """Return per row of a raw manifest why it can't be used, "" where it can."""
    import pandas as pd

    by_age, by_gender = (pd.Series(found, index=frame.index, dtype=str) for found in problems)
    nothing = pd.Series([age is None and said is None for age, said in zip(ages, female, strict=True)], frame.index)
    reasons = pd.Series("", index=frame.index).mask(nothing, "neither age nor gender is known")
    reasons = by_gender.where(by_gender != "", reasons)
    reasons = by_age.where(by_age != "", reasons)
    if "split" in frame.columns:
        reasons[frame["split"].map(_parse_split).isna()] = "split is none of train, val, test"
    names = frame["path"].map(str)
    reasons[names.duplicated()] = "the path is named twice"
    if in_files:
        found = names.map(_explain_path)
        reasons = found.where(found != "", reasons)
    return reasons


def clean_name(name: Any) -> str:
    """Return a path as it is meant: without blanks around it, with slashes where Windows has backslashes."""
    text = str(name).strip()
    return text.replace("\\", "/") if "\\" in text and "/" not in text else text


def shield_name(name: str) -> str:
    """Return a name that a path can be made from; what it can't be is explained by :func:`explain_rows`."""
    return name if len(name) <= _LONGEST_NAME and "\x00" not in name else "unusable"


def _parse_ages(frame: pd.DataFrame, decimal_comma: bool, source: str) -> tuple[list[Age | None], list[str]]:
    if "age" not in frame.columns and "age_low" in frame.columns and "age_high" in frame.columns:
        bounds = zip(frame["age_low"], frame["age_high"], strict=True)
        cells = ["" if is_missing(low) and is_missing(high) else f"{low}-{high}" for low, high in bounds]
    elif "age" in frame.columns:
        cells = [str(cell) for cell in frame["age"]]
    else:
        return [None] * len(frame), [""] * len(frame)
    fault = f"no age in 0–{MAX_AGE} nor a bracket of ages"
    understood, wrong = _parse_cells(cells, lambda cell: parse_age(cell, decimal_comma), "age", fault)
    if cells and not any(understood.values()) and (wrong or "gender" not in frame.columns):
        _refuse_column(source, "age", [*wrong, *understood])
    return [understood.get(cell) for cell in cells], [wrong.get(cell, "") for cell in cells]


def _parse_genders(frame: pd.DataFrame, wanted: str | None, source: str) -> tuple[list[bool | None], list[str], bool]:
    """Return what each row says, why it can't be understood, and whether the column has number codes."""
    if "gender" not in frame.columns:
        return [None] * len(frame), [""] * len(frame), False
    cells = [str(cell) for cell in frame["gender"]]
    try:
        codes = choose_codes(dict.fromkeys(cells), wanted)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    fault = "none of male, female, m, f, 0, 1 and the like"
    understood, wrong = _parse_cells(cells, lambda cell: parse_gender(cell, codes), "gender", fault)
    if cells and all(value is None for value in understood.values()) and (wrong or "age" not in frame.columns):
        _refuse_column(source, "gender", [*wrong, *understood])
    return [understood.get(cell) for cell in cells], [wrong.get(cell, "") for cell in cells], bool(codes)


def _parse_cells(
    cells: list[str], parse: Callable[[str], _Label], column: str, fault: str
) -> tuple[dict[str, _Label], dict[str, str]]:
    """Return what each distinct cell says, and of those that can't be understood, why; each is parsed once."""
    understood: dict[str, _Label] = {}
    wrong: dict[str, str] = {}
    for cell in dict.fromkeys(cells):
        try:
            understood[cell] = parse(cell)
        except ValueError:
            wrong[cell] = f"{column} '{shorten(cell)}' is {fault}"
    return understood, wrong


def _refuse_column(source: str, column: str, cells: list[str]) -> None:
    shown = ", ".join(f"'{shorten(cell)}'" for cell in cells[:_QUOTED])
    raise DataError(f"{source}: no cell of the column {column} can be understood; the first are {shown}")


def _keep_usable(
    frame: pd.DataFrame, ages: list[Age | None], female: list[bool | None], reasons: pd.Series
) -> tuple[pd.DataFrame, list[Exclusion]]:
    import pandas as pd

    bad = reasons != ""
    excluded = [
        Exclusion(shorten(str(name)), reason) for name, reason in zip(frame["path"][bad], reasons[bad], strict=True)
    ]
    bounds = pd.DataFrame(
        [(float("nan"), float("nan")) if age is None else (age.low, age.high) for age in ages],
        columns=list(AGE_BOUNDS),
        index=frame.index,
        dtype=float,
    )
    said = pd.Series([float("nan") if value is None else float(value) for value in female], frame.index, dtype=float)
    exact = bounds["age_from"].where(bounds["age_from"] == bounds["age_to"])
    frame = frame.drop(columns=["gender", "age_low", "age_high"], errors="ignore").assign(age=exact, female=said)
    frame = frame.join(bounds)[~bad].reset_index(drop=True)
    if frame["age"].notna().all():
        frame = frame.drop(columns=list(AGE_BOUNDS))
    if frame["female"].notna().all():
        frame = frame.astype({"female": bool})
    if "split" in frame.columns:
        frame["split"] = frame["split"].map(_parse_split)
    return frame.astype({"path": str}), excluded


def _list_notices(ages: list[Age | None], coded: bool) -> list[str]:
    notices = []
    if dated := sum(age is not None and age.dated for age in ages):
        notices.append(f"{dated:,} ages look like brackets that a spreadsheet turned into dates (03-Sep is 3–9)")
    if coded:
        notices.append("gender 0 is taken for male and 1 for female, as in UTKFace; --gender-codes says otherwise")
    return notices


def _parse_split(value: Any) -> str | None:
    return _SPLIT_NAMES.get(str(value).strip().lower())


def _explain_path(name: str) -> str:
    if not name.strip():
        return "the path is empty"
    if len(name) > _LONGEST_NAME or "\x00" in name:
        return "the path is no file name"
    if is_remote(name):
        return "the path is a URL; agegen reads local files only"
    if Path(os.path.normpath(name)).parts[:1] == (os.pardir,):
        return "the path leads out of the manifest's folder"
    return ""
