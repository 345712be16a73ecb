"""The `.env` file of the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from . import console

KEY, BUSINESS, URL = NAMES = ("YAMARKET_API_KEY", "YAMARKET_BUSINESS_ID", "YAMARKET_BASE_URL")


def load(path: Path) -> None:
    """Set the three variables that a file names, where the environment does not have them."""
    try:
        found = _read(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        console.warning(f"{path} cannot be read: {error}")
        return
    if URL in found and os.environ.get(KEY) and URL not in os.environ:
        # Whoever put a file into some directory must not get the user's own key.
        console.warning(f"{URL} of {path} is ignored, because {KEY} is not from there")
        del found[URL]
    for name, value in found.items():
        os.environ.setdefault(name, value)


def _read(text: str) -> dict[str, str]:
    """
    >>> _read('export YAMARKET_API_KEY="ACMA:1"')
    {'YAMARKET_API_KEY': 'ACMA:1'}
    """
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if equals and name in NAMES:
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            found[name] = value
    return found
