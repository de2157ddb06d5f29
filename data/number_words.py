"""Numbers as they are said: "In 1973," -> "In nineteen seventy-three,".

Which kind of number it is, the way it is written tells: a year, an amount of money, a time of day, an ordinal. How a
language says it is num2words' to know.
"""

import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY"}
NUMBER = re.compile(r"([$€£¥]?)(\d+(?:[.,:]\d+)*)((?:st|nd|rd|th)\b)?", re.ASCII)
YEARS = range(1100, 2100)
MOST_DIGITS = 9  # longer ones are said digit by digit


def check_language(language: str) -> None:
    """Raise ValueError in one line for a code in which no numbers can be said."""
    from num2words import CONVERTER_CLASSES

    if language not in CONVERTER_CLASSES:
        known = ", ".join(sorted(CONVERTER_CLASSES))
        raise ValueError(f"numbers are not known in the language {language!r}; choose one of {known}")


@lru_cache(maxsize=1 << 16)
def said(word: str, language: str) -> str:
    """What white space separates -> the same with its numbers in words; equal to it where it has none.

    language: a code such as "en" or "pt_BR". Raises ValueError for one that is not known.
    """
    if not any(character.isdigit() for character in word):
        return word
    check_language(language)
    word = re.sub(r"(?<=\d)[-–](?=\d)", " ", word)  # from one to another

    def in_words(match: re.Match[str]) -> str:
        sign, digits, suffix = match.groups("")
        is_ordinal = bool(suffix) and language.startswith("en")
        found = _money(sign, digits, language) if sign else _number(digits, is_ordinal, language)
        if not is_ordinal:
            found += suffix
        before, after = word[: match.start()], word[match.end() :]
        return " " * before[-1:].isalnum() + found + " " * after[:1].isalnum()

    return NUMBER.sub(in_words, word)


def _money(sign: str, digits: str, language: str) -> str:
    value = _value(digits, language)
    if value is None:
        return f"{sign}{_number(digits, False, language)}"
    spoken = _num2words(float(value), language, to="currency", currency=CURRENCIES[sign], separator="|")
    if spoken is None:
        return f"{_number(digits, False, language)} {sign}"
    whole, _, hundredths = spoken.partition("|")
    return whole if value == int(value) else f"{whole} {hundredths.strip()}"


def _number(digits: str, is_ordinal: bool, language: str) -> str:
    value = _value(digits, language)
    if value is None:  # a time of day, a date, a version
        parts = [part for part in re.split("[.,:]", digits) if part.strip("0")]
        return " ".join(_number(part, False, language) for part in parts or "0")
    if digits.isdigit() and (len(digits) > MOST_DIGITS or (len(digits) > 1 and digits[0] == "0")):
        return " ".join(_number(digit, False, language) for digit in digits)
    is_year = digits.isdigit() and int(digits) in YEARS and language != "ja"  # which says years of its emperors
    kind = "ordinal" if is_ordinal else "year" if is_year else "cardinal"
    number = int(value) if value.as_tuple().exponent == 0 else value
    return _num2words(number, language, to=kind) or _num2words(number, language, to="cardinal") or digits


def _value(digits: str, language: str) -> Decimal | None:
    """None for what is no single number. English writes 1,000.5, others 1.000,5."""
    group, point = (",", ".") if language.startswith("en") else (".", ",")
    if not re.fullmatch(rf"(\d+|\d{{1,3}}([{group}]\d{{3}})+)([{point}]\d+)?", digits):
        return None
    return Decimal(digits.replace(group, "").replace(point, "."))


def _num2words(number: float | Decimal, language: str, **options: Any) -> str | None:
    """None for what the language has no words for: each language's code says so by an error of its own."""
    from num2words import num2words

    try:
        return num2words(number, lang=language, **options)
    except (NotImplementedError, OverflowError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None
