"""Phrase pairs: English decides the other side, whatever the locale and the seed."""

import datetime
import re

import pytest
from babel import dates

from keras_attention.demo.phrases import make_pairs, split_pairs


@pytest.fixture(scope="module")
def french():
    return make_pairs("fr", count=8009, seed=3)


def test_distinct_and_repeatable(french):
    assert len(french) == len(dict(french)) == 8009
    assert make_pairs("fr", count=8009, seed=3) == french
    assert make_pairs("fr", count=101, seed=4) != make_pairs("fr", count=101, seed=5)


@pytest.mark.parametrize("locale", ["fr", "de", "ja"])
def test_english_decides_whatever_the_seed(locale):
    first, second = (dict(make_pairs(locale, count=3001, seed=seed)) for seed in (1, 2))
    shared = first.keys() & second.keys()
    assert len(shared) > 100
    assert all(first[english] == second[english] for english in shared)


def test_a_form_that_two_styles_share_in_may_has_one_translation():
    pairs = dict(make_pairs("de", count=8009))
    in_may = {english: german for english, german in pairs.items() if re.fullmatch(r"May \d+, \d{4}", english)}
    assert len(in_may) > 20
    assert all("Mai" in german for german in in_may.values())
    assert any(re.fullmatch(r"Mar \d+, \d{4}", english) and "03." in german for english, german in pairs.items())


def test_two_digits_of_a_year_mean_one_century(french):
    short = [(english, other) for english, other in french if re.fullmatch(r"\d+/\d+/\d\d", english)]
    assert len(short) > 100
    for english, other in short:
        year = int(english[-2:])
        assert other.endswith(f"/{2000 + year if year < 50 else 1900 + year}")


def test_full_dates_and_times_against_babel(french):
    pattern = r"(\w+), (\w+) (\d+), (\d{4}) at (\d+):(\d\d) ([AP]M)"
    found = [(match, other) for english, other in french if (match := re.fullmatch(pattern, english))]
    assert len(found) > 100
    for match, other in found:
        when = datetime.datetime.strptime(match[0], "%A, %B %d, %Y at %I:%M %p")
        assert other == f"{dates.format_date(when, 'full', 'fr')} à {when:%H:%M}"


@pytest.mark.parametrize(
    ("pattern", "other"),
    [
        (r"[A-Z][a-z]+ \d+, \d{4}", r"\d+ \S+ \d{4}"),
        (r"\d+:\d\d [AP]M", r"\d\d:\d\d"),
        (r"\d+:\d\d:\d\d [AP]M", r"\d\d:\d\d:\d\d"),
        (r"-?\d,\d{3},\d{3}", "-?\\d\u202f\\d{3}\u202f\\d{3}"),
        (r"-?\d{1,2},\d{3}\.\d\d", "-?\\d{1,2}\u202f\\d{3},\\d\\d"),
        (r"\d+\.\d%", "\\d+,\\d\u00a0%"),
        (r"€\d+\.\d\d", "\\d+,\\d\\d\u00a0€"),
        (r"\d+\.\d\d Swiss francs", "\\d+,\\d\\d francs suisses"),
        (r"\d+ hours, \d\d minutes", "\\d+\u00a0heures et \\d\\d minutes"),
        (r"in \d\d minutes", "dans \\d\\d minutes"),
        (r"\d\d minutes ago", "il y a \\d\\d minutes"),
        (r"[1-4](st|nd|rd|th) quarter \d{4}", r"\d\S+ trimestre \d{4}"),
    ],
)
def test_kinds_and_their_french(french, pattern, other):
    found = [pair for pair in french if re.fullmatch(pattern, pair[0])]
    assert found
    assert all(re.fullmatch(other, pair[1]) for pair in found)


def test_english_has_ordinary_spaces_and_french_its_own(french):
    assert all(english.isascii() or set(english) <= {*map(chr, range(128)), *"€£¥"} for english, _ in french)
    assert any("\u202f" in other for _, other in french)


def test_texts_are_short(french):
    assert max(len(text) for pair in french for text in pair) < 50


@pytest.mark.parametrize("locale", ["de", "es", "ja", "ko", "ar", "hi", "pt-BR", "zh_Hant", "sr_Latn", "gsw"])
def test_locales_of_all_sorts(locale):
    pairs = make_pairs(locale, count=211)
    assert len(pairs) == 211
    # What Babel leaves where it lacks a pattern or a name.
    assert not [pair for pair in pairs if re.search(r"duration|[{}¤]|M\d\d", pair[1]) or not pair[1].strip()]


@pytest.mark.parametrize(
    ("locale", "hint"),
    [
        ("french", "'fr'"),
        ("fr_FRR", "'fr_FR'"),
        ("pt-BRR", "'pt_BR'"),
        ("qqqqqq", "such as 'fr'"),
        ("", "such as 'fr'"),
    ],
)
def test_unknown_locales_name_similar_ones(locale, hint):
    with pytest.raises(ValueError, match=f"Unknown CLDR locale; .*{hint}.* Received: locale='{locale}'"):
        make_pairs(locale, count=3)


def test_counts_must_be_positive():
    with pytest.raises(ValueError, match=r"must be at least 1\. Received: count=0"):
        make_pairs(count=0)


def test_split_keeps_english_apart(french):
    train, test = split_pairs(french, test_count=503, seed=7)
    assert len(test) == 503
    assert len(train) == 8009 - 503
    assert not dict(train).keys() & dict(test).keys()
    assert {*train, *test} == {*french}
    assert split_pairs(french, 503, seed=7) == (train, test)
    assert split_pairs(french, 503, seed=8)[1] != test


def test_split_keeps_repeated_english_on_one_side():
    pairs = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("a", "5")]
    for seed in range(11):
        train, test = split_pairs(pairs, 1, seed)
        assert not dict(train).keys() & dict(test).keys()
        assert len(test) == 1


@pytest.mark.parametrize("count", [-1, 0, 3])
def test_split_must_leave_something(count):
    with pytest.raises(ValueError, match=rf"must be in 1\.\.2 to leave .* Received: test_count={count}"):
        split_pairs([("a", "1"), ("b", "2"), ("c", "3"), ("a", "4")], count)
