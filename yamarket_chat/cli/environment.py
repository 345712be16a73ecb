"""Settings from the file `.env` in the working directory."""

from __future__ import annotations

import os
import re
from pathlib import Path

from . import console

_set_from_file: set[str] = set()

KEY, BUSINESS, URL, OUTBOX = NAMES = (
    "YAMARKET_API_KEY",
    "YAMARKET_BUSINESS_ID",
    "YAMARKET_BASE_URL",
    "YAMARKET_OUTBOX",
)


def load(path: Path) -> None:
    """Set the variables in `NAMES` from a file. Variables that are already set do not change."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError("it contains a NUL character")
        found = _parse(text, path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        console.warning(f"{path} cannot be read: {error}")
        return
    new = {name: value for name, value in found.items() if name not in os.environ}
    if URL in new and KEY not in new:
        _warn_about_url()
        del new[URL]
    os.environ.update(new)
    _set_from_file.update(new)


def ignore_url_from_file() -> None:
    """Unset the URL if it comes from a file, because the key does not come from the same file.

    Otherwise anybody who can put a `.env` into a directory could have the key sent to their server.
    """
    if URL in _set_from_file:
        _set_from_file.remove(URL)
        os.environ.pop(URL, None)
        _warn_about_url()


def _warn_about_url() -> None:
    console.warning(
        f"{URL} from the file .env is ignored, because the Api-Key does not come from .env"
    )


QUOTED = re.compile(r"""(["'])([^"']*+)\1\s*+(?:#.*+)?""")
COMMENT = re.compile(r"(?:^|\s)#.*+")


def _parse(text: str, path: Path) -> dict[str, str]:
    """Parse lines such as NAME=value. Variables that are not in `NAMES` are ignored.

    >>> _parse('export YAMARKET_API_KEY="ACMA:1" # the cabinet', Path(".env"))
    {'YAMARKET_API_KEY': 'ACMA:1'}
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or name not in NAMES:
            continue
        if value.startswith(("'", '"')):
            quoted = QUOTED.fullmatch(value)
            if quoted is None:
                console.warning(
                    f"{path}, line {number}: {name} is ignored, because its quotes do not match"
                )
                continue
            found[name] = quoted[2]
        else:
            found[name] = COMMENT.sub("", value)
    return found
