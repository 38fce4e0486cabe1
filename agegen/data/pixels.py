"""Pictures at a model's size: where they come from, and their views."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agegen.data.images import RGB, decode_image, resize_image
from agegen.data.records import FaceRecords
from agegen.errors import DataError
from agegen.transforms import mirror_image


class Pixels:
    """Resized pictures of a data set, all or the given rows: from memory if kept there, else decoded anew."""

    def __init__(
        self,
        records: FaceRecords,
        size: int,
        kept: NDArray[np.uint8] | None,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self._records = records
        self._size = size
        self._kept = kept
        self._rows = np.arange(len(records)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> RGB:
        row = int(self._rows[index])
        if self._kept is not None:
            kept: RGB = self._kept[row]
            return kept
        try:
            return resize_image(decode_image(self._records.read(row)), self._size)
        except DataError as error:
            raise DataError(f"{self._records.frame['path'].iloc[row]} can't be read any more: {error}") from error


@dataclass(frozen=True)
class LabelledPixels:
    """Pictures with their labels: ages (N,) in years and female (N,), both float32."""

    pixels: Pixels
    ages: NDArray[np.float32]
    female: NDArray[np.float32]


def fits_in_memory(count: int, size: int) -> bool:
    """Return whether ``count`` square pictures take at most half of the memory that is free."""
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return count * size * size * 3 < 1 << 30
    return count * size * size * 3 < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def make_views(images: list[RGB]) -> list[Tensor]:
    """Return the plain and the mirrored view of pictures, each (N, 3, size, size) uint8."""
    return [stack_images(images), stack_images([mirror_image(image) for image in images])]


def stack_images(images: list[RGB]) -> Tensor:
    """Return RGB pictures of one size as a tensor (N, 3, size, size), uint8."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
