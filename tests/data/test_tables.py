"""Table formats: CSV variants, JSON Lines, and Parquet in the forms found on the Hugging Face Hub."""

import json
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agegen.data.labels import label_groups
from agegen.data.loading import load_records
from agegen.data.scan import scan_images
from agegen.data.tables import RowGroupStore
from agegen.errors import DataError

HEADER = ("path", "age", "gender")
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


def test_suffixes_separators_and_encodings(tmp_path):
    check(load_records(write(tmp_path / "t.tsv", HEADER, ROWS, "\t")))
    check(load_records(write(tmp_path / "t.txt", HEADER, ROWS, "\t", "utf-16")))
    lines = [json.dumps(dict(zip(HEADER, row, strict=True))) for row in ROWS]
    for name, text in (("t.jsonl", "\n".join(lines)), ("t.json", f"[{','.join(lines)}]")):
        (tmp_path / name).write_text(text)
        check(load_records(str(tmp_path / name)))


def test_invalid_json_is_one_line(tmp_path):
    for content in ("", "1", "{bad", '"text"'):
        (tmp_path / "t.jsonl").write_text(content)
        with pytest.raises(DataError, match="as JSON Lines"):
            load_records(str(tmp_path / "t.jsonl"))


def test_damaged_parquet_is_one_line(tmp_path):
    for content in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "faces.parquet").write_bytes(content)
        with pytest.raises(DataError, match="as Parquet") as caught:
            load_records(str(tmp_path / "faces.parquet"))
        assert "\n" not in str(caught.value)


def test_a_metadata_table_in_a_folder_of_images(tmp_path):
    write(tmp_path / "metadata.csv", ("file_name", "age", "gender"), ROWS)
    check(load_records(str(tmp_path)))


def make_parquet(path, images, features=None, **columns):
    arrays = {"image": images, **{name: pa.array(values) for name, values in columns.items()}}
    table = pa.table(arrays)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return str(path)


@pytest.fixture(scope="module")
def images(faces_folder):
    """Three encoded images."""
    return [path.read_bytes() for path in sorted(faces_folder.iterdir())[:3]]


def make_structs(images, names):
    return pa.array([{"bytes": image, "path": name} for image, name in zip(images, names, strict=True)])


def test_images_in_hugging_face_form(images, tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    structs = [{"bytes": image, "path": name} for image, name in zip(images, "xyz", strict=True)]
    structs = pa.array([*structs, {"bytes": None, "path": "lost.jpg"}], kind)
    path = make_parquet(tmp_path / "faces.parquet", structs, age=[3, 4, 5, 6], gender=[0, 1, 1, 0])
    scan = scan_images(load_records(path), size=32)
    assert list(scan.records.frame["path"]) == list("xyz")
    assert scan.pixels.shape == (3, 32, 32, 3)
    assert [(item.path, item.reason) for item in scan.records.excluded] == [("lost.jpg", "no image in this row")]


def test_class_numbers_are_replaced_by_the_names_in_the_schema(images, tmp_path):
    features = {
        "age": {"names": ["0-2", "3-9", "10-19"], "_type": "ClassLabel"},
        "gender": {"names": ["female", "male"], "_type": "ClassLabel"},
        "race": {"names": ["A", "B"], "_type": "ClassLabel"},
    }
    path = make_parquet(
        tmp_path / "t.parquet", make_structs(images, "xyz"), features, age=[2, 0, 1], gender=[0, 1, 0], race=[0, 1, 1]
    )
    records = load_records(path)
    assert records.labels.low.tolist() == [10, 0, 3]
    assert records.labels.female.tolist() == [1, 0, 1]
    assert list(records.frame["race"]) == ["A", "B", "B"]
    assert records.read(1) == images[1]


def test_repeated_names_get_their_row_number(images, tmp_path):
    path = make_parquet(tmp_path / "t.parquet", make_structs(images, ["0.jpg"] * 3), age=[1, 2, 3], gender=list("fmf"))
    records = load_records(path)
    assert list(records.frame["path"]) == ["row-0/0.jpg", "row-1/0.jpg", "row-2/0.jpg"]


def test_bytes_lists_and_other_columns_with_the_image(images, tmp_path):
    labels = {"age": [1, 2, 3], "gender": list("fmf")}
    mask = make_structs([b"mask"] * 3, "abc")
    tables = {
        "bytes": pa.table({"image": pa.array(images), **labels}),
        "lists": pa.table({"image": pa.array([[{"bytes": one, "path": "x"}] for one in images]), **labels}),
        "mask": pa.table({"mask": mask, "image": make_structs(images, "xyz"), **labels}),
        "nested": pa.table(
            {"image": make_structs(images, "xyz"), "embedding": [[1.0, 2.0]] * 3, "box": [{"x": 1}] * 3, **labels}
        ),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        records = load_records(str(tmp_path / f"{name}.parquet"))
        assert [records.read(row) for row in range(3)] == images, name
        assert records.group_columns == [], name


def test_paths_without_bytes_are_those_of_files(images, tmp_path):
    (tmp_path / "in").mkdir()
    for name, image in zip("xyz", images, strict=True):
        (tmp_path / "in" / name).write_bytes(image)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    structs = pa.array([{"bytes": None, "path": f"in/{name}"} for name in "xyz"], kind)
    records = load_records(make_parquet(tmp_path / "t.parquet", structs, age=[1, 2, 3], gender=list("fmf")))
    assert records.read(2) == images[2]


def test_a_folder_of_shards(images, tmp_path):
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        make_parquet(
            tmp_path / "shards" / f"{shard}.parquet", make_structs(images, "xyz"), age=[1, 2, 3], gender=list("fmf")
        )
    records = load_records(str(tmp_path / "shards"))
    assert len(records) == 6
    assert records.read(5) == images[2]
    assert pd.Series(records.frame["path"]).is_unique


@pytest.mark.parametrize("form", ["structs", "bytes", "lists"])
def test_images_that_do_not_fit_into_memory_are_read_by_row_groups(images, tmp_path, monkeypatch, form):
    structs = make_structs(images, "xyz")
    columns = {
        "structs": structs,
        "bytes": pa.array(images),
        "lists": pa.array([[one] for one in structs.to_pylist()]),
    }
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        table = pa.table({"image": columns[form], "age": [1, 2, 3], "gender": list("fmf")})
        pq.write_table(table, tmp_path / "shards" / f"{shard}.parquet", row_group_size=2)
    whole = load_records(str(tmp_path / "shards"))
    monkeypatch.setattr("agegen.data.tables.measure_free_memory", lambda: 100)
    records = load_records(str(tmp_path / "shards"))
    assert isinstance(records.images, RowGroupStore)
    order = [8, 0, 1, 2, 3, 4, 5, 6, 7, 1]
    assert [records.read(row) for row in order] == [images[row % 3] for row in order] == [*map(whole.read, order)]
    assert list(records.frame["age"]) == [1, 2, 3] * 3
    if form == "structs":
        assert list(records.frame["path"]) == list(whole.frame["path"])
    pickle.loads(pickle.dumps(records.images)).read(0)
    (tmp_path / "shards" / "0.parquet").unlink()
    with pytest.raises(DataError, match=r"cannot read .*0\.parquet"):
        RowGroupStore(records.images.groups, "image").read(0)


def make_splits(folder, images, names):
    folder.mkdir(parents=True)
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        make_parquet(folder / name, make_structs(images[:1], [f"{place}.jpg"]), age=[place], gender=["f"])
    return load_records(str(folder))


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "data/validation-0.parquet"],
        ["default/train/0000.parquet", "default/test/0000.parquet", "default/validation/0000.parquet"],
        ["train.parquet", "test.parquet", "valid.parquet"],
    ],
)
def test_the_split_is_that_of_the_shards(images, tmp_path, names):
    records = make_splits(tmp_path / "clone", images, names)
    splits = dict(zip(records.frame["age"], records.frame["split"], strict=True))
    assert splits == {0: "train", 1: "test", 2: "val"}
    assert records.notices == ("folder or file names give the split, which is used: 1 train, 1 val, 1 test",)


def test_shards_in_several_folders_are_several_datasets(images, tmp_path):
    with pytest.raises(DataError, match=r"It contains 1 \.parquet in (0\.25|1\.25)/"):
        make_splits(tmp_path / "margins", images, ["0.25/train.parquet", "1.25/train.parquet"])


@pytest.mark.parametrize("form", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_of_save_to_disk(images, tmp_path, form):
    features = {"gender": {"names": ["female", "male"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for place, split in enumerate(("train", "test")):
        table = pa.table(
            {"image": make_structs(images[place : place + 1], ["x"]), "age": [3 + place], "gender": [place]}
        )
        table = table.replace_schema_metadata(metadata)
        (tmp_path / "saved" / split).mkdir(parents=True)
        for name in ("data-00000-of-00001.arrow", "cache-1.arrow"):
            with form(tmp_path / "saved" / split / name, table.schema) as writer:
                writer.write_table(table)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    records = load_records(str(tmp_path / "saved"))
    assert list(records.frame["split"]) == ["test", "train"]
    assert records.labels.female.tolist() == [0, 1]
    assert records.read(1) == images[0]
    one = load_records(str(tmp_path / "saved" / "train" / "data-00000-of-00001.arrow"))
    assert one.read(0) == images[0]


@pytest.mark.parametrize("damage", [b"", b"ARROW1", bytes(1000)])
def test_damaged_arrow_files_are_one_line(tmp_path, damage):
    (tmp_path / "t.arrow").write_bytes(damage)
    with pytest.raises(DataError, match="as Arrow") as caught:
        load_records(str(tmp_path / "t.arrow"))
    assert "\n" not in str(caught.value)


def test_pixels_in_the_cells_of_a_table(tmp_path):
    gray = np.arange(64 * 64).reshape(64, 64) % 256
    color = np.stack([gray, 255 - gray, gray // 2], axis=-1)
    cells = [" ".join(map(str, values.reshape(-1))) for values in (gray, color)]
    rows = [f"20,0,{cells[0]}", f"30,1,{cells[1]}", "40,1,1 2", f"50,0,{cells[0].replace('7', '777', 1)}"]
    (tmp_path / "t.csv").write_text("\n".join(["age,gender,pixels", *rows]))
    records = load_records(str(tmp_path / "t.csv"))
    assert list(records.frame["path"]) == ["row-0", "row-1", "row-2", "row-3"]
    assert records.group_columns == records.ungrouped_columns == []
    assert np.array_equal(records.decode(0), np.stack([gray] * 3, axis=-1))
    assert np.array_equal(records.decode(1), color)
    with pytest.raises(DataError, match="2 pixels are not a square image"):
        records.decode(2)
    with pytest.raises(DataError, match="the pixels are not numbers of 0–255"):
        records.decode(3)


def test_labels_in_flattened_structs(images, tmp_path):
    columns = {"json.age": [1, 2, 3], "json.gender": list("fmf")}
    records = load_records(make_parquet(tmp_path / "t.parquet", make_structs(images, "xyz"), **columns))
    assert list(records.frame["age"]) == [1, 2, 3]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_encodings_with_and_without_a_mark(tmp_path, encoding, mark):
    lines = [",".join(HEADER), *(",".join(row) for row in ROWS)]
    (tmp_path / "t.csv").write_bytes((mark + "\n".join(lines)).encode(encoding))
    check(load_records(str(tmp_path / "t.csv")))
    lines = [json.dumps(dict(zip(HEADER, row, strict=True))) for row in ROWS]
    (tmp_path / "t.jsonl").write_bytes((mark + "\n".join(lines)).encode(encoding))
    check(load_records(str(tmp_path / "t.jsonl")))


def test_tables_that_are_not_text_are_one_line(tmp_path):
    write(tmp_path / "t.csv", HEADER, ROWS, "|")
    check(load_records(str(tmp_path / "t.csv")))
    (tmp_path / "t.csv").write_bytes(b"\x00\x01\x02path,age\n")
    with pytest.raises(DataError, match="its first line is not a header, it is binary"):
        load_records(str(tmp_path / "t.csv"))
    (tmp_path / "t.jsonl").write_bytes(b'{"path": "\xe9.jpg", "age": 3}')
    with pytest.raises(DataError, match="it is not encoded in UTF-8"):
        load_records(str(tmp_path / "t.jsonl"))


def test_only_newlines_end_a_line_of_json(tmp_path):
    lines = ['{"path": "a.jpg", "age": 3, "note": "one\u2028two\x85three"}', "", '{"path": "b.jpg", "age": 4}']
    (tmp_path / "t.jsonl").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    assert len(load_records(str(tmp_path / "t.jsonl"))) == 2
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, '{"path": oops}']), encoding="utf-8")
    with pytest.raises(DataError, match="line 4, column 10: Expecting value"):
        load_records(str(tmp_path / "t.jsonl"))


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_nested_json_is_one_line(tmp_path, suffix):
    deep = "[" * 200_000 + "]" * 200_000
    (tmp_path / f"t.{suffix}").write_text(f'{{"path": {deep}, "age": 3}}' if suffix == "jsonl" else deep)
    with pytest.raises(DataError, match="nested too deeply"):
        load_records(str(tmp_path / f"t.{suffix}"))
    (tmp_path / "t.jsonl").write_text('{"path": "a.jpg", "age": 3, "tags": ["x", {"y": 1}]}')
    assert list(load_records(str(tmp_path / "t.jsonl")).frame["tags"]) == ['["x", {"y": 1}]']


def test_half_characters_are_replaced(tmp_path):
    rows = r'{"path": "d/\ud800.jpg", "age": 3, "k\udfff": "\udc00", "l": ["\ud800"]}'
    (tmp_path / "t.jsonl").write_text(rows)
    frame = load_records(str(tmp_path / "t.jsonl")).frame
    assert list(frame["path"]) == ["d/?.jpg"]
    assert list(frame["k?"]) == ["?"]


def test_damaged_metadata_of_pandas_does_not_matter(tmp_path):
    frame = pd.DataFrame({"path": ["a.jpg", "b.jpg"], "age": [3, 4]}, index=pd.Index(["x", "y"], name="camera"))
    table = pa.Table.from_pandas(frame)
    metadata = {**table.schema.metadata, b"pandas": table.schema.metadata[b"pandas"].replace(b"{", b"\xfb", 1)}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "t.parquet")
    records = load_records(str(tmp_path / "t.parquet"))
    assert list(records.frame["age"]) == [3, 4]
    assert list(records.frame["camera"]) == ["x", "y"]


def test_text_in_parquet_that_is_not_utf_8_is_one_line(tmp_path):
    paths = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff.jpg"]).buffers())
    pq.write_table(pa.table({"path": paths, "age": [3]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"as Parquet: .*[Ii]nvalid UTF8"):
        load_records(str(tmp_path / "t.parquet"))


def test_control_characters_in_groups_are_not_printed(tmp_path):
    write(tmp_path / "t.csv", ("path", "age", "cam\x1b[31m"), [("a.jpg", "3", "\x1b[31mred"), ("b.jpg", "4", "blue")])
    frame = load_records(str(tmp_path / "t.csv")).frame
    groups = label_groups(frame, ["cam?[31m"])
    assert list(groups["cam?[31m"]) == ["?[31mred", "blue"]


def test_rows_of_json_with_names_of_their_own_do_not_fill_the_memory(tmp_path):
    """As a table, 1 MB would have 32 million cells."""
    rows = [{"path": "a.jpg", "age": 3, **{f"{row}-{key}": key for key in range(200)}} for row in range(400)]
    (tmp_path / "faces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"its 400 rows have 80,002 different names$"):
        load_records(str(tmp_path / "faces.jsonl"))


@pytest.mark.parametrize("names", [3, {"a": 1, "b": 2}, [1, {}], "fm", None])
def test_names_of_classes_that_are_no_list_of_texts_are_ignored(tmp_path, names):
    """The numbers are then genders as in other tables: 0 is male."""
    features = json.dumps({"info": {"features": {"gender": {"names": names}}}})
    table = pa.table({"path": ["a.jpg", "b.jpg"], "age": [3, 4], "gender": [0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": features}), tmp_path / "faces.parquet")
    assert load_records(str(tmp_path / "faces.parquet")).labels.female.tolist() == [0, 1]


def test_parquet_with_millions_of_equal_rows_does_not_fill_the_memory(tmp_path):
    path = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000_000, np.int32)), pa.array(["x" * 1000]))
    numbered = pa.array([f"faces/{row}.jpg" for row in range(200_000)])
    for name, column in (("equal", path), ("numbered", numbered)):
        ages = pa.array(np.full(len(column), 30))
        pq.write_table(pa.table({"path": column, "age": ages}), tmp_path / f"{name}.parquet", compression="zstd")
    with pytest.raises(DataError, match="2,000,000 rows in so few bytes"):
        load_records(str(tmp_path / "equal.parquet"))
    assert len(load_records(str(tmp_path / "numbered.parquet"))) == 200_000
