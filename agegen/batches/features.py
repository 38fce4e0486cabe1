"""Batches of cached features, in an order that the seed decides."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from agegen.batches.batch import EVAL_BATCH_SIZE, Batch, FacesInOrder, deal_batches, limit_batch_size, make_targets
from agegen.data.labels import Labels
from agegen.team import ALONE, Team


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
    """The faces ``rows`` (N,) of a table with their labels."""

    table: FeatureTable
    rows: NDArray[np.int64]
    labels: Labels


class TrainFeatures:
    """Cached features in an order drawn anew for each epoch, of a drawn view of each face."""

    def __init__(
        self,
        data: LabelledFeatures,
        batch_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
        team: Team = ALONE,
    ) -> None:
        self._team = team
        self.labels = data.labels
        self._weights = np.ones(len(data.rows)) if weights is None else weights
        self._data = data
        self._seed = seed
        self._batch_size = limit_batch_size(batch_size, len(data.rows))

    def __len__(self) -> int:
        return len(self._data.rows) // self._batch_size

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches; a last one that isn't full is left out."""
        count = len(self._data.rows)
        size, team = self._batch_size, self._team
        drawn = np.random.default_rng((self._seed, epoch, 1)).integers(0, self._data.table.views, count)
        for chosen, whole in deal_batches(self.labels, self._weights, size, self._seed, epoch, start, team):
            # Sorted by view, so that each view is read at once; the order within a batch is free.
            chosen = chosen[np.argsort(drawn[chosen], kind="stable")]
            yield _take_features(self._data, chosen, [drawn[chosen]])._replace(whole=whole)

    def measure_rate(self) -> float:
        """Read one batch and return the rate."""
        started = time.perf_counter()
        batch = next(iter(self.iterate(0)))
        return batch.size / (time.perf_counter() - started)


class EvalFeatures(FacesInOrder):
    """Cached features in the data's own order, the plain and the mirrored view of each face."""

    def __init__(self, data: LabelledFeatures, batch_size: int = EVAL_BATCH_SIZE) -> None:
        super().__init__(data.labels, batch_size)
        self._data = data

    def make_batch(self, first: int, stop: int) -> Batch:
        """Return some of the faces."""
        chosen = np.arange(first, stop)
        plain, mirrored = np.zeros_like(chosen), np.ones_like(chosen)
        return _take_features(self._data, chosen, [plain, mirrored])


def _take_features(data: LabelledFeatures, chosen: NDArray[np.int64], views: list[NDArray[np.int64]]) -> Batch:
    """Return the faces ``chosen`` of ``data``; each of ``views`` names a (sorted) view for every face."""
    rows = data.rows[chosen]
    tensors = []
    for view in views:
        parts = [data.table.take(rows[view == which], int(which)) for which in np.unique(view)]
        tensors.append(torch.from_numpy(np.concatenate(parts)).float())
    return Batch(tensors, make_targets(data.labels.pick(chosen)))
