"""Manifests as people write them: labels, paths and splits, and unusable rows or files with a clear reason."""

import time

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agegen.data.loading import load_records
from agegen.data.scan import scan_images
from agegen.errors import AgegenError, DataError
from agegen.options import ReadOptions

ROWS = "a.jpg,30,male\nb.jpg,40,female\n"


def load(tmp_path, content):
    path = tmp_path / "faces.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_records(str(path))


def write_manifest(path, faces_folder, **columns):
    names = sorted(path.name for path in faces_folder.iterdir())
    count = len(next(iter(columns.values())))
    frame = pd.DataFrame({"path": [str(faces_folder / name) for name in names[:count]], **columns})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return load_records(str(path))


@pytest.mark.parametrize(
    "content",
    [
        "path,age,gender\n" + ROWS,
        "path,age,gender\r\n" + ROWS.replace("\n", "\r\n"),
        "\ufeffpath,age,gender\n" + ROWS,
        ("path,age,gender\n" + ROWS).replace(",", ";"),
        ("path,age,gender\n" + ROWS).replace(",", "\t"),
        " path , age , gender \n" + ROWS,
        "path,age,gender\n" + ROWS.rstrip("\n"),
        '"path","age","gender"\n"a.jpg","30","M"\n"b.jpg","40.0","F"\n',
        "path,age,gender\na.jpg,30,0.0\nb.jpg,40,1.0\n",
    ],
)
def test_valid_forms(tmp_path, content):
    records = load(tmp_path, content)
    assert list(records.frame["path"]) == ["a.jpg", "b.jpg"]
    assert list(records.frame["age"]) == [30.0, 40.0]
    assert list(records.frame["female"]) == [False, True]
    assert records.excluded == ()


def test_latin_1_names(tmp_path):
    records = load(tmp_path, "path,age,gender\nmüller.jpg,30,m\n".encode("latin-1"))
    assert list(records.frame["path"]) == ["müller.jpg"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_and_exclusions(faces_folder, tmp_path, kind):
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
    assert reasons == [f"age '{cell}' is not an age in 0–116 or a bracket of ages" for cell in ("-1", "300", "x")]
    assert records.group_columns == ["camera"]
    assert len(scan_images(records).sha256) == 4


def test_missing_labels_in_parquet(tmp_path):
    frame = pd.DataFrame({"path": ["a.jpg", "b.jpg", "c.jpg"], "age": [3.0, None, 40.0], "gender": [1.0, 0.0, None]})
    frame.to_parquet(tmp_path / "faces.parquet")
    records = load_records(str(tmp_path / "faces.parquet"))
    assert list(records.frame["path"]) == ["a.jpg", "b.jpg", "c.jpg"]
    assert records.labels.low.tolist() == pytest.approx([3, float("nan"), 40], nan_ok=True)
    assert records.labels.female.tolist() == pytest.approx([1, 0, float("nan")], nan_ok=True)


def test_paths_are_relative_to_the_manifest(faces_folder, tmp_path):
    name = next(faces_folder.iterdir()).name
    (tmp_path / "faces.csv").write_text(f"path,age,gender\n{name},30,0\n")
    (tmp_path / name).write_bytes((faces_folder / name).read_bytes())
    assert len(scan_images(load_records(str(tmp_path / "faces.csv"))).sha256) == 1


def test_splits_are_kept(faces_folder, tmp_path):
    records = write_manifest(
        tmp_path / "faces.csv",
        faces_folder,
        age=[1, 2, 3, 4],
        gender=[0, 1, 0, 1],
        split=["train", "validation", "test", "holdout"],
    )
    assert list(records.frame["split"]) == ["train", "val", "test"]
    assert records.excluded[0].reason == "split is not train, val or test"


@pytest.mark.parametrize("name", ["path", "file_name", "file", "filename", "image", "img_path", "Path", "FILE_NAME"])
def test_common_names_of_the_path_column(tmp_path, name):
    assert list(load(tmp_path, f"{name},Age,SEX\n{ROWS}").frame["path"]) == ["a.jpg", "b.jpg"]


def test_windows_paths_and_outer_spaces(tmp_path):
    records = load(tmp_path, "path,age,gender\nin\\a.jpg ,20-29,f\n in\\b.jpg,35,m\n")
    assert list(records.frame["path"]) == ["in/a.jpg", "in/b.jpg"]


def test_decimal_commas(tmp_path):
    records = load(tmp_path, "path;age;gender\na.jpg;23,5;f\nb.jpg;30;m\n")
    assert list(records.frame["age"]) == [23.5, 30.0]


def test_brackets_in_two_columns(tmp_path):
    records = load(tmp_path, "path,age_low,age_high,gender\na.jpg,20,29,f\nb.jpg,35,35,m\nc.jpg,,,m\n")
    assert records.labels.exact.tolist() == [False, True, False]
    assert records.labels.bracketed.tolist() == [True, False, False]
    assert records.group_columns == []


def test_the_age_column_can_be_chosen(tmp_path):
    (tmp_path / "t.csv").write_text("path,age,apparent,gender\na.jpg,20,25,f\nb.jpg,30,31,m\n")
    path = str(tmp_path / "t.csv")
    assert list(load_records(path).frame["age"]) == [20, 30]
    assert list(load_records(path, ReadOptions(age_column="apparent")).frame["age"]) == [25, 31]
    with pytest.raises(DataError, match="has no column guessed; it has path, age, apparent, gender"):
        load_records(path, ReadOptions(age_column="guessed"))


def test_gender_alone_and_age_alone(tmp_path):
    records = load(tmp_path, "path,gender\na.jpg,f\nb.jpg,\n")
    assert len(records) == 1
    assert records.excluded[0].reason == "neither age nor gender is known"
    assert not load(tmp_path, "path,age\na.jpg,3\nb.jpg,7\n").labels.gendered.any()


def test_columns_with_a_name_that_agegen_uses_get_an_underscore(tmp_path):
    records = load(tmp_path, "path,age,gender,row,source\na.jpg,3,f,7,x\nb.jpg,7,m,8,y\n")
    assert list(records.frame["row_"]) == ["7", "8"]
    assert list(records.frame["source_"]) == ["x", "y"]
    assert list(records.frame["row"]) == [0, 1]


def test_read_options_are_completed_from_a_run():
    record = {"options": {"age_column": "apparent", "gender_codes": None}}
    assert ReadOptions(gender_codes="male,female").fill_from(record) == ReadOptions("apparent", "male,female")
    assert ReadOptions("real").fill_from(record) == ReadOptions("real")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("x.jpg,-1,male", "age '-1' is not an age in 0–116 or a bracket of ages"),
        ("x.jpg,300,male", "age '300' is not an age in 0–116"),
        ("x.jpg,NaN,", "neither age nor gender is known"),
        ("x.jpg,inf,male", "age 'inf' is not an age in 0–116"),
        ("x.jpg,thirty,male", "age 'thirty' is not an age in 0–116"),
        ("x.jpg,30-20,male", "age '30-20' is not an age in 0–116"),
        ("x.jpg,30,robot", "gender 'robot' is not male, female"),
        ("x.jpg,30,2", "gender '2' is not male, female"),
        ("a.jpg,30,male", "the path occurs twice"),
        (",30,male", "the path is empty"),
        ("../x.jpg,30,male", "the path leads out of the manifest's folder"),
        ("in/../../x.jpg,30,male", "the path leads out of the manifest's folder"),
        ("https://example.org/x.jpg,30,male", "the path is a URL"),
        ("file:///etc/passwd,30,male", "the path is a URL"),
        ("x" * 5000 + ",30,male", "the path is not a file name"),
        ("x\x00.jpg,30,male", "the path is not a file name"),
    ],
)
def test_unusable_rows_are_excluded_with_a_reason(tmp_path, row, reason):
    records = load(tmp_path, "path,age,gender\n" + ROWS + row + "\n")
    assert list(records.frame["path"]) == ["a.jpg", "b.jpg"]
    (excluded,) = records.excluded
    assert excluded.reason.startswith(reason)
    assert len(excluded.path) <= 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "as CSV"),
        ("path,race\na.jpg,3\n", "has no column age and no column gender; it has path, race"),
        ("age,gender\n3,f\n", "has no column path; it has age, gender"),
        ("path,age,gender,age\na.jpg,3,m,4\n", "has the column 'age' twice"),
        ("path,age,gender\n", "no usable face"),
        ("path,age,gender\na.jpg,abc,0\n", "the column age has no valid cell; the first are 'abc'"),
        ("path,age,gender\na.jpg,3,robot\n", "the column gender has no valid cell; the first are 'robot'"),
        ("path,age,gender\na.jpg,30,male,more,cells\n", "more cells than its header"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00", "has no column path"),
        ("x" * 200_000 + "\n", "its first line is not a header"),
    ],
)
def test_unusable_tables_are_rejected_in_one_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, content)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_a_line_of_ten_megabytes(tmp_path):
    records = load(tmp_path, "path,age,gender,note\na.jpg,30,male," + "x" * 10_000_000 + "\nb.jpg,40,f,y\n")
    assert len(records) == 2


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=400), st.binary(max_size=300).map(lambda tail: b"path,age,gender\n" + tail)))
def test_random_bytes_are_records_or_an_error_of_one_line(tmp_path, content):
    try:
        records = load(tmp_path, content)
    except AgegenError as error:
        assert "\n" not in str(error)
    else:
        assert len(records) > 0


BOX = [450.0, 120.0, 650.0, 365.0]


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("left,top,right,bottom", "450,120,650,365"),
        ("face_x0,face_y0,face_x1,face_y1,person_x0,person_y0,person_x1,person_y1", "450,120,650,365,0,0,999,999"),
        ("x1,y1,x2,y2", "450,120,650,365"),
        ("xmin,ymin,xmax,ymax", "450,120,650,365"),
        ("x_min,y_min,x_max,y_max", "450,120,650,365"),
        ("Face Left,Face Top,Face Right,Face Bottom", "450,120,650,365"),
        ("bbox_x1,bbox_y1,bbox_x2,bbox_y2,width,height", "450,120,650,365,1000,800"),
        ("x,y,w,h", "450,120,200,245"),
        ("face_x,face_y,face_width,face_height", "450,120,200,245"),
        ("left,top,width,height", "450,120,200,245"),
        ("x_1,y_1,width,height", "450,120,200,245"),
        ("cx,cy,w,h", "550,242.5,200,245"),
        ("x_center,y_center,width,height", "550,242.5,200,245"),
        ("xtl,ytl,xbr,ybr", "450,120,650,365"),
        ("faceRectangle.top,faceRectangle.left,faceRectangle.width,faceRectangle.height", "120,450,200,245"),
        ("box", '"[450, 120, 650, 365]"'),
        ("bbox", "\"{'top': 120, 'left': 450, 'width': 200, 'height': 245}\""),
        ("bbox", "\"{'x1': 450, 'y1': 120, 'x2': 650, 'y2': 365}\""),
        ("face_location", '"(120, 650, 365, 450)"'),
        ("bbox", "450 120 200 245"),
    ],
)
def test_bounding_boxes_of_any_form(tmp_path, columns, values):
    records = load(tmp_path, f"path,age,gender,{columns}\na.jpg,30,male,{values}\n")
    assert records.find_box(0) == tuple(BOX)
    assert not {"left", "x", "x1", "cx", "face_x0", "box", "bbox"} & set(records.group_columns)
    assert "bounding boxes in " in records.notices[0]


def test_a_cell_of_a_million_letters_is_no_box(tmp_path):
    records = load(tmp_path, f"path,age,bbox\na.jpg,30,{'a' * 1_000_000}\n")
    assert records.find_box(0) is None


@pytest.mark.parametrize("name", ["box", "face_box", "bbox"])
def test_bounding_boxes_in_json_and_parquet(tmp_path, name):
    frame = pd.DataFrame({"path": ["a.jpg", "a.jpg"], "age": [3, 40], name: [BOX, [1.0, 2.5, 30.0, 40.0]]})
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    for kind in ("jsonl", "parquet"):
        records = load_records(str(tmp_path / f"a.{kind}"))
        assert [records.find_box(row) for row in (0, 1)] == [tuple(BOX), (1.0, 2.5, 30.0, 40.0)]
        assert list(records.frame["path"]) == ["a.jpg#450,120,650,365", "a.jpg#1,2.5,30,40"]
        assert name not in records.frame.columns


def test_rows_with_several_labels_of_one_photo(tmp_path):
    """Without boxes nobody knows whose label it is; with boxes each face counts once."""
    several = "rows with different labels for one photo"
    records = load(tmp_path, "path,age\na.jpg,30\nb.jpg,4\n./b.jpg,5\nb.jpg,4\nc.jpg,7\nc.jpg,7\n")
    assert list(records.frame["path"]) == ["a.jpg", "c.jpg"]
    reasons = [item.reason for item in records.excluded]
    assert [reason.startswith(several) for reason in reasons] == [True, True, True, False]
    assert reasons[-1] == "the path occurs twice"
    rows = "a.jpg,30,0,0,50,50\na.jpg,5,60,0,99,50\na.jpg,5,61,1,99,50\nb.jpg,4,0,0,9,9\nb.jpg,6,0,0,9,10\n"
    records = load(tmp_path, "path,age,left,top,right,bottom\n" + rows + "c.jpg,7,,,,\nd.jpg,9,5,5,5,9\n")
    assert list(records.frame["path"]) == ["a.jpg#0,0,50,50", "a.jpg#60,0,99,50"]
    assert [item.reason for item in records.excluded] == [
        "the face occurs twice",
        *["rows with different labels for one face"] * 2,
        *["no valid bounding box, unlike other rows"] * 2,
    ]


@pytest.mark.parametrize(
    ("columns", "cells", "ages"),
    [
        ("age_months", ["18", "30"], [1.5, 2.5]),
        ("Age (in months)", ["18.0", "2y6m"], [1.5, 2.5]),
        ("ageMonths", ["18", "6-12"], [1.5, 0.5]),
        ("months", ["18", "30"], [1.5, 2.5]),
        ("(Months)", ["18", "30"], [1.5, 2.5]),
        ("months_old", ["18", "30"], [1.5, 2.5]),
        ("age_in_days", ["1461", "0"], [4, 0]),
        ("years", ["18", "30"], [18, 30]),
        ("age_years", ["18", "30"], [18, 30]),
        ("birth_date,photo_date", ["1965-05-12,2015-05-11", "1965-05-12,2015-05-12"], [49, 50]),
        ("DateOfBirth,DateTaken", ["12.05.1965,11.05.2015", "12.5.1965,12.5.2015"], [49, 50]),
        ("dob,taken", ["12/25/1965,2015", "1/2/1965,2015"], [49, 50]),
        ("dob,date", ["25 Dec 1965,2015:06:01 10:00:00", "May 2 1965,20150601"], [49, 50]),
        ("year_born,date_captured", ["1965,2015-01-01", "1965,2015-12-31"], [49, 50]),
        ("birthday,Visit Date", ["1965-05-12,2015-05-11", "1965-05-12,2015-05-12"], [49, 50]),
        ("birth_year,year", ["1965,2015", "1966.0,2015.0"], [50, 49]),
    ],
)
def test_ages_in_columns_of_other_names(tmp_path, columns, cells, ages):
    records = load(tmp_path, f"path,gender,{columns}\na.jpg,f,{cells[0]}\nb.jpg,m,{cells[1]}\n")
    assert records.labels.low.tolist() == pytest.approx(ages)
    assert records.notices[0].startswith("ages are ")
    assert all(column in records.notices[0] for column in columns.split(","))
    assert records.group_columns == records.ungrouped_columns == []


def test_the_unit_of_a_chosen_age_column_is_that_of_its_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("path,age,age_months\na.jpg,20,18\nb.jpg,30,30\n")
    assert list(load_records(str(path), ReadOptions(age_column="age_months")).frame["age"]) == [1.5, 2.5]


def test_invalid_dates_are_excluded_with_both(tmp_path):
    records = load(
        tmp_path, "path,birth_date,photo_date\na.jpg,1965,2015\nb.jpg,2015,1965\nc.jpg,x,2015\nd.jpg,,2015\n"
    )
    assert list(records.frame["age"]) == [50]
    assert [item.reason.split(" is not")[0] for item in records.excluded] == [
        "age 'born 2015, photographed 1965'",
        "age 'born x, photographed 2015'",
        "neither age nor gender is known",
    ]


@pytest.mark.parametrize(
    "columns",
    [
        {"alter": ["20", "30"]},
        {"months": ["3", "12"]},
        {"years": ["1999", "2005"]},
        {"dob": ["1/2/1985", "3/4/1990"], "photo_date": ["2015", "2016"]},
        {"dob": ["1985", "1990"], "photo_date": ["2015", "2016"], "scan_date": ["2015", "2016"]},
    ],
)
def test_ambiguous_ages_are_not_read_but_named(tmp_path, columns):
    pd.DataFrame({"path": ["a.jpg", "b.jpg"], "gender": ["f", "m"], **columns}).to_csv(tmp_path / "t.csv", index=False)
    records = load_records(str(tmp_path / "t.csv"))
    assert not records.labels.exact.any()
    (notice,) = records.notices
    assert notice.startswith(f"no ages: none of the columns {', '.join(columns)} is read as age")


def test_ages_divided_by_100_and_codes_get_a_notice(tmp_path):
    for ages, largest in ((("0.5", "1.02"), "1.02"), (("0", "1"), "1")):
        records = load(tmp_path, f"path,age,gender\na.jpg,{ages[0]},f\nb.jpg,{ages[1]},m\n")
        assert any(notice.startswith(f"no age is above {largest} years") for notice in records.notices)
    assert load(tmp_path, "path,age,gender\na.jpg,0.5,f\nb.jpg,1.5,m\n").notices == ()
    codes = "".join(f"{row}.jpg,{row % 9},f\n" for row in range(20))
    assert load(tmp_path, f"path,age_group,gender\n{codes}").notices[0].startswith("no age is above 8 years")


def test_ages_have_the_units_of_a_column(tmp_path):
    rows = "a.jpg,18,months,f\nb.jpg,4,Y,m\nc.jpg,40,M,m\nd.jpg,3,,f\ne.jpg,5,moons,f\nf.jpg,2y,months,f\n"
    records = load(tmp_path, f"path,age,Age Unit,gender\n{rows}")
    assert records.frame["age"].tolist() == pytest.approx([1.5, 4, 40 / 12, 3, 2])
    assert records.notices == ("the ages have the units in the column Age Unit",)
    assert [item.reason for item in records.excluded] == ["age '5 moons' is not an age in 0–116 or a bracket of ages"]


@pytest.mark.parametrize("column", ["gestational_age_weeks", "mother_age_years", "predicted_age_years"])
def test_ages_of_others_are_not_read(tmp_path, column):
    records = load(tmp_path, f"path,gender,{column}\na.jpg,f,38\n")
    assert records.frame["age"].isna().all()
    assert column in records.notices[0]


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("male", "01"),
        ("Male", ["-1", "1"]),
        ("is_male", ["False", "True"]),
        ("is_female", ["yes", "no"]),
        ("female", "10"),
    ],
)
def test_genders_in_columns_of_flags(tmp_path, column, cells):
    records = load(tmp_path, f"path,age,{column}\na.jpg,20,{cells[0]}\nb.jpg,30,{cells[1]}\n")
    assert records.frame["female"].tolist() == [True, False]
    assert records.notices == (f"genders are read from the column {column}",)


def test_columns_that_may_be_genders_are_named(tmp_path):
    records = load(tmp_path, "path,age,sexe\na.jpg,20,H\nb.jpg,30,F\n")
    assert records.frame["female"].isna().all()
    assert records.notices[0].startswith("no genders: sexe is not read as gender")


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("subset", ["train", "train", "test", "val"]),
        ("Usage", ["Training", "Training", "PublicTest", "Validation"]),
        ("phase", ["TRAIN", "train_2", "TEST", "DEV"]),
    ],
)
def test_the_split_is_that_of_a_column_of_another_name(tmp_path, column, cells):
    rows = "".join(f"{row}.jpg,20,{cell}\n" for row, cell in enumerate(cells))
    records = load(tmp_path, f"path,age,{column}\n{rows}")
    assert list(records.frame["split"]) == ["train", "train", "test", "val"]
    assert records.notices == (f"the split is that of the column {column}",)
    assert records.group_columns == []


@pytest.mark.parametrize(
    ("column", "cells"), [("fold", "0123"), ("is_train", "1100"), ("set", ["train", "train", "val", "holdout"])]
)
def test_columns_that_may_be_a_split_are_named(tmp_path, column, cells):
    rows = "".join(f"{row}.jpg,20,{cell}\n" for row, cell in enumerate(cells))
    records = load(tmp_path, f"path,age,{column}\n{rows}")
    assert "split" not in records.frame
    assert records.notices[0].startswith(f"not used as a split: {column}. ")


def test_ages_with_genders_are_not_months(tmp_path):
    records = load(tmp_path, "path,age,gender\na.jpg,30m,m\nb.jpg,28f,f\nc.jpg,40,f\n")
    assert list(records.frame["path"]) == ["c.jpg"]


@pytest.mark.parametrize("second", ["AGE", "real_age"])
def test_two_columns_of_the_same_meaning_get_a_notice(tmp_path, second):
    records = load(tmp_path, f"path,Age,{second},gender\na.jpg,20,30,f\nb.jpg,25,35,m\n")
    assert list(records.frame["age"]) == [20, 25]
    assert f"the column Age is read as age, {second} is not; --age-column chooses another" in records.notices


def test_columns_that_differ_by_spaces_are_one_too_many(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"path": "a.jpg", "age": 3, "age ": 4}')
    with pytest.raises(DataError, match="has the column 'age' twice"):
        load_records(str(tmp_path / "t.jsonl"))


def load_paths(tmp_path, paths):
    rows = [f"{path},{20 + place},{'fm'[place % 2]}" for place, path in enumerate(paths)]
    return load(tmp_path, "\n".join(["path,age,gender", *rows]))


@pytest.mark.parametrize(
    "paths",
    [
        ["train/a.jpg", "train/b.jpg", "test/a.jpg", "val/a.jpg"],
        ["x/Training/25/a.jpg", "x/Training/b.jpg", "x/Testing/a.jpg", "x/validation/a.jpg"],
        ["faces_train/test_1.jpg", "faces_train/test_2.jpg", "faces-test/1.jpg", "faces.valid/1.jpg"],
        ["/home/train/train/a.jpg", "/home/train/train/b.jpg", "/home/train/eval/a.jpg", "/home/train/dev/a.jpg"],
        ["TrainImages/a.jpg", "TrainImages/b.jpg", "PublicTest/a.jpg", "valSet/a.jpg"],
        ["train_0001.jpg", "train_0002_aligned.jpg", "test_0001.jpg", "val_1.jpg"],
    ],
)
def test_the_split_is_that_of_folders_or_files(tmp_path, paths):
    records = load_paths(tmp_path, paths)
    assert list(records.frame["split"]) == ["train", "train", "test", "val"]
    assert records.notices[-1] == "folder or file names give the split, which is used: 2 train, 1 val, 1 test"


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["train/a.jpg", "holdout/a.jpg"], "they leave out 1 other face"),
        (["train/a.jpg", "val/a.jpg"], "they have no test faces"),
        (["train/a.jpg", "test/a.jpg", "more/a.jpg"], "they leave out 1 other face"),
    ],
)
def test_an_incomplete_split_in_folders_is_not_used(tmp_path, paths, reason):
    records = load_paths(tmp_path, paths)
    assert "split" not in records.frame
    assert any(f"are not used, since {reason}" in notice for notice in records.notices)


@pytest.mark.parametrize(
    "paths", [["train/a.jpg", "train/b.jpg"], ["train_1.jpg", "dev_patel.jpg", "a.jpg"], ["a.jpg"]]
)
def test_names_that_tell_no_faces_apart_are_no_split(tmp_path, paths):
    records = load_paths(tmp_path, paths)
    assert "split" not in records.frame
    assert records.notices == ()


def test_a_column_of_splits_is_stronger_than_folders(tmp_path):
    records = load(tmp_path, "path,age,split\ntrain/a.jpg,3,test\ntest/b.jpg,4,train\n")
    assert list(records.frame["split"]) == ["test", "train"]
    assert "no validation faces" in records.notices[0]


def test_absolute_paths_that_lead_out_of_the_folder_get_a_notice(tmp_path):
    rows = [f"{tmp_path}/a.jpg,20,f", "/etc/passwd,30,m", f"{tmp_path}/../b.jpg,40,m", "c.jpg,50,m", "../d.jpg,60,m"]
    records = load(tmp_path, "\n".join(["path,age,gender", *rows]))
    assert records.notices == ("2 images are outside of the table's folder, the first: /etc/passwd",)
    assert [item.path for item in records.excluded] == ["../d.jpg"]


def test_of_thousands_of_columns_the_first_are_read(tmp_path):
    names = [f"c{place}" for place in range(2000)]
    rows = [",".join(["a.jpg", "f", *["1"] * 2000, "20", "x"]), ",".join(["b.jpg", "m", *["2"] * 2000, "30", "y"])]
    records = load(tmp_path, "\n".join([",".join(["path", "gender", *names, "age_months", "person"]), *rows]))
    assert list(records.frame["age"]) == [20 / 12, 30 / 12]
    assert records.identity_columns == ["person"]
    assert len(records.group_columns) == 30
    assert len(records.ungrouped_columns) == 271
    assert any("the last 1,700 are not read, from c300 on" in notice for notice in records.notices)


@pytest.mark.parametrize("boxes", [False, True])
def test_tables_of_many_rows_for_one_photo_end_at_once(tmp_path, boxes):
    """Each row was compared with all others, and changed a copy of all reasons."""
    rows = [f"a.jpg,{20 + row % 2},{3 * row},0,{3 * row + 2},2" for row in range(30_000)]
    names = "path,age,left,top,right,bottom" if boxes else "path,age,a,b,c,d"
    started = time.monotonic()
    if boxes:
        records = load(tmp_path, "\n".join([names, *rows]))
        assert len(records) == 2000
        assert {one.reason for one in records.excluded} == {"more than 2,000 faces in one photo"}
    else:
        with pytest.raises(DataError, match=r"30,?000 were excluded; the first: a\.jpg: rows with different"):
            load(tmp_path, "\n".join([names, *rows]))
    assert time.monotonic() - started < 15
