"""Phrase pairs made from the Unicode CLDR: dates, times, numbers, money and durations in two languages.

A translation task that needs no download, has any number of pairs, and one right answer for each: the English text
determines the other. So the rate of exact matches measures a model, and a small one can nearly reach 100%.
"""

import datetime
import difflib
import random
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from babel import Locale, UnknownLocaleError, dates, localedata, numbers, units

Pair = tuple[str, str]
# Formats a value in a locale.
Style = Callable[[Any, Locale], str]

_ENGLISH = Locale.parse("en_US")
# Exactly one century, so that the two digits in "3/5/26" can only mean 2026.
_FIRST_DAY, _LAST_DAY = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)
_CURRENCIES = ("CHF", "EUR", "GBP", "JPY", "USD")
# CLDR's word between a long date and a time of day, in the languages that have one. Babel only has the pattern
# "{date}, {time}", which all other languages use here.
_AT_WORDS = dict(
    cs="v", da="kl.", de="um", en="at", fi="klo", fr="à", hr="u", it="alle ore", nb="kl.", nl="om", no="kl."
)
_AT_WORDS |= dict(pt="às", ro="la", ru="в", sv="kl.", uk="о")
_UNITS = ("second", "minute", "hour", "day", "week", "month", "year")
# The number of each unit that CLDR's relative phrases still count in that unit ("in 59 minutes", then "in 1 hour").
_RELATIVE = {
    datetime.timedelta(seconds=1): 59,
    datetime.timedelta(minutes=1): 59,
    datetime.timedelta(hours=1): 23,
    datetime.timedelta(days=1): 6,
    datetime.timedelta(weeks=1): 3,
    datetime.timedelta(days=30): 11,
    datetime.timedelta(days=365): 30,
}
# CLDR's root has "M07" for July, which Babel returns where a locale inherits its month names, as Korean does.
_PLACEHOLDER = re.compile(r"M(0[1-9]|1[0-2])")
# After this many failures in a row to make a new phrase, a kind is exhausted: month and day only make 366 phrases.
_MAX_FAILURES = 100


class _Family(NamedTuple):
    """Values of one type, and the styles that format them.

    Two styles can give the same English text: "May 5, 2026" is the long and the medium date, which in German are
    "5. Mai 2026" and "05.05.2026". The first of these styles translates it.
    """

    sample: Callable[[random.Random], Any]
    styles: tuple[Style, ...]

    def pair(self, value: Any, style: Style, locale: Locale) -> Pair:
        english = _english(style, value)
        first = next(each for each in self.styles if each is style or _english(each, value) == english)
        return english, first(value, locale)


def make_pairs(locale: str = "fr", count: int = 20000, seed: int = 1) -> list[Pair]:
    """Samples English phrases and their equivalents in another locale.

    The phrases are full, long, medium and short dates and times, both together, parts of dates, integers, decimals,
    percentages, amounts of money, durations and relative times, in equal numbers as far as there are enough of each.
    English has ordinary spaces, as people type it; the other side keeps CLDR's typographic ones.

    Args:
        locale: CLDR locale: "fr", "de", "pt_BR", "zh-Hant", ...
        count: Number of pairs.
        seed: Seed of the sample. An English phrase has the same equivalent for every seed.

    Returns:
        `(English, other)` pairs in random order, without repeated English phrases.

    Raises:
        ValueError: If `locale` is unknown (the message names similar ones), or `count` is below 1.

    Example:
        >>> pairs = make_pairs("fr", count=2000)
        >>> len(dict(pairs))
        2000
        >>> example = datetime.datetime(2026, 3, 5, 14, 30)
        >>> _DATE_TIMES.pair(example, _DATE_TIMES.styles[0], Locale.parse("fr"))
        ('Thursday, March 5, 2026 at 2:30 PM', 'jeudi 5 mars 2026 à 14:30')

    Source: Unicode Common Locale Data Repository (cldr.unicode.org), from Babel.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1. Received: count={count}")
    target = _parse_locale(locale)
    rng = random.Random(seed)
    kinds = [(family, style) for family in _FAMILIES for style in family.styles]
    failures = [0] * len(kinds)  # in a row
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        index = rng.choice([index for index, failed in enumerate(failures) if failed < _MAX_FAILURES])
        family, style = kinds[index]
        english, other = family.pair(family.sample(rng), style, target)
        if english in pairs or _PLACEHOLDER.search(other):
            failures[index] += 1
        else:
            failures[index] = 0
            pairs[english] = other
    # Phrases of exhausted kinds are at the front.
    return rng.sample(list(pairs.items()), count)


def split_pairs(pairs: Sequence[Pair], test_count: int, seed: int = 1) -> tuple[list[Pair], list[Pair]]:
    """Splits pairs into a training set and a test set that share no English phrase.

    Args:
        pairs: `(English, other)` pairs.
        test_count: Number of test pairs.
        seed: Seed of the split.

    Returns:
        The training pairs, in their order, and the test pairs. Other pairs of a test phrase are in neither.

    Raises:
        ValueError: If `test_count` is below 1 or leaves no training pairs.

    Example:
        >>> train, test = split_pairs([("one", "un"), ("two", "deux"), ("three", "trois")], test_count=1)
        >>> len(train), len(test)
        (2, 1)
    """
    first_pairs: dict[str, Pair] = {}
    for pair in pairs:
        first_pairs.setdefault(pair[0], pair)
    if not 1 <= test_count < len(first_pairs):
        raise ValueError(
            f"`test_count` must be in 1..{len(first_pairs) - 1} to leave English phrases for training. "
            f"Received: test_count={test_count}"
        )
    tested = random.Random(seed).sample(list(first_pairs), test_count)
    held_out = set(tested)
    return [pair for pair in pairs if pair[0] not in held_out], [first_pairs[english] for english in tested]


def _parse_locale(name: str) -> Locale:
    try:
        return Locale.parse(name.replace("-", "_"))
    except (UnknownLocaleError, ValueError) as error:
        named = {language.lower(): code for code, language in _ENGLISH.languages.items() if localedata.exists(code)}
        wanted = name.replace("-", "_").lower()
        known = {identifier.lower(): identifier for identifier in localedata.locale_identifiers()} | named
        near = dict.fromkeys(known[match] for match in difflib.get_close_matches(wanted, known, n=4))
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "pass a code such as 'fr', 'de' or 'pt_BR'."
        raise ValueError(f"Unknown CLDR locale; {hint} Received: locale={name!r}") from error


def _english(style: Style, value: Any) -> str:
    # CLDR has a narrow no-break space before AM and PM and a no-break space after CHF, which nobody types.
    return style(value, _ENGLISH).replace("\u202f", " ").replace("\xa0", " ")


def _sample_date(rng: random.Random) -> datetime.date:
    return _FIRST_DAY + datetime.timedelta(days=rng.randrange((_LAST_DAY - _FIRST_DAY).days + 1))


def _sample_time(rng: random.Random) -> datetime.time:
    return datetime.time(rng.randrange(24), rng.randrange(60), rng.randrange(60))


def _sample_date_time(rng: random.Random) -> datetime.datetime:
    return datetime.datetime.combine(_sample_date(rng), _sample_time(rng))


def _sample_number(decimals: int, digits: int) -> Callable[[random.Random], Decimal]:
    """Samples numbers, short ones as often as long ones, every fifth negative."""

    def sample(rng: random.Random) -> Decimal:
        magnitude = Decimal(rng.randrange(10 ** rng.randint(decimals + 1, digits))).scaleb(-decimals)
        return -magnitude if magnitude and rng.random() < 0.2 else magnitude

    return sample


def _sample_money(rng: random.Random) -> tuple[Decimal, str]:
    return Decimal(rng.randrange(200, 10 ** rng.randint(3, 7))).scaleb(-2), rng.choice(_CURRENCIES)


def _sample_duration(rng: random.Random) -> tuple[tuple[int, str], ...]:
    return ((rng.randint(1, 99), rng.choice(_UNITS)),)


def _sample_two_units(rng: random.Random) -> tuple[tuple[int, str], ...]:
    small = rng.randrange(3)
    return (rng.randint(1, 99), _UNITS[small + 1]), (rng.randint(1, (59, 59, 23)[small]), _UNITS[small])


def _sample_relative(rng: random.Random) -> datetime.timedelta:
    unit = rng.choice(list(_RELATIVE))
    return unit * rng.randint(1, _RELATIVE[unit]) * rng.choice((1, -1))


def _date(width: str) -> Style:
    return lambda value, locale: dates.format_date(value, width, locale)


def _time(width: str) -> Style:
    return lambda value, locale: dates.format_time(value, width, locale=locale)


def _skeleton(fields: str) -> Style:
    return lambda value, locale: dates.format_skeleton(fields, value, locale=locale)


def _date_time(date_width: str, time_width: str) -> Style:
    def write(value: datetime.datetime, locale: Locale) -> str:
        pattern = str(locale.datetime_formats[date_width])
        if date_width in ("full", "long") and locale.language in _AT_WORDS:
            pattern = f"{{1}} {_AT_WORDS[locale.language]} {{0}}"
        return pattern.format(
            dates.format_time(value.time(), time_width, locale=locale), dates.format_date(value, date_width, locale)
        )

    return write


def _money(format_type: str) -> Style:
    return lambda value, locale: numbers.format_currency(*value, locale=locale, format_type=format_type)


def _duration(length: str) -> Style:
    def write(value: tuple[tuple[int, str], ...], locale: Locale) -> str:
        parts = [_count_units(count, f"duration-{unit}", length, locale) for count, unit in value]
        return parts[0] if len(parts) == 1 else _unit_list_pattern(locale).format(*parts)

    return write


def _count_units(count: int, unit: str, length: str, locale: Locale) -> str:
    text = units.format_unit(count, unit, length, locale=locale)
    # Many locales, such as Japanese, only have the short pattern; for the others, Babel returns the unit's identifier.
    return units.format_unit(count, unit, "short", locale=locale) if unit in text else text


def _unit_list_pattern(locale: Locale) -> str:
    # Not `babel.lists.format_list`, which fails if a locale overrides only some of the patterns, as Spanish does.
    styles = (locale.list_patterns.get(style, {}) for style in ("unit", "unit-short", "standard"))
    return next((style["2"] for style in styles if "2" in style), "{0}, {1}")


def _relative(value: datetime.timedelta, locale: Locale) -> str:
    return dates.format_timedelta(value, threshold=1, add_direction=True, locale=locale)


def _decimal(value: Decimal, locale: Locale) -> str:
    return numbers.format_decimal(value, locale=locale)


def _percent(value: Decimal, locale: Locale) -> str:
    return numbers.format_percent(value / 100, locale=locale, decimal_quantization=False)


_DATES = _Family(
    _sample_date,
    (
        *map(_date, ("full", "long", "medium", "short")),
        *map(_skeleton, ("yMMMEd", "yMd", "MMMEd", "MMMMd", "yMMMM", "yQQQQ")),
    ),
)
_DATE_TIMES = _Family(
    _sample_date_time,
    (
        _date_time("full", "short"),
        _date_time("long", "short"),
        _date_time("medium", "short"),
        _date_time("short", "short"),
    ),
)
_FAMILIES = (
    _DATES,
    _DATE_TIMES,
    _Family(_sample_time, (_time("short"), _time("medium"), _skeleton("Hm"))),
    _Family(_sample_number(decimals=0, digits=7), (_decimal,)),
    _Family(_sample_number(decimals=2, digits=7), (_decimal,)),
    _Family(_sample_number(decimals=1, digits=4), (_percent,)),
    _Family(_sample_money, (_money("standard"), _money("name"))),
    _Family(_sample_duration, (_duration("long"),)),
    _Family(_sample_two_units, (_duration("long"), _duration("short"))),
    _Family(_sample_relative, (_relative,)),
)
