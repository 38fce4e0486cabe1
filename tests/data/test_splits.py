import numpy as np
import pytest

from agegen.data.demo import draw_records
from agegen.data.duplicates import find_mirrored_duplicates, find_pairs, group_duplicates, mirror_hashes
from agegen.data.images import decode_image
from agegen.data.loading import load_records
from agegen.data.scan import hash_image, scan_images
from agegen.data.splits import apply_split, count_leaking_groups, fingerprint_split, read_split, split_scan, write_split
from agegen.errors import DataError


@pytest.fixture(scope="module")
def scan():
    return scan_images(draw_records(300))


def test_shares_and_strata(scan):
    split = split_scan(scan, seed=0)
    shares = split["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.8, abs=0.02)
    assert shares["val"] == pytest.approx(0.1, abs=0.02)
    female = scan.records.frame["female"]
    for name in ("train", "val", "test"):
        inside = (split["split"] == name).to_numpy()
        assert female[inside].mean() == pytest.approx(0.5, abs=0.1)
        assert scan.records.frame["age"][inside].mean() == pytest.approx(50, abs=6)


def test_same_seed_same_split_whatever_the_order(scan):
    order = np.random.default_rng(0).permutation(len(scan.sha256))
    shuffled = type(scan)(
        type(scan.records)(scan.records.frame.iloc[order].reset_index(drop=True), scan.records.images, "shuffled"),
        [scan.sha256[index] for index in order],
        scan.hashes[order],
        None,
        scan.sides[order],
    )
    first, second = split_scan(scan, 3), split_scan(shuffled, 3)
    assert fingerprint_split(first) == fingerprint_split(second)
    assert fingerprint_split(first) != fingerprint_split(split_scan(scan, 4))


def test_near_duplicates_share_a_side(tmp_path):
    from PIL import Image

    records = draw_records(80)
    for index in range(80):
        image = Image.fromarray(decode_image(records.read(index)))
        image.save(tmp_path / f"{index}_0_0_{index}1.png")
        image.resize((100, 100)).save(tmp_path / f"{index}_0_0_{index}2.jpg", quality=60)
    scan = scan_images(load_records(str(tmp_path)))
    split = split_scan(scan, seed=0)
    numbers = scan.records.frame["path"].str.extract(r"^(\d+)_")[0]
    assert (split.groupby(numbers.to_numpy())["group"].nunique() == 1).all()
    assert count_leaking_groups(split) == 0
    assert set(split["split"]) == {"train", "val", "test"}


def test_pairs_by_hand():
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


def test_pairs_are_those_of_comparing_all_with_all():
    """Hashes in clouds, so that many pairs lie around the limit."""
    rng = np.random.default_rng(1)
    hashes = (rng.random((60, 256)) < 0.5).repeat(50, axis=0) ^ (rng.random((3000, 256)) < 0.1)
    for mirrored in (False, True):
        others = mirror_hashes(hashes) if mirrored else hashes
        apart = (hashes[:, None, :] ^ others[None, :500, :]).sum(axis=2)
        expected = {(second, first) for first, second in np.argwhere(apart <= 46).tolist() if second < first}
        found = {(first, second) for first, second in find_pairs(hashes, mirrored=mirrored).tolist() if first < 500}
        assert found == expected
        assert len(expected) > 0 or mirrored


def test_mirror_images_have_mirrored_hashes(utkface):
    pictures = [decode_image(path.read_bytes()) for path in sorted(utkface.glob("*.jpg"))[::500]]
    hashes = np.array([hash_image(picture) for picture in pictures])
    mirrored = np.array([hash_image(np.ascontiguousarray(picture[:, ::-1])) for picture in pictures])
    assert (mirror_hashes(hashes) ^ mirrored).sum(axis=1).max() <= 30
    digests = [str(number) for number in range(2 * len(pictures))]
    both = np.concatenate([hashes, mirrored])
    planted = {(row, row + len(pictures)) for row in range(len(pictures)) if (hashes[row] ^ mirrored[row]).sum() > 46}
    assert planted <= {tuple(pair) for pair in find_mirrored_duplicates(both, digests).tolist()}
    assert len(planted) > 0.8 * len(pictures)


def test_hash_survives_recompression_and_tells_faces_apart():
    records = draw_records(2)
    first, second = (decode_image(records.read(index)) for index in range(2))
    brighter = (first * 0.8 + 20).astype(np.uint8)
    assert (hash_image(first) != hash_image(brighter)).sum() < 20
    assert (hash_image(first) != hash_image(second)).sum() > 60


def test_split_file_round_trip_and_changed_files(scan, tmp_path):
    split = split_scan(scan, seed=0)
    write_split(tmp_path / "split.csv", split)
    again = read_split(tmp_path / "split.csv")
    _, applied = apply_split(scan, again, "split.csv")
    assert fingerprint_split(applied) == fingerprint_split(split)
    part = again.drop(index=[0, 1]).assign(path=again["path"].replace("drawn-0002.png", "lost.png"))
    some, _ = apply_split(scan, part, "split.csv")
    assert {(item.path, item.reason) for item in some.records.excluded} == {
        *((f"drawn-000{index}.png", "not in split.csv") for index in range(3)),
        ("lost.png", "in split.csv, but not in the data"),
    }
    again.loc[5, "sha256"] = "0" * 64
    with pytest.raises(DataError, match=r"1 pictures differ .* drawn-0005\.png"):
        apply_split(scan, again, "split.csv")
    with pytest.raises(DataError, match="is it the split of other data"):
        apply_split(scan, again.assign(path="x" + again["path"]), "split.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,split\na,train\n", "no column sha256, group"),
        ("path,sha256,group,split\na,0,1,dev\n", "unknown split 'dev'"),
        ("path,sha256,group,split\na,0,1,val\na,0,1,val\n", "names a twice"),
    ],
)
def test_bad_split_files(tmp_path, content, message):
    (tmp_path / "split.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_split(tmp_path / "split.csv")


def test_utkface_has_the_duplicates_that_are_known(utkface):
    records = load_records(str(utkface))
    part = records.select((records.frame["age"] <= 2).to_numpy())
    scan = scan_images(part)
    split = split_scan(scan, seed=0)
    share = split["group"].duplicated(keep=False).mean()
    assert 0.02 < share < 0.25
    assert count_leaking_groups(split) == 0
