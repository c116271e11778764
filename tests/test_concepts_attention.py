"""The concept pages on attention, heads and sequences: their listings run and print what the pages say."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.tensorflow

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["attention.md", "heads.md", "sequences.md"]
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def load_listings():
    """The module that also runs the listings for the figures."""
    spec = importlib.util.spec_from_file_location("listings", DOCS / "figures" / "listings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[PAGES[0], *(pytest.param(page, marks=pytest.mark.slow) for page in PAGES[1:])])
def page(request):
    """The text that the page gives for each listing, what each printed, and the names that they define."""
    listings = load_listings()
    names, printed = listings.run_listings(request.param)
    return [text for _, text in listings.listings(request.param)], printed, names


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def test_listings_print_what_the_page_says(page):
    texts, printed, _ = page
    assert [NUMBER.sub("0", text).split() for text in printed] == [NUMBER.sub("0", text).split() for text in texts]
    for expected, text in zip(texts, printed, strict=True):
        # What is trained differs a little from one processor to another.
        np.testing.assert_allclose(numbers(text), numbers(expected), rtol=0.1, atol=0.0101)


@pytest.mark.parametrize("name", PAGES)
def test_figures_are_those_of_the_script(name):
    page = (DOCS / "concepts" / name).read_text(encoding="utf-8")
    figures = re.findall(r"!\[([^\]]+)\]\(\.\./images/([\w-]+)\.png\)", page)
    script = (DOCS / "figures" / name.replace(".md", ".py")).read_text(encoding="utf-8")
    assert figures
    for description, image in figures:
        assert len(description) > 40
        assert (DOCS / "images" / f"{image}.png").exists()
        assert f'"{image}"' in script


@pytest.mark.parametrize("page", ["attention.md"], indirect=True)
def test_what_the_page_says_on_the_scale(page):
    measured = {name: np.array(rows).T for name, rows in page[2]["measured"].items()}
    (largest, by_score, by_query), scaled, by_width = (rows[1:] for rows in measured.values())
    assert (np.diff(largest) > 0).all() and largest[-1] > 0.9
    assert by_score[-1] < by_score[0] / 1000 and by_query[-1] < by_query[0] / 100
    for row in scaled:
        np.testing.assert_allclose(row, row.mean(), rtol=0.1)
    assert by_width[0][-1] < 1.2 / 32 and by_width[1][-1] > 0.9 * by_width[1][0]
    assert by_width[2][-1] < by_width[2][0] / 10


@pytest.mark.parametrize("page", ["attention.md"], indirect=True)
def test_a_shared_projection_has_symmetric_scores_and_does_not_solve_the_task(page):
    names = page[2]
    queries = np.asarray(names["shared"].query_key(names["sequences"][:1].astype("float32")))[0]
    scores = queries @ queries.T
    np.testing.assert_allclose(scores, scores.T, rtol=1e-5)
    sequences, labels = names["sequences"], names["labels"]
    weights = [
        np.asarray(names[name](sequences[:50].astype("float32"), return_attention_scores=True)[1])[:, 0]
        for name in ("separate", "shared")
    ]
    before = np.roll(np.arange(8), 1)
    assert (weights[0].argmax(-1) == before).all()
    assert not (weights[1].argmax(-1) == before).all(axis=1).any()
    np.testing.assert_array_equal(labels, sequences[..., :10].argmax(-1)[:, before])


@pytest.mark.slow
@pytest.mark.parametrize("page", ["heads.md"], indirect=True)
def test_what_the_page_says_on_heads(page):
    names = page[2]
    (one, weights_of_one, _), (two, weights_of_two, maps) = names["trained"].values()
    assert one < 0.75 and two > 0.95 and weights_of_one == weights_of_two
    neighbours = [np.roll(np.arange(8), shift).tolist() for shift in (1, -1)]
    assert sorted(maps.mean(0).argmax(-1).tolist()) == sorted(neighbours)
    layers, without_heads = names["layers"], names["without_heads"]
    assert (without_heads(layers["encoder"], range(4)) > 0.9).all()
    possessive, noun, _, name, _ = without_heads(layers["cross"], range(4))
    assert max(possessive, name) < 2 / 8 and noun < 2 / 4
    assert names["same"]
