"""The scan: one pass over all images for checksums, perceptual hashes and, on request, the pixels for training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB, resize_image
from agegen.data.records import Box, Exclusion, FaceRecords, locate_image
from agegen.errors import DataError
from agegen.machine import count_cores

# 256 bits instead of the usual 64, in most of which aligned faces agree.
HASH_SIDE = 16
HASH_BITS = HASH_SIDE * HASH_SIDE
# Images between two progress updates.
_UPDATE_INTERVAL = 256
# If not even one in so many files exists, the table names none.
_PROBED = 1000

ProgressHook = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scan:
    """The result of a scan: N readable images.

    Attributes:
        records: of the readable images; images that cannot be decoded were added to ``records.excluded``.
        sha256: of each encoded image, hexadecimal.
        hashes: perceptual hashes (N, 256), bool.
        pixels: (N, size, size, 3) uint8, if requested.
        sides: the shorter side of each image in pixels, (N,).
    """

    records: FaceRecords
    sha256: list[str]
    hashes: NDArray[np.bool_]
    pixels: NDArray[np.uint8] | None
    sides: NDArray[np.int32]

    def select(self, mask: NDArray[np.bool_]) -> Scan:
        """Return the part where ``mask`` (N,) is true; if it is all true, the same object, without copying pixels."""
        if mask.all():
            return self
        digests = [digest for digest, kept in zip(self.sha256, mask, strict=True) if kept]
        pixels = None if self.pixels is None else self.pixels[mask]
        return Scan(self.records.select(mask), digests, self.hashes[mask], pixels, self.sides[mask])


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Do nothing: the default progress hook."""


def scan_images(records: FaceRecords, size: int | None = None, on_progress: ProgressHook = ignore_progress) -> Scan:
    """Decode every image once, on all cores.

    Args:
        records: whose images to read.
        size: keep the pixels, resized to a square of this side; None keeps no pixels.
        on_progress: called with ("reading images", done, total).

    Raises:
        DataError: not a single image can be decoded.
    """
    total = len(records)
    pixels = None if size is None else np.zeros((total, size, size, 3), dtype=np.uint8)
    hashes = np.zeros((total, HASH_BITS), dtype=bool)
    sides = np.zeros(total, dtype=np.int32)
    digests, reasons = [""] * total, [""] * total

    def scan_one(index: int) -> None:
        try:
            content = records.read(index)
            image = records.decode(index, content)
        except DataError as error:
            reasons[index] = str(error)
            return
        digests[index] = _digest_face(content, records.find_box(index))
        hashes[index] = hash_image(image)
        sides[index] = _measure_side(image, records.find_box(index))
        if pixels is not None and size is not None:
            pixels[index] = resize_image(image, size)

    _check_files(records)
    with ThreadPoolExecutor(count_cores()) as pool:
        # In parts: the pool keeps an object of a kilobyte for each image that waits.
        for start in range(0, total, _UPDATE_INTERVAL):
            done = min(start + _UPDATE_INTERVAL, total)
            list(pool.map(scan_one, range(start, done)))
            on_progress("reading images", done, total)
    return _exclude_unreadable(Scan(records, digests, hashes, pixels, sides), reasons)


def _digest_face(content: bytes, box: Box | None) -> str:
    """Return the SHA-256 of an encoded image, with the bounding box if it shows several faces, in hexadecimal."""
    return hashlib.sha256(content if box is None else content + repr(box).encode()).hexdigest()


def _measure_side(image: RGB, box: Box | None) -> int:
    """Return the shorter side, in pixels, of a crop, or of its bounding box if that is in pixels and smaller."""
    shorter = min(image.shape[:2])
    side = 0.0 if box is None else min(box[2] - box[0], box[3] - box[1])
    return int(min(shorter, round(side))) if side > 1 else int(shorter)


def _check_files(records: FaceRecords) -> None:
    """Raise DataError at once if a table names many files and none of a sample exists."""
    total = len(records)
    if total <= _PROBED:
        return
    rows = np.linspace(0, total - 1, _PROBED).astype(int)
    paths = [locate_image(records.images, int(row)) for row in records.frame["row"].iloc[rows]]
    if all(path is not None and not path.exists() for path in paths):
        raise DataError(
            f"no image of {records.source} can be read: none of {_PROBED:,} sampled files of {total:,} exists; the "
            f"first: {records.frame['path'].iloc[0]}: no such file"
        )


def hash_image(image: RGB) -> NDArray[np.bool_]:
    """Return the perceptual hash (256,) of an image: which of its lowest 16×16 DCT coefficients exceed their median.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010.
    """
    import cv2

    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:HASH_SIDE, :HASH_SIDE].reshape(-1)
    # The first coefficient is the mean brightness, which does not identify an image.
    low[0] = 0.0
    bits: NDArray[np.bool_] = low > np.median(low[1:])
    return bits


def _exclude_unreadable(scan: Scan, reasons: list[str]) -> Scan:
    readable = np.array([not reason for reason in reasons], dtype=bool)
    if readable.all():
        return scan
    names = scan.records.frame["path"]
    unreadable = tuple(Exclusion(str(names.iloc[i]), reasons[i]) for i in np.flatnonzero(~readable))
    if not readable.any():
        first = unreadable[0]
        raise DataError(f"no image of {scan.records.source} can be read; the first: {first.path}: {first.reason}")
    kept = scan.select(readable)
    return replace(kept, records=replace(kept.records, excluded=scan.records.excluded + unreadable))
