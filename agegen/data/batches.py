"""Batches of pictures, in an order and with augmentation that the seed decides."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from agegen.cores import count_cores
from agegen.data.images import RGB
from agegen.data.order import draw_order, limit_batch_size, weigh_ages
from agegen.data.pixels import LabelledPixels, make_views, stack_images
from agegen.transforms import Augmentation

EVAL_BATCH_SIZE = 128


class Batch(NamedTuple):
    """N labelled faces.

    ``views``: one tensor per view of the faces, pictures (N, 3, size, size) uint8 or features (N, D);
    training has one view, evaluation the plain and the mirrored one. ``ages`` (N,) in years,
    ``female`` (N,) 0.0 or 1.0.
    """

    views: list[Tensor]
    ages: Tensor
    female: Tensor


class BatchSource(Protocol):
    """Where a training or an evaluation gets its batches."""

    @property
    def labels(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Ages (N,) in years and female (N,), 0 or 1, in the data's own order."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, from batch ``start`` on.

        The same epoch gives the same batches.
        """


class TrainSource(BatchSource, Protocol):
    """Where a training gets its batches."""

    def measure_rate(self) -> float:
        """Return how many images/s this source could give with a core for each of its processes."""


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
        age_balance: float = 0.0,
    ) -> None:
        self.labels = (data.ages, data.female)
        self._weights = weigh_ages(data.ages, age_balance)
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
        loader: DataLoader[_Sample] = DataLoader(
            self._dataset,
            self._batch_size,
            sampler=order,
            drop_last=True,
            num_workers=self._workers,
            collate_fn=_collate_samples,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_ignore_interrupts,
        )
        yield from loader

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
        self.labels = (data.ages, data.female)
        self._data = data
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._data.pixels) // self._batch_size)

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:  # noqa: ARG002 - every epoch is the same
        """Yield all faces in order."""
        for first in range(start * self._batch_size, len(self._data.pixels), self._batch_size):
            stop = min(first + self._batch_size, len(self._data.pixels))
            images = [self._data.pixels[index] for index in range(first, stop)]
            yield Batch(
                make_views(images),
                torch.from_numpy(self._data.ages[first:stop]),
                torch.from_numpy(self._data.female[first:stop]),
            )


_Sample = tuple[RGB, float, float]


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
        return image, float(self._data.ages[index]), float(self._data.female[index])


def _ignore_interrupts(worker: int) -> None:  # noqa: ARG001 - DataLoader gives the worker's number
    """Leave Ctrl-C, which a terminal sends to every process, to the main one: it finishes the batch first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate_samples(samples: list[_Sample]) -> Batch:
    images, ages, female = zip(*samples, strict=True)
    return Batch([stack_images(list(images))], torch.tensor(ages), torch.tensor(female))
