"""Batches of pictures or of cached features, in an order and with augmentation that the seed decides."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from agegen.cores import count_cores
from agegen.data.images import RGB, decode_image, resize_image
from agegen.data.records import FaceRecords
from agegen.errors import DataError
from agegen.specs import AGE_CLASSES
from agegen.transforms import Augmentation, mirror_image

EVAL_BATCH_SIZE = 128
_SMOOTHING_YEARS = 2.0


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


class FeatureTable(Protocol):
    """Features of a data set's faces, several fixed views of each."""

    seconds: float

    @property
    def views(self) -> int:
        """The number of views; the first is the plain picture, the second its mirror."""

    def take(self, rows: NDArray[np.int64], view: int) -> NDArray[np.float16]:
        """Return the features (len(rows), D) of some faces in one view."""


@dataclass(frozen=True)
class LabelledFeatures:
    """The faces ``rows`` (N,) of a table with their ages (N,) in years and female (N,)."""

    table: FeatureTable
    rows: NDArray[np.int64]
    ages: NDArray[np.float32]
    female: NDArray[np.float32]


class TrainFeatures:
    """Cached features in an order drawn anew for each epoch, of a drawn view of each face."""

    def __init__(self, data: LabelledFeatures, batch_size: int, seed: int, age_balance: float = 0.0) -> None:
        self.labels = (data.ages, data.female)
        self._weights = weigh_ages(data.ages, age_balance)
        self._data = data
        self._seed = seed
        self._batch_size = limit_batch_size(batch_size, len(data.rows))

    def __len__(self) -> int:
        return len(self._data.rows) // self._batch_size

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches; a last one that isn't full is left out."""
        count = len(self._data.rows)
        order = draw_order(self._weights, self._seed, epoch)
        drawn = np.random.default_rng((self._seed, epoch, 1)).integers(0, self._data.table.views, count)
        for first in range(start * self._batch_size, len(self) * self._batch_size, self._batch_size):
            chosen = order[first : first + self._batch_size]
            # Sorted by view, so that each view is read at once; the order within a batch is free.
            chosen = chosen[np.argsort(drawn[chosen], kind="stable")]
            yield _take_features(self._data, chosen, [drawn[chosen]])

    def measure_rate(self) -> float:
        """Read one batch and return the rate."""
        started = time.perf_counter()
        batch = next(iter(self.iterate(0)))
        return len(batch.ages) / (time.perf_counter() - started)


class EvalFeatures:
    """Cached features in the data's own order, the plain and the mirrored view of each face."""

    def __init__(self, data: LabelledFeatures, batch_size: int = EVAL_BATCH_SIZE) -> None:
        self.labels = (data.ages, data.female)
        self._data = data
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._data.rows) // self._batch_size)

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:  # noqa: ARG002 - every epoch is the same
        """Yield all faces in order."""
        for first in range(start * self._batch_size, len(self._data.rows), self._batch_size):
            chosen = np.arange(first, min(first + self._batch_size, len(self._data.rows)))
            plain, mirrored = np.zeros_like(chosen), np.ones_like(chosen)
            yield _take_features(self._data, chosen, [plain, mirrored])


def make_views(images: list[RGB]) -> list[Tensor]:
    """Return the plain and the mirrored view of pictures, each (N, 3, size, size) uint8."""
    return [stack_images(images), stack_images([mirror_image(image) for image in images])]


def stack_images(images: list[RGB]) -> Tensor:
    """Return RGB pictures of one size as a tensor (N, 3, size, size), uint8."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def weigh_ages(ages: NDArray[np.float32], balance: float) -> NDArray[np.float64]:
    """Return how often each of N faces should come in an epoch, (N,), with mean 1.

    The weight is the frequency of the face's age, smoothed over some years, to the power of ``-balance``.
    Source: Yang et al., "Delving into Deep Imbalanced Regression", ICML 2021 (label distribution smoothing).
    """
    years = np.arange(AGE_CLASSES)
    counts = np.bincount(ages.round().astype(int), minlength=AGE_CLASSES)
    kernel = np.exp(-((years[:, None] - years[None, :]) ** 2) / (2 * _SMOOTHING_YEARS**2))
    density = kernel @ counts / kernel.sum(axis=1)
    weights = density[ages.round().astype(int)] ** -balance
    return np.asarray(weights / weights.mean(), dtype=np.float64)


def draw_order(weights: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return an epoch's N indices in random order, drawn from the seed and the epoch.

    Each face comes as often as its weight says, rounded up or down by chance (systematic sampling);
    equal weights give a permutation.
    """
    rng = np.random.default_rng((seed, epoch))
    shuffled = rng.permutation(len(weights))
    # The tolerance keeps rounding errors from dropping a face where all weights are 1.
    reached = np.cumsum(weights[shuffled]) + 1e-6
    points = np.arange(len(weights)) + (0.5 if np.ptp(weights) == 0 else rng.random())
    order: NDArray[np.int64] = shuffled[np.searchsorted(reached, points).clip(max=len(weights) - 1)]
    return rng.permutation(order)


def limit_batch_size(batch_size: int, count: int) -> int:
    """Return a batch size that leaves at least one full batch.

    Raises:
        DataError: fewer than two faces; batch norm needs two.
    """
    if count < 2:
        raise DataError(f"{count} faces are too few to train on")
    return max(2, min(batch_size, count))


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


def _take_features(data: LabelledFeatures, chosen: NDArray[np.int64], views: list[NDArray[np.int64]]) -> Batch:
    """Return the faces ``chosen`` of ``data``; each of ``views`` names a (sorted) view for every face."""
    rows = data.rows[chosen]
    tensors = []
    for view in views:
        parts = [data.table.take(rows[view == which], int(which)) for which in np.unique(view)]
        tensors.append(torch.from_numpy(np.concatenate(parts)).float())
    return Batch(tensors, torch.from_numpy(data.ages[chosen]), torch.from_numpy(data.female[chosen]))
