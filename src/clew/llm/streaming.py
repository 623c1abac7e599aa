"""A streamed answer on its way to the app: when its first piece came, and that it goes on coming. Pieces are passed on as they are."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Watched(Iterator[T]):
    """An iterator that tells of each piece.

    Args:
        pieces: where they come from.
        each: called for each one, before it is passed on.
    """

    def __init__(self, pieces: Iterable[T], each: Callable[[Any], None]) -> None:
        self._source = pieces
        self._pieces = iter(pieces)
        self._each = each

    def __next__(self) -> T:
        piece = next(self._pieces)
        self._each(piece)
        return piece

    def __getattr__(self, name: str) -> Any:
        # What a library's stream has besides, such as close()
        return getattr(self._source, name)


class WatchedAsync(AsyncIterator[T]):
    """The same for an asynchronous iterator."""

    def __init__(self, pieces: AsyncIterable[T], each: Callable[[Any], None]) -> None:
        self._source = pieces
        self._pieces = aiter(pieces)
        self._each = each

    async def __anext__(self) -> T:
        piece = await anext(self._pieces)
        self._each(piece)
        return piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)
