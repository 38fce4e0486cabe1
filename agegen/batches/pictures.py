"""Batches of pictures, in an order and with augmentation that the seed decides."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from agegen.batches.augmentation import Augmentation
from agegen.batches.batch import EVAL_BATCH_SIZE, Batch, draw_order, limit_batch_size, make_targets
from agegen.data.images import RGB, resize_image
from agegen.data.labels import Labels
from agegen.data.records import FaceRecords
from agegen.errors import DataError
from agegen.machine import count_cores
from agegen.model.views import make_views, stack_images


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
            return resize_image(self._records.decode(row), self._size)
        except DataError as error:
            raise DataError(f"{self._records.frame['path'].iloc[row]} can't be read any more: {error}") from error


@dataclass(frozen=True)
class LabelledPixels:
    """Pictures with their labels."""

    pixels: Pixels
    labels: Labels


def choose_workers(workers: int | None) -> int:
    """Return the number of loader processes; None chooses one per spare core, at most 8.

    Processes that don't share memory by fork would copy all pictures: there the answer is 0.
    """
    if workers is not None:
        return workers
    return min(max(count_cores() - 1, 0), 8) if sys.platform == "linux" else 0


class TrainBatches:
    """Augmented pictures in an order drawn anew for each epoch."""

    def __init__(
        self,
        data: LabelledPixels,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        workers: int,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.labels = data.labels
        self._weights = np.ones(len(data.labels)) if weights is None else weights
        self._dataset = _AugmentedFaces(data, augmentation, seed)
        self._batch_size = limit_batch_size(batch_size, len(data.pixels))
        self._seed = seed
        self._workers = workers

    def __len__(self) -> int:
        return len(self._dataset) // self._batch_size

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches; a last one that isn't full is left out."""
        drawn = draw_order(self._weights, self._seed, epoch)[start * self._batch_size :]
        order = [(epoch, int(index)) for index in drawn]
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            self._batch_size,
            sampler=order,
            drop_last=True,
            num_workers=self._workers,
            collate_fn=_collate_samples,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_ignore_interrupts,
        )
        for images, indices in loader:
            yield Batch([images], make_targets(self.labels.pick(indices)))

    def measure_rate(self) -> float:
        """Augment a batch in this process and return the rate, times the number of loaders."""
        count = min(self._batch_size, len(self._dataset))
        started = time.perf_counter()
        for index in range(count):
            self._dataset[0, index]
        return count * max(self._workers, 1) / (time.perf_counter() - started)


class EvalBatches:
    """Plain pictures in their own order, each with its mirrored view."""

    def __init__(self, data: LabelledPixels, batch_size: int = EVAL_BATCH_SIZE) -> None:
        self.labels = data.labels
        self._data = data
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._data.pixels) // self._batch_size)

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:  # noqa: ARG002 - every epoch is the same
        """Yield all faces in order."""
        for first in range(start * self._batch_size, len(self._data.pixels), self._batch_size):
            stop = min(first + self._batch_size, len(self._data.pixels))
            images = [self._data.pixels[index] for index in range(first, stop)]
            yield Batch(make_views(images), make_targets(self.labels.pick(slice(first, stop))))


_Sample = tuple[RGB, int]


class _AugmentedFaces(Dataset[_Sample]):
    """Augmented pictures, addressed by (epoch, index), so that worker processes need no state."""

    def __init__(self, data: LabelledPixels, augmentation: Augmentation, seed: int) -> None:
        self._data = data
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self._data.pixels)

    def __getitem__(self, address: tuple[int, int]) -> _Sample:
        epoch, index = address
        image = self._augmentation(self._data.pixels[index], (self._seed, epoch, index))
        return image, index


def _ignore_interrupts(worker: int) -> None:  # noqa: ARG001 - DataLoader gives the worker's number
    """Leave Ctrl-C, which a terminal sends to every process, to the main one: it finishes the batch first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate_samples(samples: list[_Sample]) -> tuple[Tensor, NDArray[np.int64]]:
    images, indices = zip(*samples, strict=True)
    return stack_images(list(images)), np.array(indices)


def fits_in_memory(count: int, size: int) -> bool:
    """Return whether ``count`` square pictures take at most half of the memory that is free."""
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return count * size * size * 3 < 1 << 30
    return count * size * size * 3 < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
