"""The envelope of hand-made queues: what a message is written as, and how one is read that may come from anybody.

An envelope is a JSON object::

    {"clew": 1,
     "headers": {"traceparent": "00-...-01", "x-correlation-id": "order-17", "clew-sent-at": "1790000000.123456",
                 "clew-source": "orders", "clew-type": "document", "clew-user": "u-17",
                 "clew-message-id": "019c...", "clew-attempt": "1"},
     "payload": {"id": 1}}

Its headers are those that clew writes into the messages of any broker. A body of bytes stands in ``payload_base64`` in place of
``payload``. Every header may be missing.
"""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic_core import to_jsonable_python

from clew.diagnostics import ClewError

VERSION: Final = 1
MAX_BYTES: Final = 16 * 1024 * 1024
"""How large a message may be that is read, where nothing else is asked for."""
MAX_DEPTH: Final = 100
"""How deep a message may be nested."""

MESSAGE_ID_HEADER: Final = "clew-message-id"
ATTEMPT_HEADER: Final = "clew-attempt"
EARLIER_TRY_HEADER: Final = "clew-earlier-try"

_MARK: Final = "clew"
MAX_HEADERS: Final = 64
"""How many headers an envelope may have."""
_MAX_ATTEMPT: Final = 2**31 - 1


class MessageError(ClewError, ValueError):
    """A message can't be read, or can't be written.

    Attributes:
        reason: ``malformed``, ``oversized``, ``unknown_version``, or ``unwritable``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What is in a message.

    Attributes:
        envelope: ``clew``, or ``plain`` where its producer has no clew.
        payload: what it carries: JSON as Python has it; text or bytes that are no JSON as they are.
        headers: of the envelope; none where it is plain.
    """

    envelope: Literal["clew", "plain"]
    payload: Any
    headers: Mapping[str, str]

    @property
    def attempt(self) -> int:
        """The number of this try, from 1."""
        told = self.headers.get(ATTEMPT_HEADER, "")
        number = int(told) if told.isascii() and told.isdigit() and len(told) <= 10 else 1
        return min(max(1, number), _MAX_ATTEMPT)


def written(payload: Any, headers: Mapping[str, str]) -> bytes:
    """Return a message as it goes over the wire.

    Args:
        payload: anything that JSON can have; also dates, UUIDs, dataclasses, models of pydantic, and bytes.
        headers: texts.

    Raises:
        MessageError: the payload can't be put into JSON without loss.

    Example:
        >>> written({"id": 1}, {})
        b'{"clew":1,"headers":{},"payload":{"id":1}}'
    """
    envelope: dict[str, Any] = {_MARK: VERSION, "headers": dict(headers)}
    if isinstance(payload, (bytes, bytearray, memoryview)):
        envelope["payload_base64"] = b64encode(payload).decode()
    else:
        envelope["payload"] = payload
    try:
        return json.dumps(envelope, separators=(",", ":"), allow_nan=False, default=to_jsonable_python).encode()
    except Exception as error:
        # Whatever an object of the app raises when it is asked what it is
        raise MessageError("unwritable", f"a message can't be written as JSON: {_first_line(error)}") from error


def opened(raw: object, *, max_bytes: int = MAX_BYTES) -> Opened:
    r"""Read a message, whoever has written it.

    Args:
        raw: what came over the wire.
        max_bytes: how large it may be.

    Raises:
        MessageError: it is too large, it is not what it pretends to be, or it is nested too deep.

    Example:
        >>> opened(b'{"clew":1,"headers":{},"payload":{"id":1}}').payload, opened("hello").envelope, opened(b"\xff").payload
        ({'id': 1}, 'plain', b'\xff')
    """
    if isinstance(raw, (bytearray, memoryview)):
        raw = bytes(raw)
    if not isinstance(raw, (bytes, str)):
        raise MessageError("malformed", f"a message is bytes or text, not {type(raw).__qualname__}")
    size = len(raw) if isinstance(raw, bytes) or len(raw) > max_bytes else len(raw.encode("utf-8", "surrogatepass"))
    if size > max_bytes:
        raise MessageError("oversized", f"a message of {size} bytes is larger than {max_bytes}")
    text = _text(raw)
    if text is None:
        return Opened(envelope="plain", payload=raw, headers={})
    is_structure = text.lstrip(" \t\r\n")[:1] in ("{", "[")
    try:
        content = json.loads(text, parse_constant=_refuse)
        too_deep = is_structure and _is_deep(content)
    except RecursionError:
        content, too_deep = None, True
    except ValueError as error:
        if is_structure:
            raise MessageError("malformed", f"a message is no JSON: {_first_line(error)}") from None
        return Opened(envelope="plain", payload=text, headers={})
    if too_deep:
        raise MessageError("malformed", f"a message is nested deeper than {MAX_DEPTH} levels")
    if isinstance(content, dict) and _MARK in content:
        return _of_envelope(content)
    return Opened(envelope="plain", payload=content, headers={})


def _of_envelope(content: dict[str, Any]) -> Opened:
    version, headers = content[_MARK], content.get("headers", {})
    if type(version) is not int or version < 1:
        # A document of somebody who has a field of that name
        return Opened(envelope="plain", payload=content, headers={})
    if version != VERSION:
        raise MessageError("unknown_version", f"an envelope of version {str(version)[:20]} needs a newer clew")
    if not isinstance(headers, dict) or len(headers) > MAX_HEADERS:
        raise MessageError("malformed", f"the headers of an envelope are an object of {MAX_HEADERS} texts at most")
    if not all(isinstance(value, str) for value in headers.values()):
        raise MessageError("malformed", "the headers of an envelope are texts")
    if "payload" in content:
        return Opened(envelope="clew", payload=content["payload"], headers=headers)
    encoded = content.get("payload_base64")
    if not isinstance(encoded, str):
        raise MessageError("malformed", "an envelope has no payload")
    try:
        body = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MessageError("malformed", "the payload of an envelope is no base64") from None
    return Opened(envelope="clew", payload=body, headers=headers)


def _text(raw: bytes | str) -> str | None:
    if isinstance(raw, str):
        return raw
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _is_deep(content: Any) -> bool:
    """Tell whether a structure is nested deeper than any that is meant well; who walks it would run out of stack."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for inner in level
            if isinstance(inner, (dict, list))
            for item in (inner.values() if isinstance(inner, dict) else inner)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def _first_line(error: Exception) -> str:
    try:
        return (str(error).splitlines() or [""])[0][:200]
    except Exception:
        return type(error).__qualname__
