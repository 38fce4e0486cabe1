"""Batches of images: decoding, augmentation with albumentations, and the processes that do both during training."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from agegen.backbone import InputSpec
from agegen.batches.batch import EVAL_BATCH_SIZE, Batch, OrderedFaces, ShuffledFaces, make_targets
from agegen.data.images import RGB, resize_image
from agegen.data.labels import Labels
from agegen.data.records import FaceRecords
from agegen.distributed import SINGLE_PROCESS, DistContext, read_local_rank
from agegen.errors import AgegenError, DataError, PluginError
from agegen.machine import count_cores, measure_free_memory
from agegen.model.network import make_views, stack_images

if TYPE_CHECKING:
    import albumentations

# More worker processes than this gain nothing: by then the network is the bottleneck.
_MAX_WORKERS = 8
# PyTorch's default number of batches that each worker prepares in advance.
_PREFETCHED = 2
# Batches that the training itself holds while it fetches the next one.
_HELD = 2
# Where PyTorch's workers put their batches.
_SHARED_MEMORY = Path("/dev/shm")
# Seconds. A worker takes tenths of a second for a batch; one that is this late waits for something that never comes.
_WORKER_TIMEOUT = 180
# Share of the free memory that decoded images may take.
_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class AugmentationRanges:
    """The random changes of training images, in the order in which they are applied.

    ``p_…`` is the probability of each, 0–1. :func:`build_train_augmentation` applies them with albumentations,
    :class:`agegen.batches.device.DeviceAugmentation` with kornia.

    Attributes:
        shift: maximum shift to each side, as a share of the image's side.
        degrees: maximum rotation to each side.
        scale: maximum enlargement or reduction, as a share; drawn separately for width and height.
        brightness: maximum addition to or subtraction from all values, as a share of the range of values.
        contrast: maximum change of the factor of all values.
        hue: maximum shift of the hue, in OpenCV's units (180 are a full circle).
        saturation: maximum shift of the saturation in HSV, of 255.
        value: maximum shift of the value in HSV, of 255.
        p_degraded: of :func:`degrade`, and ``p_step`` of each of its steps.
        degraded_side: the side of the small copy, in pixels.
        sigma: of a Gaussian blur, or of the blur that an unsharp mask subtracts, in pixels of the copy.
        sharpening: how often the difference to the blurred copy is added.
        degraded_contrast: the factor of the contrast.
        quality: of JPEG or WebP, 0–100.
        holes: how many black boxes hide parts of a face.
        hole_side: width and height of each box, as shares of the image's side.
    """

    p_mirror: float = 0.5
    p_affine: float = 0.9
    shift: float = 0.06
    degrees: float = 15
    scale: float = 0.15
    p_light: float = 0.7
    brightness: float = 0.3
    contrast: float = 0.3
    p_colour: float = 0.4
    hue: int = 8
    saturation: int = 30
    value: int = 15
    p_grey: float = 0.05
    # Small copies on the web and thumbnails of cameras: 32 pixels are about the smallest face that detectors find.
    p_degraded: float = 0.4
    p_step: float = 0.7
    degraded_side: tuple[int, int] = (32, 96)
    sigma: tuple[float, float] = (0.5, 1.5)
    sharpening: tuple[float, float] = (0.5, 2.5)
    degraded_contrast: tuple[float, float] = (0.7, 1.6)
    quality: tuple[int, int] = (15, 80)
    p_holes: float = 0.4
    holes: tuple[int, int] = (1, 2)
    hole_side: tuple[float, float] = (0.1, 0.3)


AUGMENTATION = AugmentationRanges()


class Pixels:
    """Resized RGB images of a dataset (of all faces, or of some rows): kept in memory, or decoded at each access."""

    def __init__(
        self,
        records: FaceRecords,
        size: int,
        kept: NDArray[np.uint8] | None,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """Use the images ``kept`` (all faces, size, size, 3); None decodes the files of ``records``."""
        self._records = records
        self._size = size
        self._kept = kept
        self._rows = np.arange(len(records)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def bytes_each(self) -> int:
        """The size of one image in memory."""
        return self._size * self._size * 3

    def __getitem__(self, index: int) -> RGB:
        row = int(self._rows[index])
        if self._kept is not None:
            kept: RGB = self._kept[row]
            return kept
        try:
            return resize_image(self._records.decode(row), self._size)
        except DataError as error:
            raise DataError(f"{self._records.frame['path'].iloc[row]} could no longer be read: {error}") from error


@dataclass(frozen=True)
class LabelledPixels:
    """Images with their labels."""

    pixels: Pixels
    labels: Labels


def fits_in_memory(count: int, size: int) -> bool:
    """Return whether ``count`` square RGB images fit in the share of the free memory reserved for them."""
    return count * size * size * 3 < measure_free_memory() * _MEMORY_SHARE


class TrainBatches(ShuffledFaces):
    """Augmented images for training, prepared by worker processes."""

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
        """As :class:`ShuffledFaces`; ``workers`` is the number of worker processes, 0 for none.

        :attr:`workers` is smaller if the shared memory has no room for all of them.
        """
        super().__init__(data.labels, batch_size, seed, weights, dist)
        self._images = _AugmentedImages(data.pixels, augmentation, seed)
        self.workers = limit_workers(workers, self._batch_size * data.pixels.bytes_each)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with batch ``start``; an incomplete last batch is dropped."""
        drawn = list(self.draw_batches(self.draw_epoch(epoch), start))
        addresses = [
            [(epoch, int(position), int(row)) for position, row in zip(batch.positions, batch.rows, strict=True)]
            for batch in drawn
        ]
        loader: DataLoader[Any] = DataLoader(
            self._images,
            batch_sampler=addresses,
            num_workers=self.workers,
            # Forked workers share the decoded images; with Python 3.14's default each would copy them.
            multiprocessing_context="fork" if self.workers and _can_fork() else None,
            timeout=_WORKER_TIMEOUT if self.workers else 0,
            collate_fn=stack_images,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_ignore_interrupts,
        )
        for images, batch in zip(loader, drawn, strict=True):
            yield Batch([images], make_targets(self.labels.pick(batch.rows)), batch.shared)


class _AugmentedImages(Dataset[RGB]):
    """Augmented images, addressed by (epoch, position in the epoch, row), so that workers need no state.

    The position decides the augmentation: a face that is drawn twice in an epoch is augmented in two ways.
    """

    def __init__(self, pixels: Pixels, augmentation: Augmentation, seed: int) -> None:
        self._pixels = pixels
        self._augmentation = augmentation
        self._seed = seed

    def __getitem__(self, address: tuple[int, int, int]) -> RGB:
        epoch, position, row = address
        return self._augmentation(self._pixels[row], (self._seed, epoch, position))


class EvalBatches(OrderedFaces):
    """Images in the order of the data; the second view is the mirror image."""

    def __init__(self, data: LabelledPixels, views: int, batch_size: int = EVAL_BATCH_SIZE) -> None:
        super().__init__(data.labels, views, batch_size)
        self._pixels = data.pixels

    def make_batch(self, first: int, stop: int) -> Batch:
        """Return the views of the images from ``first`` to ``stop`` (excluded)."""
        images = [self._pixels[index] for index in range(first, stop)]
        return Batch(make_views(images, self._views), make_targets(self.labels.pick(slice(first, stop))))


class Augmentation:
    """A random augmentation; the same seed gives the same result in any process."""

    def __init__(self, compose: albumentations.Compose, size: int, ranges: AugmentationRanges | None = None) -> None:
        """Use steps of albumentations, and with ``ranges`` also :func:`degrade`."""
        self._compose = compose
        self._size = size
        self._ranges = ranges

    def __call__(self, image: RGB, seed: tuple[int, ...]) -> RGB:
        """Return an augmented RGB image (size, size, 3).

        Raises:
            PluginError: the backbone's own augmentation returns another shape or type.
        """
        rng = np.random.default_rng(seed)
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**32))))
        augmented = self._compose(image=resize_image(image, self._size))["image"]
        expected = (self._size, self._size, 3)
        if augmented.shape != expected or augmented.dtype != np.uint8:
            raise PluginError(
                f"the backbone's augmentation returns {augmented.dtype} {augmented.shape}, not uint8 {expected}"
            )
        degraded = augmented if self._ranges is None else degrade(augmented, rng, self._ranges)
        return np.ascontiguousarray(degraded)

    def __str__(self) -> str:
        return json.dumps(self._compose.to_dict(), sort_keys=True, default=str)


def build_train_augmentation(
    spec: InputSpec, own: albumentations.Compose | None = None, ranges: AugmentationRanges = AUGMENTATION
) -> Augmentation:
    """Return the augmentation for training: the backbone's own one if it has one, otherwise agegen's."""
    a = import_albumentations()
    if own is not None:
        return Augmentation(own, spec.size)
    steps = [
        a.HorizontalFlip(p=ranges.p_mirror),
        _make_affine(a, ranges.shift, ranges.degrees, ranges.scale, ranges.p_affine),
        a.RandomBrightnessContrast(ranges.brightness, ranges.contrast, p=ranges.p_light),
        a.HueSaturationValue(ranges.hue, ranges.saturation, ranges.value, p=ranges.p_colour),
        a.ToGray(p=ranges.p_grey),
        a.CoarseDropout(ranges.holes, ranges.hole_side, ranges.hole_side, fill=0, p=ranges.p_holes),
    ]
    return Augmentation(a.Compose(steps), spec.size, ranges)


def degrade(image: RGB, rng: np.random.Generator, ranges: AugmentationRanges) -> RGB:
    """Return a square image as a small, retouched and compressed copy of it looks, enlarged again.

    The copy is sharpened or blurred, its contrast is changed, and it is compressed, in random order. Datasets have
    clean crops; a network that has seen only these takes the artefacts of other photos for wrinkles.
    """
    if rng.random() >= ranges.p_degraded:
        return image
    size = image.shape[0]
    low, high = (min(side, size) for side in ranges.degraded_side)
    copy = resize_image(image, int(rng.integers(low, high + 1)))
    steps = (_change_sharpness, _change_contrast, _compress)
    for place in rng.permutation(len(steps)):
        if rng.random() < ranges.p_step:
            copy = steps[place](copy, rng, ranges)
    return resize_image(copy, size)


def _change_sharpness(image: RGB, rng: np.random.Generator, ranges: AugmentationRanges) -> RGB:
    """Return an image with an unsharp mask, or blurred."""
    import cv2

    blurred: RGB = cv2.GaussianBlur(image, (0, 0), rng.uniform(*ranges.sigma))
    if rng.random() < 0.5:
        return blurred
    amount = rng.uniform(*ranges.sharpening)
    sharpened: RGB = cv2.addWeighted(image, 1 + amount, blurred, -amount, 0)
    return sharpened


def _change_contrast(image: RGB, rng: np.random.Generator, ranges: AugmentationRanges) -> RGB:
    import cv2

    levels = 128 + rng.uniform(*ranges.degraded_contrast) * (np.arange(256) - 128)
    changed: RGB = cv2.LUT(image, levels.clip(0, 255).astype(np.uint8))
    return changed


def _compress(image: RGB, rng: np.random.Generator, ranges: AugmentationRanges) -> RGB:
    import cv2

    low, high = ranges.quality
    quality = int(rng.integers(low, high + 1))
    jpeg = rng.random() < 0.5
    suffix, flag = (".jpg", cv2.IMWRITE_JPEG_QUALITY) if jpeg else (".webp", cv2.IMWRITE_WEBP_QUALITY)
    # OpenCV expects BGR: the colour channels are compressed more than the brightness.
    _, content = cv2.imencode(suffix, image[:, :, ::-1], [flag, quality])
    decoded = np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), dtype=np.uint8)
    return np.ascontiguousarray(decoded[:, :, ::-1])


def build_view_augmentation(spec: InputSpec, own: albumentations.Compose | None = None) -> Augmentation:
    """Return the augmentation for the fixed views of a frozen backbone: its own one, otherwise a mild one.

    Cached features depend on it: after a change, raise ``CODE_VERSION`` in :mod:`agegen.batches.features`.
    """
    a = import_albumentations()
    if own is not None:
        return Augmentation(own, spec.size)
    steps = [
        _make_affine(a, shift=0.04, degrees=8, scale=0.08, p=1.0),
        a.RandomBrightnessContrast(0.15, 0.15, p=0.5),
    ]
    return Augmentation(a.Compose(steps), spec.size)


def import_albumentations() -> Any:
    """Import albumentations, and keep OpenCV from starting threads in each worker."""
    import albumentations
    import cv2

    cv2.setNumThreads(0)
    return albumentations


def _make_affine(a: Any, shift: float, degrees: float, scale: float, p: float) -> Any:
    import cv2

    return a.Affine(
        scale=(1 - scale, 1 + scale),
        translate_percent=(-shift, shift),
        rotate=(-degrees, degrees),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


def choose_workers(workers: int | None) -> int:
    """Return the number of worker processes: ``workers`` if given, otherwise one per spare core, at most 8.

    On systems without fork each worker would copy all images; there the default is 0.
    """
    if workers is not None:
        return workers
    # The processes of a distributed training on this machine share its cores.
    cores = count_cores() // read_local_rank()[1]
    return min(max(cores - 1, 0), _MAX_WORKERS) if _can_fork() else 0


def limit_workers(workers: int, batch_bytes: int, shared: Path = _SHARED_MEMORY) -> int:
    """Return for how many of ``workers`` processes the shared memory has room, where they put their batches.

    Docker gives a container 64 MB. Without this limit, the system would kill a worker that finds no room, or the
    worker would wait forever.
    """
    if sys.platform != "linux" or not workers:
        return workers
    try:
        free = shutil.disk_usage(shared).free if os.access(shared, os.W_OK) else 0
    except OSError:
        free = 0
    room = free // (-(-batch_bytes // mmap.PAGESIZE) * mmap.PAGESIZE) - _HELD
    return max(0, min(workers, room // _PREFETCHED))


def _can_fork() -> bool:
    return sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()


def _ignore_interrupts(worker: int) -> None:  # noqa: ARG001 - DataLoader passes the worker's number
    """Ignore Ctrl-C, which a terminal sends to every process: the main process finishes the batch first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def explain_loader_errors(name_run: Callable[[], Path | None]) -> Iterator[None]:
    """Turn PyTorch's errors for a worker that was killed or hangs into one line.

    ``name_run`` is called on an error and returns the run folder, if there is one. PyTorch notices killed workers in a
    signal handler, so the error occurs wherever the main thread happens to be.

    Raises:
        AgegenError: a worker was killed, or sent nothing for too long.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" in text and ("killed" in text or "exited unexpectedly" in text):
            cause = "a worker process was killed, probably because the machine is out of memory"
        elif "DataLoader timed out" in text:
            cause = f"the worker processes sent no batch for {_WORKER_TIMEOUT} seconds"
        else:
            raise
        raise AgegenError(
            f"{cause}; resume with `agegen train --resume {name_run() or 'RUN'} --workers 0`, or with fewer workers"
        ) from error
