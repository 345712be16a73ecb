"""A bot's work for one business, as long as its grant holds: looks at chats, and handles them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from ..errors import ChatError, NotFoundError, SessionClosedError
from ..models import Chat, Message
from ..outbox import Outbox, OutboxDatabaseError, inside
from ..outbox.calling import NotAsyncError
from ..outbox.grant import Grant
from ..outbox.pausing import AGAIN, Reminder, pauses
from ..outbox.points import reach
from ..outbox.turns import Session
from ..system import wall_time
from . import cursor
from .agenda import FIRST_PAUSE, Agenda, Todo
from .cursor import WAITED, Cursor, Hint, Key, StatementError
from .errors import HandlerDiedError, MessageTooOldError
from .handlers import call
from .inbox import Found, Start, is_shown, micros, new_messages, ordered
from .message import BuyerMessage
from .polling import Polling, has_waited, may_have_news
from .reading import Reading, earlier, read
from .settings import Settings
from .slots import Slots
from .steps import TRIES, Steps

logger: logging.Logger = logging.getLogger("yamarket_chat")

PAUSES = (2.0, 10.0, 60.0, 300.0)
"""Seconds after which a handler that failed is called again."""

LATE = 600.0
"""Seconds for which a chat is read again if its history does not show what has changed in it."""

SETTLED = 30.0
"""Seconds after a change within which a chat is read again: earlier rows may be shown later."""

ONCE_MORE = (1.0, SETTLED)
"""Seconds after which a chat is read again in which a message was handled. What the buyer wrote
meanwhile stands before the reply, so the chat does not wait for the shop."""

KNOWN = 1_000
"""How many chats of a business are kept in memory: what their order and their buyer are."""


class Business:
    """Works for a business until it is stopped."""

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        grant: Grant,
        open_session: Callable[[int], Awaitable[Session]],
        slots: Slots,
    ) -> None:
        self.grant = grant
        self.business_id: int = grant.business_id
        self._settings = settings
        self._outbox = outbox
        self._database = inside.database(outbox)
        self._open_session = open_session
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._session: Session | None = None
        self._start = Start(0, False, False)
        self._ready = asyncio.Event()
        self._agenda = Agenda(self._look_in_turn)
        self._reading = Reading()
        self._handling: set[int] = set()  # the chats whose handler is at work
        self._over = False
        self._errors: dict[tuple[int, int], Exception] = {}  # its last error, by chat and message
        self._steps = Steps(self._database)
        self._suspects: set[int] = set()
        self._chats: dict[int, Chat] = {}
        self._polling: Polling | None = None
        self._listed = 0  # pages
        self._reminder = Reminder()
        self._paused = False
        self._task = asyncio.create_task(self._run())

    # Beginning and ending

    async def stop(self, grace: float) -> None:
        """Begin nothing new; wait for the handlers at work, and then cancel them."""
        self._begin_no_more()
        try:
            if working := self._agenda.tasks():
                await asyncio.wait(working, timeout=grace)
        finally:
            self.over()
            try:
                await asyncio.wait([*self._agenda.tasks(), self._task])
            finally:  # also if this is cancelled: nobody else would close it
                await self._close_session()

    def over(self) -> None:
        """Stop at once: cancel all handlers."""
        self._begin_no_more()
        if not self._over:  # a second cancellation would end the giving back of tries
            self._over = True
            for task in self._agenda.tasks():
                task.cancel()

    def _begin_no_more(self) -> None:
        if not self._agenda.stopping:
            self._task.cancel()
            self._agenda.stop(self._handling)

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            listed, failure = self._listed, None
            try:
                await self._begin()
                await self._poll()
            except ChatError as error:
                failure = error
                await self._failed(error)
            except Exception:
                logger.exception("bot %s, business %d", self._settings.name, self.business_id)
            if self._listed != listed:
                pause = FIRST_PAUSE
            if failure is not None and pauses(failure):
                self._ready.clear()
                await self._close_session()  # the keys are asked anew
                pause = AGAIN
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN)

    async def _failed(self, error: ChatError) -> None:
        """Log it, and note it if somebody has to mend it."""
        lasts = pauses(error) or error.retry_after is None
        if not lasts or self._reminder.is_due(self._loop.time()):
            logger.warning("bot %s, business %d: %s", self._settings.name, self.business_id, error)
        if lasts and not isinstance(error, (OutboxDatabaseError, SessionClosedError)):
            with suppress(OutboxDatabaseError):
                await self._note_pause(str(error))

    async def _note_pause(self, why: str | None) -> None:
        self._paused = why is not None
        await self._database.write(cursor.pause, self.business_id, self._settings.name, why)

    async def _begin(self) -> None:
        if self._ready.is_set():
            return
        settings, session = self._settings, self._session
        if session is None:
            session = self._session = await self._open_session(self.business_id)
            session.departing()
        if self._market_time() is None:
            try:
                # Whatever it answers has a Date.
                await session.request("GET", "/v2/campaigns", params={"limit": 1})
            except ChatError as error:
                if self._market_time() is None or pauses(error):
                    raise
        began = await self._database.write(
            cursor.begin,
            self.business_id,
            settings.name,
            self._now(),
            settings.waiting,
        )
        reach("begun")
        self._paused |= began.paused is not None
        self._start = Start(began.began_at, began.waiting, began.sweep is not None)
        about = self.business_id, settings.name
        # Before any handler is called: what runs now is not dead.
        suspects = await self._database.read(cursor.suspects, *about)
        self._suspects = set(suspects) - self._handling
        unfinished = await self._database.read(cursor.unfinished, *about)
        self._ready.set()
        for chat_id in unfinished:
            self._agenda.look_at(chat_id)

    async def _poll(self) -> None:
        session = self.session()
        if self._polling is None:
            self._polling = Polling(
                session,
                session.limits.chats,
                self._settings.every,
                self._changed,
                self._swept,
            )
        await self._polling.run()

    async def _close_session(self) -> None:
        session, self._session, self._polling = self._session, None, None
        if session is not None:
            await session.close(0.0)

    def _market_time(self) -> float | None:
        """Return the earliest time that the Market's clock may show, in seconds since 1970."""
        if self._session is None:
            return None
        clock = self._session.departing().market_clock()
        return None if clock is None else self._loop.time() + clock.least

    def _now(self) -> int:
        time = self._market_time()
        return round((wall_time(self._loop) if time is None else time) * 1e6)

    # Which chats are looked at

    async def _swept(self, chats: int, seconds: float) -> None:
        logger.info(
            "bot %s, business %d: listing all %d chats takes %.0f s: so late a message may be found"
            " that somebody has answered before the bot saw it",
            self._settings.name, self.business_id, chats, seconds,
        )  # fmt: skip
        await self._database.write(
            cursor.swept, self.business_id, self._settings.name, chats, seconds
        )
        self._start = msgspec.structs.replace(self._start, all_listed=True)

    async def _changed(self, chats: list[Chat]) -> None:
        """Look at those chats of a page that have changed since they were looked at."""
        self._listed += 1
        if self._reminder.end() or self._paused:
            about = self._settings.name, self.business_id
            logger.info("bot %s, business %d is no longer paused", *about)
            await self._note_pause(None)
        ids, bot = [chat.chat_id for chat in chats], (self.business_id, self._settings.name)
        known = await self._database.read(cursor.looked, *bot, ids)
        new = [chat for chat in chats if chat.chat_id not in known]
        if waited := [chat.chat_id for chat in new if has_waited(chat, self._start)]:
            # It is not known later: the chat may change before it is looked at.
            await self._database.write(cursor.waited, *bot, waited)
        for chat in chats:
            if chat.chat_id in known:
                changed = known[chat.chat_id] != micros(chat.updated_at)
            else:
                changed = may_have_news(chat, self._start)
            if changed:
                self._remember(chat)
                self._agenda.look_at(chat.chat_id, chat=chat)

    def hinted(self, hint: Hint) -> None:
        """Look at a chat of which the Market told."""
        self._agenda.look_at(hint.chat_id, hint=hint)

    def _remember(self, chat: Chat) -> None:
        self._chats.pop(chat.chat_id, None)
        self._chats[chat.chat_id] = chat
        if len(self._chats) > KNOWN:
            del self._chats[next(iter(self._chats))]

    # A look at a chat

    async def _look_in_turn(self, chat_id: int, todo: Todo) -> float | None:
        await self._ready.wait()
        failure: Exception | None = None
        pause = None
        try:
            # Not within the slot: the handlers of other businesses need it.
            async with (
                self._reading.may_read(self.session),
                self._slots.slot(alone=chat_id in self._suspects),
            ):
                todo.has_turn = True
                pause = await self._look(chat_id, todo)
                self._suspects.discard(chat_id)
        except NotFoundError:  # the chat is gone
            self._suspects.discard(chat_id)
            with suppress(OutboxDatabaseError):
                hints = [hint for hint, _ in todo.hints.values()]
                await self._database.write(cursor.followed, hints)
                key = self._key(chat_id)
                await self._forget(key, await self._database.read(cursor.read, key))
        except SessionClosedError:
            pause = FIRST_PAUSE
        except ChatError as error:
            failure = error
            logger.warning(
                "bot %s, chat %d: looked at again in a while: %s",
                self._settings.name, chat_id, error,
            )  # fmt: skip
        except Exception as error:
            failure = error
            logger.exception("bot %s, chat %d: a defect", self._settings.name, chat_id)
        if failure is not None:
            todo.looks += 1
            passes = isinstance(failure, ChatError) and failure.retry_after is not None
            pause = todo.pause(AGAIN if passes else LATE)
            self._agenda.rest(chat_id, pause)
        return pause

    async def _look(self, chat_id: int, todo: Todo) -> float | None:
        """Handle what is new in a chat. Returns in how many seconds to look again, or None."""
        key = self._key(chat_id)
        now, began = self._now(), self._loop.time()
        was = await self._database.read(cursor.read, key)
        rows = ordered(await read(self.session(), chat_id, was.anchor))
        begins_at = await self._begins_at(chat_id, todo, was.begins_at, rows)
        for found in new_messages(rows, was, begins_at):
            if self._agenda.stopping:
                return None
            after = await self._handle(key, was, begins_at, rows, found)
            if after is None:
                return FIRST_PAUSE
            was = after
            todo.once_more = tuple(self._loop.time() + pause for pause in ONCE_MORE)
        if was.message_id is not None and await self._is_gone(key, was.message_id, rows):
            after = await self._forget(key, was)
            if after is None:
                return FIRST_PAUSE
            was = after
        pauses = await self._note(key, was, begins_at, rows, todo, now)
        # Moments, and not pauses: whatever else is a reason to look here moves none of them.
        todo.once_more = tuple(at for at in todo.once_more if at > began)
        pauses += (max(0.0, at - self._loop.time()) for at in todo.once_more)
        return min(pauses, default=None)

    async def _begins_at(
        self, chat_id: int, todo: Todo, known: int | None, rows: list[Message]
    ) -> int:
        """Return from when on the messages of a chat are the bot's."""
        if known is not None and known != WAITED:
            return known
        waited = known == WAITED
        if known is None and todo.chat is None and self._start.waiting:
            # Nobody has listed it for this look, and what is remembered may be out of date.
            chat = await self.session().get_chat(chat_id)
            self._remember(chat)
            waited = has_waited(chat, self._start)
        return self._start.begins_at(rows, waited)

    def _key(self, chat_id: int) -> Key:
        return Key(self.business_id, self._settings.name, chat_id)

    async def _is_gone(self, key: Key, message_id: int, rows: list[Message]) -> bool:
        """Whether a message that was tried, and is not new any more, was deleted by the Market."""
        if any(row.message_id == message_id for row in rows):
            return True  # it is older now than what may be new
        try:
            await self.session().get_message(key.chat_id, message_id)
        except NotFoundError:
            return True
        return False  # a history may show it later

    async def _forget(self, key: Key, was: Cursor) -> Cursor | None:
        """Forget the tries of a message that is gone. Returns the cursor after it, as `change`."""
        if was.message_id is None:
            return was
        logger.info(
            "bot %s, chat %d: message %d is gone, after %d tries",
            key.bot, key.chat_id, was.message_id, was.tries,
        )  # fmt: skip
        self._errors.pop((key.chat_id, was.message_id), None)
        forgotten = {"message_id": None, "tries": 0, "running": False}
        return await self._steps.change(key, was, forgotten)

    async def _note(
        self,
        key: Key,
        was: Cursor,
        begins_at: int,
        rows: list[Message],
        todo: Todo,
        now: int,
    ) -> list[float]:
        """Note it if the history shows what the chat was looked at for.

        Returns in how many seconds to look again, if it does not.
        """
        shown = was.handled | {row.message_id for row in rows} | {0}  # 0 tells of no message
        if was.anchor is not None and was.cursor_at is not None:
            # The history is not read from its start. The Market may tell again of what is old.
            unshown = todo.hints.keys() - shown
            since = was.cursor_at - cursor.HOUR
            shown |= await earlier(self.session(), key.chat_id, sorted(unshown), since)
        passed = [
            hint
            for hint, seen_at in todo.hints.values()
            if hint.message_id in shown or self._is_late(seen_at)
        ]
        for hint in passed:
            if hint.message_id not in shown:
                logger.warning(
                    "bot %s, chat %d: the Market told of message %d, which the chat's history does"
                    " not show",
                    key.bot, key.chat_id, hint.message_id,
                )  # fmt: skip
        if passed:
            await self._database.write(cursor.followed, passed)
            for hint in passed:
                del todo.hints[hint.message_id]
        pauses = []
        if (chat := todo.chat) is not None:
            changed_at = micros(chat.updated_at)
            shown_now = is_shown(rows, changed_at, now)
            settles = SETTLED - (now - changed_at) / 1e6
            if _is_old(rows, changed_at, now) or self._is_late(todo.listed_at):
                shown_now, settles = True, 0.0
            if shown_now and settles <= 0:
                reach("before the look is noted")
                await self._database.write(
                    cursor.change, key, was, {"looked_at": changed_at, "begins_at": begins_at}
                )
                reach("look noted")
                todo.chat = None
            elif shown_now:
                pauses.append(min(settles, LATE))
        if todo.hints or (todo.chat is not None and not pauses):
            todo.looks += 1
            pauses.append(todo.pause(AGAIN))
        return pauses

    def _is_late(self, since: float) -> bool:
        return self._loop.time() - since > LATE

    async def chat(self, chat_id: int) -> Chat:
        """Return what is known of a chat; ask the Market if that is nothing."""
        if chat_id not in self._chats:
            self._remember(await self.session().get_chat(chat_id))
        return self._chats[chat_id]

    def session(self) -> Session:
        """Return the session of the business."""
        if self._session is None:
            raise SessionClosedError("the bot's session was closed")
        return self._session

    # A message

    async def _handle(
        self, key: Key, was: Cursor, begins_at: int, rows: list[Message], found: Found
    ) -> Cursor | None:
        """Handle a message. Returns the cursor after it; None if it is not handled."""
        message, chat = found.message, await self.chat(key.chat_id)
        about = key.chat_id, message.message_id
        while True:
            tries = was.tried(message.message_id) + 1
            error = self._given_up(about, micros(message.created_at), tries)
            if error is not None:
                tries = max(tries, TRIES + 1)  # from now on, those of the error handler
            begun = {
                "message_id": message.message_id,
                "tries": tries,
                "running": True,
                "begins_at": begins_at,
            }
            held = self.message(
                chat,
                message,
                found.later,
                "" if error is None else "error:",
                (key, was.version + 1),
            )
            self._handling.add(key.chat_id)
            reach("before the try")
            counting = asyncio.ensure_future(self._steps.change(key, was, begun))
            try:
                counted = await asyncio.shield(counting)
                if counted is None:
                    return None  # somebody else is at work
                was = counted
                reach("tried")
                if error is None:
                    failure = await call(
                        self._settings.message, held, within=self._settings.handler_timeout
                    )
                else:
                    failure = None
                    if tries <= 2 * TRIES:
                        await self.tell(held, error)
                    else:
                        logger.error(
                            "bot %s, chat %d, message %d: given up, because the process died each"
                            " of %d times as Bot.error was told: %s",
                            key.bot, *about, TRIES, error,
                        )  # fmt: skip
                reach("handled")
                if failure is None:
                    try:
                        work = key, was, begins_at, rows, message, held, self._now()
                        try:
                            after = await self._steps.commit(*work)
                        except StatementError as refused:
                            if error is None:
                                raise
                            logger.error(
                                "bot %s, chat %d, message %d: a reply or a statement of Bot.error"
                                " failed",
                                key.bot, *about, exc_info=refused.__cause__,
                            )  # fmt: skip
                            held.drop()
                            after = await self._steps.commit(*work)
                        self._errors.pop(about, None)
                        inside.wake(self._outbox)
                        return after
                    except StatementError as refused:
                        failure = refused.__cause__  # type: ignore[assignment]
            except asyncio.CancelledError:
                held.end()
                await asyncio.shield(self._steps.give_back(key, counting))
                raise
            finally:
                held.end()
                self._handling.discard(key.chat_id)
            logger.warning(
                "bot %s, chat %d, message %d: try %d failed",
                key.bot, *about, tries, exc_info=failure,
            )  # fmt: skip
            if failure is not None:
                self._errors[about] = failure
            values: dict[str, Any] = {"running": False}
            if isinstance(failure, NotAsyncError):  # it has done its work, and would do it again
                tries = values["tries"] = TRIES
            after = await self._steps.change(key, was, values)
            if after is None:
                return None
            was = after
            if tries < TRIES:
                self._agenda.rest(key.chat_id, PAUSES[tries - 1])
                return None

    def _given_up(self, about: tuple[int, int], created_at: int, tries: int) -> Exception | None:
        """Return why the handler of a message is not called, or not any more."""
        most = self._settings.max_age
        is_too_old = most is not None and self._now() - created_at > most * 1e6
        if not is_too_old and tries <= TRIES:
            return None
        if about in self._errors:
            return self._errors[about]
        if is_too_old:
            again = " again" if 1 < tries <= TRIES else ""
            return MessageTooOldError(
                f"the message is older than {most:g} s, so its handler is not called{again}"
            )
        return HandlerDiedError(
            f"the handler was called {TRIES} times: its process died, or an earlier process has the"
            " errors in its log"
        )

    async def tell(self, message: BuyerMessage, error: Exception) -> bool:
        """Tell the program of a message that it could not answer. Returns whether that worked."""
        settings, about = self._settings, (message.chat.chat_id, message.message_id)
        if settings.error is None:
            logger.error("bot %s, chat %d, message %d: %s", settings.name, *about, error)
            return True
        failure = await call(settings.error, message, error, within=settings.handler_timeout)
        if failure is None:
            return True
        logger.error(
            "bot %s, chat %d, message %d: Bot.error failed",
            settings.name, *about, exc_info=failure,
        )  # fmt: skip
        message.drop()
        return False

    def message(
        self,
        chat: Chat,
        message: Message,
        later: tuple[Message, ...],
        kind: str,
        run: tuple[Key, int] | None,
    ) -> BuyerMessage:
        """Make what a handler gets. `kind` stands in the keys of its replies."""
        keys = f"bot:{self._settings.name}:{chat.chat_id}:{message.message_id}:{kind}"
        return BuyerMessage(
            self.business_id, chat, message, later, self.session(), self._outbox, keys, run
        )

    async def alone(
        self, chat_id: int, work: Callable[[], Coroutine[Any, Any, None]], *, suspect: bool
    ) -> None:
        """Run another handler for a chat, while none is at work in it. Waits for a slot.

        A suspect, whose process has died, runs while no handler is at work in any chat.

        Raises SessionClosedError if this business is left.
        """

        async def in_slot() -> None:
            async with self._slots.slot(alone=suspect):
                self._handling.add(chat_id)
                try:
                    await work()
                finally:
                    self._handling.discard(chat_id)

        await self._agenda.alone(chat_id, in_slot)


def _is_old(rows: Sequence[Message], changed_at: int, now: int) -> bool:
    """Whether a change is so old that a history shows it. An empty history tells nothing."""
    return bool(rows) and now - changed_at > LATE * 1e6
