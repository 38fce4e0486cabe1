"""Batches of labelled faces, and the order in which an epoch draws the faces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agegen.data.labels import AGE_CLASSES, Labels
from agegen.distributed import SINGLE_PROCESS, DistContext
from agegen.errors import DataError
from agegen.model.loss import Targets, find_known

# Larger batches are no faster on a CPU and take more memory.
EVAL_BATCH_SIZE = 128
# Standard deviation in years of the smoothing of age frequencies. People round ages, so single years are unreliable.
_SMOOTHING_YEARS = 2.0


class GlobalBatch(NamedTuple):
    """A batch that several processes share: its number of faces, and of faces with a known age or gender."""

    size: int
    known_ages: int
    known_genders: int


class Batch(NamedTuple):
    """N labelled faces.

    Attributes:
        views: one tensor per view of the faces: images (N, 3, size, size) uint8, or features (N, D). Training has one
            view; evaluation has those of the model: a plain and, with two, a mirrored one.
        targets: the labels of the N faces.
        shared: the batch of which these faces are the part of this process; None with a single process.
    """

    views: list[Tensor]
    targets: Targets
    shared: GlobalBatch | None = None

    @property
    def size(self) -> int:
        """The number of faces in the batch, over all processes."""
        return len(self.targets.low) if self.shared is None else self.shared.size

    @property
    def counts(self) -> tuple[int, int] | None:
        """The numbers of known ages and genders over all processes; None with a single process."""
        return None if self.shared is None else (self.shared.known_ages, self.shared.known_genders)


class BatchSource(Protocol):
    """Batches for training or evaluation."""

    @property
    def labels(self) -> Labels:
        """The labels of all faces, in the order of the data."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (counted from 0), beginning with batch ``start``.

        The same epoch gives the same batches, so that an interrupted epoch can be resumed.
        """


class EvalSource(BatchSource, Protocol):
    """Batches for evaluation: all faces in the order of the data."""

    def iterate(self, epoch: int = 0, start: int = 0, stride: int = 1) -> Iterator[Batch]:
        """Yield every ``stride``-th batch, beginning with batch ``start``."""


class OrderedFaces(ABC):
    """Base class of every :class:`EvalSource`: faces in the order of the data, each in the model's ``views``."""

    def __init__(self, labels: Labels, views: int, batch_size: int = EVAL_BATCH_SIZE) -> None:
        self.labels = labels
        self._views = views
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.labels) // self._batch_size)

    def iterate(self, epoch: int = 0, start: int = 0, stride: int = 1) -> Iterator[Batch]:  # noqa: ARG002 - all epochs are the same
        """Yield every ``stride``-th batch, beginning with batch ``start``."""
        for first in range(start * self._batch_size, len(self.labels), self._batch_size * stride):
            yield self.make_batch(first, min(first + self._batch_size, len(self.labels)))

    @abstractmethod
    def make_batch(self, first: int, stop: int) -> Batch:
        """Return the views of the faces from ``first`` to ``stop`` (excluded)."""


class DrawnBatch(NamedTuple):
    """The n faces of one batch that this process trains on.

    Attributes:
        rows: of the faces in the data (n,).
        positions: of these draws in the epoch (n,). A face that is drawn twice has two positions.
        shared: the batch over all processes; None with a single process.
    """

    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    shared: GlobalBatch | None


class ShuffledFaces(ABC):
    """Base class of the sources for training: faces in another random order in each epoch."""

    def __init__(
        self,
        labels: Labels,
        batch_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
        dist: DistContext = SINGLE_PROCESS,
    ) -> None:
        """Prepare epochs of N faces.

        Args:
            labels: of the N faces.
            batch_size: over all processes.
            seed: decides the order and the augmentation.
            weights: how often each face is drawn in an epoch (N,), mean 1; None draws each once.
            dist: the processes that share each batch.

        Raises:
            DataError: there are fewer than two faces.
        """
        self.labels = labels
        self._batch_size = limit_batch_size(batch_size, len(labels))
        self._seed = seed
        self._weights = np.ones(len(labels)) if weights is None else weights
        self._dist = dist

    def __len__(self) -> int:
        return len(self.labels) // self._batch_size

    @abstractmethod
    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with batch ``start``; an incomplete last batch is dropped."""

    def draw_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows of an epoch's faces in the order in which they are drawn (N,)."""
        return draw_order(self._weights, self._seed, epoch)

    def draw_batches(self, order: NDArray[np.int64], start: int = 0) -> Iterator[DrawnBatch]:
        """Yield the batches of an epoch with this order, beginning with batch ``start``."""
        size = self._batch_size
        for first in range(start * size, len(self) * size, size):
            yield take_local_part(self.labels, order[first : first + size], first, self._dist)


def draw_order(weights: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the rows of an epoch's N faces in random order.

    Each face is drawn as often as its weight says, rounded up or down at random (systematic sampling); equal weights
    give a permutation.
    """
    rng = np.random.default_rng((seed, epoch))
    shuffled = rng.permutation(len(weights))
    # Without the tolerance, rounding errors could drop a face when all weights are 1.
    reached = np.cumsum(weights[shuffled]) + 1e-6
    points = np.arange(len(weights)) + (0.5 if np.ptp(weights) == 0 else rng.random())
    order: NDArray[np.int64] = shuffled[np.searchsorted(reached, points).clip(max=len(weights) - 1)]
    return rng.permutation(order)


def take_local_part(labels: Labels, rows: NDArray[np.int64], first: int, dist: DistContext) -> DrawnBatch:
    """Return the part of a batch for this process; ``first`` is the position of the batch's first draw."""
    positions = np.arange(first, first + len(rows))
    if dist.world_size == 1:
        return DrawnBatch(rows, positions, None)
    ages, genders = find_known(make_targets(labels.pick(rows)))
    shared = GlobalBatch(len(rows), int(ages.sum()), int(genders.sum()))
    part = dist.local_slice(len(rows))
    return DrawnBatch(rows[part], positions[part], shared)


def limit_batch_size(batch_size: int, count: int) -> int:
    """Return a batch size with which ``count`` faces give at least one complete batch.

    Raises:
        DataError: there are fewer than two faces; batch norm requires two.
    """
    if count < 2:
        raise DataError(f"too few faces to train on: {count}")
    return max(2, min(batch_size, count))


def make_targets(labels: Labels) -> Targets:
    """Return labels as tensors for the loss."""
    parts = [labels.low, labels.high, labels.female]
    if labels.soft is not None:
        parts += [labels.soft.ages, labels.soft.female]
    return Targets(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))


def compute_age_weights(labels: Labels, balance: float) -> NDArray[np.float64]:
    """Return how often to draw each of N faces in an epoch, (N,) with mean 1, so that rare ages are drawn more often.

    The weight is the smoothed frequency of the face's age to the power of ``-balance``. An age bracket has the mean
    weight of its years; a face without an age has the mean weight of the others.
    Source: Yang et al., "Delving into Deep Imbalanced Regression", ICML 2021 (label distribution smoothing).
    """
    shares, known = spread_ages(labels)
    weights = np.ones(len(labels))
    if known.any():
        density = smooth_ages(shares[known].sum(axis=0))
        weights[known] = shares[known] @ (density + 1e-12) ** -balance
        weights[known] /= weights[known].mean()
    return weights


def spread_ages(labels: Labels) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return each face's age as shares of the whole years (N, 117), and which ages are known (N,).

    An age bracket is spread evenly over its years.
    """
    known = ~np.isnan(labels.low)
    low, high = labels.low.round(), labels.high.round()
    years = np.arange(AGE_CLASSES, dtype=np.float32)
    inside = ((years >= low[:, None]) & (years <= high[:, None])).astype(np.float32)
    return inside / np.maximum(inside.sum(axis=1, keepdims=True), 1), known


def smooth_ages(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return counts of the whole years (117,), smoothed over neighbouring years."""
    years = np.arange(AGE_CLASSES)
    kernel = np.exp(-((years[:, None] - years[None, :]) ** 2) / (2 * _SMOOTHING_YEARS**2))
    return np.asarray(kernel @ counts / kernel.sum(axis=1), dtype=np.float64)
