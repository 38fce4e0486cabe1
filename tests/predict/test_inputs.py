"""Inputs: files, folders, globs, stdin, Parquet, addresses, and the shards that they are divided into."""

import io
import os
import shutil
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from agegen.errors import AgegenError, DataError
from agegen.predict.inputs import (
    find_inputs,
    is_parquet_or_remote,
    list_shards,
    read_address,
    read_shard,
    read_stdin,
)


def test_files_folders_and_globs(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1.jpg", "a/b/2.PNG", "a/notes.txt", "3.webp"):
        (tmp_path / name).touch()
    found = [os.path.relpath(name, tmp_path) for name in find_inputs([str(tmp_path / "a"), f"{tmp_path}/*.webp"]).names]
    assert found == ["a/1.jpg", "a/b/2.PNG", "3.webp"]
    # A missing file becomes an unreadable row later.
    assert [Path(name).name for name in find_inputs([str(tmp_path / "missing.jpg")]).names] == ["missing.jpg"]
    with pytest.raises(AgegenError, match="no images in"):
        find_inputs([str(tmp_path / "*.gif")])


def test_an_existing_file_is_not_a_glob(tmp_path):
    (tmp_path / "face[1].jpg").touch()
    assert len(find_inputs([str(tmp_path / "face[1].jpg")]).names) == 1


def test_recursive_globs(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("1.jpg", "a/2.jpg", "a/b/3.jpg"):
        (tmp_path / name).touch()
    found = find_inputs([f"{tmp_path}/**/*.jpg"]).names
    assert [Path(name).name for name in found] == ["1.jpg", "2.jpg", "3.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="links require privileges on Windows")
def test_circular_links_are_not_followed(tmp_path):
    (tmp_path / "1.jpg").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    assert [Path(name).name for name in find_inputs([str(tmp_path)]).names] == ["1.jpg", "broken.jpg"]


def test_names_stay_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "photos/b.jpg"):
        (tmp_path / name).touch()
    assert find_inputs(["./a.jpg", "./photos", "https://example.org/c.jpg"]).names == [
        *("./a.jpg", "./photos/b.jpg", "https://example.org/c.jpg")
    ]


def test_images_need_no_extension_and_other_files_are_counted(tmp_path, portrait):
    (tmp_path / "scan").write_bytes(portrait.read_bytes())
    for name in ("a.txt", "b.TXT", "c.pdf", "README", "clip.mp4", ".hidden"):
        (tmp_path / name).write_bytes(b"not an image")
    found = find_inputs([str(tmp_path)])
    assert [Path(name).name for name in found.names] == ["clip.mp4", "scan"]
    start, kinds = found.describe_ignored().split(": ")
    assert start == "ignored 4 files in these folders, not images"
    assert sorted(kinds.split(", ")) == ["1 .pdf", "1 without extension", "2 .txt"]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with pytest.raises(AgegenError, match=r"no images in .*texts \(ignored 1 file .*: 1 \.txt\)"):
        find_inputs([str(tmp_path / "texts")])


def test_folders_of_outputs_are_not_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/boxes/a.jpg", "photos/boxes/sub/b.jpg", "photos/c/boxes/d.jpg", "other/e.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    outputs = [tmp_path / "photos" / "boxes", tmp_path / "photos" / "new"]
    found = find_inputs(["photos"], outputs)
    assert found.names == ["photos/a.jpg", "photos/c/boxes/d.jpg"]
    assert found.describe_ignored() == "skipped the outputs in photos/boxes"
    assert find_inputs(["photos/**/*.jpg"], outputs).names == ["photos/a.jpg", "photos/c/boxes/d.jpg"]
    # Named inputs stay, as do those beside the outputs.
    assert find_inputs(["photos/boxes", "photos/boxes/a.jpg"], outputs).names == [
        *("photos/boxes/a.jpg", "photos/boxes/sub/b.jpg", "photos/boxes/a.jpg")
    ]
    assert find_inputs(["photos/*.jpg"], [Path("photos")]).names == ["photos/a.jpg"]
    assert len(find_inputs(["photos"], [Path("photos")]).names) == 4


def test_lists_of_paths_on_stdin():
    names = list(read_stdin(io.BytesIO(b"a.jpg\n\nb c.jpg\r\n\xff.jpg\nlast.jpg")))
    assert [os.fsencode(name) for name in names] == [b"a.jpg", b"b c.jpg", b"\xff.jpg", b"last.jpg"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000"])
def test_an_image_on_stdin_is_not_a_list(kind):
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(stream, kind)
    assert read_stdin(io.BytesIO(stream.getvalue())) == stream.getvalue()


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypmp42", b"a.jpg\0b.jpg\0", b"\x1aE\xdf\xa3\x9f\0\0\0"])
def test_stdin_that_is_neither_an_image_nor_a_list_is_refused(start):
    with pytest.raises(AgegenError, match=r"one per line\. Give a video by its name"):
        read_stdin(io.BytesIO(start + bytes(100)))


def test_remote_videos_are_refused():
    with pytest.raises(DataError, match=r"only local videos can be read\. Download it first"):
        read_address("memory://somewhere/clip.MP4")


def test_a_short_list_is_read_while_the_pipe_is_open():
    reading, writing = os.pipe()
    os.write(writing, b"1.jpg\n")
    with os.fdopen(reading, "rb") as stream:
        names = read_stdin(stream)
        assert next(names) == "1.jpg"
        os.close(writing)
        assert list(names) == []


@pytest.fixture
def paths(faces_folder):
    return sorted(faces_folder.iterdir())[:10]


def fetch(image):
    """Return an image's name, and its content if it has one."""
    if isinstance(image, str):
        return image, None
    name, content = image
    return name, content() if callable(content) else content


def test_shards_of_files(paths):
    names = [str(path) for path in paths]
    shards = list(list_shards(names, 4))
    assert [shard.count for shard in shards] == [4, 4, 2]
    assert [name for shard in shards for name in read_shard(shard)] == names


@pytest.mark.parametrize("form", ["bytes", "hugging face", "paths"])
def test_shards_of_parquet_files(paths, tmp_path, form):
    contents = [path.read_bytes() for path in paths]
    names = [path.name for path in paths]
    if form == "paths":
        for path in paths:
            shutil.copy(path, tmp_path)
        table = pa.table({"file_name": names, "age": range(10)})
    elif form == "bytes":
        table = pa.table({"id": range(10), "jpg": pa.array(contents, pa.binary())})
    else:
        cells = [{"bytes": content, "path": name} for content, name in zip(contents, names, strict=True)]
        table = pa.table({"image": cells})
    path = tmp_path / "faces.parquet"
    pq.write_table(table, path, row_group_size=4)
    shards = list(list_shards([str(path)], 1000))
    assert [(shard.group, shard.first, shard.count) for shard in shards] == [(0, 0, 4), (1, 4, 4), (2, 8, 2)]
    found = [fetch(image) for shard in shards for image in read_shard(shard)]
    if form == "paths":
        assert found == [(f"{tmp_path}/{name}", None) for name in names]
    else:
        expected = names if form == "hugging face" else [f"{path}#{row}" for row in range(10)]
        assert found == list(zip(expected, contents, strict=True))


def test_shards_of_remote_folders_and_globs(paths):
    memory = fsspec.filesystem("memory")
    for path in paths:
        memory.pipe_file(f"/bucket/photos/{path.name}", path.read_bytes())
    memory.pipe_file("/bucket/photos/notes.txt", b"not an image")
    shards = list(list_shards(["memory://bucket/photos/"], 6))
    assert [shard.count for shard in shards] == [6, 4]
    found = [fetch(image) for shard in shards for image in read_shard(shard)]
    assert found == [(f"memory:///bucket/photos/{path.name}", path.read_bytes()) for path in paths] or found == [
        (f"memory://bucket/photos/{path.name}", path.read_bytes()) for path in paths
    ]
    one = list(list_shards([f"memory://bucket/photos/{paths[0].name}"], 6))
    assert [shard.count for shard in one] == [1]
    (all_faces,) = list_shards([f"file://{paths[0].parent}/*.png"], 1000)
    assert len(all_faces.names) == 60
    memory.rm("/bucket", recursive=True)


def test_paths_in_a_remote_table_are_relative_to_it(paths):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shop/a.png", paths[0].read_bytes())
    with memory.open("/shop/list.parquet", "wb") as file:
        pq.write_table(pa.table({"path": ["a.png", "gone.png"]}), file)
    (shard,) = list_shards(["memory://shop/list.parquet"], 10)
    (name, content), (_, gone) = read_shard(shard)
    assert name == "memory://shop/a.png"
    assert content() == paths[0].read_bytes()
    with pytest.raises(DataError):
        gone()
    memory.rm("/shop", recursive=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.parquet", "cannot read nowhere.parquet as Parquet"),
        ("memory://nothing/*.jpg", "no images and no Parquet files at"),
        ("nothing://a/*.jpg", "Protocol not known"),
        ("s3://bucket/*.jpg", "s3fs"),
    ],
)
def test_missing_tables_and_addresses_are_reported(name, reason):
    with pytest.raises(AgegenError, match=reason) as caught:
        list(list_shards([name], 10))
    assert "\n" not in str(caught.value)


def test_a_table_without_images_is_refused(tmp_path):
    pq.write_table(pa.table({"age": [1]}), tmp_path / "a.parquet")
    with pytest.raises(AgegenError, match=r"no images in .*a\.parquet: .* It has: age\."):
        list(list_shards([str(tmp_path / "a.parquet")], 10))


def test_parquet_files_and_addresses_are_recognised():
    assert is_parquet_or_remote("a.parquet")
    assert is_parquet_or_remote("s3://b/c.jpg")
    assert not is_parquet_or_remote("photos/a.jpg")


def test_a_missing_remote_file_is_reported():
    with pytest.raises(DataError):
        read_address("memory://nothing/at/all.jpg")
