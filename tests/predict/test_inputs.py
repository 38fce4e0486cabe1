import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from agegen.errors import AgegenError
from agegen.predict.inputs import find_inputs, read_stdin


def test_inputs_are_files_folders_and_globs(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1.jpg", "a/b/2.PNG", "a/notes.txt", "3.webp"):
        (tmp_path / name).touch()
    found = [os.path.relpath(name, tmp_path) for name in find_inputs([str(tmp_path / "a"), f"{tmp_path}/*.webp"]).names]
    assert found == ["a/1.jpg", "a/b/2.PNG", "3.webp"]
    # A file that isn't there is a row of its own later on, not the end of all.
    assert [Path(name).name for name in find_inputs([str(tmp_path / "missing.jpg")]).names] == ["missing.jpg"]
    with pytest.raises(AgegenError, match="no picture in"):
        find_inputs([str(tmp_path / "*.gif")])


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (tmp_path / "face[1].jpg").touch()
    assert len(find_inputs([str(tmp_path / "face[1].jpg")]).names) == 1


def test_recursive_globs(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("1.jpg", "a/2.jpg", "a/b/3.jpg"):
        (tmp_path / name).touch()
    assert [Path(name).name for name in find_inputs([f"{tmp_path}/**/*.jpg"]).names] == [
        "1.jpg",
        "2.jpg",
        "3.jpg",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_that_loop_end(tmp_path):
    (tmp_path / "1.jpg").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    assert [Path(name).name for name in find_inputs([str(tmp_path)]).names] == ["1.jpg", "broken.jpg"]


def test_path_lists():
    names = list(read_stdin(io.BytesIO(b"a.jpg\n\nb c.jpg\r\n\xff.jpg\nlast.jpg")))
    assert [os.fsencode(name) for name in names] == [b"a.jpg", b"b c.jpg", b"\xff.jpg", b"last.jpg"]


def test_names_stay_as_they_were_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "photos/b.jpg"):
        (tmp_path / name).touch()
    assert find_inputs(["./a.jpg", "./photos", "https://example.org/c.jpg"]).names == [
        *("./a.jpg", "./photos/b.jpg", "https://example.org/c.jpg")
    ]


def test_what_is_no_picture_is_counted_and_what_is_one_needs_no_ending(tmp_path, portrait):
    (tmp_path / "scan").write_bytes(portrait.read_bytes())
    for name in ("a.txt", "b.TXT", "c.pdf", "README", "clip.mp4", ".hidden"):
        (tmp_path / name).write_bytes(b"nothing of a picture")
    found = find_inputs([str(tmp_path)])
    assert [Path(name).name for name in found.names] == ["clip.mp4", "scan"]
    told = "4 files in these folders are no pictures and were passed over: 2 .txt, 1 without an ending, 1 .pdf"
    assert sorted(found.describe_passed().split(": ")[1].split(", ")) == sorted(told.split(": ")[1].split(", "))
    assert found.describe_passed().startswith("4 files")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with pytest.raises(AgegenError, match=r"no picture in .*texts; 1 files .* passed over: 1 \.txt"):
        find_inputs([str(tmp_path / "texts")])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000"])
def test_a_picture_on_stdin_is_told_from_a_list(kind):
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(stream, kind)
    assert read_stdin(io.BytesIO(stream.getvalue())) == stream.getvalue()


def test_a_short_list_is_not_waited_for(tmp_path):
    """A pipe that stays open after one short name."""
    reading, writing = os.pipe()
    os.write(writing, b"1.jpg\n")
    with os.fdopen(reading, "rb") as stream:
        names = read_stdin(stream)
        assert next(names) == "1.jpg"
        os.close(writing)
        assert list(names) == []
