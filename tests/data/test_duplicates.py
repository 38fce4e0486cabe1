"""Near-duplicates: exact pairs by hash, mirror images, and groups."""

import numpy as np

from agegen.data.duplicates import find_mirrored_duplicates, find_pairs, group_duplicates, mirror_hashes
from agegen.data.images import decode_image
from agegen.data.scan import hash_image


def test_pairs_and_groups_at_the_distance_limit():
    hashes = np.zeros((4, 256), dtype=bool)
    hashes[1, :46] = True
    hashes[2, :47] = True
    hashes[3, :] = True
    assert find_pairs(hashes).tolist() == [[0, 1], [1, 2]]
    assert group_duplicates(hashes, ["a", "b", "c", "a"]).tolist() == [0, 0, 0, 0]
    assert group_duplicates(hashes, ["a", "b", "c", "d"]).tolist() == [0, 0, 0, 3]


def test_pairs_across_blocks():
    rng = np.random.default_rng(0)
    hashes = rng.random((40_000, 256)) < 0.5
    hashes[39_000] = hashes[10]
    hashes[20_000] = mirror_hashes(hashes[[30_000]])[0]
    assert find_pairs(hashes).tolist() == [[10, 39_000]]
    assert find_pairs(hashes, mirrored=True).tolist() == [[20_000, 30_000]]


def test_the_search_finds_the_same_pairs_as_brute_force():
    """The hashes form clusters, so that many pairs are near the limit."""
    rng = np.random.default_rng(1)
    hashes = (rng.random((60, 256)) < 0.5).repeat(50, axis=0) ^ (rng.random((3000, 256)) < 0.1)
    for mirrored in (False, True):
        others = mirror_hashes(hashes) if mirrored else hashes
        distances = (hashes[:, None, :] ^ others[None, :500, :]).sum(axis=2)
        expected = {(second, first) for first, second in np.argwhere(distances <= 46).tolist() if second < first}
        found = {(first, second) for first, second in find_pairs(hashes, mirrored=mirrored).tolist() if first < 500}
        assert found == expected
        assert len(expected) > 0 or mirrored


def test_mirror_images_have_mirrored_hashes(utkface):
    images = [decode_image(path.read_bytes()) for path in sorted(utkface.glob("*.jpg"))[::500]]
    hashes = np.array([hash_image(image) for image in images])
    mirrored = np.array([hash_image(np.ascontiguousarray(image[:, ::-1])) for image in images])
    assert (mirror_hashes(hashes) ^ mirrored).sum(axis=1).max() <= 30
    digests = [str(number) for number in range(2 * len(images))]
    both = np.concatenate([hashes, mirrored])
    planted = {(row, row + len(images)) for row in range(len(images)) if (hashes[row] ^ mirrored[row]).sum() > 46}
    assert planted <= {tuple(pair) for pair in find_mirrored_duplicates(both, digests).tolist()}
    assert len(planted) > 0.8 * len(images)
