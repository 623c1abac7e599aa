"""What an app gives to be kept, made fit to be kept: redacted, capped, and free of what a database refuses. Never raises."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from clew.pipeline.coercion import attribute_value, clean, limited

Redact = Callable[[str, Any], Any]

TRUNCATED_KEY: Final = "clew.truncated"
"""Stands in a payload that was too large, beside ``bytes``, its size as JSON, and ``head``, how it began."""

MAX_NAME_BYTES: Final = 255
"""How long names of things may be."""

_ELLIPSIS: Final = "…"


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
        bounded = limited(value)
        shown = _plain(bounded if redact is None else redact("", bounded), max_bytes)
        written = json.dumps(shown, ensure_ascii=False)
    except Exception:
        # A mapping that changes while it is read, a key whose str() raises
        shown = str(attribute_value(value, max_length=max_bytes))
        written = json.dumps(shown, ensure_ascii=False)
    length = len(written.encode())
    if size is None and length <= max_bytes:
        return shown
    return {TRUNCATED_KEY: True, "bytes": size or length, "head": _cut(written, max_bytes)}


def _plain(value: Any, max_length: int) -> Any:
    if value is None or type(value) is bool:
        return value
    if isinstance(value, Mapping):
        return {_storable(clean(str(key), max_length)): _plain(item, max_length) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, max_length) for item in value]
    known = attribute_value(value, max_length=max_length + 1)
    if isinstance(known, float) and not math.isfinite(known):
        return str(known)
    return _storable(known) if isinstance(known, str) else known


def _storable(value: str) -> str:
    # PostgreSQL takes no NUL in a text
    return value.replace("\x00", "\ufffd") if "\x00" in value else value


def _cut(value: str, max_bytes: int) -> str:
    encoded = value.encode()
    if len(encoded) <= max_bytes:
        return value
    return encoded[: max_bytes - len(_ELLIPSIS.encode())].decode("utf-8", "ignore") + _ELLIPSIS
