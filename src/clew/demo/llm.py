"""A stand-in for a language model, with OpenAI's HTTP interfaces: it extracts sentences and keywords, and makes nothing up.

It answers what the demo's agents ask of any model: a summary, or a JSON object of topics, or what a JSON schema asks for. How often
words occur decides, so the same question has the same answer. Where it is given tools, it calls those that the user or the
instructions name, with arguments from the user's text, and then answers with what they returned: see :mod:`clew.demo.llm_tools`.

As a provider's, its prompt cache counts what was asked before under the same ``prompt_cache_key``, and it may be too busy: a request
with the header ``x-stand-in-refuse: 2`` is refused the first two times that the client tries.

Source: https://platform.openai.com/docs/api-reference/chat and https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import zlib
from collections import OrderedDict
from typing import Any, Final

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
from clew.demo.llm_replies import ChatReply, ResponseReply, Said, new_id
from clew.demo.llm_requests import ChatRequest, Conversation, FunctionCall, ResponsesRequest
from clew.demo.llm_tools import calls_of, instructions_of, made_to, results_of, user_text, written
from clew.demo.settings import STAND_IN_MODEL, DemoSettings

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024

_WANTS_TOPICS: Final = re.compile(r"\b(topics?|keywords?)\b", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\b([1-9]\d?)\b")
_DEFAULT_SENTENCES: Final = 3
_DEFAULT_TOPICS: Final = 8
_DIMENSIONS: Final = 32
_MAX_TEXTS: Final = 256
_MAX_CACHED: Final = 1_000
_RETRY_AFTER_MS: Final = "20"

log = clew.get_logger("clew.demo.llm")


class EmbeddingRequest(BaseModel):
    """What is read of a request for embeddings."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1)
    input: str | list[str] = Field(min_length=1, max_length=MAX_REQUEST_BYTES)


def answer(asked: Conversation) -> str:
    """Answer a conversation: the instructions say whether topics or a summary are wanted, the last user message is the text.

    Args:
        asked: instructions of the system, the user's text, and what tools returned.

    Example:
        >>> from clew.demo.llm_requests import Turn
        >>> turns = (Turn(role="system", text="The topics, as JSON, at most 1."), Turn(role="user", text="a thread"))
        >>> answer(Conversation(turns=turns))
        '{"topics": [{"name": "thread", "weight": 1.0}]}'
    """
    instructions, text = instructions_of(asked), user_text(asked)
    results = [f"{name}: {result}" for name, result in results_of(asked)]
    if asked.schema is not None:
        return json.dumps(made_to(asked.schema, "\n".join([text, *results])), ensure_ascii=False)
    number = _NUMBER.search(instructions)
    if _WANTS_TOPICS.search(instructions) and not results:
        found = keywords(text, int(number.group(1)) if number else _DEFAULT_TOPICS)
        topics = [{"name": keyword.name, "weight": keyword.weight} for keyword in found]
        return json.dumps({"topics": topics}, ensure_ascii=False)
    said = " ".join(summary(text, int(number.group(1)) if number else _DEFAULT_SENTENCES))
    return "\n".join(filter(None, [said, *results]))


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

    def known_tokens(self, cache_key: str | None, asked: Conversation) -> int:
        """Return how many tokens of a prompt were asked before, and remember it."""
        if cache_key is None:
            return 0
        known = 0
        for turn in asked.turns:
            key = (cache_key, zlib.crc32(turn.text.encode()))
            known += count_tokens(turn.text) if key in self._asked else 0
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
        given = ChatRequest.model_validate_json(await read_bounded(request, MAX_REQUEST_BYTES))
        if (refused := _refusal(request, given.model)) is not None:
            return refused
        reply = ChatReply(given, await _say(given, cache))
        return _sent(reply, streamed=bool(given.stream))

    @app.post("/v1/responses", openapi_extra=_request_body(ResponsesRequest), response_model=None)
    async def responses(request: Request) -> Response:
        body = await read_bounded(request, MAX_REQUEST_BYTES)
        given = ResponsesRequest.model_validate_json(body)
        if (refused := _refusal(request, given.model)) is not None:
            return refused
        reply = ResponseReply(given, await _say(given, cache), json.loads(body))
        return _sent(reply, streamed=bool(given.stream))

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
        return _error(400, f"this request can't be answered: {' '.join(str(error).split())[:300]}")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    return app


@clew.span("extract")
def _extract(asked: Conversation) -> tuple[str, tuple[FunctionCall, ...]]:
    calls = tuple(
        FunctionCall(id=new_id("call"), name=name, arguments=written(arguments)) for name, arguments in calls_of(asked)
    )
    return "" if calls else answer(asked), calls


async def _say(given: ChatRequest | ResponsesRequest, cache: _PromptCache) -> Said:
    asked = given.conversation()
    # In a thread: a long text takes tens of milliseconds, and other requests must not wait
    text, calls = await asyncio.to_thread(clew.carry(_extract), asked)
    text, is_cut = _cut(text, asked.most_tokens)
    said = Said(
        text=text,
        is_cut=is_cut,
        calls=calls,
        prompt_tokens=sum(count_tokens(turn.text) for turn in asked.turns),
        cached_tokens=cache.known_tokens(given.prompt_cache_key, asked),
    )
    log.info("llm.answered", streamed=bool(given.stream), finish_reason=said.finish_reason, **said.tokens)
    return said


def _sent(reply: ChatReply | ResponseReply, *, streamed: bool) -> Response:
    if streamed:
        return StreamingResponse(reply.events(), media_type="text/event-stream")
    return JSONResponse(reply.whole())


def _refusal(request: Request, model: str) -> JSONResponse | None:
    if _is_too_busy(request):
        return _error(429, "the stand-in was asked to refuse this", code="rate_limit_exceeded")
    if model != STAND_IN_MODEL:
        message = f"the model {model[:80]!r} does not exist: this stand-in serves {STAND_IN_MODEL!r} only"
        return _error(404, message, code="model_not_found")
    return None


def _cut(text: str, most_tokens: int | None) -> tuple[str, bool]:
    if most_tokens is None or count_tokens(text) <= most_tokens:
        return text, False
    pieces = re.findall(r"\w+\s*|[^\w\s]\s*", text)
    return "".join(pieces[:most_tokens]).rstrip(), True


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
