"""Parse the ages and genders in the cells of tables, in the many forms that people write."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from agegen.data.labels import MAX_AGE
from agegen.errors import DataError

_MISSING = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>", "unknown", "u", "?", "nat"})
_MALE = frozenset({"male", "males", "m", "man", "men", "boy", "boys", "masculine"})
_FEMALE = frozenset({"female", "females", "f", "woman", "women", "w", "girl", "girls", "lady", "feminine"})
# Valid genders that are not one of the model's two classes; treated as missing labels.
_OTHER_GENDERS = frozenset({"other", "nonbinary", "non-binary", "unsure", "uncertain", "-1"})
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"(?:\s*(?:years?|yrs?|y/?o?)(?:\s*old)?)?"
_EXACT = re.compile(rf"({_NUMBER}){_UNIT}")
_RANGE = re.compile(rf"[(\[]?\s*({_NUMBER})\s*(?:-|–|—|−|,|;|\.\.|to|_)\s*({_NUMBER})\s*[)\]]?{_UNIT}")
_OVER = re.compile(
    rf"(?:(?:more than|over|above|older than|at least|from|>=?|≥)\s*({_NUMBER}){_UNIT}"
    rf"|({_NUMBER})\s*(?:\+|plus|(?:years?\s*)?(?:and|or)\s*(?:over|older|above|more|up)))"
)
_UNDER = re.compile(rf"(?:under|less than|younger than|below|<)\s*({_NUMBER}){_UNIT}")
_UP_TO = re.compile(rf"(?:up to|at most|<=|≤)\s*({_NUMBER}){_UNIT}|({_NUMBER})\s*(?:and|or)\s*(?:under|younger|less)")
_DATE = re.compile(r"(\d{1,2})[-\s](" + "|".join(_MONTHS) + r")[a-z]*|(" + "|".join(_MONTHS) + r")[a-z]*[-\s](\d{1,2})")
# How many of each unit a year has.
UNITS = {"years": 1.0, "months": 12.0, "weeks": 365.25 / 7, "days": 365.25}
_UNIT_WORDS = {
    **dict.fromkeys(("y", "yr", "yrs", "year", "years"), "years"),
    **dict.fromkeys(("m", "mo", "mos", "mon", "mth", "mths", "month", "months"), "months"),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), "weeks"),
    **dict.fromkeys(("d", "day", "days"), "days"),
}
# What may follow the numbers of an age in another unit: 18 months, 6-12 mo, 2 weeks, 10d, 3-week-old.
_SHORT_UNIT = re.compile(
    r"(.*[\d)\]+])[\s-]*(?:(months?|mos?|mths?)|(weeks?|wks?)|(?:days?|d))\.?(?:[\s-]*(?:old|of age))?"
)
# 18m, 2w. Of larger numbers, or next to 28f, the letter is the gender.
_LETTER = re.compile(rf"({_NUMBER})\s*([mwf])")
_MOST_BY_LETTER = {"m": 36.0, "w": 12.0, "f": -1.0}
_WITH_MONTHS = re.compile(
    rf"({_NUMBER})\s*y(?:ea)?r?s?\.?(?:,|\s|and|&)*({_NUMBER})\s*m(?:o|os|onths?)?\.?(?:\s*(?:old|of age))?"
)
_NEWBORN = frozenset({"newborn", "new-born", "new born", "neonate", "newborns", "neonates"})
_YEAR_FIRST = re.compile(r"(\d{4})(?:[-/.:](\d{1,2})(?:[-/.:](\d{1,2}))?)?(?:[t ].*)?|(\d{4})(\d{2})(\d{2})")
_YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})[-/.](\d{4})(?:[t ].*)?")
_WORD_DATES = ("%d %b %Y", "%d %B %Y", "%b %d %Y", "%B %d %Y")
# Where a date is only a year: its middle, as the authors of IMDB-WIKI choose.
_MID_YEAR = (7, 1)
# In years. Brackets may end above MAX_AGE, such as 60–120, but not above this.
_MAX_BRACKET = 150.0
# The names of the parts of a split; those of the Hugging Face Hub, too.
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "valset"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "testset"), "test"),
}
# The most codes to quote in an error.
_QUOTED = 6


@dataclass(frozen=True)
class Age:
    """An age in years, 0–116: exact if ``low`` equals ``high``, otherwise a bracket with both ends included.

    ``dated`` marks a bracket that a spreadsheet had converted to a date.
    """

    low: float
    high: float
    dated: bool = False


def is_missing(cell: Any) -> bool:
    """Return whether a cell means that the label is unknown."""
    return str(cell).strip().lower() in _MISSING


def parse_age(cell: Any, decimal_comma: bool = False, letters: bool = True) -> Age | None:
    """Return the age in a cell; None if it is missing.

    Valid forms: ``25``, ``25.5``, ``20-29``, ``(25, 32)``, ``[4, 6]``, ``60+``, ``70 and over``, ``more than 70``,
    ``under 3``, ``6 months``, ``18m``, ``2y6m``, ``2 weeks``, ``10 days``, ``newborn``; and brackets that a spreadsheet
    converted to dates: ``03-Sep`` is 3–9, ``Oct-19`` is 10–19. With ``decimal_comma``, ``23,5`` is a number.
    ``letters``: whether m and w after a number are months and weeks; see :func:`has_gender_letters`.

    Raises:
        ValueError: the cell has another form, or the age is outside 0–116.
    """
    text = " ".join(str(cell).strip().lower().split())
    if text in _MISSING:
        return None
    if text in _NEWBORN:
        return Age(0.0, 0.0)
    if decimal_comma:
        text = re.sub(r"^(\d+),(\d+)(?=$|\s*[a-z])", r"\1.\2", text)
    if match := _WITH_MONTHS.fullmatch(text):
        age = float(match[1]) + float(match[2]) / UNITS["months"]
        return _make_age(age, age)
    if letters and (match := _LETTER.fullmatch(text)) and _is_short(match):
        return parse_in_unit(match[1], "months" if match[2] == "m" else "weeks")
    if match := _SHORT_UNIT.fullmatch(text):
        return parse_in_unit(match[1], "months" if match[2] else "weeks" if match[3] else "days")
    if match := _DATE.fullmatch(text):
        month = _MONTHS.index(match[2] or match[3]) + 1
        low, high = sorted((month, int(match[1] or match[4])))
        return Age(float(low), float(high), dated=True)
    return parse_in_unit(text, "years")


def find_unit(word: str) -> str | None:
    """Return the unit, a key of :data:`UNITS`, that a word or letter names; None if it names none."""
    return _UNIT_WORDS.get(word.strip().lower().rstrip("."))


def has_gender_letters(cells: Iterable[str]) -> bool:
    """Return whether the letters after the ages in a column mean genders (28f, 30m) rather than months and weeks."""
    found = (_LETTER.fullmatch(cell.strip().lower()) for cell in cells)
    return any(match and not _is_short(match) for match in found)


def _is_short(match: re.Match[str]) -> bool:
    return float(match[1]) <= _MOST_BY_LETTER[match[2]]


def parse_in_unit(text: str, unit: str) -> Age:
    """Return the age that numbers in a unit (a key of :data:`UNITS`) mean; an open bracket ends at 116 years.

    Raises:
        ValueError: the text has another form, or the age is outside 0–116.
    """
    low, high = _parse_numbers(text)
    return _make_age(low / UNITS[unit], MAX_AGE if high is None else high / UNITS[unit])


def _parse_numbers(text: str) -> tuple[float, float | None]:
    """Return the lower and the upper bound, None if there is none, that a text states."""
    if match := _EXACT.fullmatch(text):
        return float(match[1]), float(match[1])
    if match := _RANGE.fullmatch(text):
        low, high = float(match[1]), float(match[2])
        # Half-open intervals, as pandas.cut writes them, of whole years.
        if text[0] == "[" and text[-1] == ")" and high - low >= 1:
            high -= 1
        if text[0] == "(" and text[-1] == "]" and high - low >= 1:
            low += 1
        return low, high
    if match := _OVER.fullmatch(text):
        # The number itself is included: FairFace's "more than 70" is the bracket after 60-69.
        return float(match[1] or match[2]), None
    if match := _UNDER.fullmatch(text):
        return 0.0, float(match[1]) - 1
    if match := _UP_TO.fullmatch(text):
        return 0.0, float(match[1] or match[2])
    raise ValueError(f"not an age: {text}")


def _make_age(low: float, high: float) -> Age:
    """Return the age, with the upper end of brackets clipped to 116; raises ValueError if it is out of range."""
    if not (0 <= low <= high <= _MAX_BRACKET and low <= MAX_AGE):
        raise ValueError(f"age out of range: {low:g}–{high:g}")
    return Age(low, min(high, float(MAX_AGE)))


def parse_split(cell: Any) -> str | None:
    """Return the split that a cell means: train, val or test; None if it means none of them."""
    return _SPLITS.get(str(cell).strip().lower())


def find_split(name: str) -> str | None:
    """Return the split in a name, e.g. train-00000-of-00001 or PublicTest; None if it has none or several."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def compute_ages(born: list[str], taken: list[str]) -> list[str]:
    """Return the age in completed years, as text, of people with dates of birth (N,) in photos with dates (N,).

    Dates may be ``1985-03-31``, ``31.3.1985``, ``31 Mar 1985``, or only years. The age is "" if one of the two is
    missing, and a text that is not an age if one is not a date.

    Raises:
        ValueError: it cannot be told which of the numbers is the month in all dates of one list: 1/2/1985.
    """
    births, photos = _parse_dates(born), _parse_dates(taken)
    rows = zip(born, taken, births, photos, strict=True)
    return ["" if is_missing(one) or is_missing(two) else _format_years(one, two, *days) for one, two, *days in rows]


def _format_years(born: str, taken: str, birth: date | None, photo: date | None) -> str:
    if birth is None or photo is None or photo < birth:
        return f"born {born}, photographed {taken}"
    return str(count_years(birth, photo))


def count_years(birth: date, photo: date) -> int:
    """Return the completed years between two dates."""
    return photo.year - birth.year - ((photo.month, photo.day) < (birth.month, birth.day))


def _parse_dates(cells: list[str]) -> list[date | None]:
    """Return the dates in a column, None where there is none; raises ValueError if days and months look alike."""
    matches = [match for cell in cells if (match := _YEAR_LAST.fullmatch(cell.strip().lower()))]
    day_first = any(match[2] == "." or int(match[1]) > 12 for match in matches)
    if matches and not day_first and not any(int(match[3]) > 12 for match in matches):
        raise ValueError(f"day and month are ambiguous: {matches[0][0]}")
    parsed = {cell: parse_date(cell, day_first) for cell in dict.fromkeys(cells)}
    return [parsed[cell] for cell in cells]


def parse_date(cell: str, day_first: bool = True) -> date | None:
    """Return the date in a cell, None if it has another form; without a month (1985, 1985-00-00) mid-year."""
    text = " ".join(cell.strip().lower().replace(",", " ").split())
    with suppress(ValueError):
        if match := _YEAR_FIRST.fullmatch(text):
            year, month, day = (int(part or 0) for part in (match.groups()[:3] if match[1] else match.groups()[3:]))
            return date(year, *((month, day or 1) if month else _MID_YEAR))
        if match := _YEAR_LAST.fullmatch(text):
            first, second = int(match[1]), int(match[3])
            return date(int(match[4]), *((second, first) if day_first else (first, second)))
    for form in _WORD_DATES:
        with suppress(ValueError):
            return datetime.strptime(text.replace("-", " ").replace(". ", " "), form).date()
    return None


def choose_codes(cells: Iterable[Any], meanings: str | None) -> dict[str, bool]:
    """Return the meaning (True: female) of the number codes in a gender column; empty if it has none.

    Args:
        cells: of the whole column.
        meanings: ``--gender-codes``: the meaning of 0 and 1, or of 1 and 2, e.g. ``male,female``; None for that of
            UTKFace, where 0 is male and 1 female.

    Raises:
        DataError: the column has other codes than 0 and 1 and ``meanings`` is None, or ``meanings`` is invalid.
    """
    found = {str(cell).strip().removesuffix(".0") for cell in cells}
    codes = sorted(code for code in found if code.isdigit())
    if meanings is not None:
        names = [name.strip().lower() for name in meanings.split(",")]
        if len(names) != 2 or {name in _FEMALE for name in names} != {True, False} or not set(names) <= _MALE | _FEMALE:
            raise DataError(
                f"Invalid value for --gender-codes: '{meanings}'. Give the meaning of 0 and 1, or of 1 and 2, as two "
                "words, e.g. male,female."
            )
        first = 1 if codes and "0" not in codes else 0
        return {str(first + place): name in _FEMALE for place, name in enumerate(names)}
    has_words = any(cell.lower() in _MALE | _FEMALE for cell in found)
    if set(codes) - {"0", "1"} and not has_words:
        raise DataError(
            f"the column gender has the codes {', '.join(codes[:_QUOTED])}, whose meaning is unknown. Give it, e.g. "
            "--gender-codes male,female."
        )
    return {"0": False, "1": True} if codes else {}


def parse_gender(cell: Any, codes: dict[str, bool]) -> bool | None:
    """Return whether a cell means female; None if it is missing or neither female nor male.

    Raises:
        ValueError: the cell is not a gender.
    """
    text = str(cell).strip().lower()
    if text in _MISSING or text in _OTHER_GENDERS:
        return None
    if text in _FEMALE or text in _MALE:
        return text in _FEMALE
    # A column of numbers with missing cells is read as floats.
    if (code := text.removesuffix(".0")) in codes:
        return codes[code]
    raise ValueError(f"not a gender: {text}")
