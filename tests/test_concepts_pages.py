"""The pages on order, layers and decoding: listings print what the pages say, scripts draw the figures."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tensorflow

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("order_and_masks", "layers", "decoding")
# Each listing, and the text that follows it at once.
LISTING = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE)
IMAGE = re.compile(r"!\[(.*?)\]\(\.\./images/(.*?)\)")


def page_text(page: str) -> str:
    return (DOCS / "concepts" / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_listings_print_what_the_page_says(page):
    names, printed = {}, []
    listings = LISTING.findall(page_text(page))
    for listing, _ in listings:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(listing, f"{page}.md", "exec"), names)
        printed.append(output.getvalue())
    assert len(listings) > 3
    assert printed == [text for _, text in listings]


@pytest.mark.parametrize("page", PAGES)
def test_questions_are_headings_with_a_text_alternative_for_each_figure(page):
    text = page_text(page)
    code = re.findall(r"`(keras_attention/[\w/]+\.py)`", text)
    assert code
    assert all((DOCS.parent / path).is_file() for path in code)
    assert len(re.findall(r"^## ", text, flags=re.MULTILINE)) > 3
    for alternative, name in IMAGE.findall(text):
        assert len(alternative) > 40
        assert (DOCS / "images" / name).is_file()


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
