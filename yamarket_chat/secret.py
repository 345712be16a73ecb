"""The key, in a form that shows itself to nobody who does not ask.

Sentry, rich and others show the variables of each frame of a traceback. So the key is in no
variable as a text, and nothing that raises an error has it.
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
        """Return it. Keep it in no variable."""
        return self._text
