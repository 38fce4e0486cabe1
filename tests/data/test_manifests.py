"""Manifests as people write them, and as nobody should: each a clear error or a counted exclusion."""

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agegen.data.loading import load_records
from agegen.errors import AgegenError, DataError

ROWS = "a.jpg,30,male\nb.jpg,40,female\n"


def load(tmp_path, content):
    path = tmp_path / "faces.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
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
def test_forms_that_are_understood(tmp_path, content):
    records = load(tmp_path, content)
    assert list(records.frame["path"]) == ["a.jpg", "b.jpg"]
    assert list(records.frame["age"]) == [30.0, 40.0]
    assert list(records.frame["female"]) == [False, True]
    assert records.excluded == ()


def test_latin_1_names(tmp_path):
    records = load(tmp_path, "path,age,gender\nmüller.jpg,30,m\n".encode("latin-1"))
    assert list(records.frame["path"]) == ["müller.jpg"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("x.jpg,-1,male", "age '-1' is no age in 0–116 nor a bracket of ages"),
        ("x.jpg,300,male", "age '300' is no age in 0–116"),
        ("x.jpg,NaN,", "neither age nor gender is known"),
        ("x.jpg,inf,male", "age 'inf' is no age in 0–116"),
        ("x.jpg,thirty,male", "age 'thirty' is no age in 0–116"),
        ("x.jpg,30-20,male", "age '30-20' is no age in 0–116"),
        ("x.jpg,30,robot", "gender 'robot' is none of male, female"),
        ("x.jpg,30,2", "gender '2' is none of male, female"),
        ("a.jpg,30,male", "the path is named twice"),
        (",30,male", "the path is empty"),
        ("../x.jpg,30,male", "the path leads out of the manifest's folder"),
        ("in/../../x.jpg,30,male", "the path leads out of the manifest's folder"),
        ("https://example.org/x.jpg,30,male", "the path is a URL"),
        ("file:///etc/passwd,30,male", "the path is a URL"),
        ("x" * 5000 + ",30,male", "the path is no file name"),
        ("x\x00.jpg,30,male", "the path is no file name"),
    ],
)
def test_rows_that_are_left_out_with_their_reason(tmp_path, row, reason):
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
        ("path,age,gender,age\na.jpg,3,m,4\n", "has the column 'age' twice"),
        ("path,age,gender\n", "no usable face"),
        ("path,age,gender\na.jpg,30,male,more,cells\n", "more cells than its header"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00", "has no column path"),
        ("x" * 200_000 + "\n", "its first line is no header"),
    ],
)
def test_tables_that_are_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, content)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_a_line_of_ten_megabytes(tmp_path):
    records = load(tmp_path, "path,age,gender,note\na.jpg,30,male," + "x" * 10_000_000 + "\nb.jpg,40,f,y\n")
    assert len(records) == 2


def test_mixed_types_in_parquet(tmp_path):
    frame = pd.DataFrame({"path": ["a.jpg", "b.jpg", "c.jpg"], "age": [3.0, None, 40.0], "gender": [1.0, 0.0, None]})
    frame.to_parquet(tmp_path / "faces.parquet")
    records = load_records(str(tmp_path / "faces.parquet"))
    assert list(records.frame["path"]) == ["a.jpg", "b.jpg", "c.jpg"]
    assert records.labels.low.tolist() == pytest.approx([3, float("nan"), 40], nan_ok=True)
    assert records.labels.female.tolist() == pytest.approx([1, 0, float("nan")], nan_ok=True)


def test_broken_parquet_is_one_line(tmp_path):
    for content in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "faces.parquet").write_bytes(content)
        with pytest.raises(DataError, match="as Parquet") as caught:
            load_records(str(tmp_path / "faces.parquet"))
        assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=400), st.binary(max_size=300).map(lambda tail: b"path,age,gender\n" + tail)))
def test_whatever_the_bytes_no_traceback(tmp_path, content):
    try:
        records = load(tmp_path, content)
    except AgegenError as error:
        assert "\n" not in str(error)
    else:
        assert len(records) > 0
