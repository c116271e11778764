"""The pages of concepts: their listings print what the pages say, and their scripts draw the figures."""

import contextlib
import io
import operator
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import keras_attention as ka

pytestmark = pytest.mark.tensorflow

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("order_and_masks", "layers", "decoding")
LISTINGS = (*PAGES, "mistakes", "touch")
# Each listing, and the text that follows it at once.
LISTING = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE)
IMAGE = re.compile(r"!\[(.*?)\]\(\.\./images/(.*?)\)")


def page_text(page: str) -> str:
    return (DOCS / "concepts" / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page == "decoding" else []) for page in LISTINGS]
)
def test_listings_print_what_the_page_says(page):
    names, printed = {}, []
    listings = LISTING.findall(page_text(page))
    for listing, _ in listings:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(listing, f"{page}.md", "exec"), names)
        printed.append(output.getvalue())
    assert len(listings) > 3
    assert printed == [text for _, text in listings]


def test_the_glossary_names_what_exists():
    text = page_text("glossary")
    names = re.findall(r"`ka\.([\w.]+)", text)
    assert len(names) > 20
    for name in names:
        operator.attrgetter(name)(ka)  # raises AttributeError
    paths = re.findall(r"`(keras_attention/[\w/]+\.py)`", text)
    assert all((DOCS.parent / path).is_file() for path in paths)


@pytest.mark.parametrize("page", (*PAGES, "touch"))
def test_questions_are_headings_with_a_text_alternative_for_each_figure(page):
    text = page_text(page)
    code = re.findall(r"`(keras_attention/[\w/]+\.py)`", text)
    assert code
    assert all((DOCS.parent / path).is_file() for path in code)
    assert len(re.findall(r"^## ", text, flags=re.MULTILINE)) > 3
    for alternative, name in IMAGE.findall(text):
        assert len(alternative) > 40
        assert (DOCS / "images" / name).is_file()


def number(text: str) -> float:
    """A number as a table writes it: 1,000, or 2 · 10⁻⁷."""
    digits = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
    factor, _, power = text.rpartition("10") if re.search("10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]", text) else (text, "", "0")
    return float(factor.replace("·", "").replace(",", "") or 1) * 10.0 ** int(power.translate(digits))


def test_the_table_of_depth_has_the_numbers_of_the_script():
    variants = runpy.run_path(str(DOCS / "figures" / "layers.py"))["variants"]()
    text = page_text("layers")
    table = text[text.index("| | gradient of W_Q") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()[2:]]
    assert len(rows) == len(variants)
    for row, (name, measures) in zip(rows, variants.items(), strict=True):
        ends = np.array([[number(each) for each in cell.split(" to ")] for cell in row])
        computed = np.array([[values[0], values[-1]] for values in measures.values()])
        # The last two rows contain rounding errors, and what they grow to.
        np.testing.assert_allclose(ends, computed, rtol=1.0 if name.startswith("no ") else 0.06, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_figures_are_drawn_by_their_script(page):
    images = {name: DOCS / "images" / name for _, name in IMAGE.findall(page_text(page))}
    before = {name: path.read_bytes() for name, path in images.items()}
    try:
        drawn = subprocess.run(
            [sys.executable, DOCS / "figures" / f"{page}.py"], text=True, capture_output=True, check=True
        )
        written = {Path(line).name for line in drawn.stdout.splitlines() if line.endswith(".png")}
    finally:
        for name, path in images.items():
            path.write_bytes(before[name])
    assert written == set(images)


ALL_PAGES = ("sequences", "attention", "heads", "order_and_masks", "layers", "decoding", "mistakes")


def sections(page: str) -> dict[str, str]:
    """The text below each heading of a page."""
    parts = re.split(r"^## (.*)\n", page_text(page), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("page", ALL_PAGES)
def test_each_answer_has_a_figure_or_an_output_and_its_place_in_the_code(page):
    for heading, text in sections(page).items():
        assert IMAGE.search(text) or "```text" in text, heading
        paths = re.findall(r"`((?:keras_attention|examples|benchmarks)/[\w/]+\.py)`", text)
        assert paths, heading
        assert all((DOCS.parent / path).is_file() for path in paths), heading
        for name, path in re.findall(r"`(\w+)`(?: and `\w+`)? (?:in|of) `([\w/]+\.py)`", text):
            assert re.search(rf"\b{name}\b", (DOCS.parent / path).read_text(encoding="utf-8")), (name, path)


def test_the_first_page_links_every_question():
    questions = [heading for page in ALL_PAGES for heading in sections(page)]
    linked = re.findall(r"^- \[(.*)\]\(\w+\.md#", page_text("index"), flags=re.MULTILINE)
    assert linked == questions
