"""Many numbers in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import overload


class Numbers(Sequence[int]):
    """The numbers of many messages: 8 bytes each. It compares with lists and tuples."""

    def __init__(self, numbers: array[int]) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Numbers: ...

    def __getitem__(self, index: int | slice) -> int | Numbers:
        if isinstance(index, slice):
            return Numbers(self._numbers[index])
        return self._numbers[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbers):
            return self._numbers == other._numbers
        if isinstance(other, (list, tuple)):
            return list(self._numbers) == list(other)
        return NotImplemented

    def __repr__(self) -> str:
        some = ", ".join(map(str, self._numbers[:5]))
        return f"<{len(self)} numbers: {some}{', …' if len(self) > 5 else ''}>"
