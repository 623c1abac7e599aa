"""What the stand-in says, in the forms that OpenAI's two interfaces have for it: whole, and as the events of a stream.

Source: https://platform.openai.com/docs/api-reference/chat and https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import clew
from clew.demo.extraction import count_tokens
from clew.demo.llm_requests import ChatRequest, FunctionCall, ResponsesRequest

_WORDS_PER_CHUNK: Final = 12


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the model says: a text, or the tools that it calls.

    Attributes:
        text: of the answer.
        is_cut: the text was longer than it may be.
        calls: of tools; then there is no text.
        prompt_tokens: of what it was asked.
        cached_tokens: of those, what it was asked before.
    """

    text: str = ""
    is_cut: bool = False
    calls: tuple[FunctionCall, ...] = ()
    prompt_tokens: int
    cached_tokens: int

    @property
    def completion_tokens(self) -> int:
        """How many tokens were said."""
        return count_tokens(self.text) + sum(count_tokens(call.name + call.arguments) for call in self.calls)

    @property
    def finish_reason(self) -> str:
        """Why it stopped."""
        return "tool_calls" if self.calls else "length" if self.is_cut else "stop"

    @property
    def tokens(self) -> dict[str, int]:
        """The tokens, as a chat completion names them."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def new_id(kind: str) -> str:
    """Return an id that nothing else has.

    Args:
        kind: what it begins with.
    """
    return f"{kind}_{secrets.token_hex(12)}"


def _pieces(text: str) -> Iterator[str]:
    words = re.findall(r"\S+\s*", text)
    for start in range(0, len(words), _WORDS_PER_CHUNK):
        yield "".join(words[start : start + _WORDS_PER_CHUNK])


class ChatReply:
    """A chat completion.

    Args:
        request: what was asked.
        said: the answer.
    """

    def __init__(self, request: ChatRequest, said: Said) -> None:
        self._said = said
        self._with_usage = request.stream_options is not None and request.stream_options.include_usage
        self._usage = {
            **said.tokens,
            "prompt_tokens_details": {"cached_tokens": said.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        self._head = {
            "id": f"chatcmpl-{clew.trace_id()[:16] or 'untraced'}{time.monotonic_ns():x}",
            "created": int(time.time()),
            "model": request.model,
        }

    def whole(self) -> dict[str, Any]:
        """Return the answer as one object."""
        message: dict[str, Any] = {"role": "assistant", "content": self._said.text, "refusal": None}
        if self._said.calls:
            message |= {"content": None, "tool_calls": [_chat_call(call) for call in self._said.calls]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._said.finish_reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage}

    async def events(self) -> AsyncIterator[str]:
        """Give the answer in chunks, as server-sent events."""
        yield self._event([_delta({"role": "assistant", "content": None if self._said.calls else ""})])
        for index, call in enumerate(self._said.calls):
            begun = {**_chat_call(call), "index": index}
            begun["function"] = {"name": call.name, "arguments": ""}
            yield self._event([_delta({"tool_calls": [begun]})])
            for piece in _pieces(call.arguments):
                yield self._event([_delta({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})])
        for piece in _pieces(self._said.text):
            yield self._event([_delta({"content": piece})])
        yield self._event([_delta({}, finish_reason=self._said.finish_reason)])
        if self._with_usage:
            yield self._event([], usage=self._usage)
        yield "data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def _chat_call(call: FunctionCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _delta(content: dict[str, Any], *, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": content, "logprobs": None, "finish_reason": finish_reason}


class ResponseReply:
    """An answer of the responses interface.

    Args:
        request: what was asked.
        said: the answer.
        given: the request's body, of which the answer repeats some.
    """

    def __init__(self, request: ResponsesRequest, said: Said, given: dict[str, Any]) -> None:
        self._said = said
        self._sequence = 0
        usage = {
            "input_tokens": said.prompt_tokens,
            "input_tokens_details": {"cached_tokens": said.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": said.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": said.prompt_tokens + said.completion_tokens,
        }
        self._ended = {
            "status": "incomplete" if said.is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if said.is_cut else None,
            "usage": usage,
        }
        self._head = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": request.model,
            "error": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "tool_choice": given.get("tool_choice") or "auto",
            "tools": given.get("tools") or [],
            "text": given.get("text") or {"format": {"type": "text"}},
            "metadata": given.get("metadata") or {},
            "temperature": given.get("temperature"),
            "top_p": given.get("top_p"),
        }
        self._items = [_call_item(call) for call in said.calls] or [_message_item(said)]

    def whole(self) -> dict[str, Any]:
        """Return the answer as one object."""
        return {**self._head, **self._ended, "output": self._items}

    async def events(self) -> AsyncIterator[str]:
        """Give the answer as server-sent events."""
        begun = {**self._head, "status": "in_progress", "incomplete_details": None, "usage": None, "output": []}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        for index, item in enumerate(self._items):
            of_item = {"output_index": index, "item_id": item["id"]}
            empty = {**item, "status": "in_progress"}
            empty |= {"content": list[Any]()} if item["type"] == "message" else {"arguments": ""}
            yield self._event("response.output_item.added", output_index=index, item=empty)
            parts = self._message(item, of_item) if item["type"] == "message" else self._call(item, of_item)
            for event in parts:
                yield event
            yield self._event("response.output_item.done", output_index=index, item=item)
        yield self._event(f"response.{self._ended['status']}", response=self.whole())

    def _message(self, item: dict[str, Any], of_item: dict[str, Any]) -> Iterator[str]:
        (part,) = item["content"]
        place = {**of_item, "content_index": 0}
        yield self._event("response.content_part.added", **place, part={**part, "text": ""})
        for piece in _pieces(part["text"]):
            yield self._event("response.output_text.delta", **place, delta=piece, logprobs=[])
        yield self._event("response.output_text.done", **place, text=part["text"], logprobs=[])
        yield self._event("response.content_part.done", **place, part=part)

    def _call(self, item: dict[str, Any], of_item: dict[str, Any]) -> Iterator[str]:
        for piece in _pieces(item["arguments"]):
            yield self._event("response.function_call_arguments.delta", **of_item, delta=piece)
        done = {"name": item["name"], "arguments": item["arguments"]}
        yield self._event("response.function_call_arguments.done", **of_item, **done)

    def _event(self, kind: str, **content: Any) -> str:
        event = {"type": kind, "sequence_number": self._sequence, **content}
        self._sequence += 1
        return f"event: {kind}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"


def _call_item(call: FunctionCall) -> dict[str, Any]:
    of_call = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"type": "function_call", "id": new_id("fc"), "status": "completed", **of_call}


def _message_item(said: Said) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
    status = "incomplete" if said.is_cut else "completed"
    return {"type": "message", "id": new_id("msg"), "status": status, "role": "assistant", "content": [part]}
