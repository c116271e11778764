"""Runs the listings of a page of docs/concepts, so that its figures draw the tensors that the page prints."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent
# Each listing, and the text that follows it at once.
LISTING = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE)


def listings(page: str) -> list[tuple[str, str]]:
    """The listings of a page and the output that the page gives for each."""
    return LISTING.findall((DOCS / "concepts" / page).read_text(encoding="utf-8"))


def run_listings(page: str) -> tuple[dict[str, Any], list[str]]:
    """Runs the listings of a page in order; returns the names that they define, and what each printed."""
    names: dict[str, Any] = {}
    printed = []
    for listing, _ in listings(page):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(listing, page, "exec"), names)
        printed.append(output.getvalue())
    return names, printed
