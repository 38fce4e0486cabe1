"""Near-duplicate images: pairs with similar perceptual hashes, also of mirror images, and groups of such pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.scan import HASH_BITS, HASH_SIDE, ProgressHook, ignore_progress

Hashes = NDArray[np.bool_]
Pairs = NDArray[np.int64]

# In bits, of 256. Determined by looking at pairs in UTKFace: nearly all pairs up to 40 show the same photo, about half
# of those from 44 to 48, and pairs above 50 show different people who look alike.
MAX_DISTANCE = 46
# The number of hashes in one index. It takes half a megabyte and stays in a core's cache; an index of a million hashes
# (32 MB) is half as fast.
_BLOCK = 16384


def group_duplicates(hashes: Hashes, sha256: list[str]) -> NDArray[np.int64]:
    """Return a group number (N,) per image: near-duplicates, also in chains, have the same number.

    The number of a group is the row of its first image.
    """
    return join_pairs(len(hashes), find_duplicates(hashes, sha256))


def find_duplicates(hashes: Hashes, sha256: list[str], on_progress: ProgressHook = ignore_progress) -> Pairs:
    """Return pairs of rows (P, 2) of near-duplicates; each identical file is paired only with the first of its kind.

    Identical files are compared with others only once: otherwise a thousand copies of one file would be half a million
    pairs.
    """
    rows, firsts = _find_first_copies(sha256)
    copies = np.flatnonzero(firsts != np.arange(len(firsts)))
    pairs = rows[find_pairs(hashes[rows], on_progress=on_progress)]
    return np.concatenate([pairs.reshape(-1, 2), np.stack([firsts[copies], copies], axis=1)])


def find_mirrored_duplicates(hashes: Hashes, sha256: list[str], on_progress: ProgressHook = ignore_progress) -> Pairs:
    """Return pairs of rows (P, 2) in which one image is a near-duplicate of the other's mirror image.

    Pairs that are also near-duplicates without mirroring, such as symmetric faces, are not included. Identical files
    are compared only once.
    """
    rows, _ = _find_first_copies(sha256)
    pairs = rows[find_pairs(hashes[rows], on_progress=on_progress, mirrored=True)].reshape(-1, 2)
    distance = (hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).sum(axis=1)
    only_mirrored: Pairs = pairs[distance > MAX_DISTANCE]
    return only_mirrored


def _find_first_copies(sha256: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of files without an earlier copy, and for each file (N,) the row of its first copy."""
    first_seen: dict[str, int] = {}
    firsts = np.array([first_seen.setdefault(digest, row) for row, digest in enumerate(sha256)], dtype=np.int64)
    return np.flatnonzero(firsts == np.arange(len(firsts))), firsts


def find_pairs(
    hashes: Hashes,
    max_distance: int = MAX_DISTANCE,
    on_progress: ProgressHook = ignore_progress,
    mirrored: bool = False,
) -> Pairs:
    """Return the pairs of rows (P, 2), first < second, of hashes (N, bits) at most ``max_distance`` bits apart.

    ``mirrored`` compares each hash with the mirrored form of the others. The search (faiss) is exact: it compares all
    pairs, in bounded memory, in time quadratic in N; tests/benchmarks/README.md has timings.
    """
    packed = pack_hashes(hashes)
    queries = pack_hashes(mirror_hashes(hashes)) if mirrored else packed
    pairs = [np.empty((0, 2), dtype=np.int64)]
    # Each block is compared with itself and earlier rows only, which covers every pair once.
    for start in range(0, len(hashes), _BLOCK):
        end = min(start + _BLOCK, len(hashes))
        index = _make_index(hashes.shape[1])
        index.add(packed[start:end])
        rows, found = _search(index, queries[:end], max_distance)
        found = found + start
        pairs.append(np.stack([rows, found], axis=1)[rows < found])
        on_progress("comparing images", end, len(hashes))
    joined = np.concatenate(pairs)
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))]


def has_near_duplicate(hashes: Hashes, others: Hashes, max_distance: int = MAX_DISTANCE) -> NDArray[np.bool_]:
    """Return which of the hashes (N, bits) are at most ``max_distance`` bits from one of ``others`` (M, bits)."""
    index, packed = _make_index(hashes.shape[1]), pack_hashes(hashes)
    index.add(pack_hashes(others))
    near = np.zeros(len(hashes), dtype=bool)
    for start in range(0, len(hashes), _BLOCK):
        queries, _ = _search(index, packed[start : start + _BLOCK], max_distance)
        near[queries + start] = True
    return near


def mirror_hashes(hashes: Hashes) -> Hashes:
    """Return the hashes (N, 256) of the mirror images, except for a few bits whose coefficients are near the median.

    Mirroring an image negates its DCT coefficients of odd horizontal frequency, and no others.
    """
    odd = np.arange(HASH_BITS) % HASH_SIDE % 2 == 1
    mirrored: Hashes = hashes ^ odd
    return mirrored


def pack_hashes(hashes: Hashes) -> NDArray[np.uint8]:
    """Return hashes (N, bits) packed into bytes (N, bits / 8), padded with zeros."""
    return np.ascontiguousarray(np.packbits(hashes, axis=1))


def _make_index(bits: int) -> Any:
    import faiss

    return faiss.IndexBinaryFlat(-(-bits // 8) * 8)


def _search(index: Any, packed: NDArray[np.uint8], max_distance: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows (query, found) of all pairs at most ``max_distance`` bits apart."""
    # The radius of faiss is exclusive.
    limits, _, found = index.range_search(packed, max_distance + 1)
    queries = np.repeat(np.arange(len(packed)), np.diff(limits.astype(np.int64)))
    return queries, found.astype(np.int64)


def join_pairs(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """Return a group number (count,) per image from pairs of rows (P, 2); chains of pairs form one group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    # A group has the number of its first row, which does not depend on the order in which scipy finds components.
    firsts = np.full(labels.max(initial=-1) + 1, count, dtype=np.int64)
    np.minimum.at(firsts, labels, np.arange(count))
    return np.asarray(firsts[labels], dtype=np.int64)


# Of the 16×16 DCT terms by rising frequency: the lowest say only that an image is an aligned face, the highest do not
# survive compression.
_FINGERPRINT_TERMS = slice(40, 104)
# Bits out of 64. Measured on UTKFace and FairFace (57,689 faces): JPEG at quality 20, and 64 pixels, change at most 5
# bits; of 11,303 faces of another collection, 0.06 % are as close to one of them by chance.
_MAX_FINGERPRINT_DISTANCE = 5


def compute_fingerprints(hashes: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return a 64-bit fingerprint (N,) of each perceptual hash (N, 256), for models that remember their faces.

    A re-encoded or resized copy has nearly the same fingerprint; see :func:`match_fingerprints`.
    """
    rows, columns = np.divmod(np.arange(HASH_BITS), HASH_SIDE)
    terms = np.argsort(rows + columns, kind="stable")[_FINGERPRINT_TERMS]
    packed = np.ascontiguousarray(np.packbits(hashes[:, terms], axis=1))
    return packed.view(np.uint64).reshape(-1)


def match_fingerprints(fingerprints: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which fingerprints (N,) are those of one of the ``known`` (M,) images, or of a re-encoded copy."""
    index = _make_index(64)
    index.add(np.ascontiguousarray(known).view(np.uint8).reshape(-1, 8))
    packed = np.ascontiguousarray(fingerprints).view(np.uint8).reshape(-1, 8)
    queries, _ = _search(index, packed, _MAX_FINGERPRINT_DISTANCE)
    matched = np.zeros(len(fingerprints), dtype=bool)
    matched[queries] = True
    return matched
