"""Checks the installed package in a bare environment: the wheel, and what the wheel asks for.

`.ci/run` starts it with `python -I` in an empty folder, so that no checkout can stand in for what
the wheel forgot.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGE = "yamarket-chat"
DEPENDENCIES = {"aiohttp", "aiolimiter", "msgspec"}
EXTRAS = ("yamarket_chat.cli", "yamarket_chat.outbox", "yamarket_chat.bot")


def required(distribution: str) -> set[str]:
    """The names of what it needs without extras, and here, with this Python."""
    names = set()
    for line in metadata.requires(distribution) or []:
        name, _, marker = line.partition(";")
        if "extra" not in marker:
            names.add(re.split(r"[^\w.-]", name.strip())[0].lower().replace("_", "-"))
    return names


def with_all_below(distributions: set[str]) -> set[str]:
    """These, and whatever they need, as far as it is installed."""
    found: set[str] = set()
    waiting = set(distributions)
    while waiting:
        name = waiting.pop()
        try:
            below = required(name)
        except metadata.PackageNotFoundError:  # for another Python or system
            continue
        found.add(name)
        waiting |= below - found
    return found


def core_modules() -> list[str]:
    """Every module of the package but those of the extras."""
    package = importlib.import_module("yamarket_chat")
    modules = pkgutil.walk_packages(package.__path__, "yamarket_chat.", onerror=lambda _: None)
    return [name for _, name, _ in modules if not name.startswith(EXTRAS)]


def main() -> None:
    assert required(PACKAGE) == DEPENDENCIES, required(PACKAGE)
    before = set(sys.modules)
    modules = core_modules()
    for name in modules:
        importlib.import_module(name)
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before}

    allowed = with_all_below({PACKAGE})
    for name in sorted(loaded - set(sys.stdlib_module_names)):
        owners = metadata.packages_distributions().get(name, [])
        owned = {owner.lower().replace("_", "-") for owner in owners}
        # A module without an owner is a name that a C extension gives itself.
        assert not owned or owned & allowed, f"{name} of {owners} was imported"

    root = Path(importlib.import_module("yamarket_chat").__file__ or "").parent
    assert (root / "py.typed").exists()

    # The command says what is missing, in place of a traceback.
    command = Path(sys.executable).with_name(PACKAGE)
    done = subprocess.run([command], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 1, done
    assert "yamarket-chat[cli]" in done.stderr, done
    assert "Traceback" not in done.stderr, done

    # So does the outbox.
    try:
        importlib.import_module("yamarket_chat.outbox")
    except ImportError as error:
        said = str(error)
    assert "yamarket-chat[outbox]" in said, said

    version = metadata.version(PACKAGE)
    print(f"{PACKAGE} {version}: {len(modules)} modules import {', '.join(sorted(DEPENDENCIES))}")


main()
