"""Query parameters of the JSON API: read by type, with one sentence for each mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TypeVar

from starlette.datastructures import QueryParams

from clew.console.errors import QueryError

_LONGEST_VALUE = 1_000
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_SEVERITIES = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "warning": 13, "error": 17, "fatal": 21}

T = TypeVar("T")


class Parameters:
    """Reads a request's query parameters; asking for one also says that it is allowed.

    Args:
        given: the request's query parameters.
        path: the parts of the path that a route names.

    Example:
        >>> parameters = Parameters(QueryParams("limit=5&errors_only=true"))
        >>> parameters.limit(default=100, most=1000), parameters.flag("errors_only")
        (5, True)
        >>> parameters.refuse_others()
    """

    def __init__(self, given: QueryParams, path: Mapping[str, str] | None = None) -> None:
        self._given = given
        self._path = path or {}
        self._allowed: list[str] = []

    def path(self, name: str) -> str:
        """Return the part of the path that the route calls `name`."""
        return self._path[name]

    def text(self, name: str) -> str | None:
        """Return a text, or None when it is not given or empty."""
        return self._read(name, lambda value: value, "a text")

    def seconds(self, name: str) -> float | None:
        """Return a duration in seconds."""
        return self._read(name, float, "seconds, such as 0.5")

    def flag(self, name: str) -> bool:
        """Return a yes or no; no when it is not given."""
        return bool(self._read(name, lambda value: _BOOLEANS[value.lower()], "true or false"))

    def time(self, name: str) -> datetime | None:
        """Return an aware time."""
        return self._read(
            name,
            _aware,
            "an ISO 8601 time with its zone, such as 2026-01-31T12:00:00Z (write the + of an offset as %2B)",
        )

    def severity(self, name: str) -> int | None:
        """Return an OTLP severity number, given as such or by name."""
        return self._read(
            name,
            lambda value: _SEVERITIES.get(value.lower()) or _whole_number(value),
            f"a number from 1 to 24, or one of {', '.join(_SEVERITIES)}",
        )

    def limit(self, *, default: int, most: int, name: str = "limit") -> int:
        """Return how many to answer with: the default when not given, and never more than `most`."""
        wanted = self._read(name, _whole_number, "a whole number from 1")
        if wanted is None:
            return default
        if wanted < 1:
            raise QueryError(f"{name}={wanted} is not usable: give a whole number from 1")
        return min(wanted, most)

    def refuse_others(self) -> None:
        """Refuse parameters that were not asked for: a misspelt filter would answer with too much.

        Raises:
            QueryError: there is such a parameter.
        """
        for name in self._given:
            if name not in self._allowed:
                allowed = ", ".join(self._allowed) or "none"
                raise QueryError(f"the parameter {name[:80]!r} is not known here: use {allowed}")

    def _read(self, name: str, convert: Callable[[str], T], wanted: str) -> T | None:
        self._allowed.append(name)
        value = self._given.get(name)
        if value is None or value == "":
            return None
        if len(value) > _LONGEST_VALUE:
            raise QueryError(f"{name} has {len(value)} characters: give at most {_LONGEST_VALUE}")
        try:
            return convert(value)
        except (ValueError, KeyError):
            raise QueryError(f"{name}={value[:80]!r} is not usable: give {wanted}") from None


def _whole_number(value: str) -> int:
    if not value.isascii() or len(value) > 18:  # int() would read other scripts' digits, and thousands of them
        raise ValueError
    return int(value)


def _aware(value: str) -> datetime:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError
    return moment
