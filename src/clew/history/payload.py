"""What an app gives to be kept, made fit to be kept: redacted, capped, and free of what a database refuses. Never raises."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from clew.pipeline.coercion import MAX_DEPTH, MAX_NODES, attribute_value, clean

Redact = Callable[[str, Any], Any]

TRUNCATED_KEY: Final = "clew.truncated"
"""Stands in a payload that was too large, beside ``bytes``, its size as JSON, and ``head``, how it began."""

MAX_NAME_BYTES: Final = 255
"""How long names of things may be."""

_ELLIPSIS: Final = "…"
# Has no secret in itself: what is redacted of it is redacted for its key
_PROBE: Final = True
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_CONTAINERS: Final = (Mapping, list, tuple, set, frozenset)
_write: Final = json.JSONEncoder(ensure_ascii=False).encode


def text(value: Any, *, max_bytes: int, redact: Redact | None = None) -> str | None:
    r"""Return a text of at most so many bytes of UTF-8, without what no database takes; one that was cut ends in an ellipsis.

    Args:
        value: anything, also an object whose ``str()`` raises; ``None`` stays.
        max_bytes: of the text in UTF-8.
        redact: returns what may be shown of a value under a key.

    Example:
        >>> text("a\x00b", max_bytes=100), text("labyrinth", max_bytes=6)
        ('a\ufffdb', 'lab…')
    """
    if value is None:
        return None
    # Whatever is cut off need not be searched for secrets
    known = str(attribute_value(value, max_length=max_bytes + 1))
    if redact is not None:
        known = str(redact("", known))
    return _cut(_storable(known), max_bytes)


def name(value: Any) -> str | None:
    """Return a name that fits its column; ``None`` stays.

    Example:
        >>> name("topicizer"), name(None), len(name("x" * 1000) or "")
        ('topicizer', None, 253)
    """
    if type(value) is str and len(value) <= MAX_NAME_BYTES and value.isascii() and "\x00" not in value:
        # As nearly all are
        return value
    return text(value, max_bytes=MAX_NAME_BYTES)


def payload(value: Any, *, max_bytes: int, redact: Redact | None = None) -> Any:
    """Return a value as JSON has it: whole where it is no larger than the cap, else how it begins and how large it was.

    Args:
        value: anything.
        max_bytes: of the JSON in UTF-8.
        redact: returns what may be shown of a value under a key.

    Example:
        >>> payload({"password": "x", "at": {1, 2}}, max_bytes=100)
        {'password': 'x', 'at': [1, 2]}
        >>> payload("x" * 1000, max_bytes=20)
        {'clew.truncated': True, 'bytes': 1002, 'head': '"xxxxxxxxxxxxxxxx…'}
    """
    size: int | None = None
    if isinstance(value, (str, bytes)) and len(value) > max_bytes:
        size = len(value if isinstance(value, bytes) else value.encode("utf-8", "replace")) + 2
        value = value[: max_bytes + 1]
    try:
        shown = _Fitting(max_bytes, redact).value("", value, 0)
        written = _write(shown)
    except Exception:
        # A mapping that changes while it is read, a key whose str() raises
        shown = str(attribute_value(value, max_length=max_bytes))
        shown = shown if redact is None else _storable(str(redact("", shown)))
        written = _write(shown)
    length = len(written) if written.isascii() else len(written.encode())
    if size is None and length <= max_bytes:
        return shown
    return {TRUNCATED_KEY: True, "bytes": size or length, "head": _cut(written, max_bytes)}


class _Fitting:
    """Bounds, redacts and plains a value in one walk: nearly all that it costs to keep a record is the walk.

    Args:
        max_length: of a text, in characters.
        redact: returns what may be shown of a value under a key.
    """

    __slots__ = ("_max_length", "_redact", "_room")

    def __init__(self, max_length: int, redact: Redact | None) -> None:
        self._max_length = max_length
        self._redact = redact
        self._room = MAX_NODES

    def value(self, key: str, value: Any, depth: int) -> Any:
        """Return what is kept of a value under a key, so deep in containers."""
        self._room -= 1
        kind = type(value)
        if kind not in _PLAIN and isinstance(value, _CONTAINERS):
            if self._redact is not None and (shown := self._redact(key, _PROBE)) is not _PROBE:
                return shown
            return self._container(value, depth)
        if self._redact is not None:
            value = self._redact(key, value)
            kind = type(value)
        if kind is str:
            return self._text(value)
        return value if value is None or kind is bool else self._other(value)

    def _container(self, value: Any, depth: int) -> Any:
        # One may hold itself, or one list a million times
        if depth > MAX_DEPTH or self._room <= 0:
            return _ELLIPSIS
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value("", item, depth + 1) for item in list(value)[: self._room]]
        kept: dict[str, Any] = {}
        for name, item in list(value.items())[: self._room]:
            key = name if type(name) is str else str(name)
            kept[self._text(key)] = self.value(key, item, depth + 1)
        return kept

    def _text(self, value: str) -> str:
        return _storable(clean(value, self._max_length + 1))

    def _other(self, value: Any) -> Any:
        known = attribute_value(value, max_length=self._max_length + 1)
        if isinstance(known, float) and not math.isfinite(known):
            return str(known)
        if not isinstance(known, str):
            return known
        # What has become text only now, such as bytes
        return _storable(known if self._redact is None else str(self._redact("", known)))


def _storable(value: str) -> str:
    # PostgreSQL takes no NUL in a text
    return value.replace("\x00", "\ufffd") if "\x00" in value else value


def _cut(value: str, max_bytes: int) -> str:
    encoded = value.encode()
    if len(encoded) <= max_bytes:
        return value
    return encoded[: max_bytes - len(_ELLIPSIS.encode())].decode("utf-8", "ignore") + _ELLIPSIS
