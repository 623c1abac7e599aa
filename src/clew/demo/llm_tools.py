r"""Which tools the stand-in calls, and with which arguments: what the instructions name, as their schemas want it.

The rule, the same for both interfaces:

- A tool is asked for where its name stands in the latest user message or, where none does, in the instructions; ``word_count``,
  ``word-count`` and ``word count`` are one name.
- It is called unless it has been called since that user message. Those named before the first ``transfer_to_...`` are called at once
  (one by one where the request has ``parallel_tool_calls: false``), a transfer alone, and what is named after it later.
- ``tool_choice`` goes before that: a function that it names is called, ``none`` calls nothing, and ``required`` calls, where nothing is
  asked for, the last tool that has not been called: that is where frameworks put the one that takes the answer.
- An argument is what the latest user message gives as ``name=value`` or ``name: value``, up to a comma, a semicolon or the line's end.
  Else it is made by the schema: text is the whole message, a list of texts its keywords, a number the first one that it has, one
  of several values the first one that it has. Only required arguments are given, and such as the message gives.
- When nothing is left to call, the answer is what it is without tools, and after it a line ``name: result`` for each result.

Example:
    >>> tool = Tool(name="word_count", parameters={"properties": {"text": {"type": "string"}}, "required": ["text"]})
    >>> turns = (Turn(role="system", text="Use word_count."), Turn(role="user", text="A thread."))
    >>> calls_of(Conversation(turns=turns, tools=(tool,)))
    [('word_count', {'text': 'A thread.'})]
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from clew.demo.extraction import keywords
from clew.demo.llm_requests import Conversation, Tool, Turn

_TRANSFER: Final = "transfer_to_"
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_MAX_DEPTH: Final = 8
_MAX_ITEMS: Final = 8
_MAX_RESULT_LENGTH: Final = 2_000


def calls_of(asked: Conversation) -> list[tuple[str, dict[str, Any]]]:
    """Return the tools that are called now, each with its arguments; none where it is time to answer.

    Args:
        asked: the conversation.
    """
    if asked.choice == "none" or not asked.tools:
        return []
    text = user_text(asked)
    if asked.forced is not None:
        chosen = [tool for tool in asked.tools if tool.name == asked.forced][:1]
    else:
        chosen = _asked_for(asked, text)
        if not chosen and asked.choice == "required":
            called = _called(asked)
            chosen = [tool for tool in asked.tools if tool.name not in called][-1:] or [asked.tools[-1]]
    if not asked.is_parallel:
        chosen = chosen[:1]
    return [(tool.name, _arguments(tool, text)) for tool in chosen]


def results_of(asked: Conversation) -> list[tuple[str, str]]:
    """Return the name and the result of each tool that has answered since the latest user message; transfers have nothing to say.

    Args:
        asked: the conversation.
    """
    turns = _since_user(asked)
    names = {call.id: call.name for turn in turns for call in turn.calls}
    found = [(names[turn.call_id], turn.text[:_MAX_RESULT_LENGTH]) for turn in turns if turn.call_id in names]
    return [(name, result) for name, result in found if not name.startswith(_TRANSFER)]


def made_to(schema: Mapping[str, Any], text: str) -> Any:
    """Return a value that a JSON schema allows, made from a text.

    Args:
        schema: of the value.
        text: what it is made from.

    Example:
        >>> made_to({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}, "the best 3")
        {'n': 3}
    """
    return _value(schema, text, "", schema, 0)


def user_text(asked: Conversation) -> str:
    """Return the latest user message.

    Args:
        asked: the conversation.
    """
    return next((turn.text for turn in reversed(asked.turns) if turn.role == "user"), "")


def instructions_of(asked: Conversation) -> str:
    """Return all instructions of the system or the developer.

    Args:
        asked: the conversation.
    """
    return " ".join(turn.text for turn in asked.turns if turn.role == "system")


def _since_user(asked: Conversation) -> tuple[Turn, ...]:
    last = max((index for index, turn in enumerate(asked.turns) if turn.role == "user"), default=-1)
    return asked.turns[last + 1 :]


def _called(asked: Conversation) -> set[str]:
    return {call.name for turn in _since_user(asked) for call in turn.calls}


def _asked_for(asked: Conversation, text: str) -> list[Tool]:
    named = _named(asked.tools, text) or _named(asked.tools, instructions_of(asked))
    called = _called(asked)
    waiting = [tool for tool in named if tool.name not in called]
    first = next((index for index, tool in enumerate(waiting) if tool.name.startswith(_TRANSFER)), len(waiting))
    return waiting[: first or 1]


def _named(tools: tuple[Tool, ...], text: str) -> list[Tool]:
    found: list[tuple[int, int, Tool]] = []
    for tool in tools:
        pattern = r"[\s_-]".join(map(re.escape, re.split(r"[\s_-]", tool.name)))
        if (match := re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)) is not None:
            found.append((match.start(), len(found), tool))
    return [tool for _, _, tool in sorted(found, key=lambda item: item[:2])]


def _arguments(tool: Tool, text: str) -> dict[str, Any]:
    made = _value({**tool.parameters, "type": "object"}, text, "", tool.parameters, 0)
    return made if isinstance(made, dict) else {}


def _value(schema: Any, text: str, name: str, root: Mapping[str, Any], depth: int) -> Any:
    schema = _resolved(schema, root)
    if depth > _MAX_DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    given = _given(name, text)
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        where = (given if given is not None else text).lower()
        return next((value for value in schema["enum"] if str(value).lower() in where), schema["enum"][0])
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties") or {}
        wanted = [key for key in properties if key in schema.get("required", ()) or _given(key, text) is not None]
        return {key: _value(properties[key], text, key, root, depth + 1) for key in wanted}
    if kind == "array":
        return _items(schema, text if given is None else given, name, root, depth)
    if kind in ("integer", "number"):
        return _number(schema, text if given is None else given, whole=kind == "integer")
    if kind == "boolean":
        return given is not None and given.lower() in ("true", "yes", "1", "on")
    if kind == "null":
        return None
    return (text if given is None else given)[: schema.get("maxLength")]


def _items(schema: Mapping[str, Any], text: str, name: str, root: Mapping[str, Any], depth: int) -> list[Any]:
    most = min(schema.get("maxItems", _MAX_ITEMS), _MAX_ITEMS)
    of_each = _resolved(schema.get("items") or {}, root)
    if of_each.get("type") == "string" and "enum" not in of_each:
        return [keyword.name for keyword in keywords(text, most)]
    return [_value(of_each, text, name, root, depth + 1)][:most]


def _number(schema: Mapping[str, Any], text: str, *, whole: bool) -> int | float:
    least, most = schema.get("minimum", 0), schema.get("maximum")
    found = _NUMBER.search(text)
    # As text in between: a number of thousands of digits is no float
    number = float(found.group()[:15]) if found is not None else float(max(least, 1))
    number = max(number, least) if most is None else min(max(number, least), most)
    return int(number) if whole else number


def _given(name: str, text: str) -> str | None:
    if not name:
        return None
    found = re.search(rf"(?<!\w){re.escape(name)}\s*[=:]\s*([^,;\n]+)", text, re.IGNORECASE)
    return found.group(1).strip().strip("\"'").rstrip(".") if found is not None else None


def _resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        if isinstance(reference := schema.get("$ref"), str):
            schema = _at(root, reference)
            continue
        options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        if not isinstance(options, list) or not options:
            return schema
        schema = next(
            (one for one in options if not (isinstance(one, Mapping) and one.get("type") == "null")), options[0]
        )
    return {}


def _at(root: Mapping[str, Any], reference: str) -> Any:
    found: Any = root
    for step in filter(None, reference.removeprefix("#").split("/")):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def written(arguments: Mapping[str, Any]) -> str:
    """Return arguments as the JSON that a call has.

    Args:
        arguments: of the call.
    """
    return json.dumps(arguments, ensure_ascii=False)
