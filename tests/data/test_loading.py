"""Datasets by name: folders, tables, the default, and several datasets joined."""

import pandas as pd
import pytest

from agegen.data.labels import label_groups
from agegen.data.loading import load_records, load_sources, resolve_data
from agegen.data.scan import scan_images
from agegen.datatools.config import ConvertConfig
from agegen.datatools.convert import convert_data
from agegen.errors import DataError


def test_the_default_dataset(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"UTKFace.*non-commercial.*--data demo"):
        resolve_data(None)
    (tmp_path / "data" / "utkface").mkdir(parents=True)
    assert resolve_data(None) == ("data/utkface",)
    monkeypatch.setenv("AGEGEN_DATA", "elsewhere")
    assert resolve_data(None) == ("elsewhere",)
    assert resolve_data(["given"]) == ("given",)


def test_folders_are_searched_recursively_and_unusable_files_are_listed(faces_folder, tmp_path):
    inner = tmp_path / "data" / "part 1"
    inner.mkdir(parents=True)
    names = sorted(path.name for path in faces_folder.iterdir())[:3]
    for name in names:
        (inner / name).write_bytes((faces_folder / name).read_bytes())
    (inner / "holiday.jpg").write_bytes(b"")
    (inner / "notes.txt").write_text("not an image")
    records = load_records(str(tmp_path / "data"))
    assert list(records.frame["path"]) == [f"part 1/{name}" for name in names]
    assert [item.path for item in records.excluded] == ["part 1/holiday.jpg"]
    assert records.group_columns == ["race"]


def test_files_that_are_not_tables_are_rejected(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cannot read .*t\.xlsx: agegen reads \.csv, \.tsv"):
        load_records(str(tmp_path / "t.xlsx"))
    with pytest.raises(DataError, match="no data at"):
        load_records(str(tmp_path / "none"))


def test_the_real_utkface(utkface):
    records = load_records(str(utkface))
    assert len(records) > 19_900
    assert 1 <= len(records.excluded) < 10
    assert records.frame["age"].between(1, 116).all()


def test_joined_faces_keep_their_source(faces_folder, mini_fairface):
    records = load_sources((str(faces_folder), str(mini_fairface)))
    assert records.sources == [faces_folder.name, "fairface"]
    assert list(records.list_face_sources()) == [faces_folder.name] * 60 + ["fairface"] * 40
    labels = records.labels
    assert labels.exact[:60].all()
    assert labels.bracketed[60:].all()
    assert records.group_columns == ["race", "source"]
    assert records.frame["path"].is_unique
    alone = load_sources((str(mini_fairface),))
    assert alone.layout == "FairFace"
    assert [records.read(row) for row in (60, 99)] == [alone.read(0), alone.read(39)]
    assert records.layout == f"{faces_folder.name}: UTKFace, 60 faces; fairface: FairFace, 40 faces; in total"


def test_sources_have_weights(faces_folder, mini_fairface):
    records = load_sources((str(faces_folder), f"{mini_fairface}::0.25"))
    assert records.weights == {faces_folder.name: 1.0, "fairface": 0.25}
    with pytest.raises(DataError, match="weight of a dataset"):
        load_sources((f"{mini_fairface}::0",))
    with pytest.raises(DataError, match="same dataset twice"):
        load_sources((str(mini_fairface), f"{mini_fairface}::2"))


def test_images_of_joined_sources_can_be_scanned(faces_folder, mini_fairface):
    assert len(scan_images(load_sources((str(faces_folder), str(mini_fairface)))).sha256) == 100


def test_missing_groups_are_empty_in_every_form(faces_folder, mini_fairface, tmp_path):
    names = sorted(str(path) for path in faces_folder.iterdir())[:4]
    columns = {"age": [1, 2, 3, 4], "camera": ["a", None, "b", None], "distance": [1.0, None, 2.0, 2.0]}
    pd.DataFrame({"path": names, **columns}).to_parquet(tmp_path / "t.parquet")
    records = load_records(str(tmp_path / "t.parquet"))
    assert list(records.frame["camera"]) == ["a", "", "b", ""]
    assert "nan" not in label_groups(records.frame, ["camera", "distance"])["distance"].cat.categories
    for out in ("o.csv", "o.parquet"):
        convert_data(ConvertConfig((str(tmp_path / "t.parquet"),), tmp_path / out))
        again = load_records(str(tmp_path / out)).frame
        assert list(again["camera"]) == ["a", "", "b", ""]
        assert list(again["distance"]) == ["1.0", "", "2.0", "2.0"]
    joined = load_sources((str(tmp_path / "t.parquet"), str(mini_fairface)))
    assert set(joined.frame["camera"]) == {"a", "b", ""}
    assert set(joined.frame["race"]) == {"", "Indian"}


def test_a_split_that_only_one_dataset_has_is_used(tmp_path):
    for name, split in (("a", "path,age,split\n1.jpg,3,train\n2.jpg,4,test\n"), ("b", "path,age\n1.jpg,3\n")):
        (tmp_path / f"{name}.csv").write_text(split)
    records = load_sources((str(tmp_path / "a.csv"), str(tmp_path / "b.csv")))
    assert "the split of a is used; the other datasets have none, and agegen splits them" in records.notices
    assert list(records.frame["split"]) == ["train", "test", ""]
