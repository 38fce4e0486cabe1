"""A batch, where batches come from, and in which order an epoch draws its faces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agegen.data.labels import AGE_CLASSES, Labels
from agegen.distributed import DistContext
from agegen.errors import DataError
from agegen.model.loss import Targets, find_known

# People write ages down to within some years; rarer ages lend each other strength.
_SMOOTHING_YEARS = 2.0
# Larger ones gain nothing on a CPU and take memory.
EVAL_BATCH_SIZE = 128


class GlobalBatch(NamedTuple):
    """A batch that several processes share: its faces, and of how many of them age and gender are known."""

    size: int
    aged: int
    gendered: int


class Batch(NamedTuple):
    """N labelled faces; ``whole`` is the batch of which they are this process' part, None where they are all.

    ``views``: one tensor per view of the faces, pictures (N, 3, size, size) uint8 or features (N, D);
    training has one view, evaluation the plain and the mirrored one.
    """

    views: list[Tensor]
    targets: Targets
    whole: GlobalBatch | None = None

    @property
    def size(self) -> int:
        """The number of faces, of the whole batch where several processes share it."""
        return len(self.targets.low) if self.whole is None else self.whole.size

    @property
    def counts(self) -> tuple[int, int] | None:
        """Of how many faces of the whole batch age and gender are known; None where this is all of it."""
        return None if self.whole is None else (self.whole.aged, self.whole.gendered)


class BatchSource(Protocol):
    """Where a training or an evaluation gets its batches."""

    @property
    def labels(self) -> Labels:
        """The labels of all faces, in the data's own order."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, from batch ``start`` on.

        The same epoch gives the same batches.
        """


class EvalSource(BatchSource, Protocol):
    """Where an evaluation gets its batches: all faces in order."""

    def iterate(self, epoch: int = 0, start: int = 0, stride: int = 1) -> Iterator[Batch]:
        """Yield every ``stride``-th batch from ``start`` on."""


class OrderedFaces(ABC):
    """Labelled faces in the data's own order, batch after batch: what every :class:`EvalSource` does."""

    def __init__(self, labels: Labels, batch_size: int = EVAL_BATCH_SIZE) -> None:
        self.labels = labels
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.labels) // self._batch_size)

    def iterate(self, epoch: int = 0, start: int = 0, stride: int = 1) -> Iterator[Batch]:  # noqa: ARG002 - all epochs are the same
        """Yield all faces in order, in every ``stride``-th batch."""
        for first in range(start * self._batch_size, len(self.labels), self._batch_size * stride):
            yield self.make_batch(first, min(first + self._batch_size, len(self.labels)))

    @abstractmethod
    def make_batch(self, first: int, stop: int) -> Batch:
        """Return the faces from ``first`` to before ``stop``, each in its plain and its mirrored view."""


class TrainSource(BatchSource, Protocol):
    """Where a training gets its batches; each process of a team its part of each."""

    def measure_rate(self) -> float:
        """Return how many images/s this source could give with a core for each of its processes."""


def make_targets(labels: Labels) -> Targets:
    """Return labels as the loss takes them."""
    parts = [labels.low, labels.high, labels.female]
    if labels.soft is not None:
        parts += [labels.soft.ages, labels.soft.female]
    return Targets(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))


def take_part(
    labels: Labels, chosen: NDArray[np.int64], dist: DistContext
) -> tuple[NDArray[np.int64], GlobalBatch | None]:
    """Return this process' part of the faces of a batch, and what the whole of it is; all of it for one alone."""
    if dist.world_size == 1:
        return chosen, None
    aged, gendered = find_known(make_targets(labels.pick(chosen)))
    return chosen[dist.local_slice(len(chosen))], GlobalBatch(len(chosen), int(aged.sum()), int(gendered.sum()))


def iter_batches(
    labels: Labels, weights: NDArray[np.float64], size: int, seed: int, epoch: int, start: int, dist: DistContext
) -> Iterator[tuple[NDArray[np.int64], GlobalBatch | None]]:
    """Yield which faces each batch of an epoch has, from batch ``start`` on; a last one that isn't full is left out."""
    order = draw_order(weights, seed, epoch)
    for first in range(start * size, len(order) // size * size, size):
        yield take_part(labels, order[first : first + size], dist)


def compute_age_weights(labels: Labels, balance: float) -> NDArray[np.float64]:
    """Return how often each of N faces should come in an epoch, (N,), with mean 1.

    The weight is the frequency of the face's age, smoothed over some years, to the power of ``-balance``; a bracket
    has the mean of its years. Faces without an age come as often as the others do on average.
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
    """Return how each face's age lies over the whole years (N, 117), brackets evenly, and which ages are known (N,)."""
    known = ~np.isnan(labels.low)
    low, high = labels.low.round(), labels.high.round()
    years = np.arange(AGE_CLASSES, dtype=np.float32)
    inside = ((years >= low[:, None]) & (years <= high[:, None])).astype(np.float32)
    return inside / np.maximum(inside.sum(axis=1, keepdims=True), 1), known


def smooth_ages(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return counts of the whole years (117,), smoothed over some years."""
    years = np.arange(AGE_CLASSES)
    kernel = np.exp(-((years[:, None] - years[None, :]) ** 2) / (2 * _SMOOTHING_YEARS**2))
    return np.asarray(kernel @ counts / kernel.sum(axis=1), dtype=np.float64)


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
