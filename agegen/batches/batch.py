"""A batch, where batches come from, and in which order an epoch draws its faces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agegen.data.labels import AGE_CLASSES
from agegen.errors import DataError

_SMOOTHING_YEARS = 2.0

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
