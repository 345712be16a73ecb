"""Makes a story that fails as short as possible: what is left is what matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from .story import Part

Fails = Callable[[Any], bool]

MOST_TRIES = 3000


class _Tries:
    def __init__(self, fails: Fails, most: int) -> None:
        self._fails = fails
        self.left = most

    def fails(self, story: Any) -> bool:
        """Whether a story still fails. One that cannot be played does not."""
        if self.left <= 0:
            return False
        self.left -= 1
        try:
            return self._fails(story)
        except Exception:  # noqa: BLE001 - a shorter story may make no sense
            return False


def shrink(story: Any, fails: Fails, most: int = MOST_TRIES) -> Any:
    """Return the shortest story found for which `fails` still says so."""
    tries = _Tries(fails, most)
    while tries.left:
        before = story
        for name in _lists(story):
            story = _fewer(story, name, tries)
        story = _simpler(story, tries)
        if story == before:
            break
    return story


def _fewer(story: Any, name: str, tries: _Tries) -> Any:
    """Leave out as many parts of one kind as possible: halves first, then single ones."""
    size = len(getattr(story, name))
    while size:
        position = 0
        while position < len(getattr(story, name)):
            parts = getattr(story, name)
            rest = parts[:position] + parts[position + size :]
            shorter = msgspec.structs.replace(story, **{name: rest})
            if tries.fails(shorter):
                story = shorter
            else:
                position += size
        size //= 2
    return story


def _simpler(story: Any, tries: _Tries) -> Any:
    """Make the parts that are left simpler, one value at a time."""
    for name in parts_of(story):
        for part in _simpler_parts(getattr(story, name)):
            simpler = msgspec.structs.replace(story, **{name: part})
            if tries.fails(simpler):
                return _simpler(simpler, tries)
    for name in _lists(story):
        parts = getattr(story, name)
        for position, part in enumerate(parts):
            for simpler_part in _simpler_parts(part):
                changed = (*parts[:position], simpler_part, *parts[position + 1 :])
                simpler = msgspec.structs.replace(story, **{name: changed})
                if tries.fails(simpler):
                    return _simpler(simpler, tries)
    if story.seed:
        simpler = msgspec.structs.replace(story, seed=0)
        if tries.fails(simpler):
            return simpler
    return story


def _lists(story: Any) -> list[str]:
    """Return the names of what a story has many of: what happens by itself comes first."""
    names = [one.name for one in msgspec.structs.fields(type(story))]
    return [name for name in names[::-1] if isinstance(getattr(story, name), tuple)]


def parts_of(story: Any) -> list[str]:
    """Return the names of how a story is set up."""
    names = [one.name for one in msgspec.structs.fields(type(story))]
    return [name for name in names if isinstance(getattr(story, name), Part)]


_KEPT = {"number", "operation", "kind", "chat", "machine", "text"}


def _simpler_parts(part: Any) -> Iterator[Any]:
    """Yield a part with one of its values simpler: the default, fewer, or a rounder number."""
    for field in msgspec.structs.fields(type(part)):
        value = getattr(part, field.name)
        if not field.required and field.default is not msgspec.NODEFAULT:
            if value == field.default:
                continue
            yield msgspec.structs.replace(part, **{field.name: field.default})
        elif isinstance(value, dict):
            for key in value:
                rest = {other: item for other, item in value.items() if other != key}
                yield msgspec.structs.replace(part, **{field.name: rest})
        if isinstance(value, tuple) and len(value) > 1:
            for position in range(len(value)):
                rest_of = (*value[:position], *value[position + 1 :])
                yield msgspec.structs.replace(part, **{field.name: rest_of})
        elif type(value) is float and field.name not in _KEPT:
            for rounder in (float(round(value)), round(value, 1), float(round(value / 2))):
                if rounder != value and abs(rounder) <= abs(value) + 1:
                    yield msgspec.structs.replace(part, **{field.name: rounder})
        elif field.name == "chat" and value != 1:
            yield msgspec.structs.replace(part, chat=1)
