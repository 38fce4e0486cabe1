"""Measure the time and memory of ``agegen data check`` on datasets of increasing size.

    python tests/benchmarks/data_check.py --data ../shared/data/utkface [--sizes 10000,20000,100000]

If a size exceeds that of the data, rotated and flipped copies are added, which are not near-duplicates of each
other. Reading (decoding, checksum, hash) and comparing are timed separately. Not a test.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from agegen.data.loading import load_records
from agegen.datatools.check import check_data
from agegen.datatools.config import CheckConfig

ROTATIONS = (None, cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)


def write_variants(data: str, folder: Path, count: int) -> None:
    """Write ``count`` images: those of the data in up to eight rotations and flips."""
    records = load_records(data)

    def write(number: int) -> None:
        row, variant = number % len(records), number // len(records)
        name = f"{int(records.frame['age'].iloc[row])}_{int(records.frame['female'].iloc[row])}_0_{number:017d}.jpg"
        content = records.read(row)
        if variant:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            rotation = ROTATIONS[variant % 4]
            image = image if rotation is None else cv2.rotate(image, rotation)
            content = cv2.imencode(".jpg", image[:, ::-1] if variant >= 4 else image)[1].tobytes()
        (folder / name).write_bytes(content)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))


class ReadTimer:
    """A progress hook that records when reading ends."""

    def __init__(self) -> None:
        self.read = 0.0
        self.started = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "reading images" and done == total:
            self.read = time.monotonic() - self.started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--sizes", default="10000,20000,100000")
    options = parser.parse_args()
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            write_variants(options.data, Path(name), size)
            timer = ReadTimer()
            report = check_data(CheckConfig((name,)), timer)
            total = time.monotonic() - timer.started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{size:,} images: {total:.1f} s, of these reading {timer.read:.1f} s and the rest "
            f"{total - timer.read:.1f} s; {len(report.duplicates.pairs):,} pairs; peak memory {peak:.2f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
