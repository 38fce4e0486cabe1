"""Rows as JSON, JSON Lines and CSV, and how interrupted outputs are resumed."""

import csv
import errno
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from agegen.errors import AgegenError
from agegen.predict.results import FacePrediction, PhotoPrediction
from agegen.predict.rows import CSV_COLUMNS, load_resume_state, open_report, open_writer, read_rows
from agegen.render.gallery import GalleryAbout


def make_face(file, number):
    return FacePrediction(file, "ok", number, (1, 2, 30, 40), 33.3, 20.0, 45.5, "female", 0.93, "mtcnn")


def make_photo(file, faces=1):
    return PhotoPrediction(file, "ok", tuple(make_face(file, number + 1) for number in range(faces)))


PHOTOS = [
    make_photo("a.jpg", 2),
    PhotoPrediction('b,"1"\n.jpg', "no_face"),
    PhotoPrediction("c.jpg", "unreadable", reason="no such file"),
    make_photo("d\udcff.jpg"),
]


def write(kind, target, photos, resume=False):
    stdout = io.BytesIO()
    with open_writer(kind, str(target), stdout, resume) as writer:
        for photo in photos:
            writer.write(photo)
    return stdout.getvalue()


def test_json_is_one_array():
    rows = json.loads(write("json", "-", PHOTOS))
    assert [row["status"] for row in rows] == ["ok", "ok", "no_face", "unreadable", "ok"]
    assert set(rows[0]) == {
        *("file", "status", "face", "box", "age", "age_low", "age_high", "gender", "p_female"),
        *("detector", "score", "size", "landmarks", "turn", "model", "gender_threshold"),
    }
    assert rows[0]["box"] == [1, 2, 30, 40]
    assert rows[3]["reason"] == "no such file"
    assert rows[4]["file"] == "d\udcff.jpg"
    assert json.loads(write("json", "-", [])) == []


def test_json_lines_are_written_one_by_one():
    stdout = io.BytesIO()
    with open_writer("jsonl", "-", stdout) as writer:
        for count, photo in enumerate(PHOTOS, start=2):
            writer.write(photo)
            assert len(stdout.getvalue().splitlines()) == count
    rows = [json.loads(line) for line in stdout.getvalue().splitlines()]
    assert rows == json.loads(write("json", "-", PHOTOS))


def test_csv_can_be_read_back(tmp_path):
    write("csv", tmp_path / "rows.csv", PHOTOS)
    text = (tmp_path / "rows.csv").read_text(encoding="utf-8", errors="surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["file"] for row in rows] == ["a.jpg", "a.jpg", 'b,"1"\n.jpg', "c.jpg", "d\udcff.jpg"]
    assert (rows[0]["left"], rows[0]["bottom"], rows[0]["age"]) == ("1", "40", "33.3")
    assert rows[2]["age"] == ""


def test_a_json_file_appears_completely_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), open_writer("json", str(tmp_path / "rows.json"), io.BytesIO()) as writer:
        writer.write(PHOTOS[0])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("missing", [0, 1, 7, 40, 120, 200, 260])
def test_an_interrupted_output_is_resumed(tmp_path, kind, missing):
    path = tmp_path / f"rows.{kind}"
    write(kind, path, PHOTOS)
    complete = path.read_bytes()
    path.write_bytes(complete[: len(complete) - missing])
    finished = load_resume_state(kind, path)
    # The last file is processed again because it may have had more faces.
    assert "d\udcff.jpg" not in finished
    write(kind, path, [photo for photo in PHOTOS if photo.file not in finished], resume=True)
    assert path.read_bytes() == complete


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_names_with_other_line_ends_are_resumed(tmp_path, kind):
    photos = [make_photo(name) for name in ("a\u2028b.jpg", "a\x85b.jpg", "a\rb.jpg", "last.jpg")]
    path = tmp_path / "rows"
    write(kind, path, photos)
    complete = path.read_bytes()
    assert load_resume_state(kind, path) == {photo.file for photo in photos[:-1]}
    write(kind, path, photos[-1:], resume=True)
    assert path.read_bytes() == complete


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_resuming_an_empty_output_starts_from_scratch(tmp_path, kind):
    path = tmp_path / "rows"
    assert load_resume_state(kind, path) == set()
    write(kind, path, PHOTOS, resume=True)
    complete = path.read_bytes()
    path.write_bytes(b"file,sta")
    assert load_resume_state(kind, path) == set()
    write(kind, path, PHOTOS, resume=True)
    assert path.read_bytes() == complete


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_resuming_another_file_is_refused(tmp_path, kind):
    path = tmp_path / "rows"
    path.write_text("name;age\nx;3\n")
    with pytest.raises(AgegenError, match=f"not an output of `agegen predict --{kind}`"):
        load_resume_state(kind, path)
    assert path.read_text() == "name;age\nx;3\n"


def test_a_full_disk_is_reported():
    class FullDisk(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    with open_writer("jsonl", "-", FullDisk()) as writer, pytest.raises(AgegenError, match="No space left on device"):
        writer.write(PHOTOS[0])


def test_an_unwritable_output_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(AgegenError, match="cannot write"),
        open_writer("csv", str(tmp_path / "file" / "x"), io.BytesIO()),
    ):
        pass


def test_csv_has_the_documented_columns():
    assert CSV_COLUMNS[0] == "file"
    assert {"left", "top", "right", "bottom", "detector", "score", "size", "model", "reason"} <= set(CSV_COLUMNS)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_of_another_model_detector_or_options_are_not_resumed(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    face = FacePrediction("a.jpg", "ok", 1, (1, 2, 3, 4), 30.0, 20.0, 40.0, "male", 0.1, "mtcnn", model="compact 1 abc")
    with open_writer(kind, str(path), None) as writer:
        for name in ("a.jpg", "b.jpg"):
            writer.write(PhotoPrediction(name, "ok", (replace(face, file=name),)))
        writer.write(PhotoPrediction("c.jpg", "no_face", detector="mtcnn", model="compact 1 abc"))
    before = path.read_bytes()
    for origin, message in (
        ({"model": "scratch 1 def"}, "written with model 'compact 1 abc', not 'scratch 1 def'"),
        ({"model": "compact 1 abc", "detector": "yunet"}, "written with detector 'mtcnn', not 'yunet'"),
        ({"options": "min_score=0.5"}, "written with options 'default', not 'min_score=0.5'"),
    ):
        with pytest.raises(AgegenError, match=message):
            load_resume_state(kind, path, origin)
        assert path.read_bytes() == before
    assert load_resume_state(kind, path, {"model": "compact 1 abc", "detector": "mtcnn"}) == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_are_read_as_they_were_written(tmp_path, kind):
    target = tmp_path / f"rows.{kind}"
    person = replace(make_face("=clip.mp4", 1), person=2, time=2.0, score=0.5, turn=0, options="min_score=0.5")
    photos = [*PHOTOS, PhotoPrediction("=clip.mp4", "ok", (person,), options="min_score=0.5")]
    write(kind, target, photos)
    known = {"file", "status", "face", "box", "age", "age_low", "person", "time", "score", "turn", "options", "reason"}
    expected = [
        {name: value for name, value in vars(row).items() if value is not None and name in known}
        for photo in photos
        for row in photo.list_rows()
    ]
    found = [
        {name: tuple(value) if name == "box" else value for name, value in row.items() if value is not None}
        for row in read_rows(kind, str(target))
    ]
    assert [{name: row[name] for name in row if name in known} for row in found] == expected
    assert list(read_rows(kind, str(tmp_path / "missing"))) == []


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_interrupted_report_keeps_its_faces_when_it_is_resumed(tmp_path, kind):
    rows, page = tmp_path / f"rows.{kind}", tmp_path / "page.html"
    crops = [np.full((32, 32, 3), grey, np.uint8) for grey in (50, 100, 150, 200)]
    photos = [replace(make_photo(f"{number}.jpg"), crops=(crop,)) for number, crop in enumerate(crops)]
    about = GalleryAbout(("photos",), "compact", "mtcnn")

    def predict(photos, resume):
        earlier = read_rows(kind, str(rows)) if resume else ()
        with (
            open_writer(kind, str(rows), io.BytesIO(), resume) as writer,
            open_report(page, about, earlier, resume) as report,
        ):
            for photo in photos:
                writer.write(photo)
                report.write(photo)
            if not resume:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(photos[:3], resume=False)
    text = page.read_text()
    assert "Incomplete" in text
    interrupted = re.findall('"thumb":"([^"]+)"', text)
    # The last file is repeated.
    assert load_resume_state(kind, rows) == {"0.jpg", "1.jpg"}
    predict(photos[2:], resume=True)
    text = page.read_text()
    assert "Incomplete" not in text
    assert "4 faces in 4 files" in text
    thumbnails = re.findall('"thumb":"([^"]+)"', text)
    assert thumbnails[:3] == interrupted
    assert len(set(thumbnails)) == 4
