"""The sandbox's operations: each one shows the changes that the others make."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.sandbox_client import Seller, seller_of
from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.sandbox import Sandbox


async def create(seller: Seller, kind: str, identifier: int) -> int:
    answer = await seller.call(
        "POST", "/chats/new", json={"context": {"type": kind, "id": identifier}}
    )
    assert answer.status == 200, answer.body
    chat_id = answer.json["result"]["chatId"]
    assert isinstance(chat_id, int)
    return chat_id


async def chat(seller: Seller, chat_id: int) -> Any:
    return (await seller.call("GET", f"/chat?chatId={chat_id}")).json["result"]


# Chats


async def test_created_chat_can_be_read_and_listed() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        chat_id = await create(seller, "ORDER", 55)
        row = await chat(seller, chat_id)
        assert row["chatId"] == chat_id
        assert (row["type"], row["status"]) == ("CHAT", "NEW")
        assert row["context"]["type"] == "ORDER"
        assert row["context"]["orderId"] == 55
        assert "returnId" not in row["context"]
        assert (await seller.chats())["chats"] == [row]
        assert (await seller.history(chat_id))["context"] == row["context"]
        assert market.chat_ids == [chat_id]


async def test_creating_a_chat_again_returns_the_existing_one() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        order = await create(seller, "ORDER", 55)
        return_ = await create(seller, "RETURN", 55)
        assert order != return_
        assert await create(seller, "ORDER", 55) == order
        assert await create(seller, "RETURN", 55) == return_
        deprecated = await seller.call("POST", "/chats/new", json={"orderId": 55})
        assert deprecated.json["result"]["chatId"] == order
        nothing = await seller.call("POST", "/chats/new", json={"orderId": 0})
        assert nothing.error == (404, "Order not found: 0")
        assert (await chat(seller, return_))["context"]["returnId"] == 55
        assert len(market.chat_ids) == 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"context": None},
        {"context": {"type": "DIRECT", "id": 1}},
        {"context": {"type": "ORDER", "id": 0}},
        {"context": {"type": "ORDER", "id": 2**63}},
        {"context": {"type": "ORDER", "id": "1"}},
        {"context": {"type": "ORDER", "id": True}},
        {"context": {"id": 1}},
        {"orderId": 2**63},
    ],
)
async def test_a_chat_needs_an_order_or_a_return(body: Any) -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        assert (await seller.call("POST", "/chats/new", json=body)).error[0] == 400
        assert market.chat_ids == []


async def test_chat_first_used_by_its_id_counts_as_started_by_the_buyer() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        row = await chat(seller, 7)
        assert row["context"]["type"] == "DIRECT"
        assert "orderId" not in row["context"]
        assert market.chat_ids == [7]


async def test_chat_status_follows_the_last_sender() -> None:
    async with Sandbox() as market, seller_of(market) as seller:

        async def status() -> str:
            return str((await chat(seller, 7))["status"])

        assert await status() == "NEW"
        await seller.send(7, "hi")
        assert await status() == "WAITING_FOR_CUSTOMER"
        market.buyer_says(7, "hello")
        assert await status() == "WAITING_FOR_PARTNER"
        market.market_says(7, "By the way")
        market.support_says(7, "By the way")
        assert await status() == "WAITING_FOR_PARTNER"
        market.shop_says(7, "yes")
        assert await status() == "WAITING_FOR_CUSTOMER"
        market.set_chat(7, chat_type="ARBITRAGE", status="WAITING_FOR_MARKET")
        assert await status() == "WAITING_FOR_MARKET"
        await seller.send(7, "hi")
        assert await status() == "WAITING_FOR_ARBITER"
        assert (await chat(seller, 7))["type"] == "ARBITRAGE"


async def test_updated_at_is_the_time_of_the_last_message() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        market.add_chat(7)
        await asyncio.sleep(100)
        message = market.buyer_says(7, "hi")
        row = await chat(seller, 7)
        assert row["updatedAt"] == message.created_at.isoformat()
        assert row["createdAt"] < row["updatedAt"]


async def test_chats_are_listed_page_by_page_while_they_change() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        expected = [market.add_chat() for _ in range(25)]
        first = await seller.chats()
        assert len(first["chats"]) == 10
        market.buyer_says(expected[3], "hi")
        second = await seller.chats(f"?limit=20&pageToken={first['paging']['nextPageToken']}")
        assert "nextPageToken" not in second["paging"]
        found = [row["chatId"] for row in first["chats"] + second["chats"]]
        assert found == expected
        again = await seller.chats(f"?limit=15&page_token={first['paging']['nextPageToken']}")
        assert len(again["chats"]) == 15
        assert "nextPageToken" not in again["paging"], "no empty page at the end"


async def test_chats_are_filtered() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        direct, order = market.add_chat(), market.add_chat(order_id=55)
        other, return_ = market.add_chat(order_id=56), market.add_chat(return_id=55)
        dispute = market.add_chat(return_id=57, order_id=56)
        market.set_chat(dispute, chat_type="ARBITRAGE", status="WAITING_FOR_ARBITER")
        market.buyer_says(order, "hi")
        market.shop_says(return_, "hi")

        async def found(query: str = "", **filters: Any) -> list[int]:
            return [row["chatId"] for row in (await seller.chats(query, **filters))["chats"]]

        assert await found() == [direct, order, other, return_, dispute]
        assert await found(contextTypes=["DIRECT", "RETURN"]) == [direct, return_, dispute]
        assert await found(contexts=[{"type": "ORDER", "id": 55}]) == [order]
        assert await found(
            contexts=[{"type": "RETURN", "id": 55}, {"type": "ORDER", "id": 56}]
        ) == [other, return_]
        assert await found(types=["ARBITRAGE"]) == [dispute]
        assert await found(statuses=["WAITING_FOR_PARTNER"]) == [order]
        assert await found(statuses=["NEW"], contextTypes=["ORDER"]) == [other]
        assert await found(orderIds=[56]) == [other, dispute]
        assert await found(statuses=None, types=None) == await found()
        page = await seller.chats("?limit=1", contextTypes=["ORDER"])
        token = page["paging"]["nextPageToken"]
        assert await found(f"?pageToken={token}", contextTypes=["ORDER"]) == [other]


@pytest.mark.parametrize(
    ("query", "filters"),
    [
        ("?limit=0", {}),
        ("?limit=21", {}),
        ("?limit=x", {}),
        ("?limit=", {}),
        ("?pageToken=x", {}),
        ("?pageToken=Y2hhdHM6MA==", {}),
        ("", {"statuses": []}),
        ("", {"statuses": ["OLD"]}),
        ("", {"statuses": ["NEW", "NEW"]}),
        ("", {"contexts": [{"type": "ORDER", "id": 1}, {"type": "ORDER", "id": 1}]}),
        ("", {"contexts": [{"type": "DIRECT", "id": 1}]}),
        ("", {"orderIds": ["1"]}),
        ("", {"orderIds": [2**63]}),
    ],
)
async def test_wrong_filters_and_pages_are_refused(query: str, filters: Any) -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        assert (await seller.call("POST", f"/chats{query}", json=filters)).error[0] == 400


async def test_a_page_token_belongs_to_its_chat() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        for _ in range(2):
            market.buyer_says(7, "hi")
            market.buyer_says(8, "hi")
        token = (await seller.history(7, "&limit=1"))["paging"]["nextPageToken"]
        path = f"/chats/history?chatId=8&pageToken={token}"
        assert (await seller.call("POST", path, json={})).error == (400, "Invalid page token")


async def test_chat_is_created_only_once() -> None:
    async with Sandbox() as market:
        market.add_chat(7, order_id=55)
        with pytest.raises(InvalidArgumentError, match="chat 7 exists"):
            market.add_chat(7)
        with pytest.raises(InvalidArgumentError, match="order 55 has a chat"):
            market.add_chat(8, order_id=55)
        assert market.chat_ids == [7]


# Messages and files


async def test_get_message_finds_a_message_only_in_its_chat() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        message = market.buyer_says(7, "hi")

        async def get(chat_id: int, message_id: int) -> Any:
            path = f"/chats/message?chatId={chat_id}&messageId={message_id}"
            return await seller.call("GET", path)

        found = await get(7, message.message_id)
        assert found.json["result"]["message"] == "hi"
        assert (await get(8, message.message_id)).error[0] == 404
        assert (await get(7, message.message_id + 1)).error[0] == 404
        assert (await seller.call("GET", "/chats/message?chatId=7")).error[0] == 400


@pytest.mark.parametrize("name", ["label.pdf", "Этикетка №1.pdf", 'a"b.png'])
async def test_uploaded_file_can_be_downloaded(name: str) -> None:
    content = bytes(range(256)) * 100
    async with Sandbox() as market, seller_of(market) as seller:
        assert (await seller.send_file(7, content, name)).json == {"status": "OK"}
        [row] = (await seller.history(7))["messages"]
        assert "message" not in row
        [file] = row["payload"]
        assert (file["name"], file["size"]) == (name, len(content))
        async with aiohttp.ClientSession() as anybody, anybody.get(file["url"]) as answer:
            assert await answer.read() == content
            assert answer.content_disposition is not None
            assert answer.content_disposition.filename == name
        [stored] = market.messages(7)[0].payload
        assert (stored.name, stored.url, stored.size) == (name, file["url"], len(content))


async def test_the_buyer_sends_a_file() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        message = market.buyer_sends_file(7, "broken.jpg", b"jpg")
        [row] = (await seller.history(7))["messages"]
        assert (row["sender"], row["payload"][0]["name"]) == ("CUSTOMER", "broken.jpg")
        assert (await chat(seller, 7))["status"] == "WAITING_FOR_PARTNER"
        async with aiohttp.ClientSession() as http, http.get(message.payload[0].url) as answer:
            assert await answer.read() == b"jpg"
        async with aiohttp.ClientSession() as http, http.get(f"{market.url}/files/99") as answer:
            assert answer.status == 404


async def test_a_file_has_at_most_five_megabytes() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        most = 5 * 1024 * 1024
        assert (await seller.send_file(7, b"x" * most)).status == 200
        assert (await seller.send_file(7, b"x" * (most + 1))).error[0] == 400
        assert [message.payload[0].size for message in market.messages(7)] == [most]


async def test_invalid_file_uploads_are_refused() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        path = "/chats/file/send?chatId=7"
        assert (await seller.call("POST", path, json={})).error[0] == 415
        other = aiohttp.FormData()
        other.add_field("document", b"x", filename="x")
        assert (await seller.call("POST", path, data=other)).error[0] == 400
        for content_type in ("multipart/form-data", "multipart/form-data; boundary=x"):
            headers = {"Content-Type": content_type}
            answer = await seller.call("POST", path, data=b"no parts", headers=headers)
            assert answer.error[0] == 400
        assert market.messages_stored == 0


# Campaigns


async def test_campaigns_are_listed_by_page_token_and_by_page_number() -> None:
    async with Sandbox(campaigns=5) as market, seller_of(market) as seller:
        every = (await seller.call("GET", "/v2/campaigns")).json["campaigns"]
        assert len({row["id"] for row in every}) == 5
        assert {row["business"]["id"] for row in every} == {market.business_id}

        found, query = [], "?limit=2"
        while query:
            page = (await seller.call("GET", f"/v2/campaigns{query}")).json
            assert len(page["campaigns"]) <= 2
            found += page["campaigns"]
            token = page["paging"].get("nextPageToken")
            query = f"?limit=2&pageToken={token}" if token else ""
        assert found == every

        last = (await seller.call("GET", "/v2/campaigns?page=3&pageSize=2")).json
        assert last["campaigns"] == every[4:]
        assert last["pager"] == {
            "total": 5,
            "from": 5,
            "to": 5,
            "currentPage": 3,
            "pagesCount": 3,
            "pageSize": 2,
        }
        for query in ("limit=0", "limit=101", "page=10001", "page=x", "pageSize=2147483648"):
            assert (await seller.call("GET", f"/v2/campaigns?{query}")).error[0] == 400


async def test_seller_without_shops_gets_an_empty_list() -> None:
    async with Sandbox(campaigns=0) as market, seller_of(market) as seller:
        page = (await seller.call("GET", "/v2/campaigns")).json
        assert (page["campaigns"], page["pager"]["total"]) == ([], 0)
