"""Which traces are recorded. A caller's unsampled flag cannot silence this service, and failures can be kept all the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceState
from opentelemetry.util.types import Attributes

from clew.settings import ID_GENERATOR_GROUP, ID_GENERATORS, SAMPLER_GROUP, SAMPLERS, Settings, variable

logger = logging.getLogger("clew.pipeline")

_LOW_64_BITS: Final = TraceIdRatioBased.TRACE_ID_LIMIT
_SAMPLED: Final = 0x01


class ThreadSampler(Sampler):
    """The samplers of ``OTEL_TRACES_SAMPLER`` in one, deciding by integers alone.

    Args:
        ratio: the share of new traces that is recorded, from 0 to 1. Deterministic by trace id, so services of the same ratio
            agree, as with the SDK's ``TraceIdRatioBased``.
        follows_parent: a span does as its parent did. In one point this differs from the specification: where a remote parent
            says "not sampled", the ratio decides anew, so a stranger's header can't switch tracing off.

    Example:
        >>> ThreadSampler(ratio=1.0, follows_parent=True).decides(None, 17)
        True

    Source: https://opentelemetry.io/docs/specs/otel/trace/sdk/#built-in-samplers
    """

    def __init__(self, *, ratio: float, follows_parent: bool) -> None:
        self._ratio = ratio
        self.bound = TraceIdRatioBased.get_bound_for_rate(ratio)
        self.follows_parent = follows_parent

    def decides(self, parent: SpanContext | None, trace_id: int) -> bool:
        """Return whether a span is recorded.

        Args:
            parent: a valid parent, or ``None`` for a new trace.
            trace_id: the trace it is part of.
        """
        if parent is not None and self.follows_parent:
            if parent[3] & _SAMPLED:
                return True
            if not parent[2]:
                return False
        return trace_id & _LOW_64_BITS < self.bound

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide, as the SDK's interface has it."""
        given = trace.get_current_span(parent_context).get_span_context()
        parent = given if given.is_valid else None
        state = parent.trace_state if parent is not None else None
        if self.decides(parent, trace_id):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state)
        return SamplingResult(Decision.DROP, None, state)

    def get_description(self) -> str:
        """Return what a person reads of it."""
        return f"ThreadSampler{{ratio={self._ratio},follows_parent={self.follows_parent}}}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Which spans of a trace that was not sampled are recorded and sent all the same.

    Only the first span of this service in the trace can be kept: what is beneath it was not recorded, and what other services did
    for it was told that nobody records. It is decided at its end, when it is known how it came out.

    Attributes:
        errors: those that failed.
        slow_s: those that took at least so long, in seconds; ``None`` for none.
    """

    errors: bool
    slow_s: float | None

    def reason(self, span: ReadableSpan) -> str | None:
        """Return why an ended span is kept, or ``None`` where it is not."""
        if self.errors and span.status.status_code is StatusCode.ERROR:
            return "error"
        duration_ns = (span.end_time or 0) - (span.start_time or 0)
        return "slow" if self.slow_s is not None and duration_ns >= self.slow_s * 1e9 else None


def build_sampler(settings: Settings) -> Sampler:
    """Return the sampler that ``OTEL_TRACES_SAMPLER`` and its argument name; the default one where a package's can't be made."""
    name, default = settings.sampler, ThreadSampler(ratio=1.0, follows_parent=True)
    if name not in SAMPLERS:
        argument = os.environ.get(variable("sampler_ratio"))
        sampler: Sampler = _plugin(SAMPLER_GROUP, name, lambda factory: factory(argument), Sampler) or default
        return sampler
    ratio = {"always_on": 1.0, "always_off": 0.0}.get(name.removeprefix("parentbased_"), settings.sampler_ratio)
    return ThreadSampler(ratio=ratio, follows_parent=name.startswith("parentbased_"))


def build_id_generator(settings: Settings) -> IdGenerator:
    """Return the id generator that ``OTEL_PYTHON_ID_GENERATOR`` names; random ids where a package's can't be made."""
    name = settings.id_generator
    if name in ID_GENERATORS:
        return RandomIdGenerator()
    made: IdGenerator = _plugin(ID_GENERATOR_GROUP, name, lambda kind: kind(), IdGenerator) or RandomIdGenerator()
    return made


def _plugin(group: str, name: str, make: Callable[[Any], Any], wanted: type[Any]) -> Any:
    """Return what a package has registered, or ``None``, and say so, where that is of no use: the app starts all the same."""
    try:
        made = make(next(iter(entry_points(group=group, name=name))).load())
        if not isinstance(made, wanted):
            raise TypeError(f"{made!r} is no {wanted.__name__}")  # noqa: TRY301 - one sentence for whatever is wrong with it
    except Exception as error:
        logger.error("%s, registered under %s, can't be used: %r. The default is used.", name, group, error)  # noqa: TRY400 - a sentence for the operator
        return None
    return made


def build_keep(settings: Settings) -> Keep | None:
    """Return what is kept of unsampled traces; ``None`` for nothing."""
    if not settings.keep_errors and settings.keep_slow_s is None:
        return None
    return Keep(errors=settings.keep_errors, slow_s=settings.keep_slow_s)
