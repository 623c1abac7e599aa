"""Attributes and their values, redacted before they are encoded.

Most attributes repeat: the same keys always, the same values often. So each key remembers its encoded values, the short ones,
up to a bound; one that comes again costs a look in two dictionaries. A value is looked for only among those of its own
type: ``1``, ``True`` and ``1.0`` are equal, and must not be taken for one another. Floats are never remembered: ``0.0`` and
``-0.0`` are equal, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from opentelemetry.attributes import BoundedAttributes

from clew.catalog import semconv
from clew.pipeline.coercion import MAX_DEPTH, MAX_STACKTRACE_LENGTH, attribute_value, cut, integer, limited
from clew.pipeline.encoding.wire import delimited, double, int64, varint
from clew.pipeline.redaction import REDACTED, Redactor

MAX_REMEMBERED: Final = 4_096
MAX_REMEMBERED_KEYS: Final = 512
MAX_REMEMBERED_LENGTH: Final = 96
# What is looked at beyond a text's limit, so that a secret that lies across it is seen whole
_MARGIN: Final = 4_096
_ATTEMPTS: Final = 100
_MIN_INT64: Final = -(2**63)
_MAX_INT64: Final = 2**63 - 1
_TRUE: Final = b"\x10\x01"
_FALSE: Final = b"\x10\x00"


class Values:
    """Encodes what an attribute or a log record's body may hold.

    Args:
        redactor: replaces secrets.
        max_length: characters that are kept of a text.
    """

    def __init__(self, redactor: Redactor, max_length: int) -> None:
        self.redactor = redactor
        self.max_length = max_length
        self._nested = Pairs(self, b"\x0a")

    def text(self, text: str) -> bytes:
        """Return a text in UTF-8: without secrets, cut to the limit, and with a question mark for what is no character."""
        if len(text) > self.max_length:
            seen = self.redactor.text(text[: self.max_length + _MARGIN])
            if len(seen) < self.max_length < len(text) - _MARGIN:
                # Redacted to less than the limit, it ends where the look ended: perhaps within a secret
                seen = seen[: max(0, len(seen) - _MARGIN)] + "…"
            return utf8(cut(seen, self.max_length))
        return utf8(self.redactor.text(text))

    def stacktrace(self, text: str) -> bytes:
        """Return a stack trace in UTF-8, without secrets: the end says most, so it is kept."""
        seen = self.redactor.text(text[-MAX_STACKTRACE_LENGTH - _MARGIN :])
        return utf8(seen if len(seen) <= MAX_STACKTRACE_LENGTH else "…" + seen[-MAX_STACKTRACE_LENGTH:])

    def value(self, value: Any, depth: int = 0) -> bytes:
        """Return a value as an ``AnyValue``. What telemetry has no type for becomes text."""
        if value is None:
            return b""
        if isinstance(value, bool):
            return _TRUE if value else _FALSE
        if isinstance(value, str):
            return delimited(b"\x0a", self.text(str.__str__(value)))
        if isinstance(value, int):
            number = integer(value)
            return self.value(number) if isinstance(number, str) else b"\x18" + int64(number)
        if isinstance(value, float):
            return b"\x21" + double(value)
        if isinstance(value, bytes):
            return delimited(b"\x3a", self._bytes(value))
        if depth < MAX_DEPTH and isinstance(value, (Mapping, Sequence)):
            return self._container(value, depth + 1)
        return self.value(self.plain("", value))

    def plain(self, key: str, value: Any) -> Any:
        """Return anything at all as something that can be encoded, without the secrets in containers. Never raises."""
        try:
            shown = self.redactor.value(key, limited(value))
            return attribute_value(shown, max_length=self.max_length + _MARGIN)
        except Exception:
            return f"<{type(value).__qualname__} without a text form>"

    def _container(self, value: Mapping[Any, Any] | Sequence[Any], depth: int) -> bytes:
        if isinstance(value, Sequence):
            return delimited(b"\x2a", b"".join([delimited(b"\x0a", self.value(item, depth)) for item in value]))
        nested = self._nested
        return delimited(b"\x32", b"".join([nested.pair(key, item, depth) for key, item in items_of(value)]))

    def _bytes(self, value: bytes) -> bytes:
        # In Latin-1 every byte is one character, so what is no secret stays as it is
        text = value.decode("latin-1")
        shown = self.redactor.text(text)
        return value if shown is text else shown.encode("latin-1")


class Pairs(dict[Any, "_Pair"]):
    """The attributes of one kind of message, by key: ``pairs[key][value]`` is the encoded field, for a text or an integer.

    Args:
        values: encodes what is seen for the first time.
        tag: of the field that holds the attributes.
    """

    __slots__ = ("room", "tag", "values_encoder")

    def __init__(self, values: Values, tag: bytes) -> None:
        super().__init__()
        self.values_encoder = values
        self.tag = tag
        self.room = MAX_REMEMBERED

    def __missing__(self, key: Any) -> _Pair:
        pair = _Pair(self, key)
        if type(key) is str and len(key) <= MAX_REMEMBERED_LENGTH:
            if len(self) >= MAX_REMEMBERED_KEYS:
                # Somebody puts data into keys: those that come again are back soon
                self.clear()
                self.room = MAX_REMEMBERED
            self[key] = pair
        return pair

    def encode(self, attributes: Mapping[str, Any] | None) -> list[bytes]:
        """Return attributes as the SDK keeps them, as fields to be joined."""
        if type(attributes) is dict:
            try:
                return self._fields(attributes.items())
            except RuntimeError:
                # Another thread has just added one: read them again, all at once
                return self._fields(items_of(attributes))
        return self._fields(items_of(attributes))

    def encode_anything(self, attributes: Mapping[str, Any]) -> list[bytes]:
        """Return attributes whose values may be anything, as fields to be joined. Nobody changes them meanwhile."""
        return [
            self[key][value] if (kind := type(value)) is str or kind is int else self[key].anything(value)
            for key, value in attributes.items()
        ]

    def _fields(self, items: Iterable[tuple[Any, Any]]) -> list[bytes]:
        return [
            self[key][value] if (kind := type(value)) is str or kind is int else self[key].other(value)
            for key, value in items
        ]

    def pair(self, key: Any, value: Any, depth: int) -> bytes:
        """Return one attribute that stands within another's value."""
        if type(value) is str or type(value) is int:
            return self[key][value]
        return self[key].other(value, depth)

    def make_room(self) -> None:
        """Forget every value: those that come again are back soon. A key whose values hardly do remembers none any more."""
        self.room = MAX_REMEMBERED
        for pair in self.values():
            pair.is_remembering = len(pair) < MAX_REMEMBERED // 8
            pair.clear()


class _Pair(dict[Any, bytes]):
    """One key, and the encoded fields of its latest texts and integers."""

    __slots__ = (
        "_before",
        "_double",
        "_false",
        "_key",
        "_name",
        "_pairs",
        "_redact",
        "_redacted",
        "_short",
        "_text",
        "_true",
        "is_remembering",
    )

    def __init__(self, pairs: Pairs, key: Any) -> None:
        super().__init__()
        values = pairs.values_encoder
        self._pairs = pairs
        self.is_remembering = True
        self._name = _name(key)
        self._key = delimited(b"\x0a", values.text(self._name))
        self._redact = values.redactor.text
        self._short = min(MAX_REMEMBERED_LENGTH, values.max_length)
        self._text = values.stacktrace if self._name == semconv.EXCEPTION_STACKTRACE else values.text
        # What stands before a text of so many bytes; below zero, before an integer of so many
        self._before: dict[int, bytes] = {}
        self._true = self._field(_TRUE)
        self._false = self._field(_FALSE)
        self._double = self._field(b"\x21" + double(0.0))[:-8]
        secret = values.redactor.is_secret(self._name)
        self._redacted = self._field(delimited(b"\x0a", REDACTED.encode())) if secret else None

    def __missing__(self, value: str | int) -> bytes:
        if self._redacted is not None:
            return self._redacted
        if isinstance(value, int):
            if not _MIN_INT64 <= value <= _MAX_INT64:
                return self._field(self._pairs.values_encoder.value(value))
            data = int64(value)
            before = self._before.get(-len(data))
            encoded = (before if before is not None else self._before_integer(len(data))) + data
        elif len(value) <= self._short:
            try:
                data = self._redact(value).encode()
            except UnicodeEncodeError:
                data = self._text(value)
            before = self._before.get(len(data))
            encoded = (before if before is not None else self._before_text(len(data))) + data
        else:
            data = self._text(value)
            return self._before_text(len(data)) + data
        if self.is_remembering:
            pairs = self._pairs
            if pairs.room <= 0:
                pairs.make_room()
            pairs.room -= 1
            self[value] = encoded
        return encoded

    def other(self, value: Any, depth: int = 0) -> bytes:
        """Return the field of a value that is neither a text nor an integer."""
        if value is None:
            return self._field(b"")
        if self._redacted is not None:
            return self._redacted
        if value is True:
            return self._true
        if value is False:
            return self._false
        if type(value) is float:
            return self._double + double(value)
        return self._field(self._pairs.values_encoder.value(value, depth))

    def anything(self, value: Any) -> bytes:
        """Return the field of a value that may be of any type: what telemetry has no type for becomes text."""
        if self._redacted is not None:
            return self._redacted
        if type(value) is float:
            return self._double + double(value)
        if value is not True and value is not False:
            value = self._pairs.values_encoder.plain(self._name, value)
        return self._field(delimited(b"\x0a", self._text(value))) if isinstance(value, str) else self.other(value)

    def _field(self, value: bytes) -> bytes:
        return delimited(self._pairs.tag, self._key + delimited(b"\x12", value))

    def _before_text(self, size: int) -> bytes:
        length = varint(size)
        value = b"\x12" + varint(1 + len(length) + size) + b"\x0a" + length
        before = self._pairs.tag + varint(len(self._key) + len(value) + size) + self._key + value
        if size <= MAX_REMEMBERED_LENGTH * 4:
            self._before[size] = before
        return before

    def _before_integer(self, size: int) -> bytes:
        before = self._before[-size] = self._field(b"\x18" + bytes(size))[:-size]
        return before


class Texts(dict[str, bytes]):
    """The texts of one field, such as names: ``texts[text]`` is the encoded field.

    Args:
        values: encodes what is seen for the first time.
        tags: of the field, and of the messages around it, the innermost first.
    """

    __slots__ = ("_tags", "_values")

    def __init__(self, values: Values, *tags: bytes) -> None:
        super().__init__()
        self._values = values
        self._tags = tags

    def __missing__(self, text: str) -> bytes:
        encoded = self._values.text(text)
        for tag in self._tags:
            encoded = delimited(tag, encoded)
        if len(text) <= MAX_REMEMBERED_LENGTH:
            if len(self) >= MAX_REMEMBERED_KEYS:
                self.clear()
            self[text] = encoded
        return encoded


def items_of(attributes: Mapping[Any, Any] | None) -> Iterable[tuple[Any, Any]]:
    """Return the items of a mapping as they are now.

    A span's attributes may be changed by another thread meanwhile: then they are read again.

    Raises:
        RuntimeError, KeyError: they were changed again and again.
    """
    if not attributes:
        return ()
    for attempt in range(_ATTEMPTS):
        try:
            if type(attributes) is BoundedAttributes:
                # Its own iteration takes a lock, and runs in Python
                attributes = attributes.copy()
            return list(attributes.items())
        except (RuntimeError, KeyError):
            if attempt == _ATTEMPTS - 1:
                raise
    return ()


def utf8(text: str) -> bytes:
    r"""Return a text in UTF-8, with a question mark in place of half a surrogate pair.

    Example:
        >>> utf8("lone \ud800")
        b'lone ?'
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _name(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    try:
        return str(key)
    except Exception:
        return f"<{type(key).__qualname__} without a text form>"
