"""Pictures in Parquet files and at addresses, and the shards that they make."""

import shutil

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agegen.errors import AgegenError, DataError
from agegen.predict.inputs import Shard, is_store, list_shards, read_address, read_shard


@pytest.fixture
def pictures(faces_folder):
    return sorted(faces_folder.iterdir())[:10]


def fetch(picture):
    """A picture's name, and its bytes where it brings them."""
    if isinstance(picture, str):
        return picture, None
    name, content = picture
    return name, content() if callable(content) else content


def test_files_come_in_equal_parts(pictures):
    names = [str(path) for path in pictures]
    shards = list(list_shards(names, 4))
    assert [shard.count for shard in shards] == [4, 4, 2]
    assert [name for shard in shards for name in read_shard(shard)] == names


@pytest.mark.parametrize("form", ["bytes", "hugging face", "paths"])
def test_parquet(pictures, tmp_path, form):
    contents = [path.read_bytes() for path in pictures]
    names = [path.name for path in pictures]
    if form == "paths":
        for path in pictures:
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
    found = [fetch(picture) for shard in shards for picture in read_shard(shard)]
    if form == "paths":
        assert found == [(f"{tmp_path}/{name}", None) for name in names]
    else:
        wanted = names if form == "hugging face" else [f"{path}#{row}" for row in range(10)]
        assert found == list(zip(wanted, contents, strict=True))


def test_addresses(pictures, tmp_path):
    memory = fsspec.filesystem("memory")
    for path in pictures:
        memory.pipe_file(f"/bucket/photos/{path.name}", path.read_bytes())
    memory.pipe_file("/bucket/photos/notes.txt", b"no picture")
    shards = list(list_shards(["memory://bucket/photos/"], 6))
    assert [shard.count for shard in shards] == [6, 4]
    found = [fetch(picture) for shard in shards for picture in read_shard(shard)]
    assert found == [(f"memory:///bucket/photos/{path.name}", path.read_bytes()) for path in pictures] or found == [
        (f"memory://bucket/photos/{path.name}", path.read_bytes()) for path in pictures
    ]
    one = list(list_shards([f"memory://bucket/photos/{pictures[0].name}"], 6))
    assert [shard.count for shard in one] == [1]
    (every,) = list_shards([f"file://{pictures[0].parent}/*.png"], 1000)
    assert len(every.names) == 60
    memory.rm("/bucket", recursive=True)


def test_a_table_at_an_address_with_paths_beside_it(pictures):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shop/a.png", pictures[0].read_bytes())
    with memory.open("/shop/list.parquet", "wb") as file:
        pq.write_table(pa.table({"path": ["a.png", "gone.png"]}), file)
    (shard,) = list_shards(["memory://shop/list.parquet"], 10)
    (name, content), (_, gone) = read_shard(shard)
    assert name == "memory://shop/a.png"
    assert content() == pictures[0].read_bytes()
    with pytest.raises(DataError):
        gone()
    memory.rm("/shop", recursive=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.parquet", "can't read nowhere.parquet as Parquet"),
        ("memory://nothing/*.jpg", "no picture and no Parquet file at"),
        ("nothing://a/*.jpg", "Protocol not known"),
        ("s3://bucket/*.jpg", "s3fs"),
    ],
)
def test_what_is_not_there(name, reason):
    with pytest.raises(AgegenError, match=reason) as caught:
        list(list_shards([name], 10))
    assert "\n" not in str(caught.value)


def test_a_table_without_pictures(tmp_path):
    pq.write_table(pa.table({"age": [1]}), tmp_path / "a.parquet")
    with pytest.raises(AgegenError, match="has no pictures"):
        list(list_shards([str(tmp_path / "a.parquet")], 10))


def test_what_is_a_store():
    assert is_store("a.parquet")
    assert is_store("s3://b/c.jpg")
    assert not is_store("photos/a.jpg")
    assert Shard(0) == Shard(0)
    with pytest.raises(DataError):
        read_address("memory://nothing/at/all.jpg")
