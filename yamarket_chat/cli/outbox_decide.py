"""The commands `outbox settle`, `retry` and `cancel`: what a person decides about messages."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from yamarket_chat.arguments import BASE_URL
from yamarket_chat.errors import ChatError, DeliveryUnknownError, InvalidArgumentError
from yamarket_chat.models import Message, Sender

from . import console, options, outbox_options, signals
from .conversation import show

if TYPE_CHECKING:
    from yamarket_chat.outbox import Outbox, OutboxEntry

AROUND = timedelta(minutes=10)
"""How much of a history is shown before and after the time of a message."""

MOST_ROWS = 15
"""The most rows of a history that are shown."""

MOST_PAGES = 20
"""The most pages of a history that are read."""

READ_WITHIN = 30.0
"""Seconds in which a history must be read."""

DECIDABLE = ("unknown", "refused", "expired")
"""The states from which a message may be sent again."""

ANSWERS = {
    "y": "it arrived",
    "n": "it did not arrive, and is not to be sent",
    "r": "it did not arrive: send it again",
    "s": "skip it",
    "q": "quit",
}


class _Decided(msgspec.Struct):
    number: int
    changed: bool
    state: str | None


class Market:
    """What is needed to read a history, if there is a key."""

    def __init__(
        self, api_key: str | None, business_id: int | None, base_url: str, insecure_http: bool
    ) -> None:
        self._settings = base_url, insecure_http, READ_WITHIN
        self._api_key = api_key
        self._business_id = business_id

    def show(self, entry: OutboxEntry) -> None:
        """Print what the chat of a message says around its time."""
        if entry.chat_id is None:
            console.note("The outbox does not know its chat: look for it in the seller's cabinet")
            return
        if not self._api_key or self._business_id not in (None, entry.business_id):
            console.note(
                f"No key of business {entry.business_id} is set, so look at chat {entry.chat_id}"
                " yourself"
            )
            return
        try:
            rows = signals.run(self._read(entry), resolve_within=READ_WITHIN)
        except (ChatError, TimeoutError) as error:
            why = console.describe(error) if isinstance(error, ChatError) else "it takes too long"
            console.note(f"The history of chat {entry.chat_id} cannot be read: {why}")
            return
        if not rows:
            console.note(f"Chat {entry.chat_id} has nothing at that time")
            return
        console.note(f"Chat {entry.chat_id} at that time:")
        for row in rows:
            show(row)
            if _is_equal(row, entry):
                console.result("  ^ says the same as this message")

    async def _read(self, entry: OutboxEntry) -> list[Message]:
        assert entry.chat_id is not None  # noqa: S101 - it was checked
        since = until = entry.ended_at or entry.created_at
        if isinstance(entry.error, DeliveryUnknownError):
            since, until = entry.error.pending.since or since, entry.error.pending.until or until
        since, until = since - AROUND, until + AROUND
        found: list[Message] = []
        session = options.connect(self._api_key, entry.business_id, *self._settings)
        async with session, asyncio.timeout(READ_WITHIN):
            pages = 0
            async for page in session.history(entry.chat_id).pages():
                found += (row for row in page.items if since <= row.created_at <= until)
                pages += 1
                descending = len(page.items) > 1 and (
                    page.items[0].created_at > page.items[-1].created_at
                )
                if pages == MOST_PAGES or (descending and page.items[-1].created_at < since):
                    break
        found.sort(key=lambda row: (row.created_at, row.message_id))
        middle = since + AROUND
        while len(found) > MOST_ROWS:
            # Drop what is farther from the time of sending.
            first, last = middle - found[0].created_at, found[-1].created_at - middle
            found.pop(0 if first > last else -1)
        return found


def _is_equal(row: Message, entry: OutboxEntry) -> bool:
    if row.sender != Sender.PARTNER:
        return False
    if entry.filename is not None:
        return any(
            (file.name, file.size) == (entry.filename, entry.file_size)
            for file in row.payload or ()
        )
    return (row.message or "").strip() == (entry.text or "").strip()


def settle(
    numbers: outbox_options.Numbers = None,
    *,
    delivered: Annotated[
        bool | None,
        typer.Option(
            "--delivered/--not-delivered",
            help="Decide so for all of them. Default: ask for each one.",
            show_default=False,
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All unknown messages.")] = False,
    chat: outbox_options.OnlyChat = None,
    key_prefix: outbox_options.KeyPrefix = None,
    yes: outbox_options.Yes = False,
    json: options.Json = False,
    database: outbox_options.Database = None,
    business_id: outbox_options.OnlyBusiness = None,
    api_key: options.ApiKey = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
) -> None:
    """Decide what became of unknown messages: those with these numbers, or all that match.

    The command shows each message and, if there is a key, what its chat says around that time. It
    changes nothing in the chat. A message that did not arrive is refused, unless you choose to
    send it again.

    Example: yamarket-chat outbox settle --all
    """
    outbox = outbox_options.open_(database)
    _check_choice(numbers, bool(all_ or chat or key_prefix or business_id), "--all")
    if yes and delivered is None:
        raise InvalidArgumentError("--yes needs --delivered or --not-delivered")
    _check_terminal(yes, json)
    entries = _chosen(outbox, numbers, ("unknown",), business_id, chat, key_prefix)
    market = Market(api_key, None, base_url, insecure_http)
    if delivered is None:
        _ask_each(outbox, entries, market)
        return
    if not entries:
        console.note("No message is unknown")
    elif yes or _ask_all(
        entries, market, "Settle {} as " + ("delivered" if delivered else "not delivered")
    ):
        done = _apply(
            outbox,
            entries,
            lambda number: outbox.settle(number, delivered=delivered),
            json,
            "{} settled as " + ("delivered" if delivered else "not delivered"),
        )
        raise typer.Exit(0 if done else 1)


def retry(
    numbers: outbox_options.Numbers = None,
    *,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="STATE",
            parser=outbox_options.check_state,
            autocompletion=outbox_options.complete_state,
            help="All messages in this state: unknown, refused or expired.",
            show_default=False,
        ),
    ] = None,
    chat: outbox_options.OnlyChat = None,
    key_prefix: outbox_options.KeyPrefix = None,
    yes: outbox_options.Yes = False,
    json: options.Json = False,
    database: outbox_options.Database = None,
    business_id: outbox_options.OnlyBusiness = None,
    api_key: options.ApiKey = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
) -> None:
    """Send messages again that are unknown, were refused or have expired.

    Those with these numbers, or all in a state that match. Look at the chats of unknown ones
    first: if one of them did arrive, its buyer gets it twice.

    Example: yamarket-chat outbox retry --state refused --business-id 12345
    """
    outbox = outbox_options.open_(database)
    _check_choice(numbers, bool(state or chat or key_prefix or business_id), "--state")
    if not numbers and state is None:
        raise InvalidArgumentError("pass --state as well: unknown, refused or expired")
    if state is not None and state not in DECIDABLE:
        raise InvalidArgumentError(f"--state is one of {', '.join(DECIDABLE)}")
    _check_terminal(yes, json)
    states = DECIDABLE if state is None else (state,)
    entries = _chosen(outbox, numbers, states, business_id, chat, key_prefix)
    market = Market(api_key, None, base_url, insecure_http)
    if not entries:
        console.note("No message matches")
    elif yes or _ask_all(entries, market, "Send {} again"):
        done = _apply(outbox, entries, outbox.retry, json, "{} waiting again")
        raise typer.Exit(0 if done else 1)


def cancel(
    numbers: Annotated[
        list[int],
        typer.Argument(
            metavar="NUMBER", min=1, help="The numbers of the messages.", show_default=False
        ),
    ],
    *,
    json: options.Json = False,
    database: outbox_options.Database = None,
) -> None:
    """Cancel messages that wait.

    Exit status: 0 none of them has left or ever will, 1 one of them has left, or may have.

    Example: yamarket-chat outbox cancel 5 6
    """
    outbox = outbox_options.open_(database)
    entries = _chosen(outbox, numbers, outbox_options.STATES, None, None, None)
    done = _apply(outbox, entries, outbox.cancel, json, "{} cancelled")
    raise typer.Exit(0 if done else 1)


def _check_choice(numbers: Sequence[int] | None, filtered: bool, option: str) -> None:
    if bool(numbers) is filtered:
        raise InvalidArgumentError(f"pass either the numbers of messages, or {option}")


def _check_terminal(yes: bool, json: bool) -> None:
    if yes:
        return
    if json:
        raise InvalidArgumentError("--json asks no questions: pass --yes as well")
    if sys.stdin is None or not sys.stdin.isatty():
        raise InvalidArgumentError(
            "standard input is no terminal, so nobody can be asked: pass --yes"
        )


def _chosen(
    outbox: Outbox,
    numbers: Sequence[int] | None,
    states: Sequence[str],
    business_id: int | None,
    chat: int | None,
    key_prefix: str | None,
) -> list[OutboxEntry]:
    """Return the messages with these numbers, or those that match."""
    filtered = {"business_id": business_id, "chat_id": chat, "key_prefix": key_prefix}

    async def work() -> list[OutboxEntry]:
        found: list[OutboxEntry] = []
        if numbers:
            for number in dict.fromkeys(numbers):
                entry = await outbox.get(number)
                if entry is None:
                    raise InvalidArgumentError(
                        f"there is no message {number}: it was never put, or is pruned"
                    )
                found.append(entry)
            return found
        for state in states:
            wish: Any = filtered | {"state": state}
            found += [entry async for entry in outbox.entries(**wish)]
        return sorted(found, key=lambda entry: entry.number)

    entries = outbox_options.run(outbox, work)
    for entry in entries:
        if entry.state not in states:
            raise InvalidArgumentError(
                f"message {entry.number} is {entry.state}, and not {' or '.join(states)}: nothing"
                " was changed"
            )
    return entries


def _show(entry: OutboxEntry, market: Market) -> None:
    outbox_options.print_details(entry)
    if entry.state == "unknown":
        market.show(entry)


def _ask_all(entries: Sequence[OutboxEntry], market: Market, question: str) -> bool:
    """Show messages, and ask one question about all of them."""
    if len(entries) == 1:
        _show(entries[0], market)
    else:
        outbox_options.print_table(list(entries))
    if _ask(question.format(console.number(len(entries), "message")) + "? [y/n]", "yn") == "y":
        return True
    console.note("Nothing was changed")
    return False


def _ask_each(outbox: Outbox, entries: Sequence[OutboxEntry], market: Market) -> None:
    """Show messages one by one, and ask about each."""
    if not entries:
        console.note("No message is unknown")
    hint = ", ".join(f"{letter}: {meaning}" for letter, meaning in ANSWERS.items())
    for number, entry in enumerate(entries, 1):
        console.result("")
        _show(entry, market)
        console.note(hint)
        answer = _ask(f"{number} of {len(entries)}: did it arrive? [y/n/r/s/q]", "ynrsq")
        if answer == "q":
            return
        if answer == "r":
            _apply(outbox, [entry], outbox.retry, False, "{} waiting again")
        elif answer != "s":
            said = "delivered" if answer == "y" else "not delivered"
            arrived = answer == "y"
            _apply(
                outbox,
                [entry],
                lambda number, arrived=arrived: outbox.settle(number, delivered=arrived),  # type: ignore[misc]
                False,
                "{} settled as " + said,
            )


def _ask(question: str, letters: str) -> str:
    while True:
        console.err.print(f"{question} ", end="", markup=False)
        answer = sys.stdin.readline()
        if not answer:
            console.note("")
            return letters[-1]
        if (said := answer.strip().lower()[:1]) and said in letters:
            return said


def _apply(
    outbox: Outbox,
    entries: Sequence[OutboxEntry],
    change: Callable[[int], Coroutine[Any, Any, bool]],
    json: bool,
    summary: str,
) -> bool:
    """Change messages; return whether all of them are as they should be."""
    decided: list[_Decided] = []
    failed: list[str] = []

    async def work() -> None:
        for entry in entries:
            try:
                changed = await change(entry.number)
            except InvalidArgumentError as error:
                changed = False
                failed.append(str(error))
            now = await outbox.get(entry.number)
            state = None if now is None else now.state
            decided.append(_Decided(entry.number, changed, state))
            if json:
                console.data(decided[-1])

    outbox_options.run(outbox, work)
    for one in decided:
        if not one.changed and not json and not failed:
            console.failure(f"message {one.number} was left as it is: {one.state or 'pruned'}")
    for text in failed:
        console.failure(text)
    changed = sum(one.changed for one in decided)
    if not json and changed:
        console.result(summary.format(console.number(changed, "message")))
    return changed == len(entries)
