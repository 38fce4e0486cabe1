"""The feature cache: what a frozen backbone makes of each picture is computed once and kept on disk."""

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
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from agegen.batches.batch import EVAL_BATCH_SIZE, Batch, OrderedFaces, iter_batches, limit_batch_size, make_targets
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

# Raise it whenever views or features come out differently: old caches are then no longer found.
CODE_VERSION = 1
# The unit of work, of checksums and of resuming; also the batch in which features are computed.
BLOCK = 64
_FEATURES, _SUMS = np.dtype(np.float16), np.dtype(np.uint32)


class CachedFeatures:
    """Memory-mapped features, one float16 array (faces, D) per view.

    ``seconds`` is what computing them took, in this run or an earlier one.
    """

    def __init__(self, arrays: list[np.memmap[Any, np.dtype[np.float16]]], seconds: float) -> None:
        self._arrays = arrays
        self.seconds = seconds

    @property
    def views(self) -> int:
        """The number of views."""
        return len(self._arrays)

    def take(self, rows: NDArray[np.int64], view: int) -> NDArray[np.float16]:
        """Return the features (len(rows), D) of some faces in one view."""
        return np.asarray(self._arrays[view][rows])


class FeatureCache:
    """The cache of one frozen backbone over one data set.

    The key covers the backbone's fingerprint, its input spec, the precision, the data's checksums in
    their order and the code version. Each view is a file of its own, written in blocks of 64 faces
    with a checksum each: an interrupted extraction goes on where it stopped, a damaged block is
    computed anew, and more views can be added later.
    """

    def __init__(self, root: Path, model: AgeGenderModel, sha256: list[str], compute: Compute, cut: str = "") -> None:
        """Find the cache's place; ``cut`` says how the pictures were cropped, where they were not taken whole."""
        self._model = model
        self._compute = compute
        self._shape = (len(sha256), model.backbone.feature_dim)
        self.description = {
            "code_version": CODE_VERSION,
            "identity": model.backbone.identity,
            "fingerprint": fingerprint_tensors(model.backbone),
            "input_spec": model.backbone.input_spec.to_json(),
            "compute": str(compute),
            "faces": len(sha256),
            "feature_dim": model.backbone.feature_dim,
            "data": hashlib.sha256("\n".join(sha256).encode()).hexdigest(),
        }
        # Only where there is one: caches of before stay valid.
        if cut:
            self.description["cut"] = cut
        if model.backbone.build_options:
            self.description["build"] = dict(model.backbone.build_options)
        if model.backbone.make_augmentation() is not None:
            self.description["augmentation"] = str(self._build_augmentation())
        key = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / "features" / key

    def load(
        self,
        pixels: Pixels,
        views: int,
        on_progress: ProgressHook = ignore_progress,
        dist: DistContext = SINGLE_PROCESS,
    ) -> CachedFeatures:
        """Return the features of all faces in ``views`` views; the processes of a team share what isn't there yet.

        Raises:
            AgegenError: the folder can't be written, the disk is full, or a team's processes don't share the folder.
        """
        try:
            with self._hold(dist):
                arrays = [self._load_view(view, views, pixels, on_progress, dist) for view in range(views)]
                return CachedFeatures(arrays, sum(self._read_seconds(view) for view in range(views)))
        except OSError as error:
            reason = error.strerror or str(error)
            raise AgegenError(f"can't keep features in {self.folder}: {reason}; choose --cache-dir") from error

    def has_views(self, views: int) -> bool:
        """Return whether features of all faces in so many views are there, computed before."""
        for path in (self._name_file(view, "crc") for view in range(views)):
            sums = np.fromfile(path, _SUMS) if path.is_file() else np.zeros(0, _SUMS)
            if len(sums) != self._blocks or not sums.all():
                return False
        return True

    @contextmanager
    def _hold(self, dist: DistContext) -> Iterator[None]:
        """Hold the folder, ready for use: the first process of a team holds it for all."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.parent / f"{self.folder.name}.lock")
        if dist.is_main:
            lock.acquire()
        try:
            dist.run_on_main(self._reset_mismatch)
            yield
            dist.barrier()
        finally:
            lock.release()

    def _build_augmentation(self) -> Augmentation:
        backbone = self._model.backbone
        return build_view_augmentation(backbone.input_spec, backbone.make_augmentation())

    def _reset_mismatch(self) -> None:
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
    ) -> np.memmap[Any, np.dtype[np.float16]]:
        total = self._shape[0]
        paths = self._name_file(view, "f16"), self._name_file(view, "crc")
        # A sum of 0 stands for a block that isn't there yet.
        begin = partial(_begin_arrays, ((paths[0], _FEATURES, self._shape), (paths[1], _SUMS, (self._blocks,))))
        dist.run_on_main(begin)
        features = np.memmap(paths[0], _FEATURES, "r", shape=self._shape)
        sums = np.memmap(paths[1], _SUMS, "r", shape=(self._blocks,))
        missing = dist.run_on_main(partial(_list_missing, features, sums))[dist.rank :: dist.world_size]
        if missing:
            self._model.to(self._compute.device).eval()
        augmentation = self._build_augmentation() if missing and view > 1 else None
        for count, block in enumerate(missing, start=1):
            started = time.monotonic()
            rows = range(block * BLOCK, min((block + 1) * BLOCK, total))
            images = [draw_view(pixels[row], view, row, augmentation) for row in rows]
            _write_at(paths[0], rows.start * features.strides[0], self._extract(images))
            _write_at(paths[1], block * sums.itemsize, np.array([_sum_block(features, block)], dtype=np.uint32))
            if dist.is_main:
                write_text(
                    self._name_file(view, "seconds"), f"{self._read_seconds(view) + time.monotonic() - started:.6f}"
                )
            done = total - (len(missing) - count) * BLOCK * dist.world_size
            on_progress(f"extracting features, view {view + 1} of {views}", max(0, min(done, total)), total)
        dist.barrier()
        if not sums.all():
            raise AgegenError(f"{self.folder} lacks what other processes computed: give all of them one --cache-dir")
        return features

    @property
    def _blocks(self) -> int:
        return -(-self._shape[0] // BLOCK)

    def _name_file(self, view: int, ending: str) -> Path:
        return self.folder / f"view-{view}.{ending}"

    def _read_seconds(self, view: int) -> float:
        path = self._name_file(view, "seconds")
        return float(path.read_text(encoding="utf-8")) if path.exists() else 0.0

    def _extract(self, images: list[RGB]) -> NDArray[np.float16]:
        batch = stack_images(images).to(self._compute.device)
        with torch.inference_mode(), self._compute.autocast():
            features = self._model.extract_features(batch)
        limit = torch.finfo(torch.float16).max
        return features.float().clamp(-limit, limit).half().cpu().numpy()


def draw_view(image: RGB, view: int, row: int, augmentation: Augmentation | None) -> RGB:
    """Return a fixed view of a face: 0 plain, 1 mirrored, the rest augmented, every other one mirrored."""
    if view % 2:
        image = mirror_image(image)
    return image if augmentation is None else augmentation(image, (CODE_VERSION, view, row))


def _begin_arrays(arrays: Iterable[tuple[Path, np.dtype[Any], tuple[int, ...]]]) -> None:
    """Make array files; those of another size are begun anew, filled with zeros."""
    for path, dtype, shape in arrays:
        size = int(np.prod(shape)) * dtype.itemsize
        if not path.is_file() or path.stat().st_size != size:
            with path.open("wb") as file:
                file.truncate(size)


def _list_missing(features: np.memmap[Any, Any], sums: np.memmap[Any, Any]) -> list[int]:
    """Return the blocks that aren't there, or are damaged."""
    return [block for block in range(len(sums)) if _sum_block(features, block) != sums[block]]


def _write_at(path: Path, offset: int, values: NDArray[Any]) -> None:
    """Write values into a file; not through the map, where a full disk would kill the process."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.ascontiguousarray(values).tobytes())


def _sum_block(features: np.memmap[Any, Any], block: int) -> int:
    """Return a block's checksum; never 0 for one that is all zeros, so that unwritten blocks differ."""
    rows = np.ascontiguousarray(features[block * BLOCK : (block + 1) * BLOCK])
    return zlib.crc32(rows.tobytes()) or 1


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
        dist: DistContext = SINGLE_PROCESS,
    ) -> None:
        self._dist = dist
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
        size, dist = self._batch_size, self._dist
        drawn = np.random.default_rng((self._seed, epoch, 1)).integers(0, self._data.table.views, count)
        for chosen, whole in iter_batches(self.labels, self._weights, size, self._seed, epoch, start, dist):
            # Sorted by view, so that each view is read at once; the order within a batch is free.
            chosen = chosen[np.argsort(drawn[chosen], kind="stable")]
            yield _take_features(self._data, chosen, [drawn[chosen]])._replace(whole=whole)

    def measure_rate(self) -> float:
        """Read one batch and return the rate."""
        started = time.perf_counter()
        batch = next(iter(self.iterate(0)))
        return batch.size / (time.perf_counter() - started)


class EvalFeatures(OrderedFaces):
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
