"""What the stand-in is asked: the bodies of both of OpenAI's interfaces, and the one conversation that is read from either.

Source: https://platform.openai.com/docs/api-reference/chat and https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# The conversation, as the model sees it


@dataclass(frozen=True, kw_only=True)
class FunctionCall:
    """A call of a tool that the model asked for.

    Attributes:
        id: what its result refers to.
        name: the tool.
        arguments: as JSON.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        text: all text of it.
        calls: of the assistant, the tools that it called.
        call_id: of a tool's result, the call.
    """

    role: str
    text: str = ""
    calls: tuple[FunctionCall, ...] = ()
    call_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool that may be called.

    Attributes:
        name: of it.
        parameters: the JSON schema of its arguments.
    """

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """All that the model knows of a request.

    Attributes:
        turns: in order.
        tools: those that it may call.
        choice: ``auto``, ``none`` or ``required``.
        forced: the one tool that it has to call.
        is_parallel: whether it may call several at once.
        schema: the JSON schema that its answer has to have.
        most_tokens: of its answer.
    """

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    choice: Literal["auto", "none", "required"] = "auto"
    forced: str | None = None
    is_parallel: bool = True
    schema: dict[str, Any] | None = None
    most_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse what a provider refuses, too.

        Raises:
            ValueError: a result belongs to no call, a call has no result, or the tool to be called is not there.
        """
        open_calls: dict[str, None] = {}
        for turn in self.turns:
            if turn.call_id:
                if turn.call_id not in open_calls:
                    raise ValueError(f"no tool call {turn.call_id[:80]!r} stands before its result")
                del open_calls[turn.call_id]
            open_calls.update((call.id, None) for call in turn.calls)
        if open_calls:
            raise ValueError(f"the tool call {next(iter(open_calls))[:80]!r} has no result")
        if self.forced is not None and self.forced not in {tool.name for tool in self.tools}:
            raise ValueError(f"tool_choice names the function {self.forced[:80]!r}, which is not among the tools")


# The bodies. What is not read (sampling parameters, metadata) changes nothing here and is let through


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore")


class ContentPart(_Read):
    """One part of a message; only text is read."""

    type: str
    text: str | None = None


class CalledFunction(_Read):
    """What an earlier answer called."""

    name: str
    arguments: str = "{}"


class EarlierCall(_Read):
    """A call of an earlier answer."""

    id: str
    type: str = "function"
    function: CalledFunction


class Message(_Read):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = ""
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """All text of the message."""
        return _text(self.content)

    @property
    def turn(self) -> Turn:
        """The message as a turn."""
        calls = tuple(
            FunctionCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in self.tool_calls or ()
        )
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a tool's message has a tool_call_id")
        call_id = self.tool_call_id or "" if self.role == "tool" else ""
        return Turn(role=_role(self.role), text=self.text, calls=calls, call_id=call_id)


class StreamOptions(_Read):
    """What a streamed answer is to bring along."""

    include_usage: bool = False


class Function(_Read):
    """A function that may be called."""

    name: str = Field(min_length=1)
    parameters: dict[str, Any] | None = None


class ChatTool(_Read):
    """A tool of a chat."""

    type: Literal["function"]
    function: Function


class ChatRequest(_Read):
    """What is read of a chat completion request."""

    model: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    tools: list[ChatTool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    prompt_cache_key: str | None = Field(default=None, max_length=64)

    def conversation(self) -> Conversation:
        """Return what is asked.

        Raises:
            ValueError: it can't be answered.
        """
        choice, forced = _choice(self.tool_choice)
        schema = ((self.response_format or {}).get("json_schema") or {}).get("schema")
        return Conversation(
            turns=tuple(message.turn for message in self.messages),
            tools=tuple(
                Tool(name=tool.function.name, parameters=tool.function.parameters or {}) for tool in self.tools or ()
            ),
            choice=choice,
            forced=forced,
            is_parallel=self.parallel_tool_calls is not False,
            schema=schema if isinstance(schema, dict) else None,
            most_tokens=self.max_completion_tokens or self.max_tokens,
        )


class ResponseItem(_Read):
    """One item of a response's input: a message, an earlier call, or its result. Others, such as reasoning, are not read."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: str | list[ContentPart] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = "{}"
    output: str | list[ContentPart] | None = None

    @property
    def turn(self) -> Turn | None:
        """The item as a turn."""
        if self.type == "message":
            return Turn(role=_role(self.role), text=_text(self.content))
        if self.type == "function_call":
            call = FunctionCall(id=self.call_id, name=self.name, arguments=self.arguments)
            return Turn(role="assistant", calls=(call,))
        if self.type == "function_call_output":
            return Turn(role="tool", text=_text(self.output), call_id=self.call_id)
        if self.type == "item_reference":
            raise ValueError("nothing is kept here: send the items themselves")
        return None


class ResponseTool(Function):
    """A tool of a response."""

    type: Literal["function"]


class ResponsesRequest(_Read):
    """What is read of a request to the responses interface."""

    model: str = Field(min_length=1)
    input: str | list[ResponseItem] = ""
    instructions: str | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    stream: bool | None = False
    max_output_tokens: int | None = Field(default=None, ge=1)
    prompt_cache_key: str | None = Field(default=None, max_length=64)
    previous_response_id: str | None = None
    conversation_id: Any = Field(default=None, alias="conversation")

    def conversation(self) -> Conversation:
        """Return what is asked.

        Raises:
            ValueError: it can't be answered.
        """
        if self.previous_response_id is not None or self.conversation_id is not None:
            raise ValueError("nothing is kept here: send the whole conversation as input, without previous_response_id")
        given = [ResponseItem(content=self.input)] if isinstance(self.input, str) else self.input
        turns = [turn for item in given if (turn := item.turn) is not None]
        if self.instructions:
            turns.insert(0, Turn(role="system", text=self.instructions))
        if not turns:
            raise ValueError("input: there is none")
        choice, forced = _choice(self.tool_choice)
        wanted = (self.text or {}).get("format") or {}
        return Conversation(
            turns=tuple(turns),
            tools=tuple(Tool(name=tool.name, parameters=tool.parameters or {}) for tool in self.tools or ()),
            choice=choice,
            forced=forced,
            is_parallel=self.parallel_tool_calls is not False,
            schema=wanted.get("schema") if isinstance(wanted.get("schema"), dict) else None,
            most_tokens=self.max_output_tokens,
        )


def _text(content: str | list[ContentPart] | None) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text or "" for part in content or ())


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _choice(given: Any) -> tuple[Literal["auto", "none", "required"], str | None]:
    if given is None:
        return "auto", None
    if given in ("auto", "none", "required"):
        return given, None
    if isinstance(given, dict):
        name = (given.get("function") or given).get("name")
        if isinstance(name, str):
            return "required", name
    raise ValueError("tool_choice is 'auto', 'none', 'required' or names a function")
