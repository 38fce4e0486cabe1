"""Batches of pictures, in an order and with augmentation that the seed decides."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from agegen.backbone import InputSpec
from agegen.batches.batch import EVAL_BATCH_SIZE, Batch, OrderedFaces, iter_batches, limit_batch_size, make_targets
from agegen.data.images import RGB, resize_image
from agegen.data.labels import Labels
from agegen.data.records import FaceRecords
from agegen.distributed import SINGLE_PROCESS, DistContext, read_local_rank
from agegen.errors import AgegenError, DataError, PluginError
from agegen.machine import count_cores, measure_free_memory
from agegen.model.network import make_views, stack_images

if TYPE_CHECKING:
    import albumentations


def import_albumentations() -> Any:
    """Import albumentations, and keep OpenCV from starting threads of its own."""
    import albumentations
    import cv2

    cv2.setNumThreads(0)
    return albumentations


class Augmentation:
    """Random views of a face; the same seed gives the same view, in whichever process."""

    def __init__(self, compose: albumentations.Compose, size: int) -> None:
        self._compose = compose
        self._size = size

    def __call__(self, image: RGB, seed: tuple[int, ...]) -> RGB:
        """Return one view (size, size, 3) of an RGB picture, drawn from ``seed``.

        Raises:
            PluginError: a backbone's own augmentation gives something else.
        """
        rng = np.random.default_rng(seed)
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**32))))
        augmented = self._compose(image=resize_image(image, self._size))["image"]
        if augmented.shape != (self._size, self._size, 3) or augmented.dtype != np.uint8:
            raise PluginError(
                f"the backbone's augmentation gives {augmented.dtype} {augmented.shape}, not uint8 "
                f"{(self._size, self._size, 3)}"
            )
        return np.ascontiguousarray(augmented)

    def __str__(self) -> str:
        return json.dumps(self._compose.to_dict(), sort_keys=True, default=str)


def build_train_augmentation(spec: InputSpec, own: albumentations.Compose | None = None) -> Augmentation:
    """Return the backbone's own augmentation, or agegen's: mirror, shift, turn, scale, light, colour, damage."""
    a = import_albumentations()
    if own is not None:
        return Augmentation(own, spec.size)
    steps = [
        a.HorizontalFlip(p=0.5),
        _make_affine(a, shift=0.06, turn=15, scale=0.15, p=0.9),
        a.RandomBrightnessContrast(0.3, 0.3, p=0.7),
        a.HueSaturationValue(8, 30, 15, p=0.4),
        a.ToGray(p=0.05),
        a.OneOf([a.GaussianBlur((3, 5)), a.Downscale((0.4, 0.8)), a.ImageCompression("jpeg", (30, 80))], p=0.15),
        a.CoarseDropout((1, 2), (0.1, 0.3), (0.1, 0.3), fill=0, p=0.4),
    ]
    return Augmentation(a.Compose(steps), spec.size)


def build_view_augmentation(spec: InputSpec, own: albumentations.Compose | None = None) -> Augmentation:
    """Return the backbone's own augmentation, or the milder one of agegen, for the fixed views of a frozen backbone."""
    a = import_albumentations()
    if own is not None:
        return Augmentation(own, spec.size)
    steps = [
        _make_affine(a, shift=0.04, turn=8, scale=0.08, p=1.0),
        a.RandomBrightnessContrast(0.15, 0.15, p=0.5),
    ]
    return Augmentation(a.Compose(steps), spec.size)


def _make_affine(a: Any, shift: float, turn: float, scale: float, p: float) -> Any:
    import cv2

    return a.Affine(
        scale=(1 - scale, 1 + scale),
        translate_percent=(-shift, shift),
        rotate=(-turn, turn),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


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
    cores = count_cores() // read_local_rank()[1]
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
        dist: DistContext = SINGLE_PROCESS,
    ) -> None:
        self._dist = dist
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
        size, dist = self._batch_size, self._dist
        parts = list(iter_batches(self.labels, self._weights, size, self._seed, epoch, start, dist))
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
        with explain_loader_errors():
            for (images, indices), (_, whole) in zip(loader, parts, strict=True):
                yield Batch([images], make_targets(self.labels.pick(indices)), whole)

    def measure_rate(self) -> float:
        """Augment a batch in this process and return the rate, times the number of loaders."""
        count = min(self._batch_size, len(self._dataset))
        started = time.perf_counter()
        for index in range(count):
            self._dataset[0, index]
        return count * max(self._workers, 1) / (time.perf_counter() - started)


class EvalBatches(OrderedFaces):
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
def explain_loader_errors() -> Iterator[None]:
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
