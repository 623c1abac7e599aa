"""A look into a cache."""

from __future__ import annotations

from typing import Any

from clew.catalog.operations import CACHE
from clew.engine.operation import Operation
from clew.pipeline.coercion import name_text


class CacheLookup(Operation):
    """A look into a cache. Made by :func:`cache`."""

    __slots__ = ()

    def hit(self) -> None:
        """Say that it was there."""
        self.set("clew.cache.outcome", "hit")

    def miss(self) -> None:
        """Say that it was not there."""
        self.set("clew.cache.outcome", "miss")


def cache(name: str, /, **attributes: Any) -> CacheLookup:
    """Trace and measure a look into a cache: how often it has what is looked for, and how long it takes.

    Args:
        name: which cache, of low cardinality.
        attributes: attributes of the look. Keys are of high cardinality: they are no labels of metrics.

    Example:
        >>> import clew
        >>> known = {"a": 1}
        >>> with clew.cache("embeddings") as look:
        ...     look.hit() if "a" in known else look.miss()
    """
    return CacheLookup(CACHE, {"clew.cache.name": name_text(name), **attributes})
