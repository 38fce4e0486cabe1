"""Near-duplicate pictures: pairs of close perceptual hashes, mirrored ones too, joined to groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.scan import HASH_BITS, HASH_SIDE, ProgressHook, ignore_progress

# Out of 256 bits. Chosen by looking at pairs of UTKFace: up to 40 nearly all show one photograph,
# from 44 to 48 about half do, above 50 they are look-alikes.
MAX_DISTANCE = 46
# All others are compared with so many hashes at once: half a megabyte of them, which stays in a core's cache. With the
# 32 MB of a million it goes half as fast.
_ROWS_AT_ONCE = 16384


def find_pairs(
    hashes: NDArray[np.bool_],
    max_distance: int = MAX_DISTANCE,
    on_progress: ProgressHook = ignore_progress,
    mirrored: bool = False,
) -> NDArray[np.int64]:
    """Return the pairs (P, 2), first < second, of hashes (N, bits) at most ``max_distance`` bits apart.

    ``mirrored``: the pairs of which one is close to the other's mirror image. Compares all with all, by counting bits
    (faiss): exact, in bounded memory, and quadratic in N (tests/benchmarks/README.md has what that takes).
    """
    packed = pack_hashes(hashes)
    asked = pack_hashes(mirror_hashes(hashes)) if mirrored else packed
    pairs = [np.empty((0, 2), dtype=np.int64)]
    # Each block is compared with itself and those before, half of all with all.
    for start in range(0, len(hashes), _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, len(hashes))
        index = _make_index(hashes.shape[1])
        index.add(packed[start:end])
        rows, found = _search(index, asked[:end], max_distance)
        found = found + start
        pairs.append(np.stack([rows, found], axis=1)[rows < found])
        on_progress("comparing pictures", end, len(hashes))
    every = np.concatenate(pairs)
    return every[np.lexsort((every[:, 1], every[:, 0]))]


def mirror_hashes(hashes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the hashes (N, 256) that the mirror images have, but for the few bits whose terms are close to the median.

    Mirroring a picture turns the sign of the DCT terms of odd horizontal frequency, and of no others.
    """
    odd = np.arange(HASH_BITS) % HASH_SIDE % 2 == 1
    mirrored: NDArray[np.bool_] = hashes ^ odd
    return mirrored


def pack_hashes(hashes: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return hashes (N, bits) in bytes (N, bits / 8), filled up with zeros."""
    return np.ascontiguousarray(np.packbits(hashes, axis=1))


def _make_index(bits: int) -> Any:
    import faiss

    return faiss.IndexBinaryFlat(-(-bits // 8) * 8)


def _search(index: Any, packed: NDArray[np.uint8], max_distance: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (query, found) rows of all pairs at most so many bits apart."""
    # faiss means less than its radius.
    limits, _, found = index.range_search(packed, max_distance + 1)
    queries = np.repeat(np.arange(len(packed)), np.diff(limits.astype(np.int64)))
    return queries, found.astype(np.int64)


def find_duplicates(
    hashes: NDArray[np.bool_], sha256: list[str], on_progress: ProgressHook = ignore_progress
) -> NDArray[np.int64]:
    """Return the pairs (P, 2) of near-duplicates, and of each identical file with the first of its kind.

    Identical files are compared once, so that a thousand copies of one make no million pairs.
    """
    rows, firsts = _find_firsts(sha256)
    copies = np.flatnonzero(firsts != np.arange(len(firsts)))
    pairs = rows[find_pairs(hashes[rows], on_progress=on_progress)]
    return np.concatenate([pairs.reshape(-1, 2), np.stack([firsts[copies], copies], axis=1)])


def find_mirrored_duplicates(
    hashes: NDArray[np.bool_], sha256: list[str], on_progress: ProgressHook = ignore_progress
) -> NDArray[np.int64]:
    """Return the pairs (P, 2) of which one is the other's mirror image, or nearly; identical files count once.

    Faces that are symmetric enough to be close both ways are near-duplicates, and none of these.
    """
    rows, _ = _find_firsts(sha256)
    pairs = rows[find_pairs(hashes[rows], on_progress=on_progress, mirrored=True)].reshape(-1, 2)
    plain = (hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).sum(axis=1)
    apart: NDArray[np.int64] = pairs[plain > MAX_DISTANCE]
    return apart


def _find_firsts(sha256: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of files that are the first of their content, and for each file (N,) that first one."""
    first_seen: dict[str, int] = {}
    firsts = np.array([first_seen.setdefault(digest, row) for row, digest in enumerate(sha256)], dtype=np.int64)
    return np.flatnonzero(firsts == np.arange(len(firsts))), firsts


def has_near_duplicate(
    hashes: NDArray[np.bool_], others: NDArray[np.bool_], max_distance: int = MAX_DISTANCE
) -> NDArray[np.bool_]:
    """Return which of hashes (N, bits) have one among ``others`` (M, bits) at most ``max_distance`` bits apart."""
    index, packed = _make_index(hashes.shape[1]), pack_hashes(hashes)
    index.add(pack_hashes(others))
    near = np.zeros(len(hashes), dtype=bool)
    for start in range(0, len(hashes), _ROWS_AT_ONCE):
        queries, _ = _search(index, packed[start : start + _ROWS_AT_ONCE], max_distance)
        near[queries + start] = True
    return near


def group_duplicates(hashes: NDArray[np.bool_], sha256: list[str]) -> NDArray[np.int64]:
    """Return a group number (N,) per picture: that of the first picture it is a near-duplicate of.

    Identical files always share a group; chains of pairs are joined.
    """
    return join_pairs(len(hashes), find_duplicates(hashes, sha256))


def join_pairs(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the group number (count,) per picture that pairs (P, 2) amount to, chains of them joined."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    # Named after its first picture: the same data gives the same numbers, however components are counted.
    firsts = np.full(labels.max(initial=-1) + 1, count, dtype=np.int64)
    np.minimum.at(firsts, labels, np.arange(count))
    return np.asarray(firsts[labels], dtype=np.int64)
