"""Near-duplicate pictures: pairs of close perceptual hashes, joined to groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agegen.data.scan import ProgressHook, ignore_progress

# Out of 256 bits. Chosen by looking at pairs of UTKFace: up to 40 nearly all show one photograph,
# from 44 to 48 about half do, above 50 they are look-alikes.
MAX_DISTANCE = 46
# 64 MB for the products of two blocks.
_ROWS_AT_ONCE = 4096


def find_pairs(
    hashes: NDArray[np.bool_], max_distance: int = MAX_DISTANCE, on_progress: ProgressHook = ignore_progress
) -> NDArray[np.int64]:
    """Return the pairs (P, 2), first < second, of hashes (N, bits) at most ``max_distance`` bits apart.

    Compares all with all through one matrix product per pair of blocks: exact, in bounded memory, and
    quadratic in N (tests/benchmarks/README.md has what that takes).
    """
    bits = hashes.shape[1]
    starts = range(0, len(hashes), _ROWS_AT_ONCE)
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for left in starts:
        signs = _make_signs(hashes[left : left + _ROWS_AT_ONCE])
        for right in range(left, len(hashes), _ROWS_AT_ONCE):
            others = signs if right == left else _make_signs(hashes[right : right + _ROWS_AT_ONCE])
            first, second = np.nonzero(signs @ others.T >= bits - 2 * max_distance)
            found = np.stack([first + left, second + right], axis=1)
            pairs.append(found[found[:, 1] > found[:, 0]])
        on_progress("comparing pictures", min(left + _ROWS_AT_ONCE, len(hashes)), len(hashes))
    every = np.concatenate(pairs)
    return every[np.lexsort((every[:, 1], every[:, 0]))]


def _make_signs(hashes: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(hashes, np.float32(1), np.float32(-1))


def find_duplicates(
    hashes: NDArray[np.bool_], sha256: list[str], on_progress: ProgressHook = ignore_progress
) -> NDArray[np.int64]:
    """Return the pairs (P, 2) of near-duplicates, and of each identical file with the first of its kind.

    Identical files are compared once, so that a thousand copies of one make no million pairs.
    """
    first_seen: dict[str, int] = {}
    firsts = np.array([first_seen.setdefault(digest, row) for row, digest in enumerate(sha256)], dtype=np.int64)
    rows = np.flatnonzero(firsts == np.arange(len(firsts)))
    copies = np.flatnonzero(firsts != np.arange(len(firsts)))
    pairs = rows[find_pairs(hashes[rows], on_progress=on_progress)]
    return np.concatenate([pairs.reshape(-1, 2), np.stack([firsts[copies], copies], axis=1)])


def find_near(
    hashes: NDArray[np.bool_], others: NDArray[np.bool_], max_distance: int = MAX_DISTANCE
) -> NDArray[np.bool_]:
    """Return which of hashes (N, bits) have one among ``others`` (M, bits) at most ``max_distance`` bits apart."""
    bits = hashes.shape[1]
    near = np.zeros(len(hashes), dtype=bool)
    for right in range(0, len(others), _ROWS_AT_ONCE):
        signs = _make_signs(others[right : right + _ROWS_AT_ONCE])
        for left in range(0, len(hashes), _ROWS_AT_ONCE):
            part = slice(left, left + _ROWS_AT_ONCE)
            near[part] |= (_make_signs(hashes[part]) @ signs.T >= bits - 2 * max_distance).any(axis=1)
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
