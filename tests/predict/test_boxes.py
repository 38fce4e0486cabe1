"""Bounding boxes from another detector, through the command and the API."""

import json

import numpy as np
import pytest
from PIL import Image

from agegen import Estimator
from agegen.errors import DataError
from agegen.predict.boxes import GivenFace, read_boxes

# The bounding box that mtcnn finds in the portrait.
BOX = (173, 116, 357, 340)


@pytest.fixture(scope="module")
def estimator(trained_run):
    return Estimator.load(run=trained_run, device="cpu", detector="mtcnn")


@pytest.fixture(scope="module")
def detected(estimator, portrait):
    (face,) = estimator.predict(portrait)
    return face


def test_a_given_box_gets_the_estimate_of_a_detected_face(estimator, portrait, detected):
    (face,) = estimator.predict(portrait, boxes=[detected.box])
    assert (face.detector, face.score, face.box) == ("given", None, detected.box)
    assert face.age == pytest.approx(detected.age, abs=1.0)
    assert np.abs(np.array(face.landmarks) - detected.landmarks).max() < 5
    given = GivenFace(detected.box, detected.landmarks)
    (exact,) = estimator.predict(np.asarray(Image.open(portrait)), boxes=[given])
    assert exact.landmarks == detected.landmarks
    assert exact.age == pytest.approx(detected.age, abs=0.5)
    assert estimator.predict(portrait, boxes=[]) == []


def test_without_a_detector_landmarks_are_placed_in_the_box(trained_run, portrait, detected):
    (face,) = Estimator.load(run=trained_run, detector="none", device="cpu").predict(portrait, boxes=[BOX])
    assert face.age == pytest.approx(detected.age, abs=8)
    eyes = np.array(face.landmarks)[:2]
    assert np.abs(eyes - np.array(detected.landmarks)[:2]).max() < 30


@pytest.mark.parametrize("bad", [(1, 2, 3), (9, 9, 3, 30), ("a", 1, 2, 3), 5])
def test_invalid_boxes_are_refused(estimator, portrait, bad):
    with pytest.raises(DataError, match="invalid bounding box"):
        estimator.predict(portrait, boxes=[bad])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "own csv", "own jsonl"])
def test_tables_of_boxes(agegen, trained_run, portrait, tmp_path, kind, detected):
    """Tables of other detectors, and agegen's own rows; a file without a row has no face."""
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
        table.write_text(json.dumps({"file": "a.jpg", "box": BOX, "landmarks": detected.landmarks}) + "\n")
    done = agegen("predict", photos, "--boxes", table, "--run", trained_run, "--json", "-")
    rows = json.loads(done.stdout)
    assert [(row["file"].rsplit("/")[-1], row["status"]) for row in rows] == [
        *(("a.jpg", "ok"), ("b.jpg", "no_face"), ("c.png", "no_face"))
    ]
    assert rows[0]["age"] == pytest.approx(detected.age, abs=1.5)
    assert (rows[0]["detector"], rows[0]["options"]) == ("given", f"boxes={table}")
    # Without other inputs, the files of the table are processed.
    alone = agegen("predict", "--boxes", table, "--run", trained_run, "--json", "-")
    assert json.loads(alone.stdout)[0]["age"] == rows[0]["age"]
    assert len(json.loads(alone.stdout)) == (2 if kind.startswith("own") else 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,left,top,right\na.jpg,1,2,3\n",
            "line 2: missing value 'bottom'. A face requires file, left, top, right",
        ),
        ("file,left,top,right,bottom\na.jpg,1,2,3,x\n", "line 2: invalid bounding box or landmarks: .*'x'"),
        ("file,left,top,right,bottom\na.jpg,9,2,3,8\n", "line 2: invalid bounding box or landmarks"),
        ("name,left,top,right,bottom\na.jpg,1,2,3,4\n", "line 2: missing value 'file'"),
        ("", "contains no rows"),
    ],
)
def test_errors_in_tables_give_the_line(tmp_path, text, message):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_boxes(tmp_path / "boxes.csv")


def test_unreadable_tables_are_reported(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_boxes(tmp_path / "none.csv")
    (tmp_path / "boxes.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="line 1: invalid JSON"):
        read_boxes(tmp_path / "boxes.jsonl")
    (tmp_path / "boxes.jsonl").write_text('{"file": "a.jpg", "box": [1, 2, 3, 4], "landmarks": [[1, 2]]}\n')
    with pytest.raises(DataError, match=r"line 1: .*landmarks must be five pairs"):
        read_boxes(tmp_path / "boxes.jsonl")
