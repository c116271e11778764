"""Phrase pairs made from the Unicode CLDR: dates, times, numbers, money and durations in two languages.

A translation task that needs no download, has as many pairs as one likes, and one right answer for each: the English
text always determines the other. So exact match measures a model, and 99% of it is within reach of a small one.
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
# How one value reads in a locale.
Style = Callable[[Any, Locale], str]

_ENGLISH = Locale.parse("en_US")
# Exactly one century for the two digits of a short date, so that "3/5/26" can only be 2026.
_FIRST_DAY, _LAST_DAY = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)
_CURRENCIES = ("CHF", "EUR", "GBP", "JPY", "USD")
# What CLDR puts between a long date and a time of day in the languages that have a word for it. Babel carries the plain
# pattern alone ("{date}, {time}"), which all other languages use here.
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
# What CLDR's root writes for July; Babel lets it through where a locale borrows its month names, as Korean does.
_PLACEHOLDER = re.compile(r"M(0[1-9]|1[0-2])")
# A kind that fails so often in a row to give a new phrase is used up: a month and a day, say, make 366 phrases only.
_PATIENCE = 100


class _Family(NamedTuple):
    """Values of one type, and the styles that write them.

    Two styles can give one English text: "May 5, 2026" is the long date and the abbreviated one, and in German these
    are "5. Mai 2026" and "05.05.2026". The style that comes first translates it.
    """

    draw: Callable[[random.Random], Any]
    styles: tuple[Style, ...]

    def pair(self, value: Any, style: Style, locale: Locale) -> Pair:
        english = _english(style, value)
        first = next(each for each in self.styles if each is style or _english(each, value) == english)
        return english, first(value, locale)


def make_pairs(locale: str = "fr", count: int = 20000, seed: int = 1) -> list[Pair]:
    """Makes English phrases and their equivalents in another locale.

    Full, long, medium and short dates and times, both together, parts of dates, integers, decimals, percentages,
    amounts of money, durations and relative times, in like numbers as far as there are enough of each. English is
    written with ordinary spaces, as people type it; the other side keeps CLDR's typographic ones.

    Args:
        locale: A CLDR locale: "fr", "de", "pt_BR", "zh-Hant", ...
        count: How many pairs.
        seed: Seeds the draw. Whatever the seed, an English phrase has the same equivalent.

    Returns:
        `(English, other)` pairs in random order; no two have the same English.

    Raises:
        ValueError: If `locale` is unknown (the message names similar ones), or `count` is below 1.

    Example:
        >>> pairs = make_pairs("fr", count=2000)
        >>> len(dict(pairs))
        2000
        >>> example = datetime.datetime(2026, 3, 5, 14, 30)
        >>> _DATE_TIMES.pair(example, _DATE_TIMES.styles[0], Locale.parse("fr"))
        ('Thursday, March 5, 2026 at 2:30 PM', 'jeudi 5 mars 2026 à 14:30')

    Source: Unicode Common Locale Data Repository (cldr.unicode.org), as Babel packs it.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1. Received: count={count}")
    target = _parse_locale(locale)
    rng = random.Random(seed)
    kinds = [(family, style) for family in _FAMILIES for style in family.styles]
    failures = [0] * len(kinds)  # in a row
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        index = rng.choice([index for index, failed in enumerate(failures) if failed < _PATIENCE])
        family, style = kinds[index]
        english, other = family.pair(family.draw(rng), style, target)
        if english in pairs or _PLACEHOLDER.search(other):
            failures[index] += 1
        else:
            failures[index] = 0
            pairs[english] = other
    # Kinds that are used up stand at the front.
    return rng.sample(list(pairs.items()), count)


def split_pairs(pairs: Sequence[Pair], test_count: int, seed: int = 1) -> tuple[list[Pair], list[Pair]]:
    """Splits pairs for training from pairs for testing, with no English phrase on both sides.

    Args:
        pairs: `(English, other)` pairs.
        test_count: How many pairs to test on.
        seed: Seeds the choice.

    Returns:
        The pairs to train on, in the given order, and those to test on. If an English phrase that is tested on has
        more pairs, they are in neither.

    Raises:
        ValueError: If `test_count` is below 1 or leaves nothing to train on.

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
            f"`test_count` must be in 1..{len(first_pairs) - 1} to leave English phrases to train on. "
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
    # CLDR puts a narrow no-break space before AM and PM and a no-break one after CHF; nobody types these.
    return style(value, _ENGLISH).replace("\u202f", " ").replace("\xa0", " ")


def _draw_date(rng: random.Random) -> datetime.date:
    return _FIRST_DAY + datetime.timedelta(days=rng.randrange((_LAST_DAY - _FIRST_DAY).days + 1))


def _draw_time(rng: random.Random) -> datetime.time:
    return datetime.time(rng.randrange(24), rng.randrange(60), rng.randrange(60))


def _draw_date_time(rng: random.Random) -> datetime.datetime:
    return datetime.datetime.combine(_draw_date(rng), _draw_time(rng))


def _draw_number(decimals: int, digits: int) -> Callable[[random.Random], Decimal]:
    """Numbers with as many short as long ones, every fifth negative."""

    def draw(rng: random.Random) -> Decimal:
        magnitude = Decimal(rng.randrange(10 ** rng.randint(decimals + 1, digits))).scaleb(-decimals)
        return -magnitude if magnitude and rng.random() < 0.2 else magnitude

    return draw


def _draw_money(rng: random.Random) -> tuple[Decimal, str]:
    return Decimal(rng.randrange(200, 10 ** rng.randint(3, 7))).scaleb(-2), rng.choice(_CURRENCIES)


def _draw_duration(rng: random.Random) -> tuple[tuple[int, str], ...]:
    return ((rng.randint(1, 99), rng.choice(_UNITS)),)


def _draw_two_units(rng: random.Random) -> tuple[tuple[int, str], ...]:
    small = rng.randrange(3)
    return (rng.randint(1, 99), _UNITS[small + 1]), (rng.randint(1, (59, 59, 23)[small]), _UNITS[small])


def _draw_relative(rng: random.Random) -> datetime.timedelta:
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
    # Many locales, Japanese among them, have the short pattern only: Babel then writes the unit's identifier.
    return units.format_unit(count, unit, "short", locale=locale) if unit in text else text


def _unit_list_pattern(locale: Locale) -> str:
    # Not babel.lists.format_list: it fails where a locale overrides only some of the patterns, as Spanish does.
    styles = (locale.list_patterns.get(style, {}) for style in ("unit", "unit-short", "standard"))
    return next((style["2"] for style in styles if "2" in style), "{0}, {1}")


def _relative(value: datetime.timedelta, locale: Locale) -> str:
    return dates.format_timedelta(value, threshold=1, add_direction=True, locale=locale)


def _decimal(value: Decimal, locale: Locale) -> str:
    return numbers.format_decimal(value, locale=locale)


def _percent(value: Decimal, locale: Locale) -> str:
    return numbers.format_percent(value / 100, locale=locale, decimal_quantization=False)


_DATES = _Family(
    _draw_date,
    (
        *map(_date, ("full", "long", "medium", "short")),
        *map(_skeleton, ("yMMMEd", "yMd", "MMMEd", "MMMMd", "yMMMM", "yQQQQ")),
    ),
)
_DATE_TIMES = _Family(
    _draw_date_time,
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
    _Family(_draw_time, (_time("short"), _time("medium"), _skeleton("Hm"))),
    _Family(_draw_number(decimals=0, digits=7), (_decimal,)),
    _Family(_draw_number(decimals=2, digits=7), (_decimal,)),
    _Family(_draw_number(decimals=1, digits=4), (_percent,)),
    _Family(_draw_money, (_money("standard"), _money("name"))),
    _Family(_draw_duration, (_duration("long"),)),
    _Family(_draw_two_units, (_duration("long"), _duration("short"))),
    _Family(_draw_relative, (_relative,)),
)
