"""Batches of pictures, in an order and with augmentation that the seed decides."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from agegen.batches.augmentation import Augmentation
from agegen.batches.batch import EVAL_BATCH_SIZE, Batch, FacesInOrder, deal_batches, limit_batch_size, make_targets
from agegen.data.images import RGB, resize_image
from agegen.data.labels import Labels
from agegen.data.records import FaceRecords
from agegen.errors import AgegenError, DataError
from agegen.machine import count_cores, measure_free_memory
from agegen.model.views import make_views, stack_images
from agegen.team import ALONE, Team, read_local

_SHARED_MEMORY = Path("/dev/shm")
# PyTorch's default: batches that each loader has ready.
_PREFETCHED = 2
# Batches that the training itself holds while it takes the next one.
_TAKEN = 2
# Seconds. Loaders take tenths of a second for a batch; those that are this late wait for something that won't come.
_PATIENCE = 180


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

    @property
    def bytes_each(self) -> int:
        """What a picture takes in memory."""
        return self._size * self._size * 3

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
    # Processes of one training on this machine share its cores.
    cores = count_cores() // read_local()[1]
    return min(max(cores - 1, 0), 8) if _can_fork() else 0


def limit_workers(workers: int, batch_bytes: int, shared: Path = _SHARED_MEMORY) -> int:
    """Return how many of ``workers`` loader processes the shared memory has room for.

    Each has two batches there that are ready or in the making; two more are with the training: the one that just came,
    and the one before it, which is let go only then. Docker gives 64 MB. A loader that finds no room is killed by the
    system, or waits for ever.
    """
    if sys.platform != "linux" or not workers:
        return workers
    try:
        free = shutil.disk_usage(shared).free if os.access(shared, os.W_OK) else 0
    except OSError:
        free = 0
    room = free // (-(-batch_bytes // mmap.PAGESIZE) * mmap.PAGESIZE) - _TAKEN
    return max(0, min(workers, room // _PREFETCHED))


def _can_fork() -> bool:
    return sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()


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
        team: Team = ALONE,
    ) -> None:
        self._team = team
        self.labels = data.labels
        self._weights = np.ones(len(data.labels)) if weights is None else weights
        self._dataset = _AugmentedFaces(data, augmentation, seed)
        self._batch_size = limit_batch_size(batch_size, len(data.pixels))
        self._seed = seed
        self._workers = limit_workers(workers, self._batch_size * data.pixels.bytes_each)
        self.wanted_workers = workers

    @property
    def workers(self) -> int:
        """The number of loader processes: as many as were wanted, as far as shared memory has room for them."""
        return self._workers

    def __len__(self) -> int:
        return len(self._dataset) // self._batch_size

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches; a last one that isn't full is left out."""
        size, team = self._batch_size, self._team
        parts = list(deal_batches(self.labels, self._weights, size, self._seed, epoch, start, team))
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=[[(epoch, int(index)) for index in part] for part, _ in parts],
            num_workers=self._workers,
            # Forked, loaders share the decoded pictures; started anew (Python 3.14's default) each would copy them.
            multiprocessing_context="fork" if self._workers and _can_fork() else None,
            timeout=_PATIENCE if self._workers else 0,
            collate_fn=_collate_samples,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_ignore_interrupts,
        )
        with explain_loaders():
            for (images, indices), (_, whole) in zip(loader, parts, strict=True):
                yield Batch([images], make_targets(self.labels.pick(indices)), whole)

    def measure_rate(self) -> float:
        """Augment a batch in this process and return the rate, times the number of loaders."""
        count = min(self._batch_size, len(self._dataset))
        started = time.perf_counter()
        for index in range(count):
            self._dataset[0, index]
        return count * max(self._workers, 1) / (time.perf_counter() - started)


class EvalBatches(FacesInOrder):
    """Plain pictures in their own order, each with its mirrored view."""

    def __init__(self, data: LabelledPixels, batch_size: int = EVAL_BATCH_SIZE) -> None:
        super().__init__(data.labels, batch_size)
        self._pixels = data.pixels

    def make_batch(self, first: int, stop: int) -> Batch:
        """Return some of the faces."""
        images = [self._pixels[index] for index in range(first, stop)]
        return Batch(make_views(images), make_targets(self.labels.pick(slice(first, stop))))


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
    # The main process may have a way of its own to end, which isn't this one's.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def explain_loaders() -> Iterator[None]:
    """Tell in one line of a loader that was killed or stands still.

    PyTorch looks for killed ones in a signal handler: the error comes up wherever the main thread is just then.

    Raises:
        AgegenError: a loader is gone, or late.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" in text and ("killed" in text or "exited unexpectedly" in text):
            cause = "a loader process was killed, probably for want of memory"
        elif "DataLoader timed out" in text:
            cause = f"the loader processes gave nothing for {_PATIENCE} seconds"
        else:
            raise
        said = f"{cause}; go on with `agegen train --resume RUN --workers 0`, or with fewer workers"
        raise AgegenError(said) from error


def _collate_samples(samples: list[_Sample]) -> tuple[Tensor, NDArray[np.int64]]:
    images, indices = zip(*samples, strict=True)
    return stack_images(list(images)), np.array(indices)


def fits_in_memory(count: int, size: int) -> bool:
    """Return whether ``count`` square pictures take at most half of the memory that is free."""
    return count * size * size * 3 < measure_free_memory() // 2
