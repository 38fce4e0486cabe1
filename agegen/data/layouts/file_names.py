"""Layouts that keep labels in the names of files or folders: UTKFace, FG-NET, All-Age-Faces, AgeDB, AFAD, and folders.

To add one, write a parser from an image's path to its labels and list it in :data:`LAYOUTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from agegen.data.images import list_images
from agegen.data.labels import MAX_AGE
from agegen.data.manifests import build_records, name_splits
from agegen.data.records import Exclusion, FaceRecords, FileStore
from agegen.data.tables import RawTable
from agegen.data.values import parse_age, parse_gender
from agegen.options import ReadOptions

# A folder has a layout if at least this share of its image names match: a few other names must not hide a dataset, and
# a few accidental matches must not make one.
_MIN_SHARE = 0.5

# Folders to name in a notice.
_FOLDERS_SHOWN = 5

Labels = dict[str, str]
Parser = Callable[[str], Labels | None]


@dataclass(frozen=True)
class FileNameLayout:
    """A layout whose labels are parsed from the path of each image.

    Attributes:
        NAME: as it is printed.
        terms: of use, with the dataset's address; "" if unknown.
        parse: maps an image's path, relative to the folder, to its labels; None if the path has another form.
    """

    NAME: str
    terms: str
    parse: Parser

    def read(self, path: Path, options: ReadOptions) -> FaceRecords | None:
        """Return the faces of a folder; None if most image names have another form.

        Images without labels are excluded with a reason.
        """
        import pandas as pd

        paths = [image.relative_to(path).as_posix() for image in list_images(path)]
        labels = [self.parse(name) for name in paths]
        known = sum(label is not None for label in labels)
        if not known or known < len(paths) * _MIN_SHARE:
            return None
        rows = [{"path": name, **(label or {})} for name, label in zip(paths, labels, strict=True)]
        table = RawTable(pd.DataFrame(rows).fillna(""))
        return build_records(table, path, str(path), options, self.NAME, self.terms)


def match_file_name(pattern: str, read: Callable[[re.Match[str]], Labels], flags: re.RegexFlag = re.NOFLAG) -> Parser:
    """Return a parser that matches file names, without their folders, against a regular expression."""
    compiled = re.compile(pattern, flags)

    def parse(path: str) -> Labels | None:
        match = compiled.fullmatch(Path(path).name)
        return None if match is None else read(match)

    return parse


# UTKFace: age_gender_race_datetime.jpg, gender 0 male, 1 female (https://susanqq.github.io/UTKFace/).
UTKFACE_RACES = ("White", "Black", "Asian", "Indian", "Other")
_UTKFACE_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.")


class UTKFaceLayout:
    """UTKFace. Each name without labels is excluded with its own reason, since the dataset has a few of them."""

    NAME = "UTKFace"
    terms = "UTKFace, for non-commercial research purposes only (https://susanqq.github.io/UTKFace/)"

    def read(self, path: Path, options: ReadOptions) -> FaceRecords | None:  # noqa: ARG002 - names have no columns
        """Return the faces of a folder; None if no image name has this form."""
        import pandas as pd

        paths = list_images(path)
        rows, excluded = [], []
        for index, file in enumerate(paths):
            relative = file.relative_to(path).as_posix()
            parsed = parse_utkface_name(file.name)
            if isinstance(parsed, str):
                excluded.append(Exclusion(relative, parsed))
            else:
                rows.append((relative, float(parsed[0]), parsed[1], parsed[2], index))
        if not rows:
            return None
        frame = pd.DataFrame(rows, columns=["path", "age", "female", "race", "row"])
        store, notices = FileStore(tuple(paths)), tuple(name_splits(frame))
        return FaceRecords(
            frame, store, str(path), tuple(excluded), terms=self.terms, layout=self.NAME, notices=notices
        )


def parse_utkface_name(name: str) -> tuple[int, bool, str] | str:
    """Return (age, is female, race) of a name ``age_gender_race_datetime.jpg``, or the reason why it has no labels."""
    match = _UTKFACE_NAME.match(name)
    if not match:
        return "the name is not age_gender_race_datetime"
    age = int(match[1])
    if age > MAX_AGE:
        return f"age {age} is outside 0–{MAX_AGE}"
    return age, match[2] == "1", UTKFACE_RACES[int(match[3])]


# FG-NET: 001A02.JPG, person and age, with a letter if several images share both; no gender. Source: Panis et al.,
# "Overview of research on facial ageing using the FG-NET ageing database", IET Biometrics 2016.
FG_NET = FileNameLayout(
    "FG-NET",
    "FG-NET, for research purposes",
    match_file_name(
        r"(\d{3})A(\d{2})[a-z]?\.\w+", lambda match: {"age": match[2], "identity": match[1]}, re.IGNORECASE
    ),
)

# All-Age-Faces: NNNNNAyy.jpg, person and age; persons 0 to 7380 are female, the others male. Source: Cheng et al.,
# "Exploiting Effective Facial Patches for Robust Gender Recognition", Tsinghua Science and Technology 2019.
_LAST_FEMALE = 7380
ALL_AGE_FACES = FileNameLayout(
    "All-Age-Faces",
    "All-Age-Faces, for academic research (https://github.com/JingchunCheng/All-Age-Faces-Dataset)",
    match_file_name(
        r"(\d{5})A(\d{2,3})\.\w+",
        lambda match: {"age": match[2], "gender": "female" if int(match[1]) <= _LAST_FEMALE else "male"},
    ),
)

# AgeDB: id_Name_age_gender.jpg, e.g. 0_MariaCallas_35_f.jpg. Source: Moschoglou et al., "AgeDB: the first manually
# collected, in-the-wild age database", CVPR Workshops 2017.
AGEDB = FileNameLayout(
    "AgeDB",
    "AgeDB, for non-commercial research (https://ibug.doc.ic.ac.uk/resources/agedb/)",
    match_file_name(
        r"\d+_(.+)_(\d{1,3})_([fm])\.\w+",
        lambda match: {"age": match[2], "gender": match[3], "identity": match[1]},
    ),
)

# AFAD: folders age/111/ (male) and age/112/ (female). Source: Niu et al., "Ordinal Regression with Multiple Output CNN
# for Age Estimation", CVPR 2016.
_AFAD_PATH = re.compile(r"(?:.*/)?(\d{1,3})/(11[12])/[^/]+")


def _parse_afad(path: str) -> Labels | None:
    match = _AFAD_PATH.fullmatch(path)
    return None if match is None else {"age": match[1], "gender": "male" if match[2] == "111" else "female"}


AFAD = FileNameLayout("AFAD", "AFAD, for academic research (https://afad-dataset.github.io/)", _parse_afad)


class LabelledFoldersLayout:
    """Images in folders with the names of labels, in any nesting: ``20-29/male/a.jpg``.

    Folders with bare numbers may be ages or persons. They are ages, with a notice, unless folders at the same depth
    have numbers above any age.
    """

    NAME = "folders by label"

    def read(self, path: Path, options: ReadOptions) -> FaceRecords | None:
        """Return the faces of a folder; None if most images are not in such folders."""
        parents = {image.relative_to(path).parent for image in list_images(path)}
        numbers = {(depth, part) for parent in parents for depth, part in enumerate(parent.parts) if part.isdecimal()}
        no_ages = {depth for depth, part in numbers if int(part) > MAX_AGE}
        layout = FileNameLayout(self.NAME, "", lambda name: _parse_folders(name, no_ages))
        records = layout.read(path, options)
        ages = sorted({part for depth, part in numbers if depth not in no_ages}, key=int)
        if records is None or not ages:
            return records
        shown = ", ".join(ages[:_FOLDERS_SHOWN]) + (" …" if len(ages) > _FOLDERS_SHOWN else "")
        notice = (
            f"the folders {shown} are read as ages in years; if they number persons or classes, write a table instead"
        )
        return replace(records, notices=(notice, *records.notices))


def _parse_folders(path: str, no_ages: Container[int] = ()) -> Labels | None:
    """Return the labels that folder names give; bare numbers at the depths ``no_ages`` are not ages."""
    labels: Labels = {}
    for depth, part in enumerate(PurePosixPath(path).parts[:-1]):
        if (kind := _find_label_kind(part)) and not (part.isdecimal() and depth in no_ages):
            labels.setdefault(kind, part)
    return labels or None


def _find_label_kind(part: str) -> str | None:
    try:
        if parse_gender(part, {}) is not None:
            return "gender"
    except ValueError:
        pass
    try:
        return "age" if parse_age(part) is not None else None
    except ValueError:
        return None


# In the order in which they are tried: the most specific names first.
LAYOUTS = (UTKFaceLayout(), FG_NET, ALL_AGE_FACES, AGEDB, AFAD, LabelledFoldersLayout())
