"""Time the search for near-duplicates among many random hashes with planted pairs.

    python tests/benchmarks/million_hashes.py [--sizes 20000,100000,1000000]

The planted pairs are near-duplicates, and near-duplicates of mirror images; all must be found. Not a test.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from agegen.data.duplicates import MAX_DISTANCE, find_duplicates, find_mirrored_duplicates, mirror_hashes
from agegen.data.scan import HASH_BITS

# The fraction of hashes that get a near-duplicate, and the fraction that get a mirror image.
PLANTED_FRACTION = 0.01


def draw_hashes(count: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return hashes (count, 256), and the number of planted pairs of each kind."""
    hashes = rng.integers(0, 2, (count, HASH_BITS), dtype=np.uint8).astype(bool)
    pairs = int(count * PLANTED_FRACTION)
    rows = rng.permutation(count)[: 4 * pairs].reshape(4, pairs)
    noise = np.zeros((pairs, HASH_BITS), dtype=bool)
    for row, changed in enumerate(rng.integers(0, MAX_DISTANCE + 1, pairs)):
        noise[row, rng.permutation(HASH_BITS)[:changed]] = True
    hashes[rows[1]] = hashes[rows[0]] ^ noise
    hashes[rows[3]] = mirror_hashes(hashes[rows[2]]) ^ noise
    return hashes, pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="20000,100000,1000000")
    for count in map(int, parser.parse_args().sizes.split(",")):
        hashes, planted = draw_hashes(count, np.random.default_rng(0))
        names = [str(number) for number in range(count)]
        started = time.monotonic()
        pairs = len(find_duplicates(hashes, names))
        middle = time.monotonic()
        mirrored = len(find_mirrored_duplicates(hashes, names))
        seconds = middle - started, time.monotonic() - middle
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{count:,}: {planted:,} planted of each kind; {pairs:,} near-duplicates in {seconds[0]:.1f} s, "
            f"{mirrored:,} mirror images in {seconds[1]:.1f} s; peak memory {peak:.2f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
