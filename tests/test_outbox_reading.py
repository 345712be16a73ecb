"""Asking the outbox: get, result, cancel, status, prune. The tests end messages themselves."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, delete, make_url, update

import yamarket_chat
from tests.helpers import now
from yamarket_chat import (
    ApiError,
    ChatError,
    DeliveryUnknownError,
    ErrorDetail,
    InvalidArgumentError,
    NotFoundError,
    Pending,
    Receipt,
    SessionClosedError,
    UnexpectedAnswerError,
)
from yamarket_chat.errors import api_error
from yamarket_chat.outbox import (
    MessageCancelledError,
    MessageExpiredError,
    Outbox,
    OutboxDatabaseError,
    OutboxEntry,
    OutboxFile,
    OutboxMessage,
    marks,
    rows,
)
from yamarket_chat.outbox.outcomes import decode_outcome, encode_outcome
from yamarket_chat.outbox.schema import leases, messages

RECEIPT = Receipt(chat_id=17, requests=2, confirmed_by="answer", trace_id="abc")
PENDING = Pending(business_id=12345, chat_id=17, text="x", requests=1, seen="no answer")
DAY = 24 * 3600.0


@pytest.fixture
async def outbox(database_url: Any) -> AsyncIterator[Outbox]:
    async with Outbox(database_url) as made:
        await made.create()
        yield made


def message(text: str = "Заказ собран", business_id: int = 12345, **options: Any) -> OutboxMessage:
    return OutboxMessage(business_id, 17, text, **options)


async def end(
    outbox: Outbox,
    number: int,
    state: str,
    outcome: Receipt | ChatError | None = None,
    ago: float = 0.0,
) -> None:
    """End a message as the courier will."""

    def change(connection: Connection) -> None:
        values: dict[str, Any] = {"state": state, "request": messages.c.request + 1}
        if state != "leaving":
            values["ended_at"] = rows.now() - round(ago * 1e6)
        if outcome is not None:
            values["outcome"] = encode_outcome(outcome)
        connection.execute(update(messages).where(messages.c.number == number).values(values))

    await outbox._database.write(change)


async def got(outbox: Outbox, number: int) -> OutboxEntry:
    entry = await outbox.get(number)
    assert entry is not None
    return entry


# get and result


async def test_nothing_is_got_of_an_unknown_message(outbox: Outbox) -> None:
    assert await outbox.get(1) is None
    assert await outbox.get(business_id=12345, key="k") is None
    for calling in (outbox.result(1), outbox.cancel(1)):
        with pytest.raises(InvalidArgumentError, match="there is no message 1"):
            await calling


async def test_wrong_questions_are_refused(outbox: Outbox) -> None:
    for arguments in ({}, {"key": "k"}, {"business_id": 1}, {"number": 1, "key": "k"}):
        with pytest.raises(InvalidArgumentError, match="pass one of them"):
            await outbox.get(**arguments)
    for calling in (outbox.get(0), outbox.result("x"), outbox.cancel(-1)):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="number is"):
            await calling
    with pytest.raises(InvalidArgumentError, match="timeout is a number of seconds"):
        await outbox.result(1, timeout=-1)


async def test_result_of_a_delivered_message_is_its_receipt(outbox: Outbox) -> None:
    number = await outbox.put(message())
    await end(outbox, number, "delivered", RECEIPT)
    assert await outbox.result(number) == RECEIPT
    entry = await got(outbox, number)
    assert (entry.state, entry.requests, entry.receipt) == ("delivered", 1, RECEIPT)
    assert entry.ended_at is not None
    assert entry.ended_at >= entry.created_at


REFUSED = api_error(404, [ErrorDetail("NOT_FOUND", "no chat")], operation="x", trace_id="abc")


async def test_result_raises_what_became_of_a_message(outbox: Outbox) -> None:
    ends: list[tuple[str, ChatError | None, type[ChatError], str]] = [
        ("refused", REFUSED, NotFoundError, "no chat"),
        ("unknown", DeliveryUnknownError("lost", pending=PENDING), DeliveryUnknownError, "lost"),
        ("cancelled", None, MessageCancelledError, "was cancelled"),
        ("expired", None, MessageExpiredError, "was not sent before its not_after"),
    ]
    for state, error, kind, said in ends:
        number = await outbox.put(message(not_after=datetime.now(UTC)))
        await end(outbox, number, state, error)
        with pytest.raises(kind, match=said) as caught:
            await outbox.result(number)
        assert caught.value.sent is (None if state == "unknown" else False)
        assert str((await got(outbox, number)).error) == str(error)


async def test_result_waits_until_another_process_ends_the_message(outbox: Outbox) -> None:
    first, second = await outbox.put(message()), await outbox.put(message())
    results = [asyncio.ensure_future(outbox.result(number)) for number in (first, first, second)]
    await asyncio.sleep(3)
    await end(outbox, first, "leaving")
    await asyncio.sleep(3)
    assert not any(result.done() for result in results)
    async with Outbox(outbox._database.url) as another:  # it has connections of its own
        began = now()
        await end(another, first, "delivered", RECEIPT)
        assert await asyncio.gather(*results[:2]) == [RECEIPT, RECEIPT]
        assert now() - began < 0.5
        assert not results[2].done()
        await another.cancel(second)
    with pytest.raises(MessageCancelledError):
        await results[2]


async def test_result_of_own_end_is_seen_too(outbox: Outbox) -> None:
    number = await outbox.put(message())
    result = asyncio.ensure_future(outbox.result(number))
    await asyncio.sleep(1)
    await outbox.cancel(number)
    with pytest.raises(MessageCancelledError):
        await result


async def test_end_between_the_question_and_the_first_look_is_seen(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look must not skip a message because nobody has committed since the look before."""
    other = asyncio.ensure_future(outbox.result(await outbox.put(message())))
    number = await outbox.put(message())
    get = outbox.get

    async def slow(asked: int) -> OutboxEntry | None:
        entry = await get(asked)
        if entry is not None and entry.state == "waiting":
            await end(outbox, number, "delivered", RECEIPT)
            await asyncio.sleep(1)  # the looks for the other message see this commit
        return entry

    monkeypatch.setattr(outbox, "get", slow)
    assert await outbox.result(number, timeout=60) == RECEIPT
    other.cancel()


async def test_result_gives_up_in_time_and_the_message_goes_on(outbox: Outbox) -> None:
    number = await outbox.put(message())
    began = now()
    with pytest.raises(TimeoutError):
        await outbox.result(number, timeout=5)
    assert 5 <= now() - began < 6
    with pytest.raises(TimeoutError):
        await outbox.result(number, timeout=0)
    assert (await got(outbox, number)).state == "waiting"
    assert asyncio.all_tasks() == {asyncio.current_task()}  # nobody looks any more


async def test_result_of_a_message_that_is_pruned_meanwhile_says_so(outbox: Outbox) -> None:
    number = await outbox.put(message())
    result = asyncio.ensure_future(outbox.result(number))
    await asyncio.sleep(1)

    def remove(connection: Connection) -> None:  # its end and its pruning between two looks
        connection.execute(delete(messages))

    await outbox._database.write(remove)
    with pytest.raises(InvalidArgumentError, match="or it is pruned"):
        await result


async def test_result_waits_while_the_database_is_away(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = await outbox.put(message())
    result = asyncio.ensure_future(outbox.result(number))
    await asyncio.sleep(1)
    read = outbox._database.read
    passing = OutboxDatabaseError("it is being restarted", retry_after=1.0)
    lasting = OutboxDatabaseError("the tables are missing")

    def fail(error: OutboxDatabaseError) -> None:
        async def failing(*_: Any) -> None:
            raise error

        monkeypatch.setattr(outbox._database, "read", failing)

    fail(passing)
    await end(outbox, number, "delivered", RECEIPT)
    await asyncio.sleep(5)
    assert not result.done()
    monkeypatch.setattr(outbox._database, "read", read)
    assert await result == RECEIPT

    other = asyncio.ensure_future(outbox.result(await outbox.put(message())))
    await asyncio.sleep(1)
    fail(lasting)
    await outbox.cancel(number)  # a commit, so that it looks
    monkeypatch.setattr(outbox._database, "data_version", lambda: asyncio.sleep(0, 7))
    with pytest.raises(OutboxDatabaseError, match="the tables are missing"):
        await other


@pytest.mark.real_time
async def test_result_is_learnt_from_another_process(outbox: Outbox) -> None:
    program = """
        import asyncio, sys
        from yamarket_chat.outbox import Outbox
        assert asyncio.run(Outbox(sys.argv[1]).cancel(int(sys.argv[2])))
    """
    number = await outbox.put(message())
    result = asyncio.ensure_future(outbox.result(number, timeout=20))
    url = make_url(outbox._database.url).render_as_string(hide_password=False)
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(program), url, str(number)],
        check=True,
    )
    with pytest.raises(MessageCancelledError):
        await result


# cancel


async def test_waiting_message_is_cancelled(outbox: Outbox) -> None:
    number = await outbox.put(message(key="k"))
    assert await outbox.cancel(number)
    assert await outbox.cancel(number)
    entry = await got(outbox, number)
    assert (entry.state, entry.requests) == ("cancelled", 0)
    assert await outbox.put(message(key="k")) == number  # the key is remembered


@pytest.mark.parametrize(
    ("state", "never_leaves"),
    [
        ("leaving", False),
        ("delivered", False),
        ("refused", False),
        ("unknown", False),
        ("expired", True),
    ],
)
async def test_only_what_waits_is_cancelled(outbox: Outbox, state: str, never_leaves: bool) -> None:
    number = await outbox.put(message())
    await end(outbox, number, state)
    assert await outbox.cancel(number) is never_leaves
    assert (await got(outbox, number)).state == state


# status


async def test_status_counts_what_waits(outbox: Outbox) -> None:
    status = await outbox.status()
    assert (status.waiting, status.leaving, status.oldest, status.paused) == (0, 0, None, {})
    numbers = [await outbox.put(message(business_id=business)) for business in (1, 1, 1, 2)]
    await end(outbox, numbers[0], "delivered", RECEIPT)
    await end(outbox, numbers[1], "leaving")

    def pause(connection: Connection) -> None:
        connection.execute(leases.insert(), [{"business_id": 1}, {"business_id": 2}])
        marks.pause(connection, 2, "401: the key\0is wrong")  # a text of the Market's

    await outbox._database.write(pause)
    status = await outbox.status()
    assert (status.waiting, status.leaving) == (2, 1)
    assert status.oldest == (await got(outbox, numbers[1])).created_at
    assert status.paused == {2: "401: the key\ufffdis wrong"}
    one = await outbox.status(1)
    assert (one.waiting, one.leaving, one.paused) == (1, 1, {})
    assert (await outbox.status("2")).waiting == 1


# prune


async def test_prune_removes_what_ended_long_ago(outbox: Outbox) -> None:
    ended = {
        name: await outbox.put(message(name, business_id=business, key=name))
        for name, business in (("old", 1), ("older", 9), ("young", 9))
    }
    waits = await outbox.put(message("waits"))
    await end(outbox, ended["old"], "refused", REFUSED, ago=7 * DAY + 60)
    await end(outbox, ended["older"], "unknown", ago=30 * DAY)
    await end(outbox, ended["young"], "delivered", RECEIPT, ago=7 * DAY - 60)
    assert await outbox.prune() == 2
    assert [name for name, number in ended.items() if await outbox.get(number)] == ["young"]
    assert await outbox.get(waits) is not None
    assert await outbox.put(message("another", business_id=1, key="old")) > waits


async def test_prune_removes_many_in_pieces(outbox: Outbox) -> None:
    numbers = await outbox.put_many(message(str(index)) for index in range(1_200))

    def change(connection: Connection) -> None:
        connection.execute(update(messages).values(state="delivered", ended_at=1))

    await outbox._database.write(change)
    assert await outbox.prune() == 1_200
    assert await outbox.get(numbers[0]) is None


@pytest.mark.parametrize("keep", [1e300, 1e308])
async def test_messages_may_be_kept_for_ever(database_url: Any, keep: float) -> None:
    async with Outbox(database_url, keep=keep) as outbox:
        await outbox.create()
        number = await outbox.put(message())
        await end(outbox, number, "delivered", RECEIPT, ago=3_000 * DAY)
        assert await outbox.prune() == 0


async def test_contents_of_delivered_files_are_removed(outbox: Outbox) -> None:
    def file(name: str) -> OutboxFile:
        return OutboxFile(12345, 17, b"paper", filename=name, key=name)

    delivered, refused, waits, old = [await outbox.put(file(name)) for name in "abcd"]
    await end(outbox, delivered, "delivered", RECEIPT)
    await end(outbox, refused, "refused", REFUSED)
    await end(outbox, old, "refused", REFUSED, ago=8 * DAY)
    await outbox.prune()
    engine = create_engine(outbox._database.url)
    with engine.connect() as connection:
        kept = connection.exec_driver_sql(
            "SELECT number FROM yamarket_outbox_files ORDER BY number"
        )
        assert [row[0] for row in kept] == [refused, waits]
    engine.dispose()
    assert await outbox.put(file("a")) == delivered
    assert (await got(outbox, delivered)).filename == "a"


async def test_texts_are_forgotten_an_hour_after_the_end(database_url: Any) -> None:
    async with Outbox(database_url, forget_text=True) as outbox:
        await outbox.create()
        numbers = await outbox.put_many(message(str(index)) for index in range(1_100))

        def change(connection: Connection) -> None:
            ended_at = rows.now() - 3_660_000_000
            connection.execute(update(messages).values(state="delivered", ended_at=ended_at))

        await outbox._database.write(change)
        young = await outbox.put(message("young"))
        await end(outbox, young, "delivered", RECEIPT, ago=3_500)
        old = await outbox.put(message("old", key="k"))
        await end(outbox, old, "refused", REFUSED, ago=3_700)
        await outbox.put(message("waits"))
        assert await outbox.prune() == 0
        texts = [(await got(outbox, number)).text for number in (numbers[0], numbers[-1], old)]
        assert texts == [None, None, None]
        assert (await got(outbox, young)).text == "young"
        assert await outbox.put(message("old", key="k")) == old  # it is told by its digest
        with pytest.raises(ChatError, match="belongs to message"):
            await outbox.put(message("older", key="k"))


async def test_texts_are_kept_unless_told_otherwise(outbox: Outbox) -> None:
    number = await outbox.put(message("kept"))
    await end(outbox, number, "delivered", RECEIPT, ago=6 * DAY)
    await outbox.prune()
    assert (await got(outbox, number)).text == "kept"


async def test_calls_with_a_later_error_work_after_a_close(outbox: Outbox) -> None:
    await outbox.close()
    await outbox.close()
    assert await outbox.put(message()) == 1


# What is stored of an end

texts = st.text(st.characters(exclude_categories=["Cs"]))
details = st.builds(ErrorDetail, texts, st.none() | texts)
api_errors = st.builds(
    api_error,
    st.integers(400, 599),
    st.lists(details),
    operation=texts,
    trace_id=st.none() | texts,
    sent=st.sampled_from([False, None]),
)
plain_errors = st.sampled_from(
    [InvalidArgumentError("x"), SessionClosedError("x", sent=None), ChatError("x", retry_after=5)]
)
unexpected = st.builds(
    UnexpectedAnswerError,
    texts,
    status=st.integers(0, 599),
    excerpt=texts,
    operation=texts,
    trace_id=st.none() | texts,
)
moments = st.none() | st.datetimes(timezones=st.just(UTC))
unknown = st.builds(
    DeliveryUnknownError,
    texts,
    pending=st.builds(
        Pending, requests=st.integers(0, 9), since=moments, until=moments, before=st.just(())
    ),
)


@settings(max_examples=100)
@given(st.one_of(api_errors, plain_errors, unexpected, unknown))
def test_any_error_is_the_same_after_it_was_stored(error: ChatError) -> None:
    receipt, again = decode_outcome(encode_outcome(error))
    assert receipt is None
    assert type(again) is type(error)
    assert again is not None
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_error_of_a_newer_version_is_raised_as_what_is_known() -> None:
    class BrandNewError(ChatError):
        pass

    _, again = decode_outcome(encode_outcome(BrandNewError("new", sent=None, retry_after=3)))
    assert (type(again), str(again)) == (ChatError, "new")

    class BrandNewApiError(ApiError):
        pass

    new = BrandNewApiError("new", status=477, errors=(), operation="x", trace_id=None)
    _, again = decode_outcome(encode_outcome(new))
    assert (type(again), str(again)) == (ChatError, "new")


def test_errors_of_the_outbox_can_be_pickled() -> None:
    for error in (
        yamarket_chat.outbox.KeyConflictError("x", key="k", number=5),
        OutboxDatabaseError("x", sent=None, retry_after=1.0),
        MessageExpiredError("x"),
    ):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(again), str(again), vars(again)) == (type(error), "x", vars(error))


def test_week_is_kept_by_default() -> None:
    assert timedelta(seconds=Outbox("sqlite:///outbox.db")._keep) == timedelta(days=7)
