"""Lets the documentation show the docstrings' `Example:` as code: Griffe knows `Examples:` only."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section before Griffe parses it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
