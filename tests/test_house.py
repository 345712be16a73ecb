"""The map in CONTRIBUTING.md is correct, and a module imports only modules below it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "yamarket_chat"
LONGEST_FILE = 600

# Who may import the three dependencies. yarl and multidict come with aiohttp, for its API.
ALLOWED = {
    "aiohttp": {
        *("_http", "connections.py", "_delivery/engine.py", "session.py"),
        *("notifications/web.py", "notifications/receiver.py"),
    },
    "yarl": {"_http", "_delivery/engine.py", "arguments.py"},
    "multidict": {"_http", "_limits/headers.py"},
    "aiolimiter": {"_limits/pace.py"},
}
CORE = {*ALLOWED, "msgspec"}
# Not the core: the command and the outbox are extras, and the sandbox needs a server.
APART = {"bot", "cli", "outbox", "sandbox"}


def rooms() -> list[str]:
    """The files of the map, from the top to the bottom: those of a wing one after another."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = re.search(r"## The map\n.*?\n\n((?: {4}.*\n)+)", text, re.S)
    assert lines is not None
    found: list[str] = []
    for name, said in re.findall(r"^ {4}(\S+) +((?:.*\n)(?: {8,}.*\n)*)", lines[1], re.M):
        if name.endswith("/") and ":" in said:
            files = re.findall(r"\w+", said.partition(":")[2])
            found += (f"{name}{file}.py" for file in files)
        else:
            found.append(name)
    return found


ROOMS = rooms()


def room_of(path: Path) -> str:
    """The room of a file: the file itself, or its folder if that is one room."""
    relative = path.relative_to(PACKAGE).as_posix()
    folder = relative.partition("/")[0] + "/"
    return folder if folder in ROOMS else relative


def files() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if not (path.name == "__init__.py" and path.parent.name.startswith("_"))
    ]


def imports(path: Path, source: str | None = None) -> Iterator[tuple[str, bool]]:
    """What a file imports, as dotted names, and whether at its top; TYPE_CHECKING ones included."""
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source)
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    package = ["yamarket_chat", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node not in inside
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            for alias in node.names:
                yield f"{module}.{alias.name}", node not in inside


def room_imported(name: str) -> str | None:
    """The room that a dotted name belongs to; None if it is not of this package."""
    parts = name.split(".")
    if parts[0] != "yamarket_chat":
        return None
    for length in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[1:length])
        if path.with_suffix(".py").is_file() and length > 1:
            return room_of(path.with_suffix(".py"))
        if path.is_dir() and (path / "__init__.py").is_file():
            if path.name.startswith("_"):
                return None  # a wing's own file is empty; its rooms are named one by one
            return room_of(path / "__init__.py")
    raise AssertionError(f"{name} is not a room")


def arrows_up(path: Path, source: str | None = None) -> list[str]:
    """Return the imports of a file that are not below it in the map."""
    room = room_of(path)
    level = ROOMS.index(room)
    return [
        name
        for name, _ in imports(path, source)
        if (target := room_imported(name)) is not None
        and target != room
        and ROOMS.index(target) <= level
    ]


def strangers(path: Path, source: str | None = None) -> list[str]:
    """The packages that a file of the core imports although it may not."""
    relative = path.relative_to(PACKAGE).as_posix()
    found = []
    for name, at_top in imports(path, source):
        package = name.partition(".")[0]
        if package in ALLOWED:
            if not ({relative, relative.partition("/")[0]} & ALLOWED[package]):
                found.append(name)
        elif at_top and package not in {*CORE, "yamarket_chat", *sys.stdlib_module_names}:
            found.append(name)
    return found


def core() -> list[Path]:
    return [path for path in files() if path.relative_to(PACKAGE).parts[0] not in APART]


def test_map_in_contributing_lists_each_module_once() -> None:
    assert sorted(ROOMS) == sorted({room_of(path) for path in files()})


def test_modules_import_only_lower_modules() -> None:
    assert {str(path): up for path in files() if (up := arrows_up(path))} == {}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("_limits/window.py", "from .scheduler import Scheduler"),
        ("_http/exchange.py", "from .._limits import window"),
        ("_http/exchange.py", "from .._limits.window import Window"),
        ("errors.py", "import yamarket_chat.session"),
        ("errors.py", "def f() -> None:\n    from .limits import Rate"),
        ("pending.py", "if TYPE_CHECKING:\n    from .errors import ChatError"),
        ("session.py", "from . import ChatSession"),
        ("sandbox/api.py", "from ..cli import app"),
    ],
)
def test_check_finds_an_import_of_a_higher_module(file: str, source: str) -> None:
    assert arrows_up(PACKAGE / file, source)


def test_dependencies_are_imported_only_in_allowed_modules() -> None:
    assert {str(path): names for path in core() if (names := strangers(path))} == {}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("_delivery/calls.py", "import aiohttp"),
        ("_limits/window.py", "def f() -> None:\n    from aiolimiter import AsyncLimiter"),
        ("session.py", "import sqlalchemy"),
        ("_http/exchange.py", "from rich.table import Table"),
    ],
)
def test_check_finds_a_dependency_in_a_wrong_module(file: str, source: str) -> None:
    assert strangers(PACKAGE / file, source)


def test_files_have_at_most_600_lines() -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in files()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_and_files_named_in_contributing_exist() -> None:
    """The table "Where to look" names functions and files."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("Where to look:")[2].partition("\n## ")[0]
    names = set(re.findall(r"`((?:_\w+/)?\w+\.py)`", table))
    known = {path.name for path in files()} | set(ROOMS)
    assert names
    assert names <= known
    for function, file in re.findall(r"`(\w+)` in `(\w+/\w+\.py)`", table):
        assert re.search(rf"def {function}\(", (PACKAGE / file).read_text(encoding="utf-8"))


def test_a_wing_reaches_for_no_private_name_of_an_outbox() -> None:
    """`outbox/inside.py` has what the bot uses of it."""
    reached = re.compile(r"outbox\._\w+")
    for folder in APART - {"outbox"}:
        for path in (PACKAGE / folder).rglob("*.py"):
            assert reached.findall(path.read_text(encoding="utf-8")) == [], path
