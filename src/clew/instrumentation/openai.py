"""OpenAI's clients: an LLM call for each request, with model, tokens, cost, retries and errors.

Prompts and completions are kept only where ``CLEW_LLM_CONTENT`` asks for it, an error's text never.

For every provider that speaks its protocol. The HTTP requests below carry the thread: to a gateway or a model server of one's
own, that is where the trace goes on.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/openai/
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import openai
import wrapt
from openai import AsyncStream, Stream, _base_client, _legacy_response, _response
from openai.resources import chat, embeddings, responses
from opentelemetry import context as otel_context

from clew.catalog import semconv
from clew.diagnostics import report
from clew.instrumentation import httpx as http_clients
from clew.llm.call import LlmCall, llm_call
from clew.llm.content import is_wanted
from clew.pipeline.current import attach, get_current

T = TypeVar("T")

MAX_SAID_LENGTH: Final = 65_536
"""How many characters of a streamed answer are put together, where answers are kept."""

_EXPECTED_KEY: Final = otel_context.create_key("clew-openai-expected")
# On the HTTP client, which copies of a client by with_options() share
_MARK: Final = "_clew_llm_calls"
_WHERE: Final = "instrument openai"
# What a client calls between two tries
_RETRY: Final = "_sleep_for_retry"
_METHODS: Final = (
    (chat.Completions, ("create", "parse"), "chat"),
    (chat.AsyncCompletions, ("create", "parse"), "chat"),
    (responses.Responses, ("create", "parse"), "chat"),
    (responses.AsyncResponses, ("create", "parse"), "chat"),
    (embeddings.Embeddings, ("create",), "embeddings"),
    (embeddings.AsyncEmbeddings, ("create",), "embeddings"),
)
_all_clients = False


class Expected:
    """A call that somebody who knows of it beforehand is to have measured, whatever client makes it. Made by :func:`expect`.

    Attributes:
        was_made: a client made it.
        was_answered: without an error, the last time.
        is_over: it is expected no longer.
    """

    def __init__(self) -> None:
        self.was_made = False
        self.was_answered = False
        self.is_over = False
        self._before = get_current()
        self._context = otel_context.set_value(_EXPECTED_KEY, self, self._before)
        attach(self._context)

    def over(self) -> bool:
        """Expect it no longer; tell whether a client made it."""
        self.is_over = True
        if get_current() is self._context:
            attach(self._before)
        return self.was_made


def expect() -> Expected:
    """Have the calls that are made in OpenTelemetry's current context from now on measured, until it is said to be over.

    A library that asks in one task and reads the answer in another carries that context along.

    Example:
        >>> expect().over()
        False
    """
    _patch()
    return Expected()


class _Call:
    """One call: begun before the request, and ended by its response or by the last piece of a streamed one."""

    def __init__(self, resource: Any, operation: str, kwargs: dict[str, Any], expected: Expected | None) -> None:
        self._expected = expected
        client = resource._client
        model = kwargs.get("model")
        address = getattr(client, "base_url", None)
        user = kwargs.get("safety_identifier") or kwargs.get("user")
        attributes = {
            semconv.SERVER_ADDRESS: getattr(address, "host", None),
            semconv.SERVER_PORT: getattr(address, "port", None),
        }
        self._operation: LlmCall = llm_call(
            "azure.ai.openai" if isinstance(client, (openai.AzureOpenAI, openai.AsyncAzureOpenAI)) else "openai",
            model if isinstance(model, str) else "",
            operation=operation,
            user_id=user if isinstance(user, str) else None,
            **{key: value for key, value in attributes.items() if value is not None},
        )
        self._operation.begin()
        self._said: list[str] | None = [] if is_wanted() else None
        self._room = MAX_SAID_LENGTH
        if self._said is not None and operation == "chat":
            self._operation.prompt(kwargs.get("messages") or kwargs.get("input") or [])
        self._tokens: dict[str, int] = {}
        self._ended = False
        self._is_parsed = False

    def __enter__(self) -> None:
        # Only around the request: what reads a stream has a context of its own
        self._token = self._operation.attach()
        self._asking = _asking.set(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        _asking.reset(self._asking)
        if self._token is not None:
            otel_context.detach(self._token)
        if error is not None:
            self.end(error)

    def again(self, response: Any) -> None:
        """Take note that the client asks once more, after an answer that was an error, or after none."""
        status = getattr(response, "status_code", None)
        self._operation.retry("no_answer" if status is None else str(status))

    def answered(self, result: Any) -> Any:
        """Take what the library returns: the response ends the call, a stream ends it with its last piece."""
        try:
            # What is within a raw response is parsed once, whoever asks
            answer = result.parse() if isinstance(result, _legacy_response.LegacyAPIResponse) else result
            if isinstance(answer, _response.BaseAPIResponse):
                # Of with_streaming_response: nothing has been read
                is_async = isinstance(answer, _response.AsyncAPIResponse)
                wrapt.wrap_function_wrapper(answer, "parse", self._parsed_async if is_async else self._parsed)
                wrapt.wrap_function_wrapper(answer, "close", self._closed_async if is_async else self._closed)
            elif isinstance(answer, Stream):
                answer._iterator = self._watched(answer._iterator)
                wrapt.wrap_function_wrapper(answer, "close", self._closed)
            elif isinstance(answer, AsyncStream):
                answer._iterator = self._watched_async(answer._iterator)
                wrapt.wrap_function_wrapper(answer, "close", self._closed_async)
            else:
                self._read(answer)
                self.end()
        except Exception as error:
            self.end()
            report(_WHERE, error)
        return result

    def end(self, error: BaseException | None = None) -> None:
        """End the call, once.

        Of an error, its type and the provider's code are recorded. Its text may repeat what was asked or answered.
        """
        if self._ended:
            return
        self._ended = True
        if self._expected is not None:
            self._expected.was_answered = error is None
        try:
            self._operation.tokens(**self._tokens)
            if self._said:
                self._operation.completion("".join(self._said))
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
        choices = getattr(answer, "choices", None) or ()
        reasons = [getattr(choice, "finish_reason", None) for choice in choices]
        names = {name: getattr(answer, name, None) for name in ("id", "model")}
        self._operation.response(
            **{name: value for name, value in names.items() if isinstance(value, str)},
            finish_reasons=[reason or "" for reason in reasons] if any(reasons) else None,
        )
        if (usage := getattr(answer, "usage", None)) is not None:
            # Some providers repeat the sum so far with each piece of a stream: the last one counts
            self._tokens = _counted(usage)
        if self._said is not None:
            self._listen(result, choices)

    def _listen(self, result: Any, choices: Any) -> None:
        """Take what is said, up to as much as can be kept."""
        texts = [getattr(result, "output_text", None)]
        if getattr(result, "type", None) == "response.output_text.delta":
            texts = [getattr(result, "delta", None)]
        # Of several choices the first
        for choice in choices[:1]:
            said = getattr(choice, "message", None) or getattr(choice, "delta", None)
            texts.append(getattr(said, "content", None))
        for text in texts:
            if isinstance(text, str) and self._room > 0 and self._said is not None:
                self._said.append(text[: self._room])
                self._room -= len(text)

    def _piece(self, piece: Any) -> None:
        try:
            self._operation.first_token()
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

    def _parsed(self, wrapped: Callable[..., Any], _response: Any, args: Any, kwargs: Any) -> Any:
        """Take what a response has within when the app asks for it, once: it gets the same each time."""
        answer = wrapped(*args, **kwargs)
        was_parsed, self._is_parsed = self._is_parsed, True
        return answer if was_parsed else self.answered(answer)

    async def _parsed_async(
        self, wrapped: Callable[..., Awaitable[Any]], _response: Any, args: Any, kwargs: Any
    ) -> Any:
        answer = await wrapped(*args, **kwargs)
        was_parsed, self._is_parsed = self._is_parsed, True
        return answer if was_parsed else self.answered(answer)

    def _closed(self, wrapped: Callable[..., Any], _stream: Any, args: Any, kwargs: Any) -> Any:
        """End the call of a stream that is left before its end."""
        self.end()
        return wrapped(*args, **kwargs)

    async def _closed_async(self, wrapped: Callable[..., Awaitable[Any]], _stream: Any, args: Any, kwargs: Any) -> Any:
        self.end()
        return await wrapped(*args, **kwargs)


_asking: Final[ContextVar[_Call | None]] = ContextVar("clew_openai_call", default=None)
"""The call whose request is under way, for what the client does in between."""


def _counted(usage: Any) -> dict[str, int]:
    """Return a provider's account of tokens: chat completions, responses and embeddings each name them in their own way."""
    counted = {
        name: getattr(usage, f"{name}_tokens", None) or getattr(usage, f"{other}_tokens", None)
        for name, other in (("input", "prompt"), ("output", "completion"))
    }
    of_input = getattr(usage, "input_tokens_details", None) or getattr(usage, "prompt_tokens_details", None)
    of_output = getattr(usage, "output_tokens_details", None) or getattr(usage, "completion_tokens_details", None)
    counted["cache_read"] = getattr(of_input, "cached_tokens", None)
    counted["cache_write"] = getattr(of_input, "cache_write_tokens", None)
    counted["reasoning"] = getattr(of_output, "reasoning_tokens", None)
    return {name: number for name, number in counted.items() if isinstance(number, int)}


def _again(wrapped: Callable[..., Any], _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Count what the client tries once more, where it waits before that: it waits, or returns what is to be awaited."""
    try:
        if (call := _asking.get()) is not None:
            call.again(kwargs.get("response"))
    except Exception as error:
        report(_WHERE, error)
    return wrapped(*args, **kwargs)


def _begin(resource: Any, operation: str, kwargs: dict[str, Any]) -> _Call | None:
    try:
        found = otel_context.get_value(_EXPECTED_KEY)
        expected = found if isinstance(found, Expected) and not found.is_over else None
        if expected is not None:
            expected.was_made = True
            http_clients.instrument(resource._client._client)
        elif not _all_clients and not getattr(resource._client._client, _MARK, False):
            return None
        return _Call(resource, operation, kwargs, expected)
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
    for client in (_base_client.SyncAPIClient, _base_client.AsyncAPIClient):
        known = vars(client).get(_RETRY)
        if known is not None and not isinstance(known, wrapt.FunctionWrapper):
            wrapt.wrap_function_wrapper(client, _RETRY, _again)


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
