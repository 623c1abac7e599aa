"""A request to a language model: its duration, its tokens, its errors. Prompts and completions are never recorded here."""

from __future__ import annotations

from typing import Any

from clew.catalog import semconv
from clew.catalog.metrics import LLM_TOKENS
from clew.catalog.operations import LLM_CALL
from clew.diagnostics import report
from clew.engine.metrics import registry
from clew.engine.operation import Operation


class LlmCall(Operation):
    """One request to a model. Made by :func:`llm_call`."""

    __slots__ = ()

    def tokens(self, *, input: int = 0, output: int = 0) -> None:
        """Record what the provider counted.

        Args:
            input: tokens of the prompt.
            output: tokens of the completion.
        """
        try:
            for kind, count, attribute in (
                ("input", int(input), semconv.GEN_AI_USAGE_INPUT_TOKENS),
                ("output", int(output), semconv.GEN_AI_USAGE_OUTPUT_TOKENS),
            ):
                if count <= 0:
                    continue
                self.set(attribute, count)
                labels = {key: self.attributes[key] for key in LLM_TOKENS.labels if key in self.attributes}
                registry.declared(LLM_TOKENS).record(count, **{**labels, semconv.GEN_AI_TOKEN_TYPE: kind})
        except (TypeError, ValueError) as error:
            report("llm_call.tokens", error)


def llm_call(provider: str, model: str, /, *, operation: str = "chat", **attributes: Any) -> LlmCall:
    """Trace and measure a request to a language model.

    Args:
        provider: ``gen_ai.provider.name``, such as ``openai``.
        model: the model that is asked for.
        operation: ``gen_ai.operation.name``, such as ``chat`` or ``embeddings``.
        attributes: attributes of the call. Give no prompt or completion here: it would be recorded.

    Example:
        >>> import clew
        >>> with clew.llm_call("openai", "gpt-4o-mini") as call:
        ...     call.tokens(input=120, output=16)
    """
    given: dict[str, Any] = {
        semconv.GEN_AI_OPERATION_NAME: operation,
        semconv.GEN_AI_PROVIDER_NAME: str(provider),
        semconv.GEN_AI_REQUEST_MODEL: str(model),
        **attributes,
    }
    return LlmCall(LLM_CALL, given)
