"""The feature cache: a frozen backbone computes the features of each image once; training reads them from disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agegen.batches.batch import EVAL_BATCH_SIZE, Batch, OrderedFaces, ShuffledFaces, make_targets
from agegen.batches.images import Augmentation, Pixels, build_view_augmentation
from agegen.data.images import RGB
from agegen.data.labels import Labels
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.distributed import SINGLE_PROCESS, DistContext
from agegen.errors import AgegenError
from agegen.files import write_json, write_text
from agegen.machine import Compute
from agegen.model.checkpoint import fingerprint_tensors
from agegen.model.network import AgeGenderModel, mirror_image, stack_images

# Part of the cache key. Raise it whenever the views or features of equal images change.
CODE_VERSION = 1
# Faces per block: the unit of computing, of checksums and of resuming.
BLOCK = 64
# How often, in seconds, a wait for another process is reported.
_POLL_SECONDS = 1.0
_FEATURES, _SUMS = np.dtype(np.float16), np.dtype(np.uint32)

_FeatureMap = np.memmap[Any, np.dtype[np.float16]]
_SumMap = np.memmap[Any, np.dtype[np.uint32]]


class CachedFeatures:
    """Memory-mapped features: one float16 array (faces, D) per view; view 0 is the plain image, view 1 its mirror.

    ``seconds`` is the time that computing them took, in this run or an earlier one.
    """

    def __init__(self, arrays: list[_FeatureMap], seconds: float) -> None:
        self._arrays = arrays
        self.seconds = seconds

    @property
    def views(self) -> int:
        """The number of views."""
        return len(self._arrays)

    def take(self, rows: NDArray[np.int64], view: int) -> NDArray[np.float16]:
        """Return the features (len(rows), D) of some faces in one view."""
        return np.asarray(self._arrays[view][rows])


def _wait_for(lock: Any, on_progress: ProgressHook) -> None:
    """Acquire a lock; another process may hold it for as long as an extraction takes, so report the wait."""
    from filelock import Timeout

    stage = "waiting for another process that extracts the same features"
    waiting = False
    while True:
        try:
            lock.acquire(timeout=_POLL_SECONDS if waiting else 0)
        except Timeout:
            waiting = True
            on_progress(stage, 0, 1)
        else:
            break
    if waiting:
        on_progress(stage, 1, 1)


class FeatureCache:
    """The cached features of one frozen backbone for one dataset.

    The key covers everything that the features depend on: the backbone's fingerprint and input spec, the precision,
    the checksums of the images in their order, how they were cropped, and the code version. Each view is a file,
    written in blocks of 64 faces with a checksum each. An interrupted extraction therefore resumes where it stopped,
    a damaged block is computed again, and views can be added later.
    """

    def __init__(self, root: Path, model: AgeGenderModel, sha256: list[str], compute: Compute, cut: str = "") -> None:
        """Choose the folder below the cache folder ``root``; ``cut`` says how the images were cropped, if they were."""
        self._model = model
        self._compute = compute
        self._shape = (len(sha256), model.backbone.feature_dim)
        self.description = self._describe(sha256, cut)
        key = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / "features" / key

    def _describe(self, sha256: list[str], cut: str) -> dict[str, Any]:
        """Return what the key covers. Optional entries are left out, not empty, because that would change the key."""
        backbone = self._model.backbone
        description: dict[str, Any] = {
            "code_version": CODE_VERSION,
            "identity": backbone.identity,
            "fingerprint": fingerprint_tensors(backbone),
            "input_spec": backbone.input_spec.to_json(),
            "compute": str(self._compute),
            "faces": len(sha256),
            "feature_dim": backbone.feature_dim,
            "data": hashlib.sha256("\n".join(sha256).encode()).hexdigest(),
        }
        if cut:
            description["cut"] = cut
        if backbone.build_options:
            description["build"] = dict(backbone.build_options)
        if backbone.make_augmentation() is not None:
            description["augmentation"] = str(self._build_augmentation())
        return description

    def load(
        self,
        pixels: Pixels,
        views: int,
        on_progress: ProgressHook = ignore_progress,
        dist: DistContext = SINGLE_PROCESS,
    ) -> CachedFeatures:
        """Return the features of all faces in ``views`` views; computes the missing ones, shared by all processes.

        Raises:
            AgegenError: the folder cannot be written, the disk is full, or the processes of a distributed training
                do not share the folder.
        """
        try:
            with self._lock(dist, on_progress):
                arrays = [self._load_view(view, views, pixels, on_progress, dist) for view in range(views)]
                return CachedFeatures(arrays, sum(self._read_seconds(view) for view in range(views)))
        except OSError as error:
            reason = error.strerror or str(error)
            raise AgegenError(
                f"cannot cache features in {self.folder}: {reason}; choose another --cache-dir"
            ) from error

    def has_views(self, views: int) -> bool:
        """Return whether the features of all faces in ``views`` views are already cached."""
        for path in (self._name_file(view, "crc") for view in range(views)):
            sums = np.fromfile(path, _SUMS) if path.is_file() else np.zeros(0, _SUMS)
            if len(sums) != self._blocks or not sums.all():
                return False
        return True

    @contextmanager
    def _lock(self, dist: DistContext, on_progress: ProgressHook) -> Iterator[None]:
        """Create the folder and lock it; rank 0 locks it for all processes."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.parent / f"{self.folder.name}.lock")
        if dist.is_main:
            _wait_for(lock, on_progress)
        try:
            dist.run_on_main(self._clear_mismatch)
            yield
            dist.barrier()
        finally:
            lock.release()

    def _clear_mismatch(self) -> None:
        """Empty the folder unless its ``meta.json`` is intact and holds this description."""
        path = self.folder / "meta.json"
        try:
            if json.loads(path.read_text(encoding="utf-8")) == self.description:
                return
        except (OSError, ValueError):
            pass
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        write_json(path, self.description)

    def _load_view(
        self, view: int, views: int, pixels: Pixels, on_progress: ProgressHook, dist: DistContext
    ) -> _FeatureMap:
        """Return the features of all faces in one view; each process computes a part of the missing blocks."""
        total = self._shape[0]
        features, sums = self._open_arrays(view, dist)
        missing = dist.run_on_main(partial(_list_missing, features, sums))[dist.rank :: dist.world_size]
        if missing:
            self._model.to(self._compute.device).eval()
        augmentation = self._build_augmentation() if missing and view > 1 else None
        for count, block in enumerate(missing, start=1):
            started = time.monotonic()
            rows = range(block * BLOCK, min((block + 1) * BLOCK, total))
            self._write_block(view, block, [make_view(pixels[row], view, row, augmentation) for row in rows], features)
            if dist.is_main:
                self._add_seconds(view, time.monotonic() - started)
            done = total - (len(missing) - count) * BLOCK * dist.world_size
            on_progress(f"extracting features, view {view + 1} of {views}", max(0, min(done, total)), total)
        dist.barrier()
        if not sums.all():
            raise AgegenError(
                f"{self.folder} lacks features that other processes computed: give all processes the same --cache-dir"
            )
        return features

    def _open_arrays(self, view: int, dist: DistContext) -> tuple[_FeatureMap, _SumMap]:
        """Return a view's features and the checksums of its blocks; a checksum of 0 marks a missing block."""
        features, sums = self._name_file(view, "f16"), self._name_file(view, "crc")
        arrays = ((features, _FEATURES, self._shape), (sums, _SUMS, (self._blocks,)))
        dist.run_on_main(partial(_create_arrays, arrays))
        return np.memmap(features, _FEATURES, "r", shape=self._shape), np.memmap(
            sums, _SUMS, "r", shape=(self._blocks,)
        )

    def _write_block(self, view: int, block: int, images: list[RGB], features: _FeatureMap) -> None:
        """Compute the features of a block and write them, then their checksum."""
        _write_at(self._name_file(view, "f16"), block * BLOCK * features.strides[0], self._extract(images))
        checksum = np.array([_sum_block(features, block)], dtype=_SUMS)
        _write_at(self._name_file(view, "crc"), block * _SUMS.itemsize, checksum)

    def _extract(self, images: list[RGB]) -> NDArray[np.float16]:
        batch = stack_images(images).to(self._compute.device)
        with torch.inference_mode(), self._compute.autocast():
            features = self._model.extract_features(batch)
        limit = torch.finfo(torch.float16).max
        return features.float().clamp(-limit, limit).half().cpu().numpy()

    def _build_augmentation(self) -> Augmentation:
        backbone = self._model.backbone
        return build_view_augmentation(backbone.input_spec, backbone.make_augmentation())

    @property
    def _blocks(self) -> int:
        return -(-self._shape[0] // BLOCK)

    def _name_file(self, view: int, ending: str) -> Path:
        return self.folder / f"view-{view}.{ending}"

    def _read_seconds(self, view: int) -> float:
        path = self._name_file(view, "seconds")
        return float(path.read_text(encoding="utf-8")) if path.exists() else 0.0

    def _add_seconds(self, view: int, seconds: float) -> None:
        write_text(self._name_file(view, "seconds"), f"{self._read_seconds(view) + seconds:.6f}")


def make_view(image: RGB, view: int, row: int, augmentation: Augmentation | None) -> RGB:
    """Return a fixed view of an image: 0 plain, 1 mirrored, the rest augmented, every other one mirrored."""
    if view % 2:
        image = mirror_image(image)
    return image if augmentation is None else augmentation(image, (CODE_VERSION, view, row))


def _create_arrays(arrays: Iterable[tuple[Path, np.dtype[Any], tuple[int, ...]]]) -> None:
    """Create array files filled with zeros; files of the right size are kept."""
    for path, dtype, shape in arrays:
        size = int(np.prod(shape)) * dtype.itemsize
        if not path.is_file() or path.stat().st_size != size:
            with path.open("wb") as file:
                file.truncate(size)


def _list_missing(features: _FeatureMap, sums: _SumMap) -> list[int]:
    """Return the blocks that are missing or damaged."""
    return [block for block in range(len(sums)) if _sum_block(features, block) != sums[block]]


def _sum_block(features: _FeatureMap, block: int) -> int:
    """Return a block's checksum, never 0, which marks a missing block."""
    rows = np.ascontiguousarray(features[block * BLOCK : (block + 1) * BLOCK])
    return zlib.crc32(rows.tobytes()) or 1


def _write_at(path: Path, offset: int, values: NDArray[Any]) -> None:
    """Write values into a file; not through a memory map, where a full disk would kill the process."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.ascontiguousarray(values).tobytes())


@dataclass(frozen=True)
class LabelledFeatures:
    """The features of the faces ``rows`` (N,) of a dataset, with their labels."""

    table: CachedFeatures
    rows: NDArray[np.int64]
    labels: Labels


class TrainFeatures(ShuffledFaces):
    """Cached features for training; each draw of a face gets one of its views."""

    def __init__(
        self,
        data: LabelledFeatures,
        batch_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
        dist: DistContext = SINGLE_PROCESS,
    ) -> None:
        super().__init__(data.labels, batch_size, seed, weights, dist)
        self._data = data

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with batch ``start``; an incomplete last batch is dropped."""
        order = self.draw_epoch(epoch)
        views = self._draw_views(order, epoch)
        for batch in self.draw_batches(order, start):
            # Sorted by view, so that each view is read once; the order within a batch does not matter.
            positions = batch.positions[np.argsort(views[batch.positions], kind="stable")]
            features = _take_features(self._data, order[positions], [views[positions]])
            yield features._replace(shared=batch.shared)

    def _draw_views(self, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Return the view for each position of an epoch (N,).

        A face's first draw gets a random view, further draws the next ones: they differ as long as there are views.
        """
        count = self._data.table.views
        first = np.random.default_rng((self._seed, epoch, 1)).integers(0, count, len(order))
        return (first[order] + _count_earlier_draws(order)) % count


def _count_earlier_draws(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each position of an epoch (N,) how often its face was drawn before."""
    by_face = np.argsort(order, kind="stable")
    faces, places = order[by_face], np.arange(len(order))
    is_first = np.append(True, faces[1:] != faces[:-1])
    earlier = np.empty(len(order), dtype=np.int64)
    earlier[by_face] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return earlier


class EvalFeatures(OrderedFaces):
    """Cached features in the order of the data: the first ``views`` views of each face, plain and mirrored."""

    def __init__(self, data: LabelledFeatures, views: int, batch_size: int = EVAL_BATCH_SIZE) -> None:
        super().__init__(data.labels, views, batch_size)
        self._data = data

    def make_batch(self, first: int, stop: int) -> Batch:
        """Return the views of the faces from ``first`` to ``stop`` (excluded)."""
        chosen = np.arange(first, stop)
        return _take_features(self._data, chosen, [np.full_like(chosen, view) for view in range(self._views)])


def _take_features(data: LabelledFeatures, chosen: NDArray[np.int64], views: list[NDArray[np.int64]]) -> Batch:
    """Return the faces ``chosen`` (n,) of ``data``; each array of ``views`` (n,) holds a view per face, ascending."""
    rows = data.rows[chosen]
    tensors = []
    for view in views:
        parts = [data.table.take(rows[view == which], int(which)) for which in np.unique(view)]
        tensors.append(torch.from_numpy(np.concatenate(parts)).float())
    return Batch(tensors, make_targets(data.labels.pick(chosen)))
