"""Records of labelled faces, wherever they come from, and the stores that hold their pictures."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB, decode_image, read_image_file
from agegen.data.labels import AGE_BOUNDS, IDENTITY_COLUMNS, Labels, choose_groups, read_labels

if TYPE_CHECKING:
    import pandas as pd

_LABEL_COLUMNS = ("path", "age", "female", "split", "row", *AGE_BOUNDS)
# Where several data sets come together, this column says which one a face is from.
SOURCE_COLUMN = "source"


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
class JoinedStore:
    """The pictures of several data sets, one after the other; ``starts`` are the first rows of each."""

    stores: tuple[ImageStore, ...]
    starts: tuple[int, ...]

    def read(self, row: int) -> bytes:
        """Return the bytes from the store that the row lies in."""
        store, inner = self.find(row)
        return store.read(inner)

    def find(self, row: int) -> tuple[ImageStore, int]:
        """Return the store that a row lies in, and the row in it."""
        which = bisect_right(self.starts, row) - 1
        return self.stores[which], row - self.starts[which]


def locate_image(images: ImageStore, row: int) -> Path | None:
    """Return the file that a row's picture lies in; None where it is inside of something else."""
    if isinstance(images, JoinedStore):
        return locate_image(*images.find(row))
    return images.paths[row] if isinstance(images, FileStore) else None


@dataclass(frozen=True)
class Exclusion:
    """A file or row that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class CropBox:
    """The square part of each picture of a data set that is taken, in shares of its sides; it may reach beyond.

    Data sets cut faces with more or less around them: this brings them to one crop.
    """

    left: float
    top: float
    side: float

    def cut(self, image: RGB) -> RGB:
        """Return the part of a picture; beyond its edges the outermost pixels go on."""
        import cv2

        height, width = image.shape[:2]
        x0, y0 = round(self.left * width), round(self.top * height)
        x1, y1 = round((self.left + self.side) * width), round((self.top + self.side) * height)
        beyond = max(0, -x0, -y0, x1 - width, y1 - height)
        if beyond:
            image = cv2.copyMakeBorder(image, beyond, beyond, beyond, beyond, cv2.BORDER_REPLICATE)
        return image[y0 + beyond : y1 + beyond, x0 + beyond : x1 + beyond]


@dataclass(frozen=True)
class FaceRecords:
    """Labelled faces.

    ``frame`` has the columns ``path`` (relative to ``source``), ``age`` (years, float, NaN where it isn't exact),
    ``age_from`` and ``age_to`` where some ages are brackets or missing, ``female`` (bool; 0, 1 or NaN where some are
    missing), ``row`` (in ``images``), ``split`` where the data brings one, and the group columns.

    Attributes:
        terms: those of the data, where they are known.
        layout: what it was recognised as, e.g. ``FairFace``.
        notices: what the user should know of how it was read.
        trims: the part that is taken of each picture, by source (``source`` itself where there is one only).
        weights: how often a face of a source is drawn, by source; 1 where it isn't named.
        cropper: what cuts the face out of each picture, where the pictures are photographs; None for crops.
    """

    frame: pd.DataFrame
    images: ImageStore
    source: str
    excluded: tuple[Exclusion, ...] = ()
    drawn: bool = False
    terms: str = ""
    layout: str = ""
    notices: tuple[str, ...] = ()
    trims: dict[str, CropBox] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    cropper: Callable[[RGB], RGB] | None = None

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def labels(self) -> Labels:
        """The labels of all faces."""
        return read_labels(self.frame)

    @property
    def group_columns(self) -> list[str]:
        """Columns besides the labels by which to report."""
        return choose_groups(self.frame, self._own_columns)[0]

    @property
    def ungrouped_columns(self) -> list[str]:
        """Columns besides the labels that are no groups; see :func:`agegen.data.labels.choose_groups`."""
        return choose_groups(self.frame, self._own_columns)[1]

    @property
    def identity_columns(self) -> list[str]:
        """Columns that name the person."""
        return [name for name in self._own_columns if name.lower() in IDENTITY_COLUMNS]

    @property
    def _own_columns(self) -> list[str]:
        return [str(name) for name in self.frame.columns if name not in _LABEL_COLUMNS]

    @property
    def sources(self) -> list[str]:
        """The names of the data sets, in their order; one where there is no column ``source``."""
        names = self.frame[SOURCE_COLUMN] if SOURCE_COLUMN in self.frame.columns else None
        return [self.source] if names is None else [str(name) for name in names.unique()]

    def list_face_sources(self) -> NDArray[np.str_]:
        """Return the name of the data set (N,) that each record is from."""
        if SOURCE_COLUMN not in self.frame.columns:
            return np.full(len(self), self.source)
        return np.asarray(self.frame[SOURCE_COLUMN], dtype=str)

    def name_source(self, index: int) -> str:
        """Return the name of the data set that the record at ``index`` is from."""
        return str(self.frame[SOURCE_COLUMN].iloc[index]) if SOURCE_COLUMN in self.frame.columns else self.source

    def describe_crop(self) -> str:
        """Return how pictures are cropped, in words that differ where the crops do; "" where they are taken whole."""
        if self.cropper is not None:
            return str(self.cropper)
        return "; ".join(f"{name}: {trim}" for name, trim in sorted(self.trims.items()))

    def select(self, mask: Any) -> FaceRecords:
        """Return the records where ``mask`` (N,) is true."""
        return replace(self, frame=self.frame[mask].reset_index(drop=True))

    def read(self, index: int) -> bytes:
        """Return the encoded picture of the record at ``index``."""
        return self.images.read(int(self.frame["row"].iloc[index]))

    def decode(self, index: int, content: bytes | None = None) -> RGB:
        """Return the picture of the record at ``index``, cropped as all are; ``content`` where it was read already."""
        image = decode_image(self.read(index) if content is None else content)
        if self.cropper is not None:
            return self.cropper(image)
        trim = self.trims.get(self.name_source(index)) if self.trims else None
        return image if trim is None else trim.cut(image)
