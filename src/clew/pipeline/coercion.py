"""Whatever an app gives as a value, turned into something that telemetry can carry. Never raises."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from opentelemetry.util.types import AttributeValue

from clew.diagnostics import report

MAX_LABEL_LENGTH: Final = 256
MAX_ITEMS: Final = 1_000
# A receiver refuses messages that are nested a hundred deep, and a container makes three of each level
MAX_DEPTH: Final = 20
MAX_NODES: Final = 10_000
MAX_STACKTRACE_LENGTH: Final = 16_000
_INT64: Final = range(-(2**63), 2**63)
_PLAIN: Final = frozenset({bool, int, float})
_SCALARS: Final = (str, bool, int, float)


def attribute_value(value: Any, *, max_length: int) -> AttributeValue:
    """Return ``value`` as an attribute: scalars and flat lists as they are, the rest as text.

    Args:
        value: anything, also an object whose ``str()`` raises.
        max_length: characters that are kept of a text.

    Example:
        >>> from decimal import Decimal
        >>> attribute_value(Decimal("9.90"), max_length=100)
        '9.90'
        >>> attribute_value({"a": [1, 2]}, max_length=100)
        '{"a": [1, 2]}'
    """
    kind = type(value)
    if kind is str:
        return clean(value, max_length)
    if kind is bool or kind is float:
        return value  # type: ignore[no-any-return]
    if kind is int:
        number = integer(value)
        return cut(number, max_length) if isinstance(number, str) else number
    try:
        return _other(value, max_length)
    except Exception as error:
        report("attribute", f"a {kind.__qualname__} can't be an attribute ({type(error).__name__})")
        return f"<{kind.__qualname__} without a text form>"


def attribute_values(
    attributes: Mapping[str, Any], *, max_length: int, redact: Callable[[str, Any], Any] | None = None
) -> dict[str, Any]:
    """Return a mapping's values as attributes; see :func:`attribute_value`.

    Args:
        attributes: values by key.
        max_length: characters that are kept of a text.
        redact: returns what may be shown of a value under a key: of containers, whose own keys no longer are keys in their text.

    Example:
        >>> attribute_values({"sku": "A-17", "count": 2, "price": None}, max_length=100)
        {'sku': 'A-17', 'count': 2, 'price': ''}
    """
    for value in attributes.values():
        kind = type(value)
        if not ((kind is str and len(value) <= max_length) or kind in _PLAIN):
            return {
                key: attribute_value(
                    redact(key, item) if redact and isinstance(item, (Mapping, list, tuple)) else item,
                    max_length=max_length,
                )
                for key, item in attributes.items()
            }
    # Nearly always they are fit as they are. What only the encoder minds (integers too large, lone surrogates) it sees to itself
    return dict(attributes)


def integer(number: int) -> int | str:
    """Return a whole number, as text where telemetry's 64 bits can't hold it.

    Example:
        >>> integer(2**63 - 1), integer(2**63)
        (9223372036854775807, '9223372036854775808')
    """
    if number in _INT64:
        return int(number)
    try:
        return str(int(number))
    except ValueError:
        # Python refuses to write thousands of digits in tens
        return hex(number)


def limited(value: Any) -> Any:
    """Return ``value``, containers as copies of bounded size and depth: one may hold itself, or one list a million times.

    Example:
        >>> loop = [1]
        >>> loop.append(loop)
        >>> str(limited(loop)).count("1"), limited({"a": (1, 2)})
        (21, {'a': [1, 2]})
    """
    room = MAX_NODES

    def copy(inner: Any, depth: int) -> Any:
        nonlocal room
        room -= 1
        if not isinstance(inner, (Mapping, list, tuple, set, frozenset)):
            return inner
        if depth > MAX_DEPTH or room <= 0:
            return "…"
        if isinstance(inner, Mapping):
            return {key: copy(item, depth + 1) for key, item in islice(list(inner.items()), max(0, room))}
        return [copy(item, depth + 1) for item in islice(list(inner), max(0, room))]

    return copy(value, 0)


def _other(value: Any, max_length: int) -> AttributeValue:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return cut(value[: max_length * 4].decode("utf-8", "backslashreplace"), max_length)
    if isinstance(value, Enum):
        return attribute_value(value.value, max_length=max_length)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (Decimal, UUID, PurePath)):
        return clean(str(value), max_length)
    if isinstance(value, _SCALARS):
        # Subclasses of the scalars, such as numpy's or an app's own
        for scalar in (bool, int, float, str):
            if isinstance(value, scalar):
                return attribute_value(scalar(value), max_length=max_length)
    if isinstance(value, (list, tuple)) and value and _is_flat(value):
        texts = [clean(item, max_length) if isinstance(item, str) else item for item in value[:MAX_ITEMS]]
        return tuple(texts)
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return clean(json.dumps(value, default=_plain, ensure_ascii=False), max_length)
    return clean(str(value), max_length)


def _is_flat(value: Sequence[Any]) -> bool:
    first = type(value[0])
    return first in _SCALARS and all(
        type(item) is first and (first is not int or item in _INT64) for item in value[:MAX_ITEMS]
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value)


def name_text(value: Any) -> str:
    """Return what was given as a name as a text, also an object whose ``str()`` raises.

    Example:
        >>> name_text("gpt-4o"), name_text(7)
        ('gpt-4o', '7')
    """
    return value if type(value) is str else str(attribute_value(value, max_length=MAX_LABEL_LENGTH))


def label_value(value: Any) -> str | int:
    """Return ``value`` as a metric label: a short text, or an integer.

    Example:
        >>> label_value(True), label_value(404), label_value(None)
        ('true', 404, '')
    """
    kind = type(value)
    if kind is str:
        return clean(value, MAX_LABEL_LENGTH)
    if kind is int:
        number = integer(value)
        return cut(number, MAX_LABEL_LENGTH) if isinstance(number, str) else number
    if kind is bool:
        return "true" if value else "false"
    return str(attribute_value(value, max_length=MAX_LABEL_LENGTH))


def clean(text: str, max_length: int) -> str:
    r"""Return ``text`` as it can be encoded in UTF-8, with at most ``max_length`` characters.

    Example:
        >>> clean("lone \ud800", 100)
        'lone ?'
    """
    if len(text) > max_length:
        text = cut(text, max_length)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def cut(text: str, max_length: int) -> str:
    """Return ``text`` with at most ``max_length`` characters, the last one an ellipsis where something is missing.

    Example:
        >>> cut("labyrinth", 5)
        'laby…'
    """
    return text if len(text) <= max_length else text[: max_length - 1] + "…"
