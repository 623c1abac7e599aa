"""OpenAI's clients: an LLM call for each request, with model, tokens and errors, and never a prompt or a completion.

For every provider that speaks its protocol. The HTTP requests below carry the thread: to a gateway or a model server of one's
own, that is where the trace goes on.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/openai/
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

import openai
import wrapt
from openai import AsyncStream, Stream
from openai.resources import chat, embeddings, responses
from opentelemetry import context as otel_context

from clew import clock
from clew.catalog import semconv
from clew.diagnostics import report
from clew.instrumentation import httpx as http_clients
from clew.llm.call import LlmCall, llm_call

T = TypeVar("T")

TIME_TO_FIRST_CHUNK: Final = "clew.llm.time_to_first_chunk_s"
"""The attribute of a streamed call that says after how many seconds its first piece came."""

# On the HTTP client, which copies of a client by with_options() share
_MARK: Final = "_clew_llm_calls"
_WHERE: Final = "instrument openai"
_METHODS: Final = (
    (chat.Completions, ("create", "parse"), "chat"),
    (chat.AsyncCompletions, ("create", "parse"), "chat"),
    (responses.Responses, ("create", "parse"), "chat"),
    (responses.AsyncResponses, ("create", "parse"), "chat"),
    (embeddings.Embeddings, ("create",), "embeddings"),
    (embeddings.AsyncEmbeddings, ("create",), "embeddings"),
)
_all_clients = False


class _Call:
    """One call: begun before the request, and ended by its response or by the last piece of a streamed one."""

    def __init__(self, resource: Any, operation: str, kwargs: dict[str, Any]) -> None:
        client = resource._client
        model = kwargs.get("model")
        address = getattr(client, "base_url", None)
        attributes = {
            semconv.SERVER_ADDRESS: getattr(address, "host", None),
            semconv.SERVER_PORT: getattr(address, "port", None),
        }
        self._operation: LlmCall = llm_call(
            "azure.ai.openai" if isinstance(client, (openai.AzureOpenAI, openai.AsyncAzureOpenAI)) else "openai",
            model if isinstance(model, str) else "",
            operation=operation,
            **{key: value for key, value in attributes.items() if value is not None},
        )
        self._operation.begin()
        self._started_ns = clock.monotonic_ns()
        self._pieces = 0
        self._tokens: dict[str, int] = {}
        self._ended = False

    def __enter__(self) -> None:
        # Only around the request: what reads a stream has a context of its own
        self._token = self._operation.attach()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
        if error is not None:
            self.end(error)

    def answered(self, result: Any) -> Any:
        """Take what the library returns: the response ends the call, a stream ends it with its last piece."""
        try:
            if isinstance(result, Stream):
                result._iterator = self._watched(result._iterator)
                wrapt.wrap_function_wrapper(result, "close", self._closed)
            elif isinstance(result, AsyncStream):
                result._iterator = self._watched_async(result._iterator)
                wrapt.wrap_function_wrapper(result, "close", self._closed_async)
            else:
                self._read(result)
                self.end()
        except Exception as error:
            report(_WHERE, error)
        return result

    def end(self, error: BaseException | None = None) -> None:
        """End the call, once.

        Of an error, its type and the provider's code are recorded. Its text may repeat what was asked or answered.
        """
        if self._ended:
            return
        self._ended = True
        try:
            self._operation.tokens(**self._tokens)
            if isinstance(error, Exception):
                status = [getattr(error, name, None) for name in ("status_code", "code")]
                self._operation.fail(type(error).__qualname__, " ".join(str(item) for item in status if item))
                error = None
            self._operation.finish(error)
        except Exception as problem:
            report(_WHERE, problem)

    def _read(self, result: Any) -> None:
        """Take the provider's account of a response, or of a piece of one."""
        # The events of a streamed response have it within
        answer = getattr(result, "response", None) or result
        for attribute, name in ((semconv.GEN_AI_RESPONSE_ID, "id"), (semconv.GEN_AI_RESPONSE_MODEL, "model")):
            if isinstance(value := getattr(answer, name, None), str):
                self._operation.set(attribute, value)
        reasons = [getattr(choice, "finish_reason", None) for choice in getattr(answer, "choices", None) or ()]
        if any(reasons):
            self._operation.set(semconv.GEN_AI_RESPONSE_FINISH_REASONS, [reason or "" for reason in reasons])
        if (usage := getattr(answer, "usage", None)) is not None:
            # Some providers repeat the sum so far with each piece of a stream: the last one counts
            self._tokens = {
                name: getattr(usage, f"{name}_tokens", None) or getattr(usage, f"{other}_tokens", None) or 0
                for name, other in (("input", "prompt"), ("output", "completion"))
            }

    def _piece(self, piece: Any) -> None:
        try:
            if not self._pieces:
                waited_s = (clock.monotonic_ns() - self._started_ns) / 1e9
                self._operation.set(TIME_TO_FIRST_CHUNK, round(waited_s, 6))
            self._pieces += 1
            self._read(piece)
        except Exception as error:
            report(_WHERE, error)

    def _watched(self, pieces: Iterator[Any]) -> Iterator[Any]:
        try:
            for piece in pieces:
                self._piece(piece)
                yield piece
        except BaseException as error:
            self.end(error)
            raise
        self.end()

    async def _watched_async(self, pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            async for piece in pieces:
                self._piece(piece)
                yield piece
        except BaseException as error:
            self.end(error)
            raise
        self.end()

    def _closed(self, wrapped: Callable[..., Any], _stream: Any, args: Any, kwargs: Any) -> Any:
        """End the call of a stream that is left before its end."""
        self.end()
        return wrapped(*args, **kwargs)

    async def _closed_async(self, wrapped: Callable[..., Awaitable[Any]], _stream: Any, args: Any, kwargs: Any) -> Any:
        self.end()
        return await wrapped(*args, **kwargs)


def _begin(resource: Any, operation: str, kwargs: dict[str, Any]) -> _Call | None:
    try:
        if not _all_clients and not getattr(resource._client._client, _MARK, False):
            return None
        return _Call(resource, operation, kwargs)
    except Exception as error:
        report(_WHERE, error)
        return None


def _measured(operation: str) -> Callable[..., Any]:
    def ask(wrapped: Callable[..., Any], resource: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = _begin(resource, operation, kwargs)
        if call is None:
            return wrapped(*args, **kwargs)
        with call:
            result = wrapped(*args, **kwargs)
        return call.answered(result)

    return ask


def _measured_async(operation: str) -> Callable[..., Any]:
    async def ask(
        wrapped: Callable[..., Awaitable[Any]], resource: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        call = _begin(resource, operation, kwargs)
        if call is None:
            return await wrapped(*args, **kwargs)
        with call:
            result = await wrapped(*args, **kwargs)
        return call.answered(result)

    return ask


def _patch() -> None:
    for kind, methods, operation in _METHODS:
        wrapper = _measured_async if kind.__name__.startswith("Async") else _measured
        for method in methods:
            # Older clients have fewer methods
            if method in vars(kind) and not isinstance(vars(kind)[method], wrapt.FunctionWrapper):
                wrapt.wrap_function_wrapper(kind, method, wrapper(operation))


def instrument(target: T) -> T:
    """Instrument a client in place, with the HTTP requests that it sends. Twice is harmless.

    Args:
        target: an ``OpenAI`` or ``AsyncOpenAI`` client, or one for Azure.

    Raises:
        TypeError: it is none.

    Example:
        >>> client = instrument(openai.OpenAI(api_key="example"))
    """
    if not isinstance(target, (openai.OpenAI, openai.AsyncOpenAI)):
        raise TypeError(f"a {type(target).__qualname__} is no OpenAI client")
    _patch()
    http_client: Any = target._client
    setattr(http_client, _MARK, True)
    http_clients.instrument(http_client)
    return target


def instrument_all() -> None:
    """Instrument every client, those that exist included. Twice is harmless."""
    global _all_clients
    _patch()
    http_clients.instrument_all()
    _all_clients = True
