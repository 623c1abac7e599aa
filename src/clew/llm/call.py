"""A request to a language model: its duration, its tokens and their cost, its retries, its errors.

Prompts and completions are only kept where ``CLEW_LLM_CONTENT`` asks for it.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from datetime import datetime
from typing import Any, Final, TypeVar, overload

from clew import clock
from clew.catalog import semconv
from clew.catalog.metrics import LLM_CACHE_HITS, LLM_COST, LLM_FIRST_CHUNK, LLM_RETRIES, LLM_TOKENS
from clew.catalog.operations import LLM_CALL
from clew.diagnostics import report
from clew.engine import logs
from clew.engine.context import current_agent, current_user
from clew.engine.metrics import registry
from clew.engine.operation import Operation
from clew.llm import content, record
from clew.llm.prices import Usage, price_list
from clew.llm.streaming import Watched, WatchedAsync
from clew.pipeline.coercion import name_text

T = TypeVar("T")

MAX_TOKENS: Final = 2**31 - 1
"""More than this is not taken for a count of tokens."""

_TOKENS: Final = {
    "input": semconv.GEN_AI_USAGE_INPUT_TOKENS,
    "output": semconv.GEN_AI_USAGE_OUTPUT_TOKENS,
    "cache_read": semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS,
    "cache_write": semconv.GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS,
    "reasoning": semconv.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS,
}


class LlmCall(Operation):
    """One request to a model. Made by :func:`llm_call`."""

    __slots__ = (
        "_begun_at",
        "_cost_usd",
        "_count",
        "_first_ns",
        "_is_cached",
        "_is_over",
        "_last_ns",
        "_message",
        "_messages",
        "_retries",
    )

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self._begun_at: datetime | None = None
        self._count: dict[str, int] = {}
        self._messages: dict[str, list[Any]] = {}
        self._cost_usd: float | None = None
        self._first_ns: int | None = None
        self._last_ns: int | None = None
        self._retries = 0
        self._is_cached = False
        self._is_over = False
        self._message = ""

    # What a user says of it

    def tokens(
        self, *, input: int = 0, output: int = 0, cache_read: int = 0, cache_write: int = 0, reasoning: int = 0
    ) -> None:
        """Record what the provider counted. What is said last counts, so that a stream's sums so far may be given as they come.

        Args:
            input: tokens of the prompt, with those that were read from and written to the provider's cache.
            output: tokens of the completion, with those of reasoning.
            cache_read: of the input, those that the provider had already.
            cache_write: of the input, those that the provider kept.
            reasoning: of the output, those that nobody reads.
        """
        given = {
            "input": input,
            "output": output,
            "cache_read": cache_read,
            "cache_write": cache_write,
            "reasoning": reasoning,
        }
        for kind, number in given.items():
            try:
                count = int(number)
                if not 0 <= count <= MAX_TOKENS:
                    raise ValueError(f"{kind} must be a number of tokens")  # noqa: TRY301 - it is told in one place
                if count:
                    self._count[kind] = count
                    self.set(_TOKENS[kind], count)
            except (TypeError, ValueError, OverflowError) as error:
                report("llm_call.tokens", error)

    def cost(self, usd: float) -> None:
        """Say what the call cost, in USD, where that is known better than from a table of prices."""
        try:
            amount = float(usd)
            if not (math.isfinite(amount) and amount >= 0):
                raise ValueError(f"a cost is a number of USD, not {amount}")  # noqa: TRY301 - it is told in one place
            self._cost_usd = amount
        except (TypeError, ValueError) as error:
            report("llm_call.cost", error)

    def first_token(self) -> None:
        """Say that the first piece of the answer is there; of several times, the first one counts."""
        now_ns = clock.monotonic_ns()
        if self._first_ns is None:
            self._first_ns = now_ns
        self._last_ns = now_ns

    @overload
    def stream(self, chunks: AsyncIterable[T]) -> AsyncIterator[T]: ...
    @overload
    def stream(self, chunks: Iterable[T]) -> Iterator[T]: ...
    def stream(self, chunks: Any) -> Any:
        """Return the pieces of a streamed answer as they come, and take note of when the first and the last one did.

        Args:
            chunks: an iterator or an asynchronous iterator; its other methods can be called on what is returned.

        Example:
            >>> import clew
            >>> with clew.llm_call("openai", "gpt-4o-mini") as call:
            ...     "".join(call.stream(["one ", "two"]))
            'one two'
        """
        try:
            kind = WatchedAsync if hasattr(chunks, "__aiter__") else Watched
            return kind(chunks, lambda _: self.first_token())
        except Exception as error:
            report("llm_call.stream", error)
            return chunks

    def retry(self, reason: BaseException | str = "") -> None:
        """Say that the request is sent once more.

        Args:
            reason: the error, or a low-cardinality name of it, such as ``"rate_limit"``.
        """
        try:
            self._retries += 1
            kind = type(reason).__qualname__ if isinstance(reason, BaseException) else str(reason)
            labels = {semconv.ERROR_TYPE: kind} if kind else {}
            registry.declared(LLM_RETRIES).add(1, **self._labels(LLM_RETRIES.labels), **labels)
            self.event("retry", **labels)
        except Exception as error:
            report("llm_call.retry", error)

    def cached(self) -> None:
        """Say that the answer came from a cache of the app: nobody was asked, nothing was used, and it costs nothing."""
        self._is_cached = True

    def response(
        self, *, model: str | None = None, id: str | None = None, finish_reasons: Iterable[str] | None = None
    ) -> None:
        """Record what the provider said of its answer.

        Args:
            model: the model that answered.
            id: the answer's id.
            finish_reasons: why each of its choices ended.
        """
        try:
            reasons = None if finish_reasons is None else [str(reason) for reason in finish_reasons]
            for attribute, value in (
                (semconv.GEN_AI_RESPONSE_MODEL, model),
                (semconv.GEN_AI_RESPONSE_ID, id),
                (semconv.GEN_AI_RESPONSE_FINISH_REASONS, reasons),
            ):
                if value:
                    self.set(attribute, value)
        except Exception as error:
            report("llm_call.response", error)

    def prompt(self, messages: Any) -> None:
        """Keep what was asked, where ``CLEW_LLM_CONTENT`` is on: a text, or messages with ``role`` and ``content``."""
        self._say("prompt", messages, "user")

    def completion(self, messages: Any) -> None:
        """Keep what was answered, where ``CLEW_LLM_CONTENT`` is on: a text, or messages with ``role`` and ``content``."""
        self._say("completion", messages, "assistant")

    def fail(self, error: BaseException | str, message: str = "") -> None:
        """Mark the call as failed without raising; see :meth:`Operation.fail`."""
        self._message = message or (logs._message(error) if isinstance(error, BaseException) else "")
        super().fail(error, message)

    # Its life

    def begin(self, *, start_time_ns: int | None = None) -> None:
        """Start the span."""
        try:
            if (agent := current_agent()) is not None:
                self.attributes.setdefault(semconv.GEN_AI_AGENT_NAME, agent)
            if (user_id := current_user()) is not None:
                self.attributes.setdefault("user.id", user_id)
            self._begun_at = clock.utc_now()
            # In this order: what is ended first is what was added last, and what waits for prices goes to the recorder
            record.the_recorder()
            price_list.load()
        except Exception as error:
            report("llm_call", error)
        super().begin(start_time_ns=start_time_ns)

    def finish(self, error: BaseException | None = None) -> None:
        """End the span, and record the metrics, the events and the row of the history."""
        if self.context is None or self._is_over:
            super().finish(error)
            return
        self._is_over = True
        knows_cost = True
        try:
            knows_cost = self._settle()
        except Exception as problem:
            report("llm_call", problem)
        super().finish(error)
        try:
            self._keep(knows_cost=knows_cost)
        except Exception as problem:
            report("llm_call", problem)

    def _settle(self) -> bool:
        """Set what is known at the end; return whether that goes for the cost as well."""
        if self._retries:
            self.set("clew.llm.retries", self._retries)
        if self._is_cached:
            self.set("clew.llm.cached", value=True)
            self._cost_usd = 0.0
            registry.declared(LLM_CACHE_HITS).add(1, **self._labels(LLM_CACHE_HITS.labels))
        else:
            self._measure_tokens()
        if (first_s := self._first_token_s) is not None:
            self.set(semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, round(first_s, 6))
            self._measure(LLM_FIRST_CHUNK, first_s)
            if "output" in self._count and (took_s := self._streamed_s()) > 0:
                self.set("clew.llm.tokens_per_s", round(self._count["output"] / took_s, 3))
        for side, attribute in (
            ("prompt", semconv.GEN_AI_INPUT_MESSAGES),
            ("completion", semconv.GEN_AI_OUTPUT_MESSAGES),
        ):
            if side in self._messages and self._span.is_recording():
                # On the span alone: attributes are fields of log events, too
                self._span.set_attribute(attribute, content.written(self._messages[side]))
        if self._cost_usd is None and self._count:
            if not price_list.is_loaded:
                return False
            self._price()
        if self._cost_usd is not None:
            self.set("clew.llm.cost_usd", self._cost_usd)
        return True

    def _price(self) -> None:
        asked = str(self.attributes.get(semconv.GEN_AI_REQUEST_MODEL, ""))
        answered = str(self.attributes.get(semconv.GEN_AI_RESPONSE_MODEL, "") or asked)
        count = {kind: number for kind, number in self._count.items() if kind != "reasoning"}
        provider = str(self.attributes.get(semconv.GEN_AI_PROVIDER_NAME, ""))
        self._cost_usd = price_list.cost_usd(provider, (answered, asked), Usage(**count))

    def _keep(self, *, knows_cost: bool) -> None:
        recorder = record.the_recorder()
        row = record.row_of(recorder, **self._columns()) if recorder is not None else None

        def keep() -> None:
            if not knows_cost:
                self._price()
            if self._cost_usd:
                registry.declared(LLM_COST).add(self._cost_usd, **self._labels(LLM_COST.labels))
            if recorder is not None and row is not None:
                row["cost_usd"] = self._cost_usd
                record.keep(recorder, row)

        if knows_cost:
            keep()
        else:
            price_list.when_loaded(keep)

    def _columns(self) -> dict[str, Any]:
        known = self.attributes
        status = "failed" if self.error_type is not None else "completed"
        counted = {} if self._is_cached else self._count
        return {
            "trace_id": self.trace_id or None,
            "span_id": self.span_id or None,
            "correlation_id": self.correlation_id,
            "provider": known.get(semconv.GEN_AI_PROVIDER_NAME),
            "model": known.get(semconv.GEN_AI_REQUEST_MODEL),
            "response_model": known.get(semconv.GEN_AI_RESPONSE_MODEL),
            "operation": known.get(semconv.GEN_AI_OPERATION_NAME),
            "agent": known.get(semconv.GEN_AI_AGENT_NAME),
            "user_id": known.get("user.id"),
            "status": "cancelled" if self._interrupted else status,
            "started_at": self._begun_at or clock.utc_now(),
            "duration_s": (clock.monotonic_ns() - self._started_ns) / 1e9,
            "first_token_s": self._first_token_s,
            "retries": self._retries,
            "is_cached": self._is_cached,
            **{f"{kind}_tokens": counted.get(kind) for kind in _TOKENS},
            "error_type": self.error_type,
            "error_message": self._message,
            **{side: content.kept(said) for side, said in self._messages.items()},
        }

    @property
    def _first_token_s(self) -> float | None:
        return None if self._first_ns is None else max(0.0, (self._first_ns - self._started_ns) / 1e9)

    def _streamed_s(self) -> float:
        """Return how long the answer came: until its last piece, or until now where only the first one was told of."""
        first_ns, last_ns = self._first_ns or 0, self._last_ns or 0
        return ((last_ns if last_ns > first_ns else clock.monotonic_ns()) - first_ns) / 1e9

    def _measure_tokens(self) -> None:
        for kind in ("input", "output"):
            if (count := self._count.get(kind)) is not None:
                self._measure(LLM_TOKENS, count, **{semconv.GEN_AI_TOKEN_TYPE: kind})

    def _measure(self, metric: Any, value: float, **labels: str) -> None:
        bound = registry.declared(metric).bind(**self._labels(metric.labels), **labels)
        bound.record_in(value, self._span.get_span_context())

    def _labels(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: self.attributes[name] for name in names if name in self.attributes and name != semconv.ERROR_TYPE}

    def _say(self, side: str, messages: Any, role: str) -> None:
        if not content.is_wanted():
            return
        try:
            self._messages[side] = content.messages(messages, role=role)
        except Exception as error:
            report(f"llm_call.{side}", error)


def llm_call(
    provider: str, model: str, /, *, operation: str = "chat", user_id: str | None = None, **attributes: Any
) -> LlmCall:
    """Trace, measure and record a request to a language model.

    Args:
        provider: ``gen_ai.provider.name``, such as ``openai``.
        model: the model that is asked for.
        operation: ``gen_ai.operation.name``, such as ``chat`` or ``embeddings``.
        user_id: for whom it is asked; by default for whom the agent's task is done within which it is.
        attributes: attributes of the call. Give no prompt or completion here: it would be recorded; :meth:`LlmCall.prompt` and
            :meth:`LlmCall.completion` heed what is chosen.

    Example:
        >>> import clew
        >>> with clew.llm_call("openai", "gpt-4o-mini") as call:
        ...     call.tokens(input=120, output=16)
        ...     call.response(model="gpt-4o-mini-2024-07-18", finish_reasons=["stop"])
    """
    given: dict[str, Any] = {
        semconv.GEN_AI_OPERATION_NAME: operation,
        semconv.GEN_AI_PROVIDER_NAME: name_text(provider),
        semconv.GEN_AI_REQUEST_MODEL: name_text(model),
        **attributes,
    }
    if user_id is not None:
        given["user.id"] = user_id
    return LlmCall(LLM_CALL, given)
