"""ddtrace, with its instrumentation of FastAPI, and a filter that drops every trace before it is encoded."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.variants.parts import Options, Served

os.environ |= {
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_TRACE_STARTUP_LOGS": "false",
    "DD_SERVICE": "bench",
}


def request(options: Options) -> Served:
    """Return the app with its instrumentation."""
    os.environ["DD_TRACE_SAMPLING_RULES"] = f'[{{"sample_rate": {options.share}}}]'
    import ddtrace
    from ddtrace.trace import TraceFilter

    class Dropped(TraceFilter):  # type: ignore[misc] # it is not in the environment of the type checker
        def process_trace(self, trace: Any) -> None:
            """Drop a trace."""

    ddtrace.tracer.configure(trace_processors=[Dropped()])
    ddtrace.patch(fastapi=True, starlette=True)
    from benchmarks.variants.shop import shop

    return Served(app=shop())
