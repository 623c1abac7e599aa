"""Which traces are recorded. A caller's unsampled flag cannot silence this service."""

from __future__ import annotations

from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from clew.settings import Settings


def build_sampler(settings: Settings) -> Sampler:
    """Return the sampler that ``OTEL_TRACES_SAMPLER`` and its argument name.

    The parent-based ones differ from the specification in one point: where a remote parent says "not sampled", the root
    sampler decides anew. It is deterministic by trace id, so services of the same ratio agree, and a stranger's header
    can't switch tracing off.

    Source: https://opentelemetry.io/docs/specs/otel/trace/sdk/#built-in-samplers
    """
    root: Sampler
    if settings.sampler.endswith("always_on"):
        root = ALWAYS_ON
    elif settings.sampler.endswith("always_off"):
        root = ALWAYS_OFF
    else:
        root = TraceIdRatioBased(settings.sampler_ratio)
    if settings.sampler.startswith("parentbased_"):
        return ParentBased(root, remote_parent_not_sampled=root)
    return root
