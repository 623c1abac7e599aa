"""Prompts and completions, in the form that the GenAI conventions give them. They are only kept where the settings ask for it.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from clew.engine.state import state
from clew.history import payload

MAX_MESSAGES: Final = 200
"""How many messages of a conversation are looked at, the last ones."""


def is_wanted() -> bool:
    """Tell whether prompts and completions are kept."""
    settings = state.settings
    return settings is not None and settings.llm_content


def messages(given: Any, *, role: str) -> list[Any]:
    """Return messages in the conventions' form.

    Args:
        given: a text, a message as OpenAI and others have it (``role`` and ``content``), or a list of those.
        role: of what has none.

    Example:
        >>> messages("a thread", role="user")
        [{'role': 'user', 'parts': [{'type': 'text', 'content': 'a thread'}]}]
    """
    items = given if isinstance(given, (list, tuple)) else [given]
    return [_message(item, role) for item in items[-MAX_MESSAGES:]]


def kept(shown: list[Any]) -> Any:
    """Return messages as the record has them: redacted, and cut at ``CLEW_PAYLOAD_MAX_BYTES``."""
    return payload.payload(shown, max_bytes=_max_bytes(), redact=state.redact)


def written(shown: Any) -> str:
    """Return messages, or anything else, as a span has it: as JSON that is whole, whatever was cut."""
    max_bytes = min(_max_bytes(), state.max_value_length)
    # The frame of what is cut takes some, too, and so does what JSON escapes
    cut = payload.payload(shown, max_bytes=max(16, max_bytes // 2 - 64), redact=state.redact)
    whole = payload.payload(shown, max_bytes=max_bytes, redact=state.redact)
    fits = not (isinstance(whole, dict) and payload.TRUNCATED_KEY in whole)
    return json.dumps(whole if fits else cut, ensure_ascii=False)


def _max_bytes() -> int:
    return state.settings.payload_max_bytes if state.settings is not None else 16_384


def _message(item: Any, role: str) -> Any:
    if isinstance(item, Mapping) and ("content" in item or "role" in item):
        parts = _parts(item.get("content"))
        calls = item.get("tool_calls")
        if isinstance(calls, (list, tuple)):
            parts += [{"type": "tool_call", "call": call} for call in calls]
        said: dict[str, Any] = {"role": str(item.get("role", role)), "parts": parts}
        if "finish_reason" in item:
            said["finish_reason"] = item["finish_reason"]
        return said
    return {"role": role, "parts": _parts(item)}


def _parts(content: Any) -> list[Any]:
    if content is None:
        return []
    if isinstance(content, (list, tuple)):
        return [_part(item) for item in content]
    return [_part(content)]


def _part(item: Any) -> Any:
    if isinstance(item, Mapping):
        if isinstance(said := item.get("text"), str):
            return {"type": "text", "content": said}
        kind = str(item.get("type", "other"))
        # An image or a recording is no text, and large
        return {"type": kind} if "image" in kind or "audio" in kind or "file" in kind else {**item, "type": kind}
    return {"type": "text", "content": item if isinstance(item, (str, int, float)) else str(item)}
