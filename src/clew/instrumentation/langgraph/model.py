"""Requests to models that no OpenAI client makes, by LangChain's account of them."""

from __future__ import annotations

import sys
from typing import Any, Final

from clew import clock
from clew.diagnostics import report
from clew.instrumentation.langgraph.ending import WHERE, finish
from clew.llm.call import LlmCall, llm_call
from clew.llm.content import is_wanted

_TOKENS: Final = {"input": "input_tokens", "output": "output_tokens"}


class Model:
    """A request to a model, which an OpenAI client makes and measures, or another one, which does not."""

    def __init__(self, metadata: dict[str, Any], given: Any) -> None:
        self._expected: Any = None
        if "openai" in sys.modules:
            try:
                from clew.instrumentation import openai as openai_clients

                self._expected = openai_clients.expect()
            except ImportError as error:
                report(WHERE, f"{error.name} is missing, which clew needs for openai: pip install 'clew[openai]'")
        self._metadata = metadata
        self._given = given if is_wanted() else None
        self._started_ns = clock.now_ns()
        self._call: LlmCall | None = None

    def _begin(self) -> LlmCall:
        if self._call is None:
            asked = {key: str(self._metadata.get(f"ls_{key}") or "") for key in ("provider", "model_name")}
            self._call = llm_call(asked["provider"] or "unknown", asked["model_name"])
            self._call.begin(start_time_ns=self._started_ns)
        return self._call

    def piece(self) -> None:
        """Take note of a piece of a streamed answer."""
        if self._expected is None or not self._expected.was_made:
            self._begin().first_token()

    def end(self, answer: Any, error: BaseException | None) -> None:
        """Record the call, if no client did."""
        if self._expected is not None and self._expected.over() and self._call is None:
            return
        call = self._begin()
        said = [one for several in getattr(answer, "generations", None) or () for one in several]
        usage: Any = next(
            (found for one in said if (found := getattr(getattr(one, "message", None), "usage_metadata", None))), {}
        )
        call.tokens(**{side: usage[key] for side, key in _TOKENS.items() if isinstance(usage.get(key), int)})
        if self._given is not None:
            call.prompt(self._given)
            call.completion([getattr(one, "text", "") for one in said])
        finish(call, error)
