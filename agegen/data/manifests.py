"""From a table of labeled images to records: recognize its columns, parse the labels, exclude unusable rows."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agegen.data.labels import AGE_BOUNDS, MAX_AGE
from agegen.data.records import BOX_COLUMNS, SOURCE_COLUMN, Exclusion, FaceRecords, FileStore
from agegen.data.remote import is_remote
from agegen.data.tables import RawTable, find_boxes, read_table
from agegen.data.values import Age, choose_codes, is_missing, parse_age, parse_gender
from agegen.errors import DataError, format_count, shorten
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
# Common column names in tables of faces, in any capitalization, the most likely first.
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
# The longest path on Linux; a longer cell is not a path.
_MAX_PATH_LENGTH = 4096
# Cells to quote in an error: enough to see what the column contains.
_QUOTED = 5
# Bounding boxes in one photo with a greater intersection over union belong to the same face.
_SAME_BOX = 0.5
_Label = TypeVar("_Label")


def load_manifest(path: Path, options: ReadOptions = DEFAULT_READ_OPTIONS) -> FaceRecords:
    """Load a table of labeled images; unusable rows become exclusions with a reason.

    Raises:
        DataError: the table cannot be read, lacks a column, or has a label column without a single valid cell.
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
    """Return the records of a raw table.

    Args:
        table: with a column of image paths, unless it contains the images, and columns of ages, genders, or both.
        base: the folder that paths are relative to.
        source: path or address of the dataset.
        options: see :class:`ReadOptions`.
        layout: name of the detected layout.
        terms: terms of use of the dataset.

    Raises:
        DataError: the table lacks a column, or has a label column without a single valid cell.
    """
    frame = _rename_columns(table.frame, options.age_column, source)
    if "path" not in frame.columns or not {"age", "gender", "age_low"} & set(frame.columns):
        missing = "path" if "path" not in frame.columns else "age and no column gender"
        raise DataError(f"{source} has no column {missing}; it has {shorten(', '.join(map(str, table.frame.columns)))}")
    frame, box_notices = _add_boxes(frame, table.decimal_comma)
    frame["row"] = range(len(frame))
    images = table.images
    in_files = images is None
    if images is None:
        frame["path"] = frame["path"].map(_normalize_path)
        images = FileStore(tuple(base / (name if _is_path(name) else "unusable") for name in frame["path"]))
    ages, age_reasons = _parse_ages(frame, table.decimal_comma, source)
    female, gender_reasons, coded = _parse_genders(frame, options.gender_codes, source)
    reasons = _find_reasons(frame, ages, female, (age_reasons, gender_reasons), in_files)
    kept, excluded = _keep_usable(frame, ages, female, reasons)
    notices = (*box_notices, *_list_notices(ages, coded and options.gender_codes is None and layout == ""))
    return FaceRecords(_name_faces(kept), images, source, tuple(excluded), terms=terms, layout=layout, notices=notices)


def _rename_columns(raw: pd.DataFrame, age_column: str | None, source: str) -> pd.DataFrame:
    """Return the table with agegen's names for recognized columns; other columns keep theirs, without outer spaces.

    Raises:
        DataError: ``age_column`` does not exist.
    """
    frame = raw.copy()
    frame.columns = [str(name).strip() for name in frame.columns]
    if age_column is not None:
        if age_column not in frame.columns:
            raise DataError(f"{source} has no column {age_column}; it has {shorten(', '.join(frame.columns))}")
        frame = frame.drop(columns=[name for name in frame.columns if name == "age" != age_column])
        frame = frame.rename(columns={age_column: "age"})
    by_lower_name = {name.lower(): name for name in reversed(list(frame.columns))}
    names = {}
    for own, others in _ALIASES.items():
        if found := next((by_lower_name[other] for other in others if other in by_lower_name), None):
            names[found] = own
    frame = frame.rename(columns=names)
    # The user's columns with a name that agegen uses itself get an underscore.
    taken = {"row", "female", SOURCE_COLUMN, *AGE_BOUNDS} & set(frame.columns)
    frame = frame.rename(columns={name: f"{name}_" for name in taken})
    # An index that pandas wrote without a name is not a column of the dataset.
    return frame.drop(columns=[name for name in frame.columns if name == "" or name.startswith("Unnamed: ")])


def _add_boxes(frame: pd.DataFrame, decimal_comma: bool) -> tuple[pd.DataFrame, list[str]]:
    """Return a table with bounding boxes in agegen's columns, and a notice about the columns they were read from."""
    found = find_boxes(frame, decimal_comma)
    if found is None:
        return frame, []
    names, boxes = found
    frame = frame.drop(columns=names)
    # Other columns with these names, such as those of a person's box, stay as they are but for an underscore.
    frame = frame.rename(columns={name: f"{name}_" for name in BOX_COLUMNS})
    return frame.join(boxes), [f"faces are cut out of the images by the bounding boxes in {', '.join(names)}"]


def _name_faces(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which each of several faces of a photo has a path of its own, with its bounding box."""
    import pandas as pd

    shared = frame["path"].duplicated(keep=False)
    if not shared.any() or BOX_COLUMNS[0] not in frame.columns:
        return frame
    rows = frame.loc[shared, ["path", *BOX_COLUMNS]].itertuples(index=False, name=None)
    names = [f"{path}#{','.join(f'{side:g}' for side in box)}" for path, *box in rows]
    return frame.assign(path=frame["path"].mask(shared, pd.Series(names, frame.index[shared])))


def _normalize_path(name: Any) -> str:
    """Return a path without outer spaces, and with slashes if it is a Windows path."""
    text = str(name).strip()
    return text.replace("\\", "/") if "\\" in text and "/" not in text else text


def _is_path(name: str) -> bool:
    """Return whether the operating system accepts a path; others are excluded by :func:`_check_path`."""
    return len(name) <= _MAX_PATH_LENGTH and "\x00" not in name


def _check_path(name: str) -> str:
    """Return the reason why a path is unusable, "" if it is usable."""
    if not name.strip():
        return "the path is empty"
    if not _is_path(name):
        return "the path is not a file name"
    if is_remote(name):
        return "the path is a URL; agegen reads only local files"
    if Path(os.path.normpath(name)).parts[:1] == (os.pardir,):
        return "the path leads out of the manifest's folder"
    return ""


def _parse_ages(frame: pd.DataFrame, decimal_comma: bool, source: str) -> tuple[list[Age | None], list[str]]:
    """Return the age of each row, and the reason if its cell is invalid."""
    if "age" not in frame.columns and "age_low" in frame.columns and "age_high" in frame.columns:
        bounds = zip(frame["age_low"], frame["age_high"], strict=True)
        cells = ["" if is_missing(low) and is_missing(high) else f"{low}-{high}" for low, high in bounds]
    elif "age" in frame.columns:
        cells = [str(cell) for cell in frame["age"]]
    else:
        return [None] * len(frame), [""] * len(frame)
    fault = f"is not an age in 0–{MAX_AGE} or a bracket of ages"
    valid, invalid = _parse_cells(cells, lambda cell: parse_age(cell, decimal_comma), "age", fault)
    if cells and not any(valid.values()) and (invalid or "gender" not in frame.columns):
        _raise_invalid_column(source, "age", [*invalid, *valid])
    return [valid.get(cell) for cell in cells], [invalid.get(cell, "") for cell in cells]


def _parse_genders(frame: pd.DataFrame, meanings: str | None, source: str) -> tuple[list[bool | None], list[str], bool]:
    """Return whether each row is female, the reason if its cell is invalid, and whether the column has number codes."""
    if "gender" not in frame.columns:
        return [None] * len(frame), [""] * len(frame), False
    cells = [str(cell) for cell in frame["gender"]]
    try:
        codes = choose_codes(dict.fromkeys(cells), meanings)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    fault = "is not male, female, m, f, 0, 1 or the like"
    valid, invalid = _parse_cells(cells, lambda cell: parse_gender(cell, codes), "gender", fault)
    if cells and all(value is None for value in valid.values()) and (invalid or "age" not in frame.columns):
        _raise_invalid_column(source, "gender", [*invalid, *valid])
    return [valid.get(cell) for cell in cells], [invalid.get(cell, "") for cell in cells], bool(codes)


def _parse_cells(
    cells: list[str], parse: Callable[[str], _Label], column: str, fault: str
) -> tuple[dict[str, _Label], dict[str, str]]:
    """Parse each distinct cell once; return the labels of valid cells, and the reasons of invalid ones."""
    valid: dict[str, _Label] = {}
    invalid: dict[str, str] = {}
    for cell in dict.fromkeys(cells):
        try:
            valid[cell] = parse(cell)
        except ValueError:
            invalid[cell] = f"{column} '{shorten(cell)}' {fault}"
    return valid, invalid


def _raise_invalid_column(source: str, column: str, cells: list[str]) -> None:
    quoted = ", ".join(f"'{shorten(cell)}'" for cell in cells[:_QUOTED])
    raise DataError(f"{source}: the column {column} has no valid cell; the first are {quoted}")


def _find_reasons(
    frame: pd.DataFrame,
    ages: list[Age | None],
    female: list[bool | None],
    label_reasons: tuple[list[str], list[str]],
    in_files: bool,
) -> pd.Series:
    """Return the reason why each row of a table is unusable, "" for usable rows.

    Args:
        frame: with agegen's column names.
        ages: of each row.
        female: of each row.
        label_reasons: the reasons of invalid ages, and those of invalid genders.
        in_files: whether the paths are those of files; otherwise the images are in the table.
    """
    import pandas as pd

    by_age, by_gender = (pd.Series(found, index=frame.index, dtype=str) for found in label_reasons)
    unlabeled = pd.Series([age is None and one is None for age, one in zip(ages, female, strict=True)], frame.index)
    reasons = pd.Series("", index=frame.index).mask(unlabeled, "neither age nor gender is known")
    reasons = by_gender.where(by_gender != "", reasons)
    reasons = by_age.where(by_age != "", reasons)
    if "split" in frame.columns:
        reasons[frame["split"].map(_parse_split).isna()] = "split is not train, val or test"
    names = frame["path"].map(str)
    if BOX_COLUMNS[0] in frame.columns:
        reasons[frame[BOX_COLUMNS[0]].isna()] = "no valid bounding box, unlike other rows"
    for row, reason in _find_repeats(frame, names, list(zip(ages, female, strict=True))).items():
        reasons.iloc[row] = reason
    if in_files:
        found = names.map(_check_path)
        reasons = found.where(found != "", reasons)
    return reasons


def _find_repeats(
    frame: pd.DataFrame, names: pd.Series, labels: list[tuple[Age | None, bool | None]]
) -> dict[int, str]:
    """Return the rows that repeat a face, by their number, with the reason; of equal labels the first row stays."""
    import numpy as np

    keys = names.map(posixpath.normpath)
    shared = np.flatnonzero(keys.duplicated(keep=False))
    boxes = frame[list(BOX_COLUMNS)].to_numpy(dtype=float) if BOX_COLUMNS[0] in frame.columns else None
    repeats: dict[int, str] = {}
    kept: dict[str, list[int]] = {}
    for row in shared.tolist():
        first = kept.setdefault(keys.iloc[row], [])
        if boxes is not None and np.isnan(boxes[row]).any():
            continue
        same = [one for one in first if boxes is None or _overlap(boxes[one], boxes[row])]
        if not same:
            first.append(row)
            continue
        if any(_contradict(labels[one], labels[row]) for one in same):
            reason = "rows with different labels for one photo; without bounding boxes, whose they are is unknown"
            reason = reason if boxes is None else "rows with different labels for one face"
            repeats |= dict.fromkeys((*same, row), reason)
        else:
            repeats[row] = repeats.get(same[0], "the path occurs twice" if boxes is None else "the face occurs twice")
    return repeats


def _overlap(first: Any, second: Any) -> bool:
    """Return whether two bounding boxes (left, top, right, bottom) are so similar that they belong to one face."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return bool(shared > _SAME_BOX * (areas - shared))


def _contradict(first: tuple[Age | None, bool | None], second: tuple[Age | None, bool | None]) -> bool:
    """Return whether two labels cannot belong to one face: both ages, or both genders, are known and differ."""
    return any(None not in pair and pair[0] != pair[1] for pair in zip(first, second, strict=True))


def _parse_split(value: Any) -> str | None:
    return _SPLIT_NAMES.get(str(value).strip().lower())


def _keep_usable(
    frame: pd.DataFrame, ages: list[Age | None], female: list[bool | None], reasons: pd.Series
) -> tuple[pd.DataFrame, list[Exclusion]]:
    """Return the usable rows with the columns of :class:`FaceRecords`, and the others as exclusions."""
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
    genders = pd.Series([float("nan") if one is None else float(one) for one in female], frame.index, dtype=float)
    exact = bounds["age_from"].where(bounds["age_from"] == bounds["age_to"])
    frame = frame.drop(columns=["gender", "age_low", "age_high"], errors="ignore").assign(age=exact, female=genders)
    frame = frame.join(bounds)[~bad].reset_index(drop=True)
    if frame["age"].notna().all():
        frame = frame.drop(columns=list(AGE_BOUNDS))
    if frame["female"].notna().all():
        frame = frame.astype({"female": bool})
    if "split" in frame.columns:
        frame["split"] = frame["split"].map(_parse_split)
    return frame.astype({"path": str}), excluded


def _list_notices(ages: list[Age | None], assumed_codes: bool) -> list[str]:
    notices = []
    if dated := sum(age is not None and age.dated for age in ages):
        notices.append(
            f"brackets that a spreadsheet probably converted to dates (03-Sep is 3–9): {format_count(dated, 'age')}"
        )
    if assumed_codes:
        notices.append("gender 0 is read as male and 1 as female, as in UTKFace; change it with --gender-codes")
    return notices
