import pandas as pd
import pytest

from agegen.data.layouts.file_names import parse_utkface_name
from agegen.data.loading import load_records, resolve_data
from agegen.data.scan import scan_images
from agegen.errors import DataError


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("26_0_2_20170116174525125.jpg.chip.jpg", (26, False, "Asian")),
        ("1_1_0_20161219140623097.jpg", (1, True, "White")),
        ("39_1_20170116174525125.jpg.chip.jpg", "the name is not age_gender_race_datetime"),
        ("IMG_2031.jpg", "the name is not age_gender_race_datetime"),
        ("117_0_0_20170112213500903.jpg", "age 117 is outside 0–116"),
    ],
)
def test_utkface_names(name, parsed):
    assert parse_utkface_name(name) == parsed


def test_folder_is_searched_recursively_and_bad_names_are_listed(faces_folder, tmp_path):
    inner = tmp_path / "data" / "part 1"
    inner.mkdir(parents=True)
    names = sorted(path.name for path in faces_folder.iterdir())[:3]
    for name in names:
        (inner / name).write_bytes((faces_folder / name).read_bytes())
    (inner / "holiday.jpg").write_bytes(b"")
    (inner / "notes.txt").write_text("no picture")
    records = load_records(str(tmp_path / "data"))
    assert list(records.frame["path"]) == [f"part 1/{name}" for name in names]
    assert [item.path for item in records.excluded] == ["part 1/holiday.jpg"]
    assert records.group_columns == ["race"]


def write_manifest(path, faces_folder, **columns):
    names = sorted(path.name for path in faces_folder.iterdir())
    count = len(next(iter(columns.values())))
    frame = pd.DataFrame({"path": [str(faces_folder / name) for name in names[:count]], **columns})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return load_records(str(path))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifest_labels_and_exclusions(faces_folder, tmp_path, kind):
    records = write_manifest(
        tmp_path / f"faces.{kind}",
        faces_folder,
        age=["20", "31.5", "-1", "300", "nan", "x", "40"],
        gender=["male", "F", "m", "f", "0", "1", "other"],
        camera=list("aabbccd"),
    )
    labels = records.labels
    assert labels.low.tolist() == pytest.approx([20.0, 31.5, float("nan"), 40.0], nan_ok=True)
    assert labels.female.tolist() == pytest.approx([0, 1, 0, float("nan")], nan_ok=True)
    reasons = [item.reason for item in records.excluded]
    assert reasons == [f"age '{cell}' is no age in 0–116 nor a bracket of ages" for cell in ("-1", "300", "x")]
    assert records.group_columns == ["camera"]
    assert len(scan_images(records).sha256) == 4


def test_manifest_paths_are_relative_to_it(faces_folder, tmp_path):
    name = next(faces_folder.iterdir()).name
    (tmp_path / "faces.csv").write_text(f"path,age,gender\n{name},30,0\n")
    (tmp_path / name).write_bytes((faces_folder / name).read_bytes())
    assert len(scan_images(load_records(str(tmp_path / "faces.csv"))).sha256) == 1


def test_manifest_splits_are_kept(faces_folder, tmp_path):
    records = write_manifest(
        tmp_path / "faces.csv",
        faces_folder,
        age=[1, 2, 3, 4],
        gender=[0, 1, 0, 1],
        split=["train", "validation", "test", "holdout"],
    )
    assert list(records.frame["split"]) == ["train", "val", "test"]
    assert records.excluded[0].reason == "split is none of train, val, test"


def test_parquet_in_hugging_face_form(faces_folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(faces_folder.iterdir())[:3]
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    images.append({"bytes": None, "path": "lost.jpg"})
    table = pa.table({"image": images, "age": [3, 4, 5, 6], "gender": [0, 1, 1, 0]})
    pq.write_table(table, tmp_path / "faces.parquet")
    scan = scan_images(load_records(str(tmp_path / "faces.parquet")), size=32)
    assert list(scan.records.frame["path"]) == [path.name for path in paths]
    assert scan.pixels.shape == (3, 32, 32, 3)
    assert scan.records.excluded[0].path == "lost.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,race\na.jpg,3\n", "has no column age and no column gender; it has path, race"),
        ("age,gender\n3,f\n", "has no column path; it has age, gender"),
        ("", "can't read"),
        ("path,age,gender\na.jpg,abc,0\n", "no cell of the column age can be understood; the first are 'abc'"),
        ("path,age,gender\na.jpg,3,robot\n", "no cell of the column gender can be understood; the first are 'robot'"),
    ],
)
def test_bad_manifests_are_one_clear_line(tmp_path, content, message):
    (tmp_path / "faces.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_records(str(tmp_path / "faces.csv"))


def test_unreadable_pictures_are_left_out_unless_all_are(faces_folder, tmp_path):
    (tmp_path / "30_0_0_1.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"no picture of .* can be read"):
        scan_images(load_records(str(tmp_path)))
    good = next(faces_folder.iterdir())
    (tmp_path / good.name).write_bytes(good.read_bytes())
    scan = scan_images(load_records(str(tmp_path)))
    assert len(scan.records) == len(scan.sha256) == 1
    assert [item.path for item in scan.records.excluded] == ["30_0_0_1.jpg"]


def test_default_data(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"UTKFace.*non-commercial.*--data demo"):
        resolve_data(None)
    (tmp_path / "data" / "utkface").mkdir(parents=True)
    assert resolve_data(None) == ("data/utkface",)
    monkeypatch.setenv("AGEGEN_DATA", "elsewhere")
    assert resolve_data(None) == ("elsewhere",)
    assert resolve_data(["given"]) == ("given",)


def test_utkface_names_of_the_real_set(utkface):
    records = load_records(str(utkface))
    assert len(records) > 19_900
    assert 1 <= len(records.excluded) < 10
    assert records.frame["age"].between(1, 116).all()
