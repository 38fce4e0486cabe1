import io
import os
import sys

import pytest

from agegen.errors import AgegenError
from agegen.predict.inputs import find_inputs, read_path_list


def test_inputs_are_files_folders_and_globs(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1.jpg", "a/b/2.PNG", "a/notes.txt", "3.webp"):
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_inputs([str(tmp_path / "a"), f"{tmp_path}/*.webp"])]
    assert found == ["a/1.jpg", "a/b/2.PNG", "3.webp"]
    # A file that isn't there is a row of its own later on, not the end of all.
    assert [path.name for path in find_inputs([str(tmp_path / "missing.jpg")])] == ["missing.jpg"]
    with pytest.raises(AgegenError, match="no picture in"):
        find_inputs([str(tmp_path / "*.gif")])


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (tmp_path / "face[1].jpg").touch()
    assert len(find_inputs([str(tmp_path / "face[1].jpg")])) == 1


def test_recursive_globs(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("1.jpg", "a/2.jpg", "a/b/3.jpg"):
        (tmp_path / name).touch()
    assert [path.name for path in find_inputs([f"{tmp_path}/**/*.jpg"])] == ["1.jpg", "2.jpg", "3.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_that_loop_end(tmp_path):
    (tmp_path / "1.jpg").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    assert [path.name for path in find_inputs([str(tmp_path)])] == ["1.jpg", "broken.jpg"]


def test_path_lists():
    names = list(read_path_list(io.BytesIO(b"a.jpg\n\nb c.jpg\r\n\xff.jpg\nlast.jpg")))
    assert [os.fsencode(name) for name in names] == [b"a.jpg", b"b c.jpg", b"\xff.jpg", b"last.jpg"]
