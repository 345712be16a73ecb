"""The `.env` file of the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from . import console

_from_files: set[str] = set()

KEY, BUSINESS, URL = NAMES = ("YAMARKET_API_KEY", "YAMARKET_BUSINESS_ID", "YAMARKET_BASE_URL")


def load(path: Path) -> None:
    """Set the three variables that a file names, where the environment does not have them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError("it has a NUL character in it")
        found = _read(text)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        console.warning(f"{path} cannot be read: {error}")
        return
    new = {name: value for name, value in found.items() if name not in os.environ}
    if URL in new and KEY not in new:
        _warn_of_url()
        del new[URL]
    os.environ.update(new)
    _from_files.update(new)


def key_is_not_from_file() -> None:
    """Forget the address of a file: whoever put it into some directory must not get the key."""
    if URL in _from_files:
        _from_files.remove(URL)
        os.environ.pop(URL, None)
        _warn_of_url()


def _warn_of_url() -> None:
    console.warning(f"{URL} of the file .env is ignored, because the Api-Key is not from there")


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
