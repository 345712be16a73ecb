from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import command, market_api
from tests.virtual import VirtualLoop
from yamarket_chat.sandbox import VirtualLoop as MemoryLoop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def _eager(factory: LoopFactory) -> LoopFactory:
    """Eager tasks: a task runs up to its first wait at once, not in the next loop pass."""

    def make() -> asyncio.AbstractEventLoop:
        loop = factory()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        return loop

    return make


# By name: on the virtual clock, and on the real one.
LOOPS: dict[str, tuple[LoopFactory, LoopFactory]] = {
    "asyncio": (VirtualLoop, asyncio.new_event_loop),
    "memory": (MemoryLoop, asyncio.new_event_loop),
}
if sys.platform != "win32":
    import uvloop

    from tests.virtual_uvloop import VirtualUvloop

    LOOPS["uvloop"] = (VirtualUvloop, uvloop.new_event_loop)
if sys.version_info >= (3, 12):
    LOOPS["eager"] = (_eager(VirtualLoop), _eager(asyncio.new_event_loop))


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores: many tests wait for processes, and for the real clock."""
    return (os.cpu_count() or 1) + 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--loop",
        choices=["asyncio", "uvloop", "eager", "memory"],
        default="asyncio",
        help="the event loop of the async tests; eager: asyncio's with the eager task factory;"
        " memory: the public VirtualLoop, without real sockets",
    )


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Run each async test on the virtual clock, except those marked `real_time`.

    Tests marked `every_loop` run on all loops, and all others on the loop of `--loop`.
    """
    clock = 1 if item.get_closest_marker("real_time") else 0
    names = [config.getoption("--loop")]
    if item.get_closest_marker("every_loop"):
        names = list(LOOPS)
    return {name: LOOPS[name][clock] for name in names}


@pytest.fixture(scope="session")
def description() -> Any:
    """Our own description of the Market's API."""
    return market_api.ours()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """The address of a PostgreSQL server; the reason as text if there is none."""
    pytest.importorskip("sqlalchemy")
    if sys.platform == "win32":
        yield "PostgreSQL's server of the wheel is for Linux"
        return
    from tests.postgres import Missing, server

    try:
        running = server()
        url = running.__enter__()
    except Missing as missing:
        yield str(missing)
        return
    yield url
    running.__exit__(None, None, None)


@pytest.fixture
def postgres_url(postgres: Any) -> Iterator[Any]:
    """The address of an empty PostgreSQL schema, which only this test sees."""
    if isinstance(postgres, str):
        pytest.skip(postgres)
    from tests.postgres import schema

    with schema(postgres) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The address of an empty database; a test that wants it runs on both databases."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path}/outbox.db"


# Slow files, or files that depend on the machine more than on the versions of Python and of the
# dependencies. The rest is the quick part, `pytest -m "not slow"`: under a minute on two cores.
SLOW = {
    "test_bot_kills.py": "kills processes, and waits on the real clock",
    "test_benchmarks.py": "starts a process for each measurement",
    "test_cli.py": "starts the command, and waits on the real clock",
    "test_cli_demo.py": "starts processes, and waits on the real clock",
    "test_cli_docs.py": "starts the command, and waits on the real clock",
    "test_cli_outbox.py": "runs the command a hundred times",
    "test_cli_outbox_deliver.py": "starts the command, and waits on the real clock",
    "test_cli_reading.py": "starts the command, and waits on the real clock",
    "test_cli_progress.py": "starts the command, and waits on the real clock",
    "test_cli_notifications.py": "starts the command, and waits on the real clock",
    "test_cli_say.py": "starts the command, and waits on the real clock",
    "test_cli_signals.py": "starts the command, and waits on the real clock",
    "test_cli_send_many.py": "starts the command, and waits on the real clock",
    "test_cli_send_many_outbox.py": "starts the command, and waits on the real clock",
    "test_memory.py": "a million messages",
    "test_notifications_fuzz.py": "hundreds of requests on the real clock",
    "test_notifications_servers.py": "imports four frameworks, and runs real servers",
    "test_outbox_kills.py": "kills processes, and waits on the real clock",
    "test_recipes.py": "starts web servers and a worker, and waits on the real clock",
    "test_schemathesis.py": "hundreds of requests on the real clock",
}


# By the loop: what cannot run on it, and why. A file, or one test of it.
NOT_ON = {
    "uvloop": {
        "test_parallel.py": "times below a millisecond, which uvloop does not count",
        "test_process_that_delivers_may_be_forked": "uvloop's loop cannot be left in a child",
    },
    "memory": {
        "test_outbox_crashes.py": "moves the clock of tests/virtual.py, and starts processes",
        "test_clocks.py": "moves the clock of tests/virtual.py",
        "test_process_that_delivers_may_be_forked": "a loop in memory cannot be left in a child",
        "test_key_is_sent_through_the_proxy_tunnel_only": "TLS",
        "test_invalid_certificate_is_raised_at_once": "TLS",
        "test_answers_carry_the_date_and_the_trace_of_the_sandbox": "reads the real clock",
    },
}


def pytest_configure() -> None:
    """Fail if a slow file was renamed: it must not slip into the quick part."""
    files = {*SLOW, *(name for names in NOT_ON.values() for name in names if "." in name)}
    missing = [name for name in files if not (Path(__file__).parent / name).exists()]
    if missing:
        raise pytest.UsageError(f"tests/conftest.py names files that do not exist: {missing}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test of a slow file as `slow`, new tests included.

    Tests on the real clock mostly wait. Half of them come first, and half in the middle. Each
    worker begins with one part of the list, so of four workers two wait while the others work.
    """
    not_on = NOT_ON.get(config.getoption("--loop"), {})
    for item in items:
        reason = not_on.get(item.path.name) or not_on.get(getattr(item, "originalname", ""))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
    waiting = [item for item in items if item.get_closest_marker("real_time")]
    working = [item for item in items if not item.get_closest_marker("real_time")]
    middle = len(working) // 2
    items[:] = [*waiting[::2], *working[:middle], *waiting[1::2], *working[middle:]]


def pytest_collection_finish() -> None:
    """Hide what stays until the end, such as modules and tests, from the garbage collector.

    A full collection looked at all of it again: 0.2 s for each test that collects garbage.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    command.stop()
