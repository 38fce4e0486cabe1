"""Splits: fractions, strata, reproducibility, undivided groups, several sources, and split files."""

import shutil

import numpy as np
import pytest

from agegen.data.demo import draw_records
from agegen.data.images import decode_image
from agegen.data.loading import load_records, load_sources
from agegen.data.scan import scan_images
from agegen.data.splits import (
    apply_split,
    count_leaking_groups,
    find_training_overlap,
    fingerprint_split,
    number_identities,
    read_split,
    split_scan,
    write_split,
)
from agegen.errors import DataError


@pytest.fixture(scope="module")
def scan():
    return scan_images(draw_records(300))


def test_fractions_and_strata(scan):
    split = split_scan(scan, seed=0)
    shares = split["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.8, abs=0.02)
    assert shares["val"] == pytest.approx(0.1, abs=0.02)
    female = scan.records.frame["female"]
    for name in ("train", "val", "test"):
        inside = (split["split"] == name).to_numpy()
        assert female[inside].mean() == pytest.approx(0.5, abs=0.1)
        assert scan.records.frame["age"][inside].mean() == pytest.approx(50, abs=6)


def test_the_split_depends_on_the_seed_and_not_on_the_order(scan):
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


def test_near_duplicates_are_in_one_part(tmp_path):
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


def test_the_near_duplicates_in_utkface(utkface):
    records = load_records(str(utkface))
    part = records.select((records.frame["age"] <= 2).to_numpy())
    scan = scan_images(part)
    split = split_scan(scan, seed=0)
    share = split["group"].duplicated(keep=False).mean()
    assert 0.02 < share < 0.25
    assert count_leaking_groups(split) == 0


def test_each_source_is_split_as_it_would_be_alone(faces_folder, mini_fairface):
    both = split_scan(scan_images(load_sources((str(faces_folder), str(mini_fairface)))), seed=3)
    for part, folder in ((both[:60], faces_folder), (both[60:], mini_fairface)):
        alone = split_scan(scan_images(load_sources((str(folder),))), seed=3)
        assert list(part["split"]) == list(alone["split"])


def test_an_image_in_two_sources_is_in_one_part(faces_folder, tmp_path):
    copy = tmp_path / "again"
    copy.mkdir()
    for path in faces_folder.iterdir():
        (copy / path.name).symlink_to(path)
    split = split_scan(scan_images(load_sources((str(faces_folder), str(copy)))), seed=0)
    assert list(split["split"][:60]) == list(split["split"][60:])


def test_overlap_with_a_training(scan):
    split = split_scan(scan, seed=0)
    trained = (split["split"] == "train").to_numpy()
    assert (find_training_overlap(split, scan.sha256, scan.hashes) >= trained).all()
    # Unknown files are found by their perceptual hashes.
    unknown = ["0" * 64] * len(scan.sha256)
    assert (find_training_overlap(split, unknown, scan.hashes) >= trained).all()
    assert not find_training_overlap(split.assign(split="test"), scan.sha256, scan.hashes).any()


def test_split_files_round_trip_and_changed_images_are_noticed(scan, tmp_path):
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
    with pytest.raises(DataError, match=r"1 images have changed .* drawn-0005\.png"):
        apply_split(scan, again, "split.csv")
    with pytest.raises(DataError, match="Is it the split of another dataset"):
        apply_split(scan, again.assign(path="x" + again["path"]), "split.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,split\na,train\n", "no column sha256, group, hash"),
        ("path,sha256,group,split,hash\na,0,1,dev,0\n", "unknown split 'dev'"),
        ("path,sha256,group,split,hash\na,0,1,val,0\na,0,1,val,0\n", "contains a twice"),
    ],
)
def test_invalid_split_files_are_rejected(tmp_path, content, message):
    (tmp_path / "split.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_split(tmp_path / "split.csv")


def test_validation_faces_are_taken_from_the_training_faces_of_a_split_without_them(tmp_path, draw_folder):
    draw_folder(tmp_path / "faces", 60)
    for place, path in enumerate(sorted((tmp_path / "faces").iterdir())):
        folder = tmp_path / "faces" / ("test" if place % 4 == 0 else "train")
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    scan = scan_images(load_records(str(tmp_path / "faces")))
    split = split_scan(scan, 0)
    assert set(split["split"][split["path"].str.startswith("test/")]) == {"test"}
    inside = split["path"].str.startswith("train/")
    assert split["split"][inside].value_counts().to_dict() == {"train": 40, "val": 5}
    assert "give the split, which is used: 45 train, 15 test" in scan.records.notices[0]


def test_equal_numbers_in_two_datasets_are_different_persons(tmp_path, draw_folder):
    for name in ("a", "b"):
        draw_folder(tmp_path / name, 20 if name == "a" else 30)
        paths = sorted((tmp_path / name).iterdir())
        rows = [f"{path.name},{path.name.split('_')[0]},{place // 2}" for place, path in enumerate(paths)]
        (tmp_path / name / "labels.csv").write_text("\n".join(["path,age,identity", *rows]))
    scan = scan_images(load_sources((str(tmp_path / "a"), str(tmp_path / "b"))))
    persons = number_identities(scan.records.frame, "identity")
    assert len(set(persons)) == 10 + 15
    assert len(set(persons[:20]) & set(persons[20:])) == 0


def test_given_splits_are_kept_and_datasets_without_one_are_split(tmp_path, faces_folder, draw_folder):
    given = load_records(str(draw_folder(tmp_path / "given", 30))).frame
    parts = ["train" if row % 3 else "test" for row in range(len(given))]
    labels = given.assign(path="given/" + given["path"], gender="female", split=parts)
    labels[["path", "age", "gender", "split"]].to_csv(tmp_path / "a.csv", index=False)
    shutil.copytree(faces_folder, tmp_path / "b")
    for path in (both := given["path"][:6]):
        shutil.copy(tmp_path / "given" / path, tmp_path / "b" / path)
    scan = scan_images(load_sources((str(tmp_path / "a.csv"), str(tmp_path / "b"))))
    split = split_scan(scan, seed=0)
    names = dict(zip(split["path"], split["split"], strict=True))
    own = [names[f"a/given/{path}"] for path in given["path"]]
    # One in nine of the given training faces validates.
    assert [name == "test" for name in own] == [part == "test" for part in parts]
    assert own.count("val") == 2
    assert {name for path, name in names.items() if path.startswith("b/")} == {"train", "val", "test"}
    # Faces that are in both datasets are in the given part.
    assert [names[f"b/{path}"] for path in both] == own[:6]
    assert count_leaking_groups(split) == 0
