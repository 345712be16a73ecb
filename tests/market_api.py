"""The two descriptions of the Market's API, and the facts in each of them.

Our description is beside this file and contains only facts. The Market's own is outside of this
repository, if it is available at all.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

OURS = Path(__file__).with_name("market_api.yaml")
THEIRS = Path(__file__).parents[2] / "shared/market-api/openapi-chats.json"


@functools.cache
def _ours() -> str:
    return json.dumps(yaml.safe_load(OURS.read_text(encoding="utf-8")))


def ours() -> Any:
    """Return a copy of our description, which the caller may change."""
    # YAML aliases share one object; a round trip through JSON makes copies.
    return json.loads(_ours())


def theirs() -> Any:
    return json.loads(THEIRS.read_text(encoding="utf-8"))


# What a description says

# The keys below these are names, not keywords of OpenAPI.
NAMED = {"properties", "responses", "headers", "content"}
# Keywords that only inform a reader.
TEXTS = {"description", "summary", "title", "example", "examples", "externalDocs", "tags"}
# Keywords for which false means the same as absence.
FLAGS = {"required", "nullable", "deprecated", "uniqueItems"}


def facts(description: Any) -> dict[str, Any]:
    """Return all facts of a description, by their paths.

    Equivalent notations give the same facts: references are resolved, and the parts of an allOf are
    merged.
    """
    tree: dict[str, Any] = {
        "servers": {server["url"]: {} for server in description["servers"]},
    }
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            tree[f"{method.upper()} {path}"] = of_operation(operation, description)
    return dict(leaves(tree))


def of_operation(operation: Any, description: Any) -> dict[str, Any]:
    told = {
        name: value
        for name, value in operation.items()
        if name not in ("parameters", "security", *TEXTS) and not name.startswith("x-")
    }
    told = {name: plain(value, description, name) for name, value in told.items()}
    told["limit"] = limits(operation)
    told["parameters"] = {}
    for row in operation.get("parameters", ()):
        parameter = plain(row, description)
        name = f"{parameter.pop('in')} {parameter.pop('name')}"
        assert name not in told["parameters"], f"{operation['operationId']} has {name} twice"
        told["parameters"][name] = parameter
    schemes = description["components"]["securitySchemes"]
    told["security"] = {
        " and ".join(way): {
            name: {"scopes": scopes, "scheme": plain(schemes[name], description)}
            for name, scopes in way.items()
        }
        for way in operation.get("security", description["security"])
    }
    return told


def limits(operation: Any) -> list[str]:
    """Return the requests in a period: one limit, if it is the same for all."""
    if "x-requests-an-hour" in operation:
        return [f"{operation['x-requests-an-hour']} in 1 hours"]
    tariffs = operation["x-resource-limit-config"].values()
    return sorted(
        {
            f"{tariff['amount']} in {tariff['period-duration']} {tariff['period']}"
            for tariff in tariffs
            if isinstance(tariff, dict)
        }
    )


def plain(part: Any, description: Any, above: str = "") -> Any:
    """A part of the description without references, allOf and texts."""
    if isinstance(part, list):
        return [plain(row, description) for row in part]
    if not isinstance(part, dict):
        return part
    if above in NAMED:
        return {name: plain(value, description) for name, value in part.items()}
    if "$ref" in part:
        return plain(referred(part["$ref"], description), description)
    told = {
        name: plain(value, description, name)
        for name, value in part.items()
        if name not in TEXTS
        and not name.startswith("x-")
        and not (name in FLAGS and value is False)
    }
    for other in told.pop("allOf", ()):
        put_together(told, other)
    return told


def referred(reference: str, description: Any) -> Any:
    part = description
    for name in reference.removeprefix("#/").split("/"):
        part = part[name]
    return part


def put_together(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Merge one part of an allOf into its schema."""
    for name, value in part.items():
        if name == "properties":
            properties = whole.setdefault(name, {})
            assert not set(properties) & set(value), f"{name} of two parts: {properties}, {value}"
            properties |= value
        elif name == "required":
            whole[name] = [*whole.get(name, ()), *value]
        else:
            assert whole.setdefault(name, value) == value, f"{name} in two parts: {whole}, {part}"


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    rest = [("", tree)]
    while rest:
        place, part = rest.pop()
        if isinstance(part, dict) and part:
            rest += [(f"{place} {name}".strip(), value) for name, value in part.items()]
        else:
            # The order of `enum` and `required` has no meaning.
            yield place, sorted(part) if isinstance(part, list) else part
