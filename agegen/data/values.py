"""What people write for ages and genders, cell by cell."""

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
# A gender that is neither word is no label for two classes.
_NEITHER = frozenset({"other", "nonbinary", "non-binary", "unsure", "uncertain", "-1"})
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"(?:\s*(?:years?|yrs?|y/?o?)(?:\s*old)?)?"
_EXACT = re.compile(rf"({_NUMBER}){_UNIT}")
_BABY = re.compile(rf"({_NUMBER})\s*(?:months?|mos?)")
_RANGE = re.compile(rf"[(\[]?\s*({_NUMBER})\s*(?:-|–|—|−|,|;|\.\.|to|_)\s*({_NUMBER})\s*[)\]]?{_UNIT}")
_OVER = re.compile(
    rf"(?:(?:more than|over|above|older than|at least|from|>=?|≥)\s*({_NUMBER}){_UNIT}"
    rf"|({_NUMBER})\s*(?:\+|plus|(?:years?\s*)?(?:and|or)\s*(?:over|older|above|more|up)))"
)
_UNDER = re.compile(rf"(?:under|less than|younger than|below|<)\s*({_NUMBER}){_UNIT}")
_UP_TO = re.compile(rf"(?:up to|at most|<=|≤)\s*({_NUMBER}){_UNIT}|({_NUMBER})\s*(?:and|or)\s*(?:under|younger|less)")
_DATE = re.compile(r"(\d{1,2})[-\s](" + "|".join(_MONTHS) + r")[a-z]*|(" + "|".join(_MONTHS) + r")[a-z]*[-\s](\d{1,2})")


@dataclass(frozen=True)
class Age:
    """An age in years, 0–116: exact where ``low`` is ``high``, else a bracket, both ends included.

    ``dated`` marks one that a spreadsheet had turned into a date.
    """

    low: float
    high: float
    dated: bool = False


def is_missing(cell: Any) -> bool:
    """Return whether a cell says that nothing is known."""
    return str(cell).strip().lower() in _MISSING


def parse_age(cell: Any, decimal_comma: bool = False) -> Age | None:
    """Return the age that a cell states, None where it states none.

    ``25``, ``25.5``, ``20-29``, ``(25, 32)``, ``[4, 6]``, ``60+``, ``70 and over``, ``more than 70``, ``under 3``,
    ``6 months``; and brackets that a spreadsheet made dates of: ``03-Sep`` is 3–9, ``Oct-19`` is 10–19.

    Raises:
        ValueError: it is none of these, or outside 0–116.
    """
    text = " ".join(str(cell).strip().lower().split())
    if text in _MISSING:
        return None
    if decimal_comma and re.fullmatch(r"\d+,\d+", text):
        text = text.replace(",", ".")
    if match := _EXACT.fullmatch(text):
        return _bound(float(match[1]), float(match[1]), widest=MAX_AGE)
    if match := _BABY.fullmatch(text):
        return _bound(float(match[1]) / 12, float(match[1]) / 12, widest=MAX_AGE)
    if match := _RANGE.fullmatch(text):
        return _bound(float(match[1]), float(match[2]))
    if match := _OVER.fullmatch(text):
        # FairFace's "more than 70" follows on 60-69: the number itself belongs to it.
        return _bound(float(match[1] or match[2]), MAX_AGE)
    if match := _UNDER.fullmatch(text):
        return _bound(0.0, float(match[1]) - 1)
    if match := _UP_TO.fullmatch(text):
        return _bound(0.0, float(match[1] or match[2]))
    if match := _DATE.fullmatch(text):
        month = _MONTHS.index(match[2] or match[3]) + 1
        low, high = sorted((month, int(match[1] or match[4])))
        return Age(float(low), float(high), dated=True)
    raise ValueError(text)


def _bound(low: float, high: float, widest: float = 150.0) -> Age:
    """Return the age; a bracket may end beyond what is known of people, an exact age may not."""
    if not (0 <= low <= high <= widest and low <= MAX_AGE):
        raise ValueError("outside the range of ages")
    return Age(low, min(high, float(MAX_AGE)))


def choose_codes(cells: Iterable[Any], wanted: str | None) -> dict[str, bool]:
    """Return what number codes for gender stand for (True: female); empty where the column has none.

    Args:
        cells: of the whole column.
        wanted: ``--gender-codes``: what 0 and 1, or 1 and 2, stand for, e.g. ``male,female``; None for UTKFace's.

    Raises:
        DataError: codes that UTKFace doesn't have and that aren't told, or a ``wanted`` of another form.
    """
    found = {str(cell).strip().removesuffix(".0") for cell in cells}
    codes = sorted(code for code in found if code.isdigit())
    if wanted is not None:
        names = [name.strip().lower() for name in wanted.split(",")]
        if len(names) != 2 or {name in _FEMALE for name in names} != {True, False} or not set(names) <= _MALE | _FEMALE:
            raise DataError("--gender-codes takes two words, e.g. male,female: what 0 and 1, or 1 and 2, stand for")
        first = 1 if codes and "0" not in codes else 0
        return {str(first + place): name in _FEMALE for place, name in enumerate(names)}
    words = any(cell.lower() in _MALE | _FEMALE for cell in found)
    if set(codes) - {"0", "1"} and not words:
        raise DataError(
            f"the column gender has the codes {', '.join(codes[:6])}, of which UTKFace's 0 (male) and 1 (female) say "
            "nothing; tell what they stand for, e.g. --gender-codes male,female"
        )
    return {"0": False, "1": True} if codes else {}


def parse_gender(cell: Any, codes: dict[str, bool]) -> bool | None:
    """Return whether a cell says female; None where it says neither.

    Raises:
        ValueError: it isn't understood.
    """
    text = str(cell).strip().lower()
    if text in _MISSING or text in _NEITHER:
        return None
    if text in _FEMALE or text in _MALE:
        return text in _FEMALE
    # A column of numbers with gaps comes as floats.
    if (code := text.removesuffix(".0")) in codes:
        return codes[code]
    raise ValueError(text)
