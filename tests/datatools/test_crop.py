"""``agegen data crop``: aligned crops of labelled photos."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from agegen.data.loading import load_sources
from agegen.data.scan import scan_images
from agegen.data.splits import split_scan
from agegen.datatools.check import check_data, write_clean_manifest
from agegen.datatools.config import CheckConfig, CropConfig
from agegen.datatools.crop import crop_data, name_crops
from agegen.errors import AgegenError, DataError
from agegen.evaluate.config import EvalConfig
from agegen.evaluate.evaluate import evaluate_run
from agegen.faces.matching import load_cropped
from agegen.options import DEFAULT_READ_OPTIONS


@pytest.fixture
def photos(portrait, tmp_path):
    """Two photos with a face and one without, in folders; exact ages and a bracket."""
    folder = tmp_path / "photos"
    (folder / "in").mkdir(parents=True)
    shutil.copy(portrait, folder / "in" / "first.jpg")
    image = Image.open(portrait)
    wide = Image.new("RGB", (1200, 800), "grey")
    wide.paste(image.resize((256, 300)), (700, 300))
    wide.save(folder / "second.png")
    Image.new("RGB", (400, 300), "white").save(folder / "empty.png")
    (folder / "photos.csv").write_text(
        "file,age,sex,camera\nin/first.jpg,77,w,a\nsecond.png,70-79,,b\nempty.png,30,m,c\ngone.png,20,f,d\n"
    )
    return folder / "photos.csv"


def test_crops_and_their_manifest(photos, tmp_path):
    result = crop_data(CropConfig((str(photos),), tmp_path / "crops"))
    assert result.crops == 2
    assert {item.path: item.reason for item in result.excluded} == {
        "empty.png": "no face found (mtcnn)",
        "gone.png": "no such file",
    }
    table = pd.read_csv(result.manifest, keep_default_na=False)
    assert table.to_dict("list") == {
        "path": ["in/first.jpg", "second.jpg"],
        "age": ["77", "70-79"],
        "gender": ["female", ""],
        "camera": ["a", "b"],
    }
    first, second = (np.asarray(Image.open(tmp_path / "crops" / name)).astype(int) for name in table["path"])
    assert first.shape == second.shape == (200, 200, 3)
    # The same face in the same place, independent of its size and position in the photo.
    assert np.abs(first - second)[40:160, 40:160].mean() < 30
    again = load_sources((str(result.manifest),))
    assert again.labels.low.tolist() == [77, 70]


@pytest.fixture(scope="module")
def pairs(utkface, tmp_path_factory):
    """12 photos of two people, a large and a small face each, and a table with a row and a box for each face."""
    folder = tmp_path_factory.mktemp("pairs")
    paths = [path for path in sorted(utkface.iterdir()) if 18 <= int(path.name.partition("_")[0]) <= 60][::500][:24]
    rows = ["file,age,gender,face_x0,face_y0,face_x1,face_y1"]
    for number, (first, second) in enumerate(zip(paths[::2], paths[1::2], strict=True)):
        photo = Image.new("RGB", (700, 400), "grey")
        small, large = (90, 150, 210, 270), (380, 60, 640, 320)
        # The row of the small face comes first.
        for path, (left, top, right, bottom) in ((first, small), (second, large)):
            age, female, *_ = path.name.split("_")
            photo.paste(Image.open(path).resize((right - left, bottom - top)), (left, top))
            box = (left + 10, top + 5, right - 10, bottom)
            rows.append(f"{number}.png,{age},{'mf'[int(female)]},{','.join(map(str, box))}")
        photo.save(folder / f"{number}.png")
    (folder / "people.csv").write_text("\n".join(rows) + "\n")
    return folder / "people.csv", [np.asarray(Image.open(path).convert("RGB")) for path in paths]


@pytest.mark.slow
def test_the_label_of_each_of_two_people_goes_to_their_own_face(pairs, tmp_path):
    table, faces = pairs
    result = crop_data(CropConfig((str(table),), tmp_path / "crops"))
    assert (result.crops, result.excluded) == (24, [])
    crops = load_sources((str(result.manifest),))
    labels = load_sources((str(table),)).labels
    assert crops.labels.low.tolist() == labels.low.tolist()
    assert not crops.boxed.any()
    for row in range(24):
        crop = crops.decode(row)
        right, wrong = (np.corrcoef(crop.ravel(), faces[one].ravel())[0, 1] for one in (row, row ^ 1))
        assert right > max(0.7, wrong + 0.1), row


@pytest.mark.slow
def test_boxes_are_used_by_eval_train_and_check(pairs):
    table, _ = pairs
    estimates = evaluate_run(EvalConfig(data=(str(table),), model="compact", split="all")).predictions
    assert (estimates["estimated_age"] - estimates["age"]).abs().mean() < 7
    split = split_scan(scan_images(load_cropped((str(table),), DEFAULT_READ_OPTIONS, None)), 0)
    assert split["sha256"].nunique() == len(split) == 24
    found = check_data(CheckConfig((str(table),)))
    assert (found.faces, found.duplicates.pairs) == (24, [])
    assert write_clean_manifest(table.with_name("clean.csv"), found) == (24, 0)
    clean = load_sources((str(table.with_name("clean.csv")),))
    assert [clean.find_box(row) for row in range(24)] == [found.records.find_box(row) for row in range(24)]


def test_boxes_of_other_images_are_not_used(tmp_path):
    """Crops whose table has kept the boxes in the original photos."""
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (200, 200), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "faces.csv").write_text("path,age,x,y,w,h\na.png,3,900,800,100,120\nb.png,40,700,300,99,99\n")
    records = load_cropped((str(tmp_path / "faces.csv"),), DEFAULT_READ_OPTIONS, None)
    assert "boxes are not used" in records.notices[-1]
    assert records.decode(0).shape == (200, 200, 3)
    assert records.cropper is None


def list_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_call_is_continued(photos, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "crops"
    crop_data(CropConfig((str(photos),), whole))

    def interrupt(_stage, done, _total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crop_data(CropConfig((str(photos),), out), interrupt)
    assert not (out / "labels.csv").exists()
    # A process that is killed may leave half a line, and a crop that is not recorded.
    progress = out / "crop-progress.jsonl"
    progress.write_text(progress.read_text() + '"no fa')
    (out / "second.jpg").write_bytes(b"half")
    photos.write_text(photos.read_text() + "more.png,3,f,e\n")
    with pytest.raises(AgegenError, match="has unfinished crops of other labels"):
        crop_data(CropConfig((str(photos),), out))
    photos.write_text(photos.read_text().replace("more.png,3,f,e\n", ""))
    result = crop_data(CropConfig((str(photos),), out))
    assert (result.crops, result.resumed) == (2, 1)
    assert list_files(out) == list_files(whole)
    with pytest.raises(AgegenError, match="is not an empty folder"):
        crop_data(CropConfig((str(photos),), out))


@pytest.mark.slow
def test_a_killed_call_is_continued(portrait, tmp_path, agegen):
    (tmp_path / "photos.csv").write_text("path,age\n" + "".join(f"p{number}.jpg,{number}\n" for number in range(40)))
    for number in range(40):
        shutil.copy(portrait, tmp_path / f"p{number}.jpg")
    assert agegen("data", "crop", tmp_path / "photos.csv", tmp_path / "whole").exit_code == 0
    command = [sys.executable, "-m", "agegen", "data", "crop", str(tmp_path / "photos.csv"), str(tmp_path / "crops")]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "crops").glob("*.jpg"))) < 5:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    again = agegen("data", "crop", tmp_path / "photos.csv", tmp_path / "crops")
    assert again.exit_code == 0, again.stderr
    assert "finished by an earlier call" in again.stderr
    assert list_files(tmp_path / "crops") == list_files(tmp_path / "whole")


def test_names_of_crops_are_short_and_unique():
    paths = [
        "a.png",
        "a.jpg",
        "b/a.jpg",
        "A.JPEG",
        "/x/../y#1,2.jpg",
        "p.jpg#1,2,3,4.5",
        "p.jpg#9,9,20,20",
        "v1.2",
        "",
        "a-2",
    ]
    names = name_crops(paths)
    assert names == [
        *("a.jpg", "a-2.jpg", "b/a.jpg", "A-3.jpg", "x/y#1,2.jpg", "p.jpg", "p-2.jpg", "v1.2.jpg", "row-8.jpg"),
        "a-2-2.jpg",
    ]


def test_photos_that_cannot_be_cropped_are_errors_of_one_line(photos, tmp_path, faces_folder, agegen):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    with pytest.raises(AgegenError, match="is not an empty folder"):
        crop_data(CropConfig((str(photos),), tmp_path / "used"))
    photos.write_text("path,age\nempty.png,3\n")
    with pytest.raises(DataError, match="no face found in any image"):
        crop_data(CropConfig((str(photos),), tmp_path / "none"))
    done = agegen("data", "crop", photos, tmp_path / "other", "--detector", "nose")
    assert done.exit_code == 2
    assert "'nose' is not one of" in done.stderr


def test_command(photos, tmp_path, agegen):
    done = agegen("data", "crop", photos, tmp_path / "crops")
    assert done.exit_code == 0
    assert "2 crops;" in done.stdout
    assert "2 rows excluded, the first: empty.png (no face found (mtcnn))" in done.stderr
