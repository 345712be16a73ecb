"""Schemathesis looks for faults of the sandbox, based on the description of the Market's API.

It runs as a separate program, with a fixed budget and seed, against a sandbox on the real clock. It
sends allowed and forbidden values in every field, and requests built from earlier answers. It
checks that no answer is a 5xx or undocumented, and that forbidden requests are refused.

Each run keeps its database in a folder of its own, so nothing is left in the repository.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests import market_api
from yamarket_chat import Rate
from yamarket_chat.sandbox import Fault, Sandbox
from yamarket_chat.sandbox.api import OPERATIONS, Api, Call
from yamarket_chat.sandbox.server import _OTHER_ROUTES

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "12"))
SEED = int(os.environ.get("SCHEMATHESIS_SEED", "1"))

pytestmark = [pytest.mark.real_time, pytest.mark.timeout(60 + 4 * EXAMPLES)]


@pytest.fixture
async def market() -> AsyncIterator[Sandbox]:
    """A sandbox whose limits admit all requests."""
    limits = dict.fromkeys(OPERATIONS, Rate(1_000_000, per=3600))
    async with Sandbox(limits=limits, parallel=100, campaigns=3) as market:
        market.add_chat(17, order_id=55)
        market.buyer_says(17, "Где мой заказ?")
        market.buyer_sends_file(17, "чек.jpg", b"photo")
        yield market


async def look_for_faults(
    market: Sandbox, folder: Path, *options: str, examples: int = EXAMPLES
) -> tuple[int, str]:
    """Run Schemathesis. Return its exit status (0 if it found nothing) and its output."""
    description = market_api.ours()
    # A chat and a message that are there, to begin with.
    parameters = description["components"]["parameters"]
    parameters["ChatId"]["example"] = 17
    parameters["MessageId"]["example"] = market.messages(17)[0].message_id
    (folder / "description.json").write_text(json.dumps(description))
    (folder / "schemathesis.toml").write_text(
        f'[parameters]\n"path.businessId" = {market.business_id}\n'
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml"),
        *("run", "description.json", "--url", market.url),
        *("--header", f"Api-Key: {market.api_key}"),
        *("--seed", str(SEED), "--max-examples", str(examples), "--no-shrink"),
        # Not that whatever the description allows is accepted: it allows any page token, an order
        # that is not there, a createChat about nothing, and parts of a form in any order.
        *("--exclude-checks", "positive_data_acceptance"),
        *options,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_schemathesis_finds_no_fault_in_the_sandbox(market: Sandbox, tmp_path: Path) -> None:
    status, output = await look_for_faults(market, tmp_path)
    assert status == 0, output
    assert " passed" in output
    # It was no empty run: each operation was asked, and both accepted and refused.
    answered = {(arrival.operation, arrival.status) for arrival in market.arrivals}
    assert {name for name, code in answered if code == 200} == set(OPERATIONS)
    assert {name for name, code in answered if code == 401} == set(OPERATIONS)
    assert {name for name, code in answered if code == 400} == set(OPERATIONS) - {"token"}
    assert {name for name, code in answered if code == 404} >= {"create_chat", "get_message"}
    assert {code for _, code in answered} <= {200, 400, 401, 403, 404, 415}
    assert ("token", 404) not in answered
    assert market.refused == 0
    assert len(market.arrivals) > 300


async def test_schemathesis_finds_injected_faults(
    market: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {
        "chats": Fault("status", status=500),
        "history": Fault("status", status=409),
        "get_message": Fault("status", status=200, html=True),
    }
    market.faults = lambda request: faults.get(request.operation)
    right = Api.token

    def wrong(self: Api, call: Call) -> bytes:
        return right(self, call).replace(b"COMMUNICATION", b"TELEPATHY")

    monkeypatch.setitem(
        OPERATIONS, "token", msgspec.structs.replace(OPERATIONS["token"], execute=wrong)
    )
    monkeypatch.setitem(_OTHER_ROUTES["/v2/auth/token"], "POST", OPERATIONS["token"])
    status, output = await look_for_faults(market, tmp_path, "--phases", "fuzzing", examples=2)
    assert status == 1, output
    # A server error, a status, a content type, and a value that are not documented.
    for found in ("ST101", "ST103", "ST105", "ST108", "TELEPATHY"):
        assert found in output, output
