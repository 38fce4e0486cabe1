"""One pass over all pictures: checksum, perceptual hash, and (on request) the pixels for training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB, resize_image
from agegen.data.records import Exclusion, FaceRecords
from agegen.errors import DataError
from agegen.machine import count_cores

# 256 bits: aligned faces agree in most of the usual 64.
HASH_SIDE = 16
HASH_BITS = HASH_SIDE * HASH_SIDE

ProgressHook = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scan:
    """What a pass over N readable pictures found.

    Attributes:
        records: the readable ones; what can't be decoded has joined ``records.excluded``.
        sha256: of each encoded picture, hexadecimal.
        hashes: perceptual hashes (N, 256), bool.
        pixels: (N, size, size, 3) uint8, where they were asked for.
        sides: the shorter side of each picture in pixels, (N,).
    """

    records: FaceRecords
    sha256: list[str]
    hashes: NDArray[np.bool_]
    pixels: NDArray[np.uint8] | None
    sides: NDArray[np.int32]

    def select(self, mask: NDArray[np.bool_]) -> Scan:
        """Return the part where ``mask`` (N,) is true; all of it is itself, without copying the pixels."""
        if mask.all():
            return self
        digests = [digest for digest, kept in zip(self.sha256, mask, strict=True) if kept]
        pixels = None if self.pixels is None else self.pixels[mask]
        return Scan(self.records.select(mask), digests, self.hashes[mask], pixels, self.sides[mask])


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Do nothing: the hook where no one watches."""


def scan_images(records: FaceRecords, size: int | None = None, on_progress: ProgressHook = ignore_progress) -> Scan:
    """Decode every picture once, on all cores.

    Args:
        records: whose pictures to read.
        size: keep the pixels too, resized to this square; None keeps none.
        on_progress: called with ("reading images", done, total).

    Raises:
        DataError: not one picture can be decoded.
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
        digests[index] = hashlib.sha256(content).hexdigest()
        hashes[index] = hash_image(image)
        sides[index] = min(image.shape[:2])
        if pixels is not None and size is not None:
            pixels[index] = resize_image(image, size)

    with ThreadPoolExecutor(count_cores()) as pool:
        for done, _ in enumerate(pool.map(scan_one, range(total)), start=1):
            if done % 64 == 0 or done == total:
                on_progress("reading images", done, total)
    return _drop_unreadable(Scan(records, digests, hashes, pixels, sides), reasons)


def hash_image(image: RGB) -> NDArray[np.bool_]:
    """Return the 256-bit perceptual hash of a picture: signs of its lowest 16×16 DCT terms about their median.

    The usual 64 bits are too few here: faces aligned alike agree in most of them.
    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010.
    """
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:HASH_SIDE, :HASH_SIDE].reshape(-1)
    low[0] = 0.0
    bits: NDArray[np.bool_] = low > np.median(low[1:])
    return bits


def _drop_unreadable(scan: Scan, reasons: list[str]) -> Scan:
    readable = np.array([not reason for reason in reasons], dtype=bool)
    if readable.all():
        return scan
    names = scan.records.frame["path"]
    bad = tuple(Exclusion(str(names.iloc[i]), reasons[i]) for i in np.flatnonzero(~readable))
    if not readable.any():
        raise DataError(f"no picture of {scan.records.source} can be read; the first: {bad[0].path}: {bad[0].reason}")
    kept = scan.select(readable)
    return replace(kept, records=replace(kept.records, excluded=scan.records.excluded + bad))
