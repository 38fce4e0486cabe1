"""Faces found by other means, pages, P(age) and P(age < N): through the command and the interface."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from agegen import Estimator
from agegen.errors import AgegenError, DataError
from agegen.model.calibration import Calibration, compute_probability_under, compute_sigma
from agegen.predict.boxes import GivenFace, read_boxes

# Where mtcnn sees the portrait's face.
BOX = (173, 116, 357, 340)


@pytest.fixture(scope="module")
def estimator(trained_run):
    return Estimator.load(run=trained_run, device="cpu", detector="mtcnn")


@pytest.fixture(scope="module")
def found(estimator, portrait):
    (face,) = estimator.predict(portrait)
    return face


def test_a_given_box_is_looked_at_as_a_found_one_is(estimator, portrait, found):
    (face,) = estimator.predict(portrait, boxes=[found.box])
    assert (face.detector, face.score, face.box) == ("given", None, found.box)
    assert face.age == pytest.approx(found.age, abs=1.0)
    assert np.abs(np.array(face.landmarks) - found.landmarks).max() < 5
    given = GivenFace(found.box, found.landmarks)
    (exact,) = estimator.predict(np.asarray(Image.open(portrait)), boxes=[given])
    assert exact.landmarks == found.landmarks
    assert exact.age == pytest.approx(found.age, abs=0.5)
    assert estimator.predict(portrait, boxes=[]) == []


def test_without_a_detector_a_box_is_enough(trained_run, portrait, found):
    (face,) = Estimator.load(run=trained_run, detector="none", device="cpu").predict(portrait, boxes=[BOX])
    assert face.age == pytest.approx(found.age, abs=8)
    eyes = np.array(face.landmarks)[:2]
    assert np.abs(eyes - np.array(found.landmarks)[:2]).max() < 30


@pytest.mark.parametrize("bad", [(1, 2, 3), (9, 9, 3, 30), ("a", 1, 2, 3), 5])
def test_what_is_no_box_is_refused(estimator, portrait, bad):
    with pytest.raises(DataError, match="a box is"):
        estimator.predict(portrait, boxes=[bad])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "own csv", "own jsonl"])
def test_tables_of_boxes(agegen, trained_run, portrait, tmp_path, kind, found):
    """As other detectors write them, and agegen's own rows; a file without a row has no face."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (photos / name).write_bytes(portrait.read_bytes())
    Image.new("RGB", (300, 200), "green").save(photos / "c.png")
    table = photos / f"boxes.{kind.split()[-1]}"
    if kind.startswith("own"):
        agegen("predict", photos / "a.jpg", photos / "c.png", "--run", trained_run, f"--{kind[4:]}", table)
    elif kind == "csv":
        table.write_text("file,left,top,right,bottom,extra\na.jpg,173,116,357,340,x\n")
    else:
        table.write_text(json.dumps({"file": "a.jpg", "box": BOX, "landmarks": found.landmarks}) + "\n")
    done = agegen("predict", photos, "--boxes", table, "--run", trained_run, "--json", "-")
    rows = json.loads(done.stdout)
    assert [(row["file"].rsplit("/")[-1], row["status"]) for row in rows] == [
        *(("a.jpg", "ok"), ("b.jpg", "no_face"), ("c.png", "no_face"))
    ]
    assert rows[0]["age"] == pytest.approx(found.age, abs=1.5)
    assert (rows[0]["detector"], rows[0]["options"]) == ("given", f"boxes={table}")
    # Alone, the table says which files are meant.
    alone = agegen("predict", "--boxes", table, "--run", trained_run, "--json", "-")
    assert json.loads(alone.stdout)[0]["age"] == rows[0]["age"]
    assert len(json.loads(alone.stdout)) == (2 if kind.startswith("own") else 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,left,top,right\na.jpg,1,2,3\n", "line 2: a face needs file, left, top, right, bottom"),
        ("file,left,top,right,bottom\na.jpg,1,2,3,x\n", "line 2: a face needs four finite numbers"),
        ("file,left,top,right,bottom\na.jpg,9,2,3,8\n", "line 2: a face needs four finite numbers"),
        ("name,left,top,right,bottom\na.jpg,1,2,3,4\n", "line 2: a face needs file"),
        ("", "names no file"),
    ],
)
def test_tables_that_are_wrong_name_the_line(tmp_path, text, message):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_boxes(tmp_path / "boxes.csv")
    with pytest.raises(DataError, match="can't read"):
        read_boxes(tmp_path / "none.csv")
    (tmp_path / "boxes.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="line 1: no JSON"):
        read_boxes(tmp_path / "boxes.jsonl")


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_distribution_is_the_age_in_full(trained_run, portrait, engine):
    estimator = Estimator.load(run=trained_run, engine=engine, device="cpu", distribution=True, under=(18, 60))
    (face,) = estimator.predict(portrait)
    ages = np.array(face.distribution)
    assert ages.shape == (117,)
    assert ages.sum() == pytest.approx(1, abs=1e-3)
    assert ages @ np.arange(117) == pytest.approx(face.age, abs=0.3)
    (young, first), (old, second) = face.under
    assert (young, old) == (18, 60)
    assert 0 <= first <= second <= 1
    assert face.to_json()["under_60"] == second
    with pytest.raises(AgegenError, match="--under takes ages from 1 to 116"):
        Estimator.load(run=trained_run, under=(0,))


def test_distributions_and_shares_in_csv_go_on(agegen, trained_run, portrait, tmp_path):
    words = ("--run", trained_run, "--csv", tmp_path / "rows.csv", "--distribution", "--under", 18, "--under", 30)
    agegen("predict", portrait, *words)
    (row,) = csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text()))
    assert list(row)[-3:] == ["under_18", "under_30", "distribution"]
    assert len(row["distribution"].split()) == 117
    assert float(row["under_18"]) <= float(row["under_30"])
    assert row["options"] == "under=18,30 distribution=True"
    other = agegen("predict", portrait, "--run", trained_run, "--csv", tmp_path / "rows.csv", "--resume")
    assert other.exit_code == 1
    assert "was begun with other --under or --distribution" in other.stderr
    less = agegen("predict", portrait, *words[:-2], "--resume")
    assert "was begun with other --under or --distribution" in less.stderr
    assert agegen("predict", portrait, *words, "--resume").exit_code == 0


def test_shares_agree_with_the_intervals():
    """Of a normal distribution with a calibrated interval, 5 % lie below it."""
    calibration = Calibration(2.0, 0.9, 0.5, 100)
    age, spread = np.array([30.0]), np.array([5.0])
    sigma = float(compute_sigma(age, spread, calibration)[0])
    assert compute_probability_under(30 - 10 + 0.5, 30.0, sigma) == pytest.approx(0.05, abs=1e-3)
    assert compute_probability_under(30.5, 30.0, sigma) == pytest.approx(0.5)


def test_pages_are_rows_and_copies_of_their_own(agegen, trained_run, portrait, tmp_path):
    page = Image.open(portrait).convert("RGB")
    empty = Image.new("RGB", (300, 200), "green")
    page.save(tmp_path / "scan.tif", save_all=True, append_images=[empty, page.rotate(10)])
    done = agegen("predict", tmp_path / "scan.tif", "--run", trained_run, "--json", "-", "--annotate", tmp_path / "out")
    rows = json.loads(done.stdout)
    assert [(row["page"], row["status"]) for row in rows] == [(1, "ok"), (2, "no_face"), (3, "ok")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"scan.tif-{page}.png" for page in (1, 2, 3)]
    single = json.loads(agegen("predict", portrait, "--run", trained_run, "--json", "-").stdout)
    assert "page" not in single[0]


def test_a_picture_on_stdin(agegen, trained_run, portrait, tmp_path):
    import subprocess
    import sys

    command = [sys.executable, "-m", "agegen", "predict", "-", "--run", str(trained_run), "--json", "-"]
    command += ["--annotate", str(tmp_path / "out")]
    done = subprocess.run(command, input=portrait.read_bytes(), capture_output=True, check=True, cwd=tmp_path)
    (row,) = json.loads(done.stdout)
    assert (row["file"], row["status"]) == ("-", "ok")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["-.png"]


@pytest.mark.parametrize("address", ["memory://nowhere/face.jpg", "nothing://nowhere/face.jpg"])
def test_an_address_that_leads_nowhere_is_a_row(agegen, trained_run, address):
    done = agegen("predict", address, "--run", trained_run, "--json", "-")
    assert done.exit_code == 1
    (row,) = json.loads(done.stdout)
    assert (row["file"], row["status"]) == (address, "unreadable")
    assert row["reason"]
    assert "\n" not in row["reason"]
