"""A stand-in for a language model, with OpenAI's HTTP interface: it extracts sentences and keywords, and makes nothing up.

It answers what the demo's agents ask of any model: a summary, or a JSON object of topics. How often words occur decides, so the
same question has the same answer.

As a provider's, its prompt cache counts what was asked before under the same ``prompt_cache_key``, and it may be too busy: a request
with the header ``x-stand-in-refuse: 2`` is refused the first two times that the client tries.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

import clew
from clew.demo import service
from clew.demo.bounded_body import BodyTooLargeError, read_bounded
from clew.demo.extraction import count_tokens, keywords, summary
from clew.demo.settings import STAND_IN_MODEL, DemoSettings

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024

_WANTS_TOPICS: Final = re.compile(r"\b(topics?|keywords?)\b", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\b([1-9]\d?)\b")
_DEFAULT_SENTENCES: Final = 3
_DEFAULT_TOPICS: Final = 8
_WORDS_PER_CHUNK: Final = 12
_DIMENSIONS: Final = 32
_MAX_TEXTS: Final = 256
_MAX_CACHED: Final = 1_000
_RETRY_AFTER_MS: Final = "20"

log = clew.get_logger("clew.demo.llm")


class ContentPart(BaseModel):
    """One part of a message; only text is read."""

    type: str
    text: str = ""


class Message(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = ""

    @property
    def text(self) -> str:
        """All text of the message."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or ())


class StreamOptions(BaseModel):
    """What a streamed answer is to bring along."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """What is read of a chat completion request; sampling parameters change nothing here and are let through."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    prompt_cache_key: str | None = Field(default=None, max_length=64)

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of an answer, where the request sets a bound."""
        return self.max_completion_tokens or self.max_tokens


class EmbeddingRequest(BaseModel):
    """What is read of a request for embeddings."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1)
    input: str | list[str] = Field(min_length=1, max_length=MAX_REQUEST_BYTES)


def answer(messages: list[Message]) -> str:
    """Answer a conversation: the instructions say whether topics or a summary are wanted, the last user message is the text.

    Args:
        messages: instructions of the system or developer, and the user's text.

    Example:
        >>> answer([Message(role="system", content="The topics, as JSON, at most 1."), Message(role="user", content="a thread")])
        '{"topics": [{"name": "thread", "weight": 1.0}]}'
    """
    instructions = " ".join(message.text for message in messages if message.role in ("system", "developer"))
    text = next((message.text for message in reversed(messages) if message.role == "user"), "")
    number = _NUMBER.search(instructions)
    if _WANTS_TOPICS.search(instructions):
        found = keywords(text, int(number.group(1)) if number else _DEFAULT_TOPICS)
        topics = [{"name": keyword.name, "weight": keyword.weight} for keyword in found]
        return json.dumps({"topics": topics}, ensure_ascii=False)
    return " ".join(summary(text, int(number.group(1)) if number else _DEFAULT_SENTENCES))


def embedding(text: str) -> list[float]:
    """Return a vector of a text, of length 1: texts with the same keywords lie close together.

    Example:
        >>> sum(number * number for number in embedding("a thread")) > 0.99
        True
    """
    vector = [0.0] * _DIMENSIONS
    for word in re.findall(r"\w+", text.lower()) or [""]:
        # Not hash(), which is another one in each process
        vector[zlib.crc32(word.encode()) % _DIMENSIONS] += 1.0
    length = math.sqrt(sum(number * number for number in vector))
    return [number / length for number in vector]


class _PromptCache:
    """What was asked before, by key."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[str, int], None] = OrderedDict()

    def known_tokens(self, request: ChatRequest) -> int:
        """Return how many tokens of a prompt were asked before, and remember it."""
        if request.prompt_cache_key is None:
            return 0
        known = 0
        for message in request.messages:
            key = (request.prompt_cache_key, zlib.crc32(message.text.encode()))
            known += count_tokens(message.text) if key in self._asked else 0
            self._asked[key] = None
            self._asked.move_to_end(key)
        while len(self._asked) > _MAX_CACHED:
            self._asked.popitem(last=False)
        return known


def build_app() -> FastAPI:
    """Return the stand-in as an app."""
    app = FastAPI(title="Stand-in language model", version="1", docs_url=None, redoc_url=None)
    cache = _PromptCache()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": STAND_IN_MODEL, "object": "model", "created": 0, "owned_by": "clew"}
        return {"object": "list", "data": [model]}

    @app.post("/v1/chat/completions", openapi_extra=_request_body(ChatRequest), response_model=None)
    async def chat(request: Request) -> Response:
        # No two chunks of one body could be told from two requests by time, but the id need only be unique
        given = ChatRequest.model_validate_json(await read_bounded(request, MAX_REQUEST_BYTES))
        if _is_too_busy(request):
            return _error(429, "the stand-in was asked to refuse this", code="rate_limit_exceeded")
        if given.model != STAND_IN_MODEL:
            message = f"the model {given.model[:80]!r} does not exist: this stand-in serves {STAND_IN_MODEL!r} only"
            return _error(404, message, code="model_not_found")
        # In a thread: a long text takes tens of milliseconds, and other requests must not wait
        text = await asyncio.to_thread(clew.carry(_extract), given.messages)
        text, finish_reason = _cut(text, given.most_tokens)
        reply = _Reply(given, text, finish_reason, cached_tokens=cache.known_tokens(given))
        log.info("llm.answered", streamed=given.stream, finish_reason=finish_reason, **reply.tokens)
        if given.stream:
            return StreamingResponse(reply.events(), media_type="text/event-stream")
        return JSONResponse(reply.whole())

    @app.post("/v1/embeddings", openapi_extra=_request_body(EmbeddingRequest), response_model=None)
    async def embeddings(request: Request) -> Response:
        given = EmbeddingRequest.model_validate_json(await read_bounded(request, MAX_REQUEST_BYTES))
        texts = [given.input] if isinstance(given.input, str) else given.input[:_MAX_TEXTS]
        data = [
            {"object": "embedding", "index": index, "embedding": embedding(text)} for index, text in enumerate(texts)
        ]
        tokens = sum(count_tokens(text) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": given.model, "data": data, "usage": usage})

    @app.exception_handler(BodyTooLargeError)
    async def too_large(_: Request, error: BodyTooLargeError) -> JSONResponse:
        return _error(413, str(error))

    @app.exception_handler(ValueError)
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> JSONResponse:
        return _error(400, f"the request is no chat completion request: {' '.join(str(error).split())[:300]}")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    return app


@clew.span("extract")
def _extract(messages: list[Message]) -> str:
    return answer(messages)


class _Reply:
    """An answer in the two forms that it may be sent in."""

    def __init__(self, request: ChatRequest, text: str, finish_reason: str, *, cached_tokens: int) -> None:
        self._text = text
        self._finish_reason = finish_reason
        self._with_usage = request.stream_options is not None and request.stream_options.include_usage
        prompt, completion = sum(count_tokens(message.text) for message in request.messages), count_tokens(text)
        self.tokens = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        self.usage = {
            **self.tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        self._head = {
            "id": f"chatcmpl-{clew.trace_id()[:16] or 'untraced'}{time.monotonic_ns():x}",
            "created": int(time.time()),
            "model": request.model,
        }

    def whole(self) -> dict[str, Any]:
        """Return the answer as one object."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self._text, "refusal": None},
            "logprobs": None,
            "finish_reason": self._finish_reason,
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self.usage}

    async def events(self) -> AsyncIterator[str]:
        """Give the answer in chunks, as server-sent events."""
        yield self._event([_delta({"role": "assistant", "content": ""})])
        pieces = re.findall(r"\S+\s*", self._text)
        for start in range(0, len(pieces), _WORDS_PER_CHUNK):
            yield self._event([_delta({"content": "".join(pieces[start : start + _WORDS_PER_CHUNK])})])
        yield self._event([_delta({}, finish_reason=self._finish_reason)])
        if self._with_usage:
            yield self._event([], usage=self.usage)
        yield "data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def _delta(content: dict[str, Any], *, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": content, "logprobs": None, "finish_reason": finish_reason}


def _cut(text: str, most_tokens: int | None) -> tuple[str, str]:
    if most_tokens is None or count_tokens(text) <= most_tokens:
        return text, "stop"
    pieces = re.findall(r"\w+\s*|[^\w\s]\s*", text)
    return "".join(pieces[:most_tokens]).rstrip(), "length"


def _is_too_busy(request: Request) -> bool:
    tries = request.headers.get("x-stainless-retry-count", "0")
    refused = request.headers.get("x-stand-in-refuse", "0")
    return tries.isdecimal() and refused.isdecimal() and int(tries[:4]) < int(refused[:4])


def _error(status: int, message: str, *, code: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {"retry-after-ms": _RETRY_AFTER_MS} if status == 429 else None
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


def _request_body(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that is read by hand, for OpenAPI."""
    content = {"application/json": {"schema": model.model_json_schema(ref_template="#/components/schemas/{model}")}}
    return {"requestBody": {"required": True, "content": content}}


def main() -> int:
    """Serve the stand-in on ``DEMO_HOST`` and ``DEMO_LLM_PORT``."""

    async def serve(stop: asyncio.Event) -> None:
        settings = DemoSettings.load()
        app = clew.instrument(build_app())
        await service.serve_http(app, host=settings.host, port=settings.llm_port, stop=stop)

    return service.run("llm", serve)


if __name__ == "__main__":
    sys.exit(main())
