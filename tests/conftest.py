from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import market_api
from tests.virtual import VirtualLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every async test runs on the virtual clock, but those marked `real_time`."""
    if item.get_closest_marker("real_time"):
        return {"real": asyncio.new_event_loop}
    return {"virtual": VirtualLoop}


@pytest.fixture(scope="session")
def description() -> Any:
    """What the Market's API is, in our own words."""
    return market_api.ours()


# What takes long, or has to do with the machine more than with the versions of Python and of the
# dependencies. The rest is the quick part, `pytest -m "not slow"`: under a minute on two cores.
SLOW = {
    "test_benchmarks.py": "starts a process for each measurement",
    "test_cli.py": "starts the command, and waits on the real clock",
    "test_cli_docs.py": "starts the command, and waits on the real clock",
    "test_cli_reading.py": "starts the command, and waits on the real clock",
    "test_cli_progress.py": "starts the command, and waits on the real clock",
    "test_cli_say.py": "starts the command, and waits on the real clock",
    "test_cli_signals.py": "starts the command, and waits on the real clock",
    "test_cli_send_many.py": "starts the command, and waits on the real clock",
    "test_memory.py": "a million messages",
    "test_schemathesis.py": "hundreds of requests on the real clock",
    "test_state_machine.py": "hundreds of sessions",
}


def pytest_configure() -> None:
    """A file that was renamed must not slip into the quick part."""
    missing = [name for name in SLOW if not (Path(__file__).parent / name).exists()]
    if missing:
        raise pytest.UsageError(f"tests/conftest.py names files that do not exist: {missing}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of a slow file is marked `slow`, also one that is new."""
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
