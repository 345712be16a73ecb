"""A plain aiohttp client for the tests of the sandbox. It uses nothing of our own session."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from yamarket_chat.sandbox import Sandbox


class Answer(msgspec.Struct):
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> tuple[int, str]:
        document = self.json
        assert document["status"] == "ERROR"
        return self.status, document["errors"][0]["message"]


class Seller:
    def __init__(self, http: aiohttp.ClientSession, market: Sandbox) -> None:
        self._http = http
        self._market = market

    async def call(
        self, method: str, path: str, *, business_id: object = None, **request: Any
    ) -> Answer:
        if not path.startswith("/v2/"):
            path = f"/v2/businesses/{business_id or self._market.business_id}{path}"
        async with self._http.request(
            method, self._market.url + path, allow_redirects=False, **request
        ) as answer:
            return Answer(answer.status, answer.reason or "", answer.headers, await answer.read())

    async def send(self, chat_id: object, text: str, **request: Any) -> Answer:
        return await self.call(
            "POST", f"/chats/message?chatId={chat_id}", json={"message": text}, **request
        )

    async def history(self, chat_id: int, query: str = "", **body: Any) -> Any:
        answer = await self.call("POST", f"/chats/history?chatId={chat_id}{query}", json=body)
        assert answer.status == 200, answer.body
        return answer.json["result"]

    async def texts(self, chat_id: int) -> list[str]:
        return [row["message"] for row in (await self.history(chat_id, "&limit=100"))["messages"]]

    async def chats(self, query: str = "", **filters: Any) -> Any:
        answer = await self.call("POST", f"/chats{query}", json=filters)
        assert answer.status == 200, answer.body
        return answer.json["result"]

    async def send_file(self, chat_id: int, content: bytes, name: str = "label.pdf") -> Answer:
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("file", io.BytesIO(content), filename=name)
        return await self.call("POST", f"/chats/file/send?chatId={chat_id}", data=form)


@asynccontextmanager
async def seller_of(market: Sandbox, **headers: str) -> AsyncIterator[Seller]:
    timeout = aiohttp.ClientTimeout(total=15)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers={"Api-Key": market.api_key} | headers, timeout=timeout, connector=connector
    ) as http:
        yield Seller(http, market)
