"""Our description of the Market's API matches the official one, if that is available."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import pytest

from tests import market_api
from tests.market_api import NAMED, TEXTS, THEIRS, facts

needs_theirs = pytest.mark.skipif(
    not THEIRS.exists(), reason="the Market's own description is not beside this repository"
)

# Where one of the two says more: which, in which places, and why. No fact that both state may
# differ.
EXPLAINED = [
    ("theirs", r" security OAuth ", "a client of ours has a key and nothing else"),
    ("ours", r" responses (405|415|423|503) ", "a page about the errors of all operations"),
    ("ours", r"^POST /v2/auth/token responses 404 ", "the same page"),
    ("ours", r" responses \d{3} headers ", "the pages about limits and about a request's id"),
]


class Difference(NamedTuple):
    place: str
    said_by: Literal["ours", "theirs", "both"]
    ours: Any = None
    theirs: Any = None


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[Difference]:
    for place, value in ours.items():
        if place not in theirs:
            yield Difference(place, "ours", ours=value)
        elif theirs[place] != value:
            yield Difference(place, "both", value, theirs[place])
    for place, value in theirs.items():
        if place not in ours:
            yield Difference(place, "theirs", theirs=value)


def explains(row: tuple[str, str, str], difference: Difference) -> bool:
    said_by, pattern, _ = row
    return difference.said_by == said_by and re.search(pattern, difference.place) is not None


def unexplained(ours: Any, theirs: Any) -> list[Difference]:
    return [
        difference
        for difference in differences(facts(ours), facts(theirs))
        if not any(explains(row, difference) for row in EXPLAINED)
    ]


@needs_theirs
def test_our_description_matches_the_official_one() -> None:
    assert unexplained(market_api.ours(), market_api.theirs()) == []


@needs_theirs
@pytest.mark.parametrize("row", EXPLAINED, ids=lambda row: f"{row[0]}: {row[1]}")
def test_each_explained_difference_exists(row: tuple[str, str, str]) -> None:
    found = differences(facts(market_api.ours()), facts(market_api.theirs()))
    assert any(explains(row, difference) for difference in found)


# The comparison itself finds something

CHATS = "/v2/businesses/{businessId}/chats"


def schema(description: Any, name: str) -> Any:
    return description["components"]["schemas"][name]


def parameter(description: Any, name: str) -> Any:
    return description["components"]["parameters"][name]


def operation(description: Any, path: str, method: str = "post") -> Any:
    return description["paths"][path][method]


CHANGES: dict[str, Callable[[Any], object]] = {
    "a path": lambda it: it["paths"].update({f"{CHATS}/old": it["paths"].pop(f"{CHATS}/new")}),
    "a path more": lambda it: it["paths"].update({f"{CHATS}/old": it["paths"][f"{CHATS}/new"]}),
    "a method": lambda it: it["paths"][CHATS].update(put=it["paths"][CHATS].pop("post")),
    "an operation's name": lambda it: operation(it, CHATS).update(operationId="listChats"),
    "a limit": lambda it: operation(it, CHATS).update({"x-requests-an-hour": 10_000}),
    "a parameter less": lambda it: operation(it, CHATS)["parameters"].pop(),
    "a parameter's name": lambda it: parameter(it, "PageToken").update(name="page_token"),
    "a parameter's place": lambda it: parameter(it, "ChatId").update({"in": "header"}),
    "a parameter required": lambda it: parameter(it, "PageToken").update(required=True),
    "a parameter's bound": lambda it: parameter(it, "ChatsLimit")["schema"].update(maximum=21),
    "a parameter's default": lambda it: parameter(it, "HistoryLimit")["schema"].pop("default"),
    "a body that may be missing": lambda it: operation(it, CHATS)["requestBody"].pop("required"),
    "a bound": lambda it: schema(it, "NewMessage")["properties"]["message"].update(maxLength=4097),
    "a field less": lambda it: schema(it, "Chat")["properties"].pop("status"),
    "a field more": lambda it: schema(it, "Chat")["properties"].update(title={"type": "string"}),
    "a type": lambda it: schema(it, "Id").update(type="string"),
    "a format": lambda it: schema(it, "Id").update(format="int32"),
    "required": lambda it: schema(it, "Chat")["required"].remove("context"),
    "a field that may be null": lambda it: schema(it, "Customer")["properties"]["name"].update(
        nullable=True
    ),
    "a value less": lambda it: schema(it, "ChatStatus")["enum"].remove("FINISHED"),
    "a value more": lambda it: schema(it, "Sender")["enum"].append("ROBOT"),
    "a status less": lambda it: operation(it, CHATS)["responses"].pop("404"),
    "a status more": lambda it: operation(it, CHATS)["responses"].update(
        {"409": operation(it, CHATS)["responses"]["404"]}
    ),
    "an answer": lambda it: operation(it, CHATS)["responses"].update(
        {"200": operation(it, f"{CHATS}/history")["responses"]["200"]}
    ),
    "a header's type": lambda it: it["components"]["headers"]["Limit"]["schema"].update(
        type="string"
    ),
    "the key's header": lambda it: it["components"]["securitySchemes"]["ApiKey"].update(
        name="Authorization"
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_comparison_finds_a_changed_fact(what: str) -> None:
    changed = market_api.ours()
    CHANGES[what](changed)
    assert unexplained(market_api.ours(), changed)
    assert unexplained(changed, market_api.ours())


@needs_theirs
# Theirs names no headers.
@pytest.mark.parametrize("what", [what for what in CHANGES if what != "a header's type"])
def test_comparison_finds_a_fact_missing_from_the_official_description(what: str) -> None:
    changed = market_api.ours()
    CHANGES[what](changed)
    assert unexplained(changed, market_api.theirs())


def places(part: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the path of each value in a description, except texts."""
    rows = part.items() if isinstance(part, dict) else enumerate(part)
    for name, value in rows:
        if name in TEXTS and place[-1] not in NAMED:
            continue
        yield (*place, name)
        if isinstance(value, (dict, list)):
            yield from places(value, (*place, name))


def without(description: Any, place: tuple[Any, ...]) -> Any:
    """Return the description without the node at a path, or with another value there."""
    description = json.loads(json.dumps(description))  # a copy, far quicker than a deepcopy
    part = description
    for name in place[:-1]:
        part = part[name]
    value = part[place[-1]]
    match value:
        case bool():
            part[place[-1]] = not value
        case int():
            part[place[-1]] = value + 1
        case str():
            part[place[-1]] = f"other {value}"
        case _:
            del part[place[-1]]
    return description


def test_every_part_of_our_description_is_compared() -> None:
    ours = market_api.ours()
    said = facts(ours)
    overlooked = []
    for place in places(ours):
        if place[0] in ("openapi", "info"):
            continue
        try:
            changed = facts(without(ours, place))
        except KeyError:  # what is referred to, or has to be there, is gone
            continue
        if changed == said:
            overlooked.append(place)
    assert overlooked == []


def test_equivalent_notations_compare_equal() -> None:
    described = market_api.ours()
    schemas = described["components"]["schemas"]
    whole = schemas["ChatAnswer"]
    schemas["ChatAnswer"] = {
        "type": "object",
        "description": "A chat.",
        "allOf": [
            {"$ref": "#/components/schemas/Answer"},
            {"properties": {"result": whole["properties"]["result"]}},
        ],
    }
    schemas["Time"] |= {"example": "2026-01-31T10:00:00Z", "nullable": False, "x-note": "UTC"}
    schemas["Chat"]["required"].reverse()
    schemas["Sender"]["enum"].reverse()
    assert facts(described) == facts(market_api.ours())
