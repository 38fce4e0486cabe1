"""``agegen data convert``: datasets of any layout as one manifest."""

import shutil

import pytest

from agegen.data.loading import load_sources
from agegen.datatools.config import ConvertConfig
from agegen.datatools.convert import convert_data
from agegen.errors import AgegenError, DataError


@pytest.fixture
def wide(faces_folder, tmp_path):
    names = sorted(path.name for path in faces_folder.iterdir())[:6]
    for name in names:
        shutil.copy(faces_folder / name, tmp_path / name)
    ages, genders = ("20-29", "", "60+") * 2, ("f", "m") * 3
    rows = [f"{name},{age},{gender}" for name, age, gender in zip(names, ages, genders, strict=True)]
    (tmp_path / "wide.csv").write_text("\n".join(["path,age,gender", *rows]))
    return tmp_path / "wide.csv"


@pytest.mark.parametrize(("name", "embed"), [("o.csv", False), ("o.parquet", False), ("o.parquet", True)])
def test_a_manifest_reads_back_the_same(faces_folder, wide, tmp_path, monkeypatch, name, embed):
    monkeypatch.setattr("agegen.datatools.convert._ROWS_AT_ONCE", 7)
    before = load_sources((str(faces_folder), str(wide)))
    done = []
    config = ConvertConfig((str(faces_folder), str(wide)), tmp_path / "out" / name, embed)
    result = convert_data(config, lambda stage, count, total: done.append((count, total)))
    assert result.rows == len(before) == 66
    assert done[0] == (7, 66)
    assert done[-1] == (66, 66)
    after = load_sources((str(tmp_path / "out" / name),))
    for first, second in ((before.labels.low, after.labels.low), (before.labels.female, after.labels.female)):
        assert first.tolist() == pytest.approx(second.tolist(), nan_ok=True)
    assert [before.read(row) for row in range(66)] == [after.read(row) for row in range(66)]
    assert list(after.frame["source_"]) == list(before.frame["source"])


def test_images_inside_a_file_are_embedded_again(faces_folder, tmp_path):
    inside = tmp_path / "inside.parquet"
    convert_data(ConvertConfig((str(faces_folder),), inside, embed=True))
    with pytest.raises(DataError, match="Write Parquet with --embed"):
        convert_data(ConvertConfig((str(inside),), tmp_path / "o.csv"))
    assert convert_data(ConvertConfig((str(inside),), tmp_path / "o.parquet", embed=True)).rows == 60


def test_invalid_names_and_options_are_errors(faces_folder, tmp_path, agegen):
    with pytest.raises(AgegenError, match=r"must end in \.csv or \.parquet"):
        convert_data(ConvertConfig((str(faces_folder),), tmp_path / "o.txt"))
    with pytest.raises(AgegenError, match="--embed requires a Parquet file"):
        convert_data(ConvertConfig((str(faces_folder),), tmp_path / "o.csv", embed=True))
    assert agegen("data", "convert", faces_folder).exit_code == 2


def test_command(faces_folder, tmp_path, agegen):
    done = agegen("data", "convert", faces_folder, tmp_path / "o.parquet", "--embed")
    assert done.exit_code == 0
    assert "60 rows;" in done.stdout
    done = agegen("data", "check", tmp_path / "o.parquet")
    assert "60 usable faces" in done.stdout
