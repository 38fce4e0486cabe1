"""CelebA: ``list_attr_celeba.txt`` (a count, the names of 40 attributes, a row a picture of 1 and -1); gender only.

``list_attr_celeba.csv``, as Kaggle has it, is read too; ``identity_CelebA.txt`` keeps a person's pictures on one side.
Source: Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agegen.data.manifests import ReadOptions, build_records
from agegen.data.records import FaceRecords
from agegen.data.tables import RawTable
from agegen.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

NAME = "CelebA"
TERMS = "CelebA, for non-commercial research (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
_FILES = ("list_attr_celeba.txt", "Anno/list_attr_celeba.txt", "list_attr_celeba.csv")
_FOLDERS = ("img_align_celeba", "img_align_celeba/img_align_celeba", "Img/img_align_celeba", "img_celeba")


def read(path: Path, options: ReadOptions) -> FaceRecords | None:
    """Return the faces that the table names.

    Raises:
        DataError: the table has another form.
    """
    found = next((path / name for name in _FILES if (path / name).is_file()), None)
    if found is None:
        return None
    frame = _read_attributes(found)
    folder = next((name for name in _FOLDERS if (path / name / frame["path"].iloc[0]).is_file()), "")
    frame["path"] = [f"{folder}/{name}" if folder else name for name in frame["path"]]
    return build_records(RawTable(frame), path, str(path), options, NAME, TERMS)


def _read_attributes(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str).set_index("image_id")
        else:
            table = pd.read_csv(path, sep=r"\s+", skiprows=1, dtype=str)
        gender = table["Male"].map({"1": "male", "-1": "female"}).fillna("unknown")
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{path} is no table of CelebA's attributes: {error}") from error
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
