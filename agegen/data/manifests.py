"""From a table of labeled images to records: recognize its columns, parse the labels, exclude unusable rows."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from agegen.data.labels import AGE_BOUNDS, IDENTITY_COLUMNS, MAX_AGE, MOST_COLUMNS, SPLITS, fill_missing
from agegen.data.records import BOX_COLUMNS, SOURCE_COLUMN, Exclusion, FaceRecords, FilePaths, FileStore
from agegen.data.remote import is_remote
from agegen.data.tables import RawTable, find_boxes, read_table
from agegen.data.values import (
    UNITS,
    Age,
    choose_codes,
    compute_ages,
    find_split,
    find_unit,
    has_gender_letters,
    is_missing,
    parse_age,
    parse_gender,
    parse_split,
)
from agegen.errors import DataError, format_count, shorten
from agegen.options import DEFAULT_READ_OPTIONS, ReadOptions

if TYPE_CHECKING:
    import pandas as pd

# Common column names in tables of faces, in any capitalization, the most likely first.
PATH_COLUMNS = (
    *("path", "file_name", "filename", "file", "file_path", "filepath", "img_path", "image_path", "image_name"),
    *("image_file", "image", "img", "img_name", "imgname", "picture", "photo", "photo_path", "face_path", "full_path"),
)
_ALIASES = {
    "path": PATH_COLUMNS,
    "age": ("age", "real_age", "ages", "age_range", "age_group", "age_bracket", "exact_age", "true_age", "actual_age"),
    "gender": ("gender", "sex", "genders"),
    "age_low": ("age_low", "age_min", "min_age"),
    "age_high": ("age_high", "age_max", "max_age"),
    "split": ("split",),
}
# Whose age it is: that of a mother, a pregnancy or an estimate is not the age in the image.
_WHOSE = (
    "(?:face|person|subject|participant|patient|user|child|kid|infant|baby|people|real|true|exact|actual|chronological"
    "|photo|image|label)"
)
# Ages in a unit that the column's name states: age_months, child_age_in_days, months_old; the preferred unit first.
_UNITS = {
    unit: re.compile(rf"(?:{_WHOSE}_)?ages?_?(?:in_?)?{names}|{names}_?(?:old|of_age)")
    for unit, names in (
        ("years", "(?:years?|yrs?)"),
        ("months", "(?:months?|mos?|mths?)"),
        ("weeks", "(?:weeks?|wks?)"),
        ("days", "days?"),
    )
}
# Read as ages where nothing else is, but `year` is a date, and `months` up to 12 may be those of the calendar.
_BARE_UNITS = {"years": 0.0, "months": 12.0}
_DAY = "(?:date|day|year|yr)"
_BIRTH = re.compile(rf"dob|yob|born|birth|(?:birth|born)_?{_DAY}|{_DAY}_?(?:of_)?(?:birth|born)")
_SHOT = "(?:photo|photograph|picture|pic|image|img|capture|shot|shooting|recording|scan|acquisition|exam|visit|session)"
_TAKEN = "(?:taken|captured|photographed|recorded|acquired|shot)"
_PHOTO = re.compile(
    rf"{_SHOT}_?(?:{_DAY}|time|datetime|taken)|{_DAY}_?(?:of_)?(?:the_)?(?:{_SHOT}|{_TAKEN})"
    rf"|{_TAKEN}(?:_(?:on|at|in|{_DAY}))?|datetime_?original"
)
# Only in a table without a column of the kind above: these may be dates of anything.
_ANY_DATE = re.compile(r"date|year|datetime|timestamp")
_UNIT_COLUMN = re.compile("age_units?|units?_of_age|units?_age|units?")
# Columns that say whether a face is male, or female, and their cells.
_GENDER_FLAGS = {"male": "male", "is_male": "male", "female": "female", "is_female": "female"}
_FLAGS = {**dict.fromkeys(("1", "true", "yes"), True), **dict.fromkeys(("0", "-1", "false", "no"), False)}
# A column that may be one of genders, and one that may be a split.
_LIKE_GENDER = re.compile(r"(?:.*_)?(?:sexe?|sexo|sesso|genders?|genero|genre|geschlecht|male|female)(?:_.*)?")
_LIKE_SPLIT = re.compile(
    r"(?:is_)?(?:train|training|test|val|valid|validation|split|set|subset|partition|usage|phase|folds?)(?:_(?:set|id|no))?"
    r"|(?:data|dataset)_?(?:split|set|part|partition|type)"
)
# A number at the end, to which the column's unit belongs; in `18m` or `2 years` the cell has its own.
_UNITLESS = re.compile(r".*[\d)\]+]\s*")
# Columns of what `agegen predict` and `agegen eval` write.
_ESTIMATES = {"p_female", "estimated_age"}
# To find the folder of images that are not where a table says, this many names are looked for in so many folders.
_PROBED, _MOST_FOLDERS = 10, 100
# Before the name of a label that was in a struct: json.age, where WebDataset was converted to Parquet.
_STRUCT = re.compile(r"^(?:json|labels?|meta|metadata|annotations?|attributes?)\.(?=\w)")
# Columns to name in a notice.
_NAMED = 8
# In years. If no age is above it, they are fractions of a century: 116 / 100.
_FRACTIONS = 1.2
# If no age of so many is above it, they may be standardized, or codes of up to eleven groups; a few may be children's.
_CODES, _MOST_CHILDREN = 10, 20
# A split column has no more values than these: train, val and test, each in several parts.
_MOST_SPLITS = 20
# The longest path on Linux; a longer cell is not a path.
_MAX_PATH_LENGTH = 4096
# Boxes of one photo are compared with each other. Photos of crowds in WIDER FACE have up to 1,968 faces.
_MOST_FACES = 2000
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
    return build_records(read_table(path), path.parent, str(path), options)


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
    frame, notices = _rename_columns(table.frame, options.age_column, source)
    if table.images is not None and "path" not in frame.columns:
        frame["path"] = [f"row-{row}" for row in range(len(frame))]
    frame, units = _join_units(frame)
    frame, found = _find_ages(frame)
    frame, genders = _find_genders(frame)
    # The columns of a known layout are known.
    notices = [*notices, *units, *found, *genders] if layout == "" else []
    frame, surplus = _drop_surplus(frame)
    notices += surplus
    if "path" not in frame.columns or not {"age", "gender", "age_low"} & set(frame.columns):
        missing = "path" if "path" not in frame.columns else "age and no column gender"
        raise DataError(f"{source} has no column {missing}; it has {shorten(', '.join(map(str, table.frame.columns)))}")
    frame, found_boxes = _add_boxes(frame, table.decimal_comma)
    notices += found_boxes
    frame["row"] = range(len(frame))
    images = table.images
    in_files = images is None
    if images is None:
        frame["path"] = frame["path"].map(_normalize_path)
        if folder := find_image_folder(base, list(frame["path"]), find_split(Path(source).stem)):
            frame["path"] = f"{folder}/" + frame["path"]
            notices.append(f"the images are in {folder}/")
        notices += _describe_outside(base, list(frame["path"])) if layout == "" else []
        images = FileStore(FilePaths(base, [name if _is_path(name) else "unusable" for name in frame["path"]]))
    notices += name_splits(frame, table.origins)
    ages, age_reasons = _parse_ages(frame, table.decimal_comma, source)
    female, gender_reasons, coded = _parse_genders(frame, options.gender_codes, source)
    reasons = _find_reasons(frame, ages, female, (age_reasons, gender_reasons), in_files)
    kept, excluded = _keep_usable(frame, ages, female, reasons)
    notices += _list_notices(ages, coded and options.gender_codes is None and layout == "")
    return FaceRecords(
        _name_faces(kept), images, source, tuple(excluded), terms=terms, layout=layout, notices=tuple(notices)
    )


def join_tables(tables: dict[Path, RawTable], folder: Path) -> RawTable:
    """Return tables of files below a folder as one, with paths relative to the folder."""
    import pandas as pd

    frames, origins = [], []
    for path, table in tables.items():
        frame, _ = _rename_columns(table.frame, None, str(path))
        names = [_normalize_path(name) for name in frame["path"]]
        images = path.parent / find_image_folder(path.parent, names, find_split(path.stem))
        prefix = images.relative_to(folder)
        frames.append(frame.assign(path=[(prefix / name).as_posix() if name else "" for name in names]))
        origins += [path.relative_to(folder).as_posix()] * len(frame)
    decimal_comma = any(table.decimal_comma for table in tables.values())
    return RawTable(pd.concat(frames, ignore_index=True).fillna(""), None, decimal_comma, origins)


def has_labels(table: RawTable) -> bool:
    """Return whether a table of unknown origin has image files and labels; the estimates of agegen are not labels."""
    try:
        frame, _ = _rename_columns(table.frame, None, "")
    except DataError:
        return False
    names = set(_find_genders(_find_ages(frame)[0])[0].columns)
    return "path" in names and bool({"age", "gender", "age_low"} & names) and not _ESTIMATES & names


def _rename_columns(raw: pd.DataFrame, age_column: str | None, source: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with agegen's names for recognized columns, and notices about columns of the same meaning.

    Other columns keep their names, without outer spaces.

    Raises:
        DataError: ``age_column`` does not exist, or two columns have the same name.
    """
    frame = raw.copy()
    names = (str(name).strip() for name in frame.columns)
    frame.columns = [name if name.isprintable() else shorten(name) for name in names]
    if repeated := list(frame.columns[frame.columns.duplicated()]):
        raise DataError(f"{source} has the column '{shorten(repeated[0])}' twice")
    if age_column is not None:
        if age_column not in frame.columns:
            raise DataError(f"{source} has no column {age_column}; it has {shorten(', '.join(frame.columns))}")
        frame[age_column] = _add_unit(frame[age_column], _find_unit(age_column))
        frame = frame.drop(columns=[name for name in frame.columns if name == "age" != age_column])
        frame = frame.rename(columns={age_column: "age"})
    recognized, notices = _match_columns(list(frame.columns), age_column is not None)
    frame = frame.rename(columns=recognized)
    # The user's columns with a name that agegen uses itself get an underscore.
    taken = {"row", "female", SOURCE_COLUMN, *AGE_BOUNDS} & set(frame.columns)
    frame = frame.rename(columns={name: f"{name}_" for name in taken})
    # An index that pandas wrote without a name is not a column of the dataset.
    unnamed = [name for name in frame.columns if name == "" or name.startswith(("Unnamed: ", "__index_level_"))]
    return frame.drop(columns=unnamed), notices


def _drop_surplus(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return a table of very many columns with the first of those that are not labels, and a notice."""
    others = [name for name in frame.columns if name not in _ALIASES and name.lower() not in IDENTITY_COLUMNS]
    dropped = others[MOST_COLUMNS:]
    if not dropped:
        return frame, []
    notice = f"of {len(frame.columns):,} columns, the last {len(dropped):,} are not read, from {shorten(dropped[0])} on"
    return frame.drop(columns=dropped), [notice]


def _match_columns(columns: list[str], age_chosen: bool) -> tuple[dict[str, str], list[str]]:
    """Return agegen's names of the columns that it recognizes, and a notice where several have the same meaning."""
    by_name: dict[str, list[str]] = {}
    for column in columns:
        by_name.setdefault(_normalize_name(column), []).append(column)
    names: dict[str, str] = {}
    notices = []
    for own, others in _ALIASES.items():
        found = [column for other in others for column in by_name.get(other, [])]
        if own == "age" and age_chosen:
            found = ["age"]
        names |= dict.fromkeys(found[:1], own)
        if len(found) > 1:
            choice = "; --age-column chooses another" if own == "age" else ""
            notices.append(f"the column {found[0]} is read as {own}, {_join_names(found[1:])} is not{choice}")
    return names, notices


def _normalize_name(name: str) -> str:
    """Return a column's name in small letters with underscores: age_months for AgeMonths and Age (months)."""
    name = _STRUCT.sub("", name)
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_")


def _join_names(names: list[str]) -> str:
    return shorten(", ".join(names[:_NAMED])) + (" …" if len(names) > _NAMED else "")


def _find_ages(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with a column ``age`` if its ages are in a column of another name, or in two of dates.

    The notices say what was read as ages, or that nothing was.
    """
    if "age" in frame.columns or {"age_low", "age_high"} <= set(frame.columns):
        return frame, []
    for column in sorted(frame.columns, key=lambda name: list(_UNITS).index(_find_unit(name) or "days")):
        unit = _find_unit(column)
        if unit and (_normalize_name(column) not in _BARE_UNITS or _is_bare_age(frame[column], unit)):
            ages = _add_unit(frame[column], unit)
            return frame.drop(columns=column).assign(age=ages), [f"ages are read from the column {column}, in {unit}"]
    dated = _find_dates(frame)
    if dated is not None:
        return dated
    others = [name for name in frame.columns if name not in _ALIASES]
    if not others:
        return frame, []
    return frame, [
        f"no ages: none of the columns {_join_names(others)} is read as age. If one is the age, give --age-column "
        "NAME; without ages, a model learns gender alone"
    ]


def _join_units(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with the cells of a column ``age_unit`` behind the ages without a unit, and a notice."""
    columns = [name for name in frame.columns if _UNIT_COLUMN.fullmatch(_normalize_name(name))]
    if len(columns) != 1 or "age" not in frame.columns:
        return frame, []
    words = [str(cell) for cell in frame[columns[0]]]
    if _normalize_name(columns[0]) in ("unit", "units") and not any(find_unit(word) for word in words):
        return frame, []
    pairs = zip((str(cell) for cell in frame["age"]), words, strict=True)
    # An unknown unit stays, so that the row is left out with it.
    ages = [
        f"{age} {find_unit(word) or word}" if _UNITLESS.fullmatch(age) and not is_missing(word) else age
        for age, word in pairs
    ]
    return frame.drop(columns=columns).assign(age=ages), [f"the ages have the units in the column {columns[0]}"]


def _find_genders(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with a column ``gender`` if another column says who is male or female, and a notice.

    The notice also names columns that may be those of genders but are not read.
    """
    if "gender" in frame.columns:
        return frame, []
    for column in frame.columns:
        named = _GENDER_FLAGS.get(_normalize_name(column))
        genders = [] if named is None else _read_flags([str(cell) for cell in frame[column]], named)
        if any(genders):
            notice = f"genders are read from the column {column.rstrip('_')}"
            return frame.drop(columns=column).assign(gender=genders), [notice]
    others = [name for name in frame.columns if _LIKE_GENDER.fullmatch(_normalize_name(name))]
    if not others:
        return frame, []
    advice = "if a column is the gender, give it the name gender; without genders, a model learns age alone"
    return frame, [f"no genders: {_join_names(others)} is not read as gender; {advice}"]


def _read_flags(cells: list[str], named: str) -> list[str]:
    """Return the genders that the cells of a column such as ``male`` mean; [] if it has other cells than yes and no."""
    texts = [cell.strip().lower().removesuffix(".0") for cell in cells]
    if not all(text in _FLAGS or is_missing(text) for text in texts):
        return []
    other = "female" if named == "male" else "male"
    # Next to 0, -1 is unknown; CelebA has 1 and -1 alone.
    unknown = {"-1"} if "0" in texts else set()
    known = {text: named if flag else other for text, flag in _FLAGS.items() if text not in unknown}
    return [known.get(text, "") for text in texts]


def _find_unit(column: str) -> str | None:
    """Return the unit of the ages in a column by its name; None if it does not state one."""
    name = _normalize_name(column)
    if name in _BARE_UNITS:
        return name
    return next((unit for unit, pattern in _UNITS.items() if pattern.fullmatch(name)), None)


def _add_unit(cells: pd.Series, unit: str | None) -> pd.Series:
    """Return the cells with the column's unit after numbers without one; years need none."""
    if unit is None or unit == "years":
        return cells
    return cells.map(lambda cell: f"{cell} {unit}" if _UNITLESS.fullmatch(str(cell)) else cell)


def _is_bare_age(cells: pd.Series, unit: str) -> bool:
    """Return whether a column named after a ``unit`` alone has ages in it, not calendar months or years."""
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce").dropna()
    return len(numbers) > 0 and _BARE_UNITS[unit] < numbers.max() <= MAX_AGE * UNITS[unit]


def _find_dates(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]] | None:
    """Return the table with ages from dates of birth and of the photos; None if there are not exactly two columns."""
    births = [name for name in frame.columns if _BIRTH.fullmatch(_normalize_name(name))]
    photos = [name for name in frame.columns if _PHOTO.fullmatch(_normalize_name(name))]
    photos = photos or [name for name in frame.columns if _ANY_DATE.fullmatch(_normalize_name(name))]
    if len(births) != 1 or len(photos) != 1:
        return None
    try:
        ages = compute_ages(*([str(cell) for cell in frame[name]] for name in (*births, *photos)))
    except ValueError:
        return None
    if not any(age.isdecimal() for age in ages):
        return None
    dated = frame.drop(columns=[*births, *photos]).assign(age=ages)
    return dated, [f"ages are the completed years from {births[0]} to {photos[0]}"]


def name_splits(frame: pd.DataFrame, origins: list[str] | None = None) -> list[str]:
    """Add a column ``split`` to a frame without one, if folders or files have the names of splits; return notices.

    The names are those of the folders in the column ``path``, or else those of the files, behind what is common to all
    of them; or ``origins``, the files that the rows are from. They are used if each face is in train, val or test, and
    both train and test have faces.
    """
    notices = _rename_split(frame)
    if "split" in frame.columns:
        return [*notices, *_describe_validation([parse_split(cell) for cell in frame["split"].unique()])]
    paths = [str(path) for path in frame["path"]] if origins is None else origins
    in_folders, splits = _find_splits(paths)
    counts = {name: splits.count(name) for name in SPLITS if name in splits}
    shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    if None not in splits and {"train", "test"} <= set(counts):
        frame["split"] = splits
        return [f"folder or file names give the split, which is used: {shown}", *_describe_validation(list(counts))]
    # One split alone is a split only by a folder of exactly this name: not /tmp/test_7.
    parts = {part for parent in {path.rpartition("/")[0] for path in paths} for part in parent.split("/")}
    if not in_folders or (len(counts) < 2 and (None not in splits or not any(map(parse_split, parts)))):
        return notices
    others = format_count(splits.count(None), "other face")
    missing = f"they leave out {others}" if None in splits else "they have no test faces"
    reason = f"the splits in folder or file names ({shown}) are not used, since {missing}: agegen makes its own split"
    return [*notices, reason]


def _rename_split(frame: pd.DataFrame) -> list[str]:
    """Name the only other column with the splits of all faces ``split``; return a notice, also if it cannot be used."""
    if "split" in frame.columns:
        return []
    names = [name for name in frame.columns if name not in _ALIASES]
    values = {name: {str(cell) for cell in frame[name]} for name in names}
    parsed = {name: set(map(find_split, cells)) for name, cells in values.items() if len(cells) <= _MOST_SPLITS}
    found = [name for name, splits in parsed.items() if None not in splits and {"train", "test"} <= splits]
    if len(found) == 1:
        frame["split"] = frame.pop(found[0]).map(lambda cell: find_split(str(cell)))
        return [f"the split is that of the column {found[0].rstrip('_')}"]
    like = [name for name in names if _LIKE_SPLIT.fullmatch(_normalize_name(name)) or len(parsed.get(name, ())) > 2]
    if not like:
        return []
    return [
        f"not used as a split: {_join_names(like)}. agegen uses a column split in which each face is in "
        "train, val or test"
    ]


def _find_splits(paths: list[str]) -> tuple[bool, list[str | None]]:
    """Return the split that each path names, and whether folders name them; files only if each of them has one."""
    parents = [path.rpartition("/")[0] for path in paths]
    parts = {parent: parent.split("/") for parent in dict.fromkeys(parents)}
    # What is common to all folders, such as /data/train-2024/…, tells no faces apart.
    pairs = zip(min(parts.values(), default=[]), max(parts.values(), default=[]), strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    folders = {parent: next(filter(None, map(find_split, part[shared:])), None) for parent, part in parts.items()}
    if any(folders.values()):
        return True, [folders[parent] for parent in parents]
    files = {}
    for path in dict.fromkeys(paths):
        files[path] = find_split(PurePosixPath(path).stem)
        if files[path] is None:
            return False, [None]
    return False, [files[path] for path in paths]


def _describe_validation(names: list[str | None]) -> list[str]:
    if not {"train", "test"} <= set(names) or "val" in names:
        return []
    return ["the split has no validation faces: training validates on one in nine of its training faces"]


def _describe_outside(base: Path, names: list[str]) -> list[str]:
    """Return a notice about absolute paths that lead out of a table's folder; relative ones never do."""
    folder = base.absolute()
    # Only names that begin like /a or C: can be absolute; a million paths would take seconds.
    absolute = [name for name in names if (name[:1] in "/\\" or name[1:2] == ":") and Path(name).is_absolute()]
    outside = [name for name in absolute if not Path(os.path.normpath(name)).is_relative_to(folder)]
    if not outside:
        return []
    return [f"{len(outside):,} images are outside of the table's folder, the first: {shorten(outside[0])}"]


def find_image_folder(base: Path, names: list[str], split: str | None = None) -> str:
    """Return the folder in ``base`` that the files with these names are in; "" if they are in ``base`` itself.

    It is "" as well if there are several such folders, unless one of them has the name of ``split``, or none.
    """
    usable = (name for name in names if not _check_path(name) and not Path(name).is_absolute())
    probed = list(islice(usable, _PROBED))
    if not probed or any((base / name).exists() for name in probed) or not base.is_dir():
        return ""
    folders = [path for pattern in ("*/", "*/*/") for path in sorted(base.glob(pattern))[:_MOST_FOLDERS]]
    fitting = [path for path in folders if path.is_dir() and all((path / name).is_file() for name in probed)]
    own = [path for path in fitting if split is not None and find_split(path.name) == split]
    found = own if len(fitting) > 1 else fitting
    return found[0].relative_to(base).as_posix() if len(found) == 1 else ""


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
    """Return a table in which each of several faces of a photo has its bounding box in its path."""
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
    if os.path.normpath(name).replace(os.sep, "/").split("/", 1)[0] == os.pardir:
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
    letters = not has_gender_letters(dict.fromkeys(cells))
    valid, invalid = _parse_cells(cells, lambda cell: parse_age(cell, decimal_comma, letters), "age", fault)
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
        reasons[frame["split"].map(parse_split).isna()] = "split is not train, val or test"
    names = frame["path"].map(str)
    if BOX_COLUMNS[0] in frame.columns:
        reasons[frame[BOX_COLUMNS[0]].isna()] = "no valid bounding box, unlike other rows"
    repeats = _find_repeats(frame, names, list(zip(ages, female, strict=True)))
    # At once: pandas copies all texts for each assignment.
    repeated = pd.Series([repeats.get(row, "") for row in range(len(frame))], frame.index, dtype=str)
    reasons = repeated.where(repeated != "", reasons)
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
    photos = keys.tolist()
    shared = np.flatnonzero(keys.duplicated(keep=False))
    boxes = frame[list(BOX_COLUMNS)].to_numpy(dtype=float) if BOX_COLUMNS[0] in frame.columns else None
    repeats: dict[int, str] = {}
    kept: dict[str, list[int]] = {}
    for row in shared.tolist():
        first = kept.setdefault(photos[row], [])
        if boxes is not None and np.isnan(boxes[row]).any():
            continue
        if len(first) == _MOST_FACES:
            repeats[row] = f"more than {_MOST_FACES:,} faces in one photo"
            continue
        same = first if boxes is None else np.array(first, int)[_overlap(boxes[first], boxes[row])].tolist()
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


def _overlap(boxes: Any, box: Any) -> Any:
    """Return which boxes (n, 4; left, top, right, bottom) are so similar to one that they belong to the same face."""
    import numpy as np

    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = sides.clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return shared > _SAME_BOX * (areas - shared)


def _contradict(first: tuple[Age | None, bool | None], second: tuple[Age | None, bool | None]) -> bool:
    """Return whether two labels cannot belong to one face: both ages, or both genders, are known and differ."""
    return any(None not in pair and pair[0] != pair[1] for pair in zip(first, second, strict=True))


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
        frame["split"] = frame["split"].map(parse_split)
    return fill_missing(frame.astype({"path": str})), excluded


def _list_notices(ages: list[Age | None], assumed_codes: bool) -> list[str]:
    notices = []
    if dated := sum(age is not None and age.dated for age in ages):
        ages_read = format_count(dated, "age")
        notices.append(f"{ages_read} read as brackets that a spreadsheet converted to dates (03-Sep is 3–9)")
    known = [age.high for age in ages if age is not None]
    if known and max(known) <= (_FRACTIONS if len(known) < _MOST_CHILDREN else _CODES):
        notices.append(
            f"no age is above {max(known):.3g} years: if ages were divided by 100 or scaled, or are codes of groups, "
            "correct them; agegen reads years"
        )
    if assumed_codes:
        notices.append("gender 0 is read as male and 1 as female, as in UTKFace; change it with --gender-codes")
    return notices
