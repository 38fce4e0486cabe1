"""Tables as people write them, and Parquet as the Hub keeps it."""

import json
import pickle

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agegen.data.loading import load_records
from agegen.data.manifests import ReadOptions
from agegen.data.tables import RowGroupStore
from agegen.errors import DataError

ROWS = [("a.jpg", "20-29", "f"), ("b.jpg", "35", "m")]


def write(path, header, rows, separator=",", encoding="utf-8"):
    lines = [separator.join(header), *(separator.join(row) for row in rows)]
    path.write_bytes("\n".join(lines).encode(encoding))
    return str(path)


def check(records):
    assert list(records.frame["path"]) == ["a.jpg", "b.jpg"]
    assert records.labels.low.tolist() == [20, 35]
    assert records.labels.high.tolist() == [29, 35]
    assert records.labels.female.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["path", "file_name", "file", "filename", "image", "img_path", "Path", "FILE_NAME"])
def test_names_of_the_path(tmp_path, name):
    check(load_records(write(tmp_path / "t.csv", (name, "Age", "SEX"), ROWS)))


def test_other_endings_and_encodings(tmp_path):
    header = ("path", "age", "gender")
    check(load_records(write(tmp_path / "t.tsv", header, ROWS, "\t")))
    check(load_records(write(tmp_path / "t.txt", header, ROWS, "\t", "utf-16")))
    lines = [json.dumps(dict(zip(header, row, strict=True))) for row in ROWS]
    for name, text in (("t.jsonl", "\n".join(lines)), ("t.json", f"[{','.join(lines)}]")):
        (tmp_path / name).write_text(text)
        check(load_records(str(tmp_path / name)))


def test_paths_from_windows_and_blanks(tmp_path):
    rows = [("in\\a.jpg ", "20-29", "f"), (" in\\b.jpg", "35", "m")]
    records = load_records(write(tmp_path / "t.csv", ("path", "age", "gender"), rows))
    assert list(records.frame["path"]) == ["in/a.jpg", "in/b.jpg"]


def test_decimal_commas(tmp_path):
    rows = [("a.jpg", "23,5", "f"), ("b.jpg", "30", "m")]
    records = load_records(write(tmp_path / "t.csv", ("path", "age", "gender"), rows, ";"))
    assert list(records.frame["age"]) == [23.5, 30.0]


def test_two_columns_of_bounds(tmp_path):
    rows = [("a.jpg", "20", "29", "f"), ("b.jpg", "35", "35", "m"), ("c.jpg", "", "", "m")]
    records = load_records(write(tmp_path / "t.csv", ("path", "age_low", "age_high", "gender"), rows))
    assert records.labels.exact.tolist() == [False, True, False]
    assert records.labels.bracketed.tolist() == [True, False, False]
    assert records.group_columns == []


def test_an_age_column_of_choice(tmp_path):
    rows = [("a.jpg", "20", "25", "f"), ("b.jpg", "30", "31", "m")]
    path = write(tmp_path / "t.csv", ("path", "age", "apparent", "gender"), rows)
    assert list(load_records(path).frame["age"]) == [20, 30]
    assert list(load_records(path, ReadOptions(age_column="apparent")).frame["age"]) == [25, 31]
    with pytest.raises(DataError, match="has no column guessed; it has path, age, apparent, gender"):
        load_records(path, ReadOptions(age_column="guessed"))


def test_gender_alone_and_age_alone(tmp_path):
    records = load_records(write(tmp_path / "t.csv", ("path", "gender"), [("a.jpg", "f"), ("b.jpg", "")]))
    assert len(records) == 1
    assert records.excluded[0].reason == "neither age nor gender is known"
    records = load_records(write(tmp_path / "t.csv", ("path", "age"), [("a.jpg", "3"), ("b.jpg", "7")]))
    assert not records.labels.gendered.any()


def test_columns_that_agegen_names_itself_stay_the_users(tmp_path):
    rows = [("a.jpg", "3", "f", "7", "x"), ("b.jpg", "7", "m", "8", "y")]
    records = load_records(write(tmp_path / "t.csv", ("path", "age", "gender", "row", "source"), rows))
    assert list(records.frame["row_"]) == ["7", "8"]
    assert list(records.frame["source_"]) == ["x", "y"]
    assert list(records.frame["row"]) == [0, 1]


def make_parquet(path, images, features=None, **columns):
    arrays = {"image": images, **{name: pa.array(values) for name, values in columns.items()}}
    table = pa.table(arrays)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return str(path)


@pytest.fixture(scope="module")
def pictures(faces_folder):
    return [path.read_bytes() for path in sorted(faces_folder.iterdir())[:3]]


def make_structs(pictures, names):
    return pa.array([{"bytes": picture, "path": name} for picture, name in zip(pictures, names, strict=True)])


def test_class_numbers_take_their_names_from_the_schema(pictures, tmp_path):
    features = {
        "age": {"names": ["0-2", "3-9", "10-19"], "_type": "ClassLabel"},
        "gender": {"names": ["female", "male"], "_type": "ClassLabel"},
        "race": {"names": ["A", "B"], "_type": "ClassLabel"},
    }
    path = make_parquet(
        tmp_path / "t.parquet", make_structs(pictures, "xyz"), features, age=[2, 0, 1], gender=[0, 1, 0], race=[0, 1, 1]
    )
    records = load_records(path)
    assert records.labels.low.tolist() == [10, 0, 3]
    assert records.labels.female.tolist() == [1, 0, 1]
    assert list(records.frame["race"]) == ["A", "B", "B"]
    assert records.read(1) == pictures[1]


def test_inner_names_that_repeat_become_rows(pictures, tmp_path):
    path = make_parquet(
        tmp_path / "t.parquet", make_structs(pictures, ["0.jpg"] * 3), age=[1, 2, 3], gender=list("fmf")
    )
    records = load_records(path)
    assert list(records.frame["path"]) == ["row-0/0.jpg", "row-1/0.jpg", "row-2/0.jpg"]


def test_plain_bytes_lists_and_masks_beside_the_picture(pictures, tmp_path):
    labels = {"age": [1, 2, 3], "gender": list("fmf")}
    mask = make_structs([b"mask"] * 3, "abc")
    tables = {
        "bytes": pa.table({"image": pa.array(pictures), **labels}),
        "lists": pa.table({"image": pa.array([[{"bytes": one, "path": "x"}] for one in pictures]), **labels}),
        "mask": pa.table({"mask": mask, "image": make_structs(pictures, "xyz"), **labels}),
        "nested": pa.table(
            {"image": make_structs(pictures, "xyz"), "embedding": [[1.0, 2.0]] * 3, "box": [{"x": 1}] * 3, **labels}
        ),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        records = load_records(str(tmp_path / f"{name}.parquet"))
        assert [records.read(row) for row in range(3)] == pictures, name
        assert records.group_columns == [], name


def test_paths_without_pictures_lead_to_files(pictures, tmp_path):
    (tmp_path / "in").mkdir()
    for name, picture in zip("xyz", pictures, strict=True):
        (tmp_path / "in" / name).write_bytes(picture)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    structs = pa.array([{"bytes": None, "path": f"in/{name}"} for name in "xyz"], kind)
    records = load_records(make_parquet(tmp_path / "t.parquet", structs, age=[1, 2, 3], gender=list("fmf")))
    assert records.read(2) == pictures[2]


def test_a_folder_of_shards(pictures, tmp_path):
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        make_parquet(
            tmp_path / "shards" / f"{shard}.parquet", make_structs(pictures, "xyz"), age=[1, 2, 3], gender=list("fmf")
        )
    records = load_records(str(tmp_path / "shards"))
    assert len(records) == 6
    assert records.read(5) == pictures[2]
    assert pd.Series(records.frame["path"]).is_unique


@pytest.mark.parametrize("form", ["structs", "bytes", "lists"])
def test_pictures_that_memory_has_no_room_for_are_read_by_row_groups(pictures, tmp_path, monkeypatch, form):
    """A data set of gigabytes used to be loaded whole."""
    structs = make_structs(pictures, "xyz")
    images = {
        "structs": structs,
        "bytes": pa.array(pictures),
        "lists": pa.array([[one] for one in structs.to_pylist()]),
    }
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        table = pa.table({"image": images[form], "age": [1, 2, 3], "gender": list("fmf")})
        pq.write_table(table, tmp_path / "shards" / f"{shard}.parquet", row_group_size=2)
    whole = load_records(str(tmp_path / "shards"))
    monkeypatch.setattr("agegen.data.tables.measure_free_memory", lambda: 100)
    records = load_records(str(tmp_path / "shards"))
    assert isinstance(records.images, RowGroupStore)
    order = [8, 0, 1, 2, 3, 4, 5, 6, 7, 1]
    assert [records.read(row) for row in order] == [pictures[row % 3] for row in order] == [*map(whole.read, order)]
    assert list(records.frame["age"]) == [1, 2, 3] * 3
    if form == "structs":
        assert list(records.frame["path"]) == list(whole.frame["path"])
    pickle.loads(pickle.dumps(records.images)).read(0)
    (tmp_path / "shards" / "0.parquet").unlink()
    with pytest.raises(DataError, match=r"can't read .*0\.parquet"):
        RowGroupStore(records.images.groups, "image").read(0)


def test_metadata_beside_the_pictures(tmp_path):
    write(tmp_path / "metadata.csv", ("file_name", "age", "gender"), ROWS)
    check(load_records(str(tmp_path)))


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"can't read .*t\.xlsx: agegen reads \.csv, \.tsv"):
        load_records(str(tmp_path / "t.xlsx"))
    for content in ("", "1", "{bad", '"text"'):
        (tmp_path / "t.jsonl").write_text(content)
        with pytest.raises(DataError, match="as JSON Lines"):
            load_records(str(tmp_path / "t.jsonl"))
