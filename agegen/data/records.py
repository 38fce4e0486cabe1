"""Records of labelled faces: folders in UTKFace naming, CSV and Parquet manifests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agegen.data.images import read_image_file

if TYPE_CHECKING:
    import pandas as pd

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
