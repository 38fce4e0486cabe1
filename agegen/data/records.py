"""Records of labeled faces, independent of their source, and the stores that their images are read from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB, decode_image, read_image_file
from agegen.data.labels import AGE_BOUNDS, IDENTITY_COLUMNS, Labels, choose_groups, read_labels

if TYPE_CHECKING:
    import pandas as pd

# The column with the dataset of each face, if several datasets are combined.
SOURCE_COLUMN = "source"
# The columns with the bounding box of each face, if there are any: in pixels, or as fractions of width and height.
BOX_COLUMNS = ("left", "top", "right", "bottom")
_LABEL_COLUMNS = ("path", "age", "female", "split", "row", *AGE_BOUNDS, *BOX_COLUMNS)

# (left, top, right, bottom)
Box = tuple[float, float, float, float]


class FaceCropper(Protocol):
    """Cuts a face out of a photo; ``str()`` of it is different for croppers that give different crops."""

    def __call__(self, photo: RGB, box: Box | None = None) -> RGB:
        """Return the crop of the face in ``box``, or of the only face that the photo is about."""


class ImageStore(Protocol):
    """A source of the encoded images of a dataset."""

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row; raises DataError if it cannot be read."""


@dataclass(frozen=True)
class FilePaths(Sequence[Path]):
    """The paths of files by their names, relative to ``base`` or absolute; a million paths would take half a GB."""

    base: Path
    names: Sequence[str]

    def __getitem__(self, row: Any) -> Any:
        """Return the path of a file."""
        return self.base / self.names[row]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class FileStore:
    """Images in files."""

    paths: Sequence[Path]

    def read(self, row: int) -> bytes:
        """Return the bytes of the file."""
        return read_image_file(self.paths[row])


@dataclass(frozen=True)
class JoinedStore:
    """The images of several stores, one after the other; ``starts`` are the first rows of each."""

    stores: tuple[ImageStore, ...]
    starts: tuple[int, ...]

    def read(self, row: int) -> bytes:
        """Return the bytes from the store that contains the row."""
        store, inner = self.find(row)
        return store.read(inner)

    def find(self, row: int) -> tuple[ImageStore, int]:
        """Return the store that contains a row, and the row's number in that store."""
        which = bisect_right(self.starts, row) - 1
        return self.stores[which], row - self.starts[which]


def locate_image(images: ImageStore, row: int) -> Path | None:
    """Return the path of a row's image file; None if the image is inside another file, such as Parquet."""
    if isinstance(images, JoinedStore):
        return locate_image(*images.find(row))
    return images.paths[row] if isinstance(images, FileStore) else None


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A file or row that was excluded, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class CropBox:
    """The square part of each image of a dataset that is used, as fractions of its width and height.

    Datasets crop faces with different margins; this makes their crops alike. The box may extend beyond the image.
    """

    left: float
    top: float
    side: float

    def cut(self, image: RGB) -> RGB:
        """Return the part of an image inside the box; beyond the border the outermost pixels are repeated."""
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
    """Labeled faces and their images.

    ``frame`` has one row per face, with the columns ``path`` (relative to ``source``), ``age`` (years, float, NaN if
    not exact), ``female`` (bool; or 0, 1 and NaN if some are unknown), ``row`` (in ``images``), ``age_from`` and
    ``age_to`` if some ages are brackets or unknown, ``split`` if the dataset defines one, ``left``, ``top``, ``right``
    and ``bottom`` if the faces have bounding boxes, and group columns.

    Attributes:
        frame: see above.
        images: the store of the images.
        source: path or address of the dataset.
        excluded: files and rows that were excluded.
        drawn: whether the faces are computer drawings.
        terms: terms of use of the dataset; "" if unknown.
        layout: the name of the detected layout, e.g. ``FairFace``; "" for a table.
        notices: messages for the user about how the data was read.
        trims: the crop box of each image by source (``source`` itself if there is only one); sources without one are
            used uncropped.
        weights: how often a face of a source is drawn in training, by source; 1 if not given.
        cropper: crops the face from each image, if images are photos; None for crops.
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
    cropper: FaceCropper | None = None

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def labels(self) -> Labels:
        """The labels of all faces."""
        return read_labels(self.frame)

    @property
    def group_columns(self) -> list[str]:
        """The columns to group reports by."""
        return choose_groups(self.frame, self._extra_columns)[0]

    @property
    def ungrouped_columns(self) -> list[str]:
        """The other columns without labels; see :func:`agegen.data.labels.choose_groups`."""
        return choose_groups(self.frame, self._extra_columns)[1]

    @property
    def identity_columns(self) -> list[str]:
        """The columns that identify the person."""
        return [name for name in self._extra_columns if name.lower() in IDENTITY_COLUMNS]

    @property
    def _extra_columns(self) -> list[str]:
        return [str(name) for name in self.frame.columns if name not in _LABEL_COLUMNS]

    @property
    def sources(self) -> list[str]:
        """The names of the datasets, in order."""
        names = self.frame[SOURCE_COLUMN] if SOURCE_COLUMN in self.frame.columns else None
        return [self.source] if names is None else [str(name) for name in names.unique()]

    def list_face_sources(self) -> NDArray[np.str_]:
        """Return the name of each face's dataset (N,)."""
        if SOURCE_COLUMN not in self.frame.columns:
            return np.full(len(self), self.source)
        return np.asarray(self.frame[SOURCE_COLUMN], dtype=str)

    def select(self, mask: Any) -> FaceRecords:
        """Return the records where ``mask`` (N,) is true."""
        return replace(self, frame=self.frame[mask].reset_index(drop=True))

    def read(self, index: int) -> bytes:
        """Return the encoded image of the record at ``index``."""
        return self.images.read(int(self.frame["row"].iloc[index]))

    def decode(self, index: int, content: bytes | None = None) -> RGB:
        """Return the cropped image of the record at ``index``; ``content`` is its encoded image, if already read."""
        image = decode_image(self.read(index) if content is None else content)
        if self.cropper is not None:
            image = self.cropper(image, self.find_box(index))
        if not self.trims:
            return image
        box = self.trims.get(self._get_source(index))
        return image if box is None else box.cut(image)

    @property
    def boxed(self) -> NDArray[np.bool_]:
        """Which faces (N,) have a bounding box."""
        if BOX_COLUMNS[0] not in self.frame.columns:
            return np.zeros(len(self), dtype=bool)
        return np.asarray(self.frame[BOX_COLUMNS[0]].notna(), dtype=bool)

    def find_box(self, index: int) -> Box | None:
        """Return the bounding box of the face at ``index``, as the dataset gives it; None if it has none."""
        if BOX_COLUMNS[0] not in self.frame.columns:
            return None
        left, top, right, bottom = (float(self.frame[name].iloc[index]) for name in BOX_COLUMNS)
        return None if left != left else (left, top, right, bottom)

    def _get_source(self, index: int) -> str:
        return str(self.frame[SOURCE_COLUMN].iloc[index]) if SOURCE_COLUMN in self.frame.columns else self.source

    def describe_crop(self) -> str:
        """Return a text that is different for different crops, for cache keys; "" if the images are not cropped."""
        cropper = [] if self.cropper is None else [str(self.cropper)]
        return "; ".join([*cropper, *(f"{name}: {box}" for name, box in sorted(self.trims.items()))])
