"""The key, in a form that no repr, log or traceback shows.

Sentry, rich and others show the variables of each frame of a traceback. So no variable holds the
key as a text, and nothing that raises an error has it.
"""

from __future__ import annotations


class Secret:
    """A text that neither a repr nor an f-string shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(***)"

    def reveal(self) -> str:
        """Return the text. Do not store it in a variable."""
        return self._text
