"""Layouts that keep labels in tables: FairFace, Adience, APPA-REAL, IMDB-WIKI, LAGENDA, IMDB-clean, CelebA and others.

To add one, write a function that reads a folder, or returns None if it has another layout, and list it in
:data:`LAYOUTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.data.images import is_hidden, list_images
from agegen.data.manifests import build_records, has_labels, join_tables, load_manifest
from agegen.data.records import Exclusion, FaceRecords
from agegen.data.tables import CSV_SUFFIXES, JSON_SUFFIXES, RawTable, find_boxes, find_shards, read_shards, read_table
from agegen.data.values import count_years, find_split, parse_date
from agegen.errors import DataError
from agegen.options import ReadOptions

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TableLayout:
    """A layout by its ``NAME``, as it is printed, and the function that reads a folder; None for other layouts."""

    NAME: str
    read: Callable[[Path, ReadOptions], FaceRecords | None]


# FairFace: fairface_label_train.csv and fairface_label_val.csv next to train/ and val/, with columns
# file,age,gender,race,service_test; nine age brackets, seven races. Source: Kärkkäinen & Joo, "FairFace: Face Attribute
# Dataset for Balanced Race, Gender, and Age", WACV 2021.
FAIRFACE = "FairFace"
_FAIRFACE_TERMS = (
    "FairFace, CC BY 4.0 (Kärkkäinen & Joo, WACV 2021); its photographs have Creative Commons licences of their own"
)
_FAIRFACE_TABLES = ("fairface_label_train.csv", "fairface_label_val.csv")


def read_fairface(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces that the label files name, as far as their images exist."""
    import pandas as pd

    found = [path / name for name in _FAIRFACE_TABLES if (path / name).is_file()]
    if not found:
        return None
    frame = pd.concat([read_table(table).frame for table in found], ignore_index=True)
    # Which faces were shown to commercial services says nothing about a face.
    frame = frame.drop(columns="service_test", errors="ignore")
    return build_records(RawTable(frame), path, str(path), options, FAIRFACE, _FAIRFACE_TERMS)


# Adience: fold_0_data.txt … fold_4_data.txt, tab-separated, next to faces/ or aligned/. Age "(25, 32)", gender f, m or
# u; an image is faces/USER/coarse_tilt_aligned_face.FACE.IMAGE or aligned/USER/landmark_aligned_face.FACE.IMAGE. Ages
# outside the eight brackets (single years, "None") are read as they are. Source: Eidinger, Enbar, Hassner, "Age and
# Gender Estimation of Unfiltered Faces", IEEE TIFS 2014.
ADIENCE = "Adience"
_ADIENCE_TERMS = "Adience, for research purposes (https://talhassner.github.io/home/projects/Adience/Adience-data.html)"
_ADIENCE_FORMS = (("aligned", "landmark_aligned_face"), ("faces", "coarse_tilt_aligned_face"))


def read_adience(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of all folds. A photographer's album (``user_id``) stays on one side of a split."""
    import pandas as pd

    tables = [table for table in sorted(path.glob("fold_*_data.txt")) if "frontal" not in table.name]
    if not tables:
        return None
    frame = pd.concat([read_table(table).frame for table in tables], ignore_index=True)
    forms = ((folder, prefix) for folder, prefix in _ADIENCE_FORMS if (path / folder).is_dir())
    folder, prefix = next(forms, _ADIENCE_FORMS[1])
    names = frame["user_id"] + f"/{prefix}." + frame["face_id"] + "." + frame["original_image"]
    raw = pd.DataFrame({"path": f"{folder}/" + names, "age": frame["age"], "gender": frame["gender"]})
    # A person may appear in one album many times.
    raw["subject"] = frame["user_id"].astype(str)
    return build_records(RawTable(raw), path, str(path), options, ADIENCE, _ADIENCE_TERMS)


# APPA-REAL: gt_avg_train.csv, gt_avg_valid.csv, gt_avg_test.csv next to train/, valid/, test/. One row per image:
# file_name, num_ratings, apparent_age_avg, apparent_age_std, real_age; no gender. For each X.jpg there is a cropped and
# rotated X.jpg_face.jpg, which is used if it exists. `--age-column apparent_age_avg` takes the age that people guessed.
# The files gt_train.csv … have one row per rating. Source: Agustsson et al., "Apparent and real age estimation in still
# images with deep residual regressors on APPA-REAL database", FG 2017.
APPA_REAL = "APPA-REAL"
_APPA_REAL_TERMS = "APPA-REAL, for academic research (https://chalearnlap.cvc.uab.cat/dataset/26/description/)"
# How three of the datasets name their splits.
_SPLIT_NAMES = (("train", "train"), ("valid", "val"), ("test", "test"))


def read_appa_real(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of all splits, each in the split that the dataset gives it."""
    import pandas as pd

    frames = []
    for part, split in _SPLIT_NAMES:
        names = (path / f"gt{kind}_{part}.csv" for kind in ("_avg", ""))
        table = next((name for name in names if name.is_file()), None)
        if table is not None:
            frame = read_table(table).frame.drop_duplicates("file_name", ignore_index=True)
            frames.append(frame.assign(path=[_find_face(path, part, name) for name in frame["file_name"]], split=split))
    if not frames:
        return None
    frame = pd.concat(frames, ignore_index=True)
    column = options.age_column or "real_age"
    kept = RawTable(frame[[name for name in ("path", column, "split") if name in frame.columns]])
    return build_records(kept, path, str(path), replace(options, age_column=column), APPA_REAL, _APPA_REAL_TERMS)


def _find_face(folder: Path, part: str, name: str) -> str:
    face = f"{part}/{name}_face.jpg"
    return face if (folder / face).is_file() else f"{part}/{name}"


# IMDB-WIKI: imdb.mat or wiki.mat next to the images, with the fields dob (Matlab's serial day), photo_taken (a year),
# full_path, gender (0 female, 1 male), name, face_score, second_face_score. The age is that in the middle of the
# photo's year. Rows without a face, or with a second one, are excluded. Source: Rothe, Timofte, Van Gool, "DEX: Deep
# EXpectation of apparent age from a single image", ICCV Workshops 2015.
IMDB_WIKI = "IMDB-WIKI"
_IMDB_WIKI_TERMS = "IMDB-WIKI, for academic research (https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/)"
_IMDB_WIKI_FILES = ("imdb.mat", "wiki.mat")
# 02/nm0000002_rm1_1960-7-1_2005.jpg in IMDB, 17/10000217_1981-05-05_2009.jpg in WIKI; face detectors add _face0.
_IMDB_WIKI_NAME = re.compile(
    r"(?:.*/)?(?P<person>(?:nm)?\d+)(?:_rm\d+)?_(?P<born>\d{4}-\d{1,2}-\d{1,2})_(?P<taken>\d{4})(?:[-_]\w+)?\.\w+",
    re.IGNORECASE,
)
# Matlab counts days from the year 0, Python from the year 1.
_MATLAB_DAYS = 366


def read_imdb_wiki(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of a folder with such a file, or whose images have the dataset's names.

    Raises:
        DataError: the file has another form.
    """
    import numpy as np

    found = next((path / name for name in _IMDB_WIKI_FILES if (path / name).is_file()), None)
    if found is None:
        return _read_imdb_names(path, options)
    frame = _read_mat(found)
    reasons = np.where(~np.isfinite(frame["face_score"]), "no face", "")
    reasons = np.where(np.isfinite(frame["second_face_score"]) & (reasons == ""), "more than one face", reasons)
    kept = frame[reasons == ""].drop(columns=["face_score", "second_face_score"]).reset_index(drop=True)
    records = build_records(RawTable(kept), path, str(path), options, IMDB_WIKI, _IMDB_WIKI_TERMS)
    out = (Exclusion(name, reason) for name, reason in zip(frame["path"], reasons, strict=True) if reason)
    return replace(records, excluded=(*out, *records.excluded))


def _read_imdb_names(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of images whose names are person, date of birth and year of the photo; None for other names."""
    import pandas as pd

    names = [image.relative_to(path).as_posix() for image in list_images(path)]
    matches = [_IMDB_WIKI_NAME.fullmatch(name) for name in names]
    if not names or sum(match is not None for match in matches) < len(names) / 2:
        return None
    rows = [("", "") if match is None else (_count_age(match), match["person"]) for match in matches]
    frame = pd.DataFrame(rows, columns=["age", "identity"]).assign(path=names)
    records = build_records(RawTable(frame), path, str(path), options, IMDB_WIKI, _IMDB_WIKI_TERMS)
    notice = (
        "imdb.mat or wiki.mat is missing: ages are read from the names of the images; genders are unknown, and images "
        "with several faces or none are not left out"
    )
    return replace(records, notices=(notice, *records.notices))


def _count_age(match: re.Match[str]) -> str:
    born, taken = parse_date(match["born"]), parse_date(match["taken"])
    return f"born {match['born']}" if born is None or taken is None else str(count_years(born, taken))


def _read_mat(path: Path) -> pd.DataFrame:
    import pandas as pd
    from scipy.io import loadmat

    try:
        fields = loadmat(path)[path.stem][0, 0]
        column: dict[str, Any] = {name: fields[name].reshape(-1) for name in fields.dtype.names}
        return pd.DataFrame(
            {
                "path": [str(name[0]) for name in column["full_path"]],
                "age": [_compute_age(*row) for row in zip(column["dob"], column["photo_taken"], strict=True)],
                # 0 female, 1 male, NaN unknown.
                "gender": [{0.0: "female", 1.0: "male"}.get(float(value), "unknown") for value in column["gender"]],
                "identity": [str(name[0]) if len(name) else "" for name in column["name"]],
                "face_score": column["face_score"].astype(float),
                "second_face_score": column["second_face_score"].astype(float),
            }
        )
    except Exception as error:  # scipy's reader raises its own errors as well as the usual ones
        raise DataError(f"{path} is not an IMDB-WIKI file: {error}") from error


def _compute_age(born: float, taken: float) -> str:
    """Return the age in whole years in the middle of the photo's year, as the dataset's authors compute it."""
    day = int(born) - _MATLAB_DAYS
    if not 1 <= day <= date.max.toordinal():
        return "unknown"
    birth = date.min + timedelta(days=day - 1)
    return str(count_years(birth, date(int(taken), 7, 1) if 1 <= int(taken) <= 9999 else birth))


# LAGENDA: lagenda_annotation.csv (img_name, age, gender M/F, face_x0, face_y0, face_x1, face_y1 and the person's box;
# -1 for unknown). Source: Kuprashevich & Tolstykh, "MiVOLO: Multi-input Transformer for Age and Gender", 2023.
# IMDB-clean: imdb_train_new.csv, imdb_valid_new.csv, imdb_test_new.csv (filename, age, gender M/F, x_min, y_min, x_max,
# y_max), also with the suffix _1024. Source: Lin et al., "FP-Age: Leveraging Face Parsing Attention for Facial Age
# Estimation in the Wild", 2021. Both are tables of photos with a bounding box of each labelled face.
_LAGENDA, _IMDB_CLEAN = "LAGENDA", "IMDB-clean"
_PHOTO_TERMS = {
    _LAGENDA: "LAGENDA (https://wildchlamydia.github.io/lagenda/); its photographs are from Open Images, CC BY 2.0",
    _IMDB_CLEAN: "IMDB-clean, for research purposes (https://github.com/yiminglin-ai/imdb-clean)",
}


def read_photo_tables(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of such a table; without bounding boxes, photos of several people are excluded."""
    import pandas as pd

    lagenda = sorted(path.glob("lagenda*annotation*.csv"))
    if lagenda:
        frame = _select_columns(read_table(lagenda[0]).frame.rename(columns={"img_name": "path"}))
        if find_boxes(frame) is None:
            # Which of several people a label means cannot be told from the photo alone.
            frame = frame[~frame["path"].duplicated(keep=False)].reset_index(drop=True)
        return _build_photos(frame, path, options, _LAGENDA)
    frames = []
    for part, split in _SPLIT_NAMES:
        tables = sorted(path.glob(f"imdb_{part}_new*.csv"))
        if tables:
            frames.append(read_table(tables[0]).frame.rename(columns={"filename": "path"}).assign(split=split))
    if not frames:
        return None
    frame = pd.concat(frames, ignore_index=True)
    return _build_photos(_select_columns(frame, "split"), path, options, _IMDB_CLEAN)


def _select_columns(frame: pd.DataFrame, *others: str) -> pd.DataFrame:
    """Return the columns of labels and bounding boxes: other columns of these tables describe the whole person."""
    boxes = find_boxes(frame)
    return frame[["path", "age", "gender", *others, *([] if boxes is None else boxes[0])]]


def _build_photos(frame: pd.DataFrame, path: Path, options: ReadOptions, layout: str) -> FaceRecords:
    # -1 means unknown.
    frame = frame.assign(**{name: frame[name].replace({"-1": "", "-1.0": ""}) for name in ("age", "gender")})
    return build_records(RawTable(frame), path, str(path), options, layout, _PHOTO_TERMS[layout])


# CelebA: list_attr_celeba.txt (a count, the names of 40 attributes, one row of 1 and -1 per image), or Kaggle's
# list_attr_celeba.csv; gender only. identity_CelebA.txt keeps a person's images on one side of a split,
# list_eval_partition is the split. Source: Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015.
CELEBA = "CelebA"
_CELEBA_TERMS = "CelebA, for non-commercial research (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
_CELEBA_FILES = ("list_attr_celeba.txt", "Anno/list_attr_celeba.txt", "list_attr_celeba.csv")
_CELEBA_SPLITS = {"0": "train", "1": "val", "2": "test"}
_CELEBA_FOLDERS = ("img_align_celeba", "img_align_celeba/img_align_celeba", "Img/img_align_celeba", "img_celeba")


def read_celeba(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces that the table names.

    Raises:
        DataError: the table has another form.
    """
    found = next((path / name for name in _CELEBA_FILES if (path / name).is_file()), None)
    if found is None:
        return None
    frame = _read_attributes(found)
    folder = next((name for name in _CELEBA_FOLDERS if (path / name / frame["path"].iloc[0]).is_file()), "")
    partition = _read_partition(found.parent, path)
    if partition:
        frame["split"] = [partition.get(name, "") for name in frame["path"]]
    frame["path"] = [f"{folder}/{name}" if folder else name for name in frame["path"]]
    return build_records(RawTable(frame), path, str(path), options, CELEBA, _CELEBA_TERMS)


def _read_attributes(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str).set_index("image_id")
        else:
            table = pd.read_csv(path, sep=r"\s+", skiprows=1, dtype=str)
        gender = table["Male"].map({"1": "male", "-1": "female"}).fillna("unknown")
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{path} is not a table of CelebA's attributes: {error}") from error
    names = [str(name) for name in table.index]
    frame = pd.DataFrame({"path": names, "gender": gender.to_numpy()})
    persons = _read_persons(path.parent)
    return frame.assign(identity=[persons.get(name, "") for name in names]) if persons else frame


def _read_persons(folder: Path) -> dict[str, str]:
    path = folder / "identity_CelebA.txt"
    if not path.is_file():
        return {}
    pairs = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _read_partition(*folders: Path) -> dict[str, str]:
    """Return the split of each image by CelebA's own list; empty if there is none."""
    names = ("list_eval_partition.txt", "list_eval_partition.csv", "Eval/list_eval_partition.txt")
    path = next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)
    if path is None:
        return {}
    pairs = (line.replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines())
    return {pair[0]: _CELEBA_SPLITS[pair[1]] for pair in pairs if len(pair) == 2 and pair[1] in _CELEBA_SPLITS}


# A table of labels next to the images: metadata.csv (Hugging Face's ImageFolder) or labels.csv.
_TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "labels.csv", "labels.tsv", "labels.jsonl")
# In a folder with more files, no table of another name is searched for.
_MOST_FILES = 1000


def read_metadata(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces that the table names, or those of the tables in the folders of a split: train/metadata.csv."""
    if (found := _find_table(path)) is not None:
        return load_manifest(found, options)
    folders = (folder for folder in sorted(path.iterdir()) if folder.is_dir() and not is_hidden(Path(folder.name)))
    tables = [table for folder in folders if (table := _find_table(folder)) is not None]
    if not tables or (len(tables) > 1 and not all(find_split(table.parent.name) for table in tables)):
        return None
    return _load_tables({table: read_table(table) for table in tables}, path, options)


def _find_table(folder: Path) -> Path | None:
    return next((folder / name for name in _TABLE_NAMES if (folder / name).is_file()), None)


def _load_tables(tables: dict[Path, RawTable], folder: Path, options: ReadOptions) -> FaceRecords:
    records = build_records(join_tables(tables, folder), folder, str(folder), options)
    names = ", ".join(table.relative_to(folder).as_posix() for table in tables)
    return replace(records, notices=(f"labels are read from {names}", *records.notices))


def read_any_tables(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces of the only table with labels in a folder, or of one for each split: train.csv and test.csv.

    It is not a layout, but tried last, when names of files are not labels either.
    """
    tables: dict[Path, RawTable] = {}
    for file in sorted(path.iterdir())[:_MOST_FILES]:
        if file.suffix.lower() in (*CSV_SUFFIXES, *JSON_SUFFIXES) and file.is_file() and not is_hidden(Path(file.name)):
            with suppress(DataError):
                tables[file] = read_table(file)
    labelled = {file: table for file, table in tables.items() if has_labels(table)}
    splits = [find_split(file.stem) for file in labelled]
    if not labelled or (len(labelled) > 1 and (None in splits or len(set(splits)) < len(splits))):
        return None
    records = _load_tables(labelled, path, options)
    others = [f"{file.name} has no labels and is not used" for file in tables if file not in labelled]
    return replace(records, notices=(*records.notices, *others))


def read_hub_shards(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces in the Parquet files of a folder without image files, as the Hugging Face Hub has them.

    Arrow files, as ``save_to_disk`` writes them, are read, too.
    """
    shards = find_shards(path)
    return (
        build_records(read_shards(path, shards), path, str(path), options) if shards and not list_images(path) else None
    )


# In the order in which they are tried: those that require certain file names first.
LAYOUTS = (
    TableLayout(FAIRFACE, read_fairface),
    TableLayout(ADIENCE, read_adience),
    TableLayout(APPA_REAL, read_appa_real),
    TableLayout(IMDB_WIKI, read_imdb_wiki),
    TableLayout("LAGENDA or IMDB-clean", read_photo_tables),
    TableLayout(CELEBA, read_celeba),
    TableLayout("a folder with metadata.csv", read_metadata),
    TableLayout("Parquet shards", read_hub_shards),
)
