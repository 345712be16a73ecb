"""BuyerMessage: what a handler gets, and by which it answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, overload

from ..errors import ChatError, InvalidArgumentError
from ..listing import Listing
from ..models import Chat, File, Message
from ..outbox import Outbox, OutboxFile, OutboxMessage, inside
from ..outbox.rows import Row, prepare
from . import cursor

if TYPE_CHECKING:
    from sqlalchemy import Executable

    from ..session import ChatSession


class BuyerMessage:
    """A message of a buyer, as a handler gets it.

    Attributes:
        business_id: The business.
        chat: The chat: its order or return, and the buyer. Its status may be an older one.
        message_id: The id of the message.
        created_at: When the Market stored it.
        text: The text. It is empty if there are only files, or a sticker.
        files: The files. `download` fetches them.
        later: The messages that stand behind it in the chat, of whomever: a person of the shop may
            have answered, or the buyer have written more. The bot's replies to earlier messages
            are among them.

    Example:
        @bot.message
        async def answer(message: BuyerMessage) -> None:
            if any(row.sender == "CUSTOMER" for row in message.later):
                return  # the last message of the buyer gets the answer
            await message.reply(f"Вы написали: {message.text}")
    """

    def __init__(
        self,
        business_id: int,
        chat: Chat,
        message: Message,
        later: tuple[Message, ...],
        session: ChatSession,
        outbox: Outbox,
        keys: str,
        run: tuple[cursor.Key, int] | None,
    ) -> None:
        self.business_id: int = business_id
        self.chat: Chat = chat
        self.message_id: int = message.message_id
        self.created_at: datetime = message.created_at
        self.text: str = message.message or ""
        self.files: tuple[File, ...] = message.payload or ()
        self.later: tuple[Message, ...] = later
        self._session = session
        self._outbox = outbox
        self._keys = keys  # how the keys of the replies begin
        self._run = run  # the version that the chat's cursor has during this run, if it has one
        self._numbers = {"": 0, "now:": 0}
        self._replies: dict[int, Row] = {}  # by number: a file may be read while a text is held
        self._statements: list[tuple[Executable, Any]] = []
        self._ended = False

    def __repr__(self) -> str:
        return f"BuyerMessage({self.business_id}, {self.chat.chat_id}, {self.message_id})"

    async def reply(self, text: str, *, now: bool = False) -> None:
        """Answer with a text, through the outbox.

        The reply is held until the handler returns. Then it is put together with the note that the
        message is handled. If the handler raises or dies, nothing of it is put, and it runs again.

        Args:
            text: The text, of 1 to 4,096 characters.
            now: True puts it at once, for "one moment, I look". If the handler runs again, the text
                of the first run stays.

        Raises:
            InvalidArgumentError: The text makes no sense, or the handler has ended.
            ChatError: With `now`: another process has taken the message over.
            OutboxDatabaseError: With `now`: the database cannot be used.

        Example:
            await message.reply("Один момент, проверяю", now=True)
            await message.reply("Ваш заказ уже в пути")
        """
        number, key = self._next(now)
        row = prepare(OutboxMessage(self.business_id, self.chat.chat_id, text), key)
        await self._put(row, None if now else number)

    async def reply_file(
        self,
        file: str | os.PathLike[str] | bytes | BinaryIO,
        *,
        filename: str | None = None,
        now: bool = False,
    ) -> None:
        """Answer with a file, as `reply` does with a text. It is read at once.

        Args:
            file: A path, bytes, or a file opened for bytes, of at most 5 MB.
            filename: The name that the buyer sees. Default: the name of the file.
            now: As for `reply`.

        Raises:
            InvalidArgumentError: The file makes no sense, or the handler has ended.
            ChatError: With `now`: another process has taken the message over.
            OutboxDatabaseError: With `now`: the database cannot be used.

        Example:
            await message.reply_file("инструкция.pdf")
        """
        number, key = self._next(now)
        put = OutboxFile(self.business_id, self.chat.chat_id, file, filename=filename)
        row = await inside.database(self._outbox).call(prepare, put, key)
        await self._put(row, None if now else number)

    def also(self, statement: Executable, parameters: Any = None) -> None:
        """Add a statement of your own to the transaction of the replies.

        It is executed once if the replies are put, and never otherwise. If it fails, nothing is
        put, and the handler counts as failed.

        Args:
            statement: A statement of SQLAlchemy's, such as `insert(...)` or `text(...)`.
            parameters: Its parameters.

        Raises:
            InvalidArgumentError: It is no statement of SQLAlchemy's, or the handler has ended.

        Example:
            message.also(text("INSERT INTO seen (id) VALUES (:id)"), {"id": message.message_id})
        """
        from sqlalchemy import Executable

        self._check_open()
        if not isinstance(statement, Executable):
            raise InvalidArgumentError(
                "statement is a statement of SQLAlchemy's: pass sqlalchemy.text(...) for SQL"
            )
        self._statements.append((statement, parameters))

    def history(self) -> Listing[Message]:
        """List the messages of the chat.

        Example:
            texts = [row.message async for row in message.history()]
        """
        return self._session.history(self.chat.chat_id)

    @overload
    async def download(self, file: File) -> bytes: ...

    @overload
    async def download(self, file: File, to: str | os.PathLike[str]) -> Path: ...

    async def download(self, file: File, to: str | os.PathLike[str] | None = None) -> bytes | Path:
        """Fetch a file of the message, as `ChatSession.download` does.

        Args:
            file: One of `files`, or of a message of `later`.
            to: The path to write to, which is then returned. Default: the bytes are returned.

        Raises:
            ChatError: The errors of `ChatSession.download`.

        Example:
            for file in message.files:
                content = await message.download(file)
        """
        if to is None:
            return await self._session.download(file)
        return await self._session.download(file, to)

    # For the bot

    def end(self) -> tuple[Sequence[Row], Sequence[tuple[Any, Any]]]:
        """Take no more replies; return those that are held, and the user's statements."""
        self._ended = True
        return [self._replies[number] for number in sorted(self._replies)], self._statements

    def drop(self) -> None:
        """Drop what is held."""
        self._replies, self._statements = {}, []

    def _next(self, now: bool) -> tuple[int, str]:
        self._check_open()
        kind = "now:" if now else ""
        number = self._numbers[kind] = self._numbers[kind] + 1
        return number, f"{self._keys}{kind}{number}"

    async def _put(self, row: Row, number: int | None) -> None:
        self._check_open()  # it may have ended while a file was read
        if number is not None:
            self._replies[number] = row
            return
        database = inside.database(self._outbox)
        if self._run is None:
            await database.write(cursor.put, [row], [])
        elif not await database.write(cursor.put_now, *self._run, row):
            raise ChatError(
                "this reply is not put: the handler runs anew, perhaps in another process, and only"
                " the replies of that run are put"
            )
        inside.wake(self._outbox)

    def _check_open(self) -> None:
        if self._ended:
            raise InvalidArgumentError(
                "the handler of this message has ended: reply before it returns, or put an"
                " OutboxMessage into the outbox"
            )
