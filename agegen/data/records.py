"""Records of labelled faces: folders in UTKFace naming, CSV and Parquet manifests."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agegen.data.images import is_image_name, read_image_file
from agegen.errors import DataError
from agegen.model import MAX_AGE

if TYPE_CHECKING:
    import pandas as pd

UTKFACE_RACES = ("White", "Black", "Asian", "Indian", "Other")
UTKFACE_TERMS = "UTKFace, for non-commercial research purposes only (https://susanqq.github.io/UTKFace/)"
SPLITS = ("train", "val", "test")
_UTKFACE_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.")
_GENDERS = {"male": False, "m": False, "0": False, "female": True, "f": True, "1": True}
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_LABEL_COLUMNS = ("path", "age", "female", "split", "row")


class ImageStore(Protocol):
    """Where the encoded pictures of a data set come from."""

    def read(self, row: int) -> bytes:
        """Return the encoded picture of a row; raises DataError where it can't be read."""


@dataclass(frozen=True)
class FileStore:
    """Pictures that lie in files."""

    paths: tuple[Path, ...]

    def read(self, row: int) -> bytes:
        """Return the file's bytes."""
        return read_image_file(self.paths[row])


@dataclass(frozen=True)
class ColumnStore:
    """Pictures inside a Parquet file, in the Hugging Face form {bytes, path}."""

    column: Any

    def read(self, row: int) -> bytes:
        """Return the row's bytes."""
        content = (self.column[row].as_py() or {}).get("bytes")
        if not content:
            raise DataError("no picture in this row")
        return bytes(content)


@dataclass(frozen=True)
class Exclusion:
    """A file or row that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class FaceRecords:
    """Labelled faces.

    ``frame`` has the columns ``path`` (relative to ``source``), ``age`` (years, float), ``female``
    (bool), ``row`` (in ``images``), ``split`` where the data brings one, and the group columns.
    ``terms`` are those of the data, where they are known.
    """

    frame: pd.DataFrame
    images: ImageStore
    source: str
    excluded: tuple[Exclusion, ...] = ()
    drawn: bool = False
    terms: str = ""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def group_columns(self) -> list[str]:
        """Columns besides the labels, for reports by group."""
        return [str(name) for name in self.frame.columns if name not in _LABEL_COLUMNS]

    def select(self, mask: Any) -> FaceRecords:
        """Return the records where ``mask`` (N,) is true."""
        return replace(self, frame=self.frame[mask].reset_index(drop=True))

    def read(self, index: int) -> bytes:
        """Return the encoded picture of the record at ``index``."""
        return self.images.read(int(self.frame["row"].iloc[index]))


def resolve_data(data: str | None) -> str:
    """Return what ``--data`` names: the option, else ``$AGEGEN_DATA``, else ``./data/utkface``.

    Raises:
        DataError: none of the three is there.
    """
    if chosen := data or os.environ.get("AGEGEN_DATA"):
        return chosen
    if Path("data/utkface").is_dir():
        return "data/utkface"
    raise DataError(
        "no data: give --data FOLDER, or put UTKFace (https://susanqq.github.io/UTKFace/, non-commercial "
        "research only) into ./data/utkface, or try everything on drawn faces with --data demo"
    )


def load_records(data: str) -> FaceRecords:
    """Load a folder in UTKFace naming, a CSV or Parquet manifest, or the drawn set (``demo``).

    Raises:
        DataError: nothing is there, columns are missing, or no usable record is left.
    """
    path = Path(data)
    if data == "demo":
        from agegen.data.demo import draw_records

        return draw_records()
    if path.is_dir():
        records = _load_folder(path)
    elif path.suffix.lower() in (".csv", ".parquet") and path.is_file():
        records = _load_manifest(path)
    else:
        raise DataError(f"no data at {data}: give a folder, a .csv or .parquet manifest, or 'demo'")
    if not len(records):
        first = f"; the first: {records.excluded[0].path}: {records.excluded[0].reason}" if records.excluded else ""
        raise DataError(f"no usable face in {data}: {len(records.excluded)} were left out{first}")
    return records


def parse_utkface_name(name: str) -> tuple[int, bool, str] | str:
    """Return (age, is female, race) of a name ``age_gender_race_datetime.jpg``, or why it has none."""
    match = _UTKFACE_NAME.match(name)
    if not match:
        return "the name is not age_gender_race_datetime"
    age = int(match[1])
    if age > MAX_AGE:
        return f"age {age} is outside 0–{MAX_AGE}"
    return age, match[2] == "1", UTKFACE_RACES[int(match[3])]


def _load_folder(folder: Path) -> FaceRecords:
    import pandas as pd

    paths = sorted(path for path in folder.rglob("*") if is_image_name(path))
    rows, excluded = [], []
    for index, path in enumerate(paths):
        relative = path.relative_to(folder).as_posix()
        parsed = parse_utkface_name(path.name)
        if isinstance(parsed, str):
            excluded.append(Exclusion(relative, parsed))
        else:
            rows.append((relative, float(parsed[0]), parsed[1], parsed[2], index))
    frame = pd.DataFrame(rows, columns=["path", "age", "female", "race", "row"])
    return FaceRecords(frame, FileStore(tuple(paths)), str(folder), tuple(excluded), terms=UTKFACE_TERMS)


def _load_manifest(path: Path) -> FaceRecords:
    frame, images = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    missing = [name for name in ("path", "age", "gender") if name not in frame.columns]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    frame["row"] = range(len(frame))
    frame, excluded = _parse_labels(frame)
    return FaceRecords(frame, images, str(path), tuple(excluded))


def _read_csv(path: Path) -> tuple[pd.DataFrame, ImageStore]:
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"can't read {path} as UTF-8 CSV: {error}") from error
    return frame, _make_file_store(path, frame)


def _read_parquet(path: Path) -> tuple[pd.DataFrame, ImageStore]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"can't read {path} as Parquet: {error}") from error
    for field in table.schema:
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {inner.name for inner in field.type}:
            column = table[field.name]
            frame = table.drop_columns([field.name]).to_pandas()
            names = [(value.as_py() or {}).get("path") for value in column]
            frame["path"] = [name or f"row-{index}" for index, name in enumerate(names)]
            return frame, ColumnStore(column)
    frame = table.to_pandas()
    return frame, _make_file_store(path, frame)


def _make_file_store(manifest: Path, frame: pd.DataFrame) -> FileStore:
    if "path" not in frame.columns:
        return FileStore(())
    return FileStore(tuple(manifest.parent / str(name) for name in frame["path"]))


def _parse_labels(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Exclusion]]:
    import pandas as pd

    ages = pd.to_numeric(frame["age"], errors="coerce").astype(float)
    genders = frame["gender"].map(lambda value: _GENDERS.get(str(value).strip().lower()))
    reasons = pd.Series("", index=frame.index)
    reasons[genders.isna()] = "gender is none of male, female, m, f, 0, 1"
    reasons[~ages.between(0, MAX_AGE)] = f"age is no number in 0–{MAX_AGE}"
    if "split" in frame.columns:
        frame["split"] = frame["split"].map(lambda value: _SPLIT_NAMES.get(str(value).strip().lower()))
        reasons[frame["split"].isna()] = "split is none of train, val, test"
    bad = reasons != ""
    excluded = [Exclusion(str(name), reason) for name, reason in zip(frame["path"][bad], reasons[bad], strict=True)]
    frame = frame.assign(age=ages, female=genders).drop(columns="gender")[~bad]
    frame = frame.astype({"path": str, "female": bool}).reset_index(drop=True)
    return frame, excluded
