"""Ages and genders in the forms that people write."""

import pytest

from agegen.data.values import Age, choose_codes, has_gender_letters, parse_age, parse_gender
from agegen.errors import DataError


@pytest.mark.parametrize(
    ("cell", "low", "high"),
    [
        ("25", 25, 25),
        ("25.5", 25.5, 25.5),
        ("25.0", 25, 25),
        (" 25 years ", 25, 25),
        ("6 months", 0.5, 0.5),
        ("20-29", 20, 29),
        ("20–29", 20, 29),
        ("20 - 29", 20, 29),
        ("20 to 29", 20, 29),
        ("(25, 32)", 25, 32),
        ("[4, 6]", 4, 6),
        ("0-2", 0, 2),
        ("60+", 60, 116),
        ("70 and over", 70, 116),
        ("70 or older", 70, 116),
        ("more than 70", 70, 116),
        ("> 70", 70, 116),
        ("(60, 100)", 60, 100),
        ("(60, 120)", 60, 116),
        ("under 3", 0, 2),
        ("<3", 0, 2),
        ("up to 3", 0, 3),
        ("18m", 1.5, 1.5),
        ("18 M", 1.5, 1.5),
        ("18 mo.", 1.5, 1.5),
        ("18-month-old", 1.5, 1.5),
        ("120 months", 10, 10),
        ("2y6m", 2.5, 2.5),
        ("2 years 6 months", 2.5, 2.5),
        ("2 yrs, 6 mos", 2.5, 2.5),
        ("6-12 months", 0.5, 1),
        ("under 7 months", 0, 0.5),
        ("over 6 months", 0.5, 116),
        ("2 weeks", 14 / 365.25, 14 / 365.25),
        ("2w", 14 / 365.25, 14 / 365.25),
        ("3-week-old", 21 / 365.25, 21 / 365.25),
        ("10 days", 10 / 365.25, 10 / 365.25),
        ("10d", 10 / 365.25, 10 / 365.25),
        ("Newborn", 0, 0),
        ("[20, 30)", 20, 29),
        ("(20, 30]", 21, 30),
        ("(20, 30)", 20, 30),
        ("[0.5, 1)", 0.5, 1),
    ],
)
def test_ages(cell, low, high):
    assert parse_age(cell) == Age(pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(
    ("cell", "low", "high"),
    [("03-Sep", 3, 9), ("3-Sep", 3, 9), ("9-Mar", 3, 9), ("Oct-19", 10, 19), ("Sep-03", 3, 9), ("01-Feb", 1, 2)],
)
def test_brackets_that_a_spreadsheet_converted_to_dates(cell, low, high):
    assert parse_age(cell) == Age(low, high, dated=True)


@pytest.mark.parametrize("cell", ["", "nan", "None", "NA", "unknown", "u", "?"])
def test_missing_ages(cell):
    assert parse_age(cell) is None


@pytest.mark.parametrize(
    "cell",
    [
        "-1",
        "117",
        "thirty",
        "30-20",
        "inf",
        "1e9",
        "20-29-39",
        "2020-01-01",
        "Foo-12",
        "()",
        "37m",
        "25w",
        "20f",
        "2000 months",
    ],
)
def test_invalid_ages(cell):
    with pytest.raises(ValueError, match=r"not an age|age out of range"):
        parse_age(cell)


def test_letters_after_ages_may_be_genders():
    assert not has_gender_letters(["18m", "36 m", "2w", "50", ""])
    for cells in (["30m", "28f"], ["30m", "45m"], ["30m", "28w"]):
        assert has_gender_letters(cells)
    with pytest.raises(ValueError, match="not an age"):
        parse_age("30m", letters=False)


def test_decimal_commas_are_an_option():
    assert parse_age("23,5", decimal_comma=True) == Age(23.5, 23.5)
    # Otherwise it is a bracket whose upper end is below the lower.
    with pytest.raises(ValueError, match="out of range"):
        parse_age("23,5")


@pytest.mark.parametrize("cell", ["f", "F", "Female", "woman", "W", "girl", "GIRL"])
def test_words_for_female(cell):
    assert parse_gender(cell, {}) is True


@pytest.mark.parametrize("cell", ["m", "Male", "MAN", "boy"])
def test_words_for_male(cell):
    assert parse_gender(cell, {}) is False


@pytest.mark.parametrize("cell", ["", "u", "unknown", "nan", "other"])
def test_unknown_genders(cell):
    assert parse_gender(cell, {}) is None


def test_number_codes():
    assert choose_codes(["0", "1.0", ""], None) == {"0": False, "1": True}
    assert choose_codes(["m", "f"], None) == {}
    assert choose_codes(["1", "2"], "male,female") == {"1": False, "2": True}
    assert choose_codes(["0", "1"], "female, male") == {"0": True, "1": False}
    with pytest.raises(DataError, match=r"codes 1, 2, .* --gender-codes male,female"):
        choose_codes(["1", "2"], None)
    for wrong in ("male", "male,male", "a,b"):
        with pytest.raises(DataError, match="Invalid value for --gender-codes"):
            choose_codes(["0"], wrong)
