"""Parse the ages and genders in the cells of tables, in the many forms that people write."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
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
_IN_MONTHS = re.compile(rf"({_NUMBER})\s*(?:months?|mos?)")
_RANGE = re.compile(rf"[(\[]?\s*({_NUMBER})\s*(?:-|–|—|−|,|;|\.\.|to|_)\s*({_NUMBER})\s*[)\]]?{_UNIT}")
_OVER = re.compile(
    rf"(?:(?:more than|over|above|older than|at least|from|>=?|≥)\s*({_NUMBER}){_UNIT}"
    rf"|({_NUMBER})\s*(?:\+|plus|(?:years?\s*)?(?:and|or)\s*(?:over|older|above|more|up)))"
)
_UNDER = re.compile(rf"(?:under|less than|younger than|below|<)\s*({_NUMBER}){_UNIT}")
_UP_TO = re.compile(rf"(?:up to|at most|<=|≤)\s*({_NUMBER}){_UNIT}|({_NUMBER})\s*(?:and|or)\s*(?:under|younger|less)")
_DATE = re.compile(r"(\d{1,2})[-\s](" + "|".join(_MONTHS) + r")[a-z]*|(" + "|".join(_MONTHS) + r")[a-z]*[-\s](\d{1,2})")
# In years. Brackets may end above MAX_AGE, such as 60–120, but not above this.
_MAX_BRACKET = 150.0
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


def parse_age(cell: Any, decimal_comma: bool = False) -> Age | None:
    """Return the age in a cell; None if it is missing.

    Valid forms: ``25``, ``25.5``, ``20-29``, ``(25, 32)``, ``[4, 6]``, ``60+``, ``70 and over``, ``more than 70``,
    ``under 3``, ``6 months``; and brackets that a spreadsheet converted to dates: ``03-Sep`` is 3–9, ``Oct-19`` is
    10–19. With ``decimal_comma``, ``23,5`` is a number.

    Raises:
        ValueError: the cell has another form, or the age is outside 0–116.
    """
    text = " ".join(str(cell).strip().lower().split())
    if text in _MISSING:
        return None
    if decimal_comma and re.fullmatch(r"\d+,\d+", text):
        text = text.replace(",", ".")
    if match := _EXACT.fullmatch(text):
        return _make_age(float(match[1]), float(match[1]), largest=MAX_AGE)
    if match := _IN_MONTHS.fullmatch(text):
        return _make_age(float(match[1]) / 12, float(match[1]) / 12, largest=MAX_AGE)
    if match := _RANGE.fullmatch(text):
        return _make_age(float(match[1]), float(match[2]))
    if match := _OVER.fullmatch(text):
        # The number itself is included: FairFace's "more than 70" is the bracket after 60-69.
        return _make_age(float(match[1] or match[2]), MAX_AGE)
    if match := _UNDER.fullmatch(text):
        return _make_age(0.0, float(match[1]) - 1)
    if match := _UP_TO.fullmatch(text):
        return _make_age(0.0, float(match[1] or match[2]))
    if match := _DATE.fullmatch(text):
        month = _MONTHS.index(match[2] or match[3]) + 1
        low, high = sorted((month, int(match[1] or match[4])))
        return Age(float(low), float(high), dated=True)
    raise ValueError(f"not an age: {text}")


def _make_age(low: float, high: float, largest: float = _MAX_BRACKET) -> Age:
    """Return the age, with the upper end of brackets clipped to 116; raises ValueError if it is out of range."""
    if not (0 <= low <= high <= largest and low <= MAX_AGE):
        raise ValueError(f"age out of range: {low:g}–{high:g}")
    return Age(low, min(high, float(MAX_AGE)))


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
