"""Every variant that is measured: who it is, where it is installed, how it is set up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

OURS: Final = "clew"


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """One row of a table.

    Attributes:
        name: what it is called on the command line.
        title: what it is called in tables.
        environment: the requirement file that it is installed from.
        module: the module of :mod:`benchmarks.variants`.
        options: fields of :class:`benchmarks.variants.parts.Options`.
        variables: environment variables of its process.
        exports: it sends OTLP to an endpoint.
        drops: it can be told to send nothing; else it needs an endpoint always.
    """

    name: str
    title: str
    environment: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    exports: bool = True
    drops: bool = True

    def having(self, **options: Any) -> Variant:
        """Return the same with more options."""
        return replace(self, options={**self.options, **options})


def _clew(name: str, title: str, **options: Any) -> Variant:
    return Variant(name=name, title=title, environment="clew", module="clew", options=options)


def _stock(name: str, title: str, **options: Any) -> Variant:
    return Variant(name=name, title=title, environment="otel", module="stock", options=options)


BARE: Final = Variant(name="bare", title="bare FastAPI", environment="bare", module="bare", exports=False)

REQUEST: Final = (
    BARE,
    _clew("clew", "clew: traces, metrics, 2 log events, correlation id"),
    _clew("clew-10", "clew, 10 % sampled", share=0.1),
    _clew("clew-metrics", "clew, metrics only", mode="metrics"),
    _clew("clew-json", "clew, and its log lines as JSON to a file", file="log lines"),
    _stock("fastapi", "FastAPI's own telemetry", mode="fastapi"),
    _stock("fastapi-10", "FastAPI's own telemetry, 10 % sampled", mode="fastapi", share=0.1),
    _stock("stock", "opentelemetry-instrumentation-fastapi"),
    _stock("stock-10", "opentelemetry-instrumentation-fastapi, 10 % sampled", share=0.1),
    _stock("stock-tuned", "the same, no send/receive spans, stable names", mode="tuned"),
    Variant(
        name="fastotel",
        title="FastAPI's own telemetry, fastotel's processor",
        environment="fastotel",
        module="fastotel",
        drops=False,
    ),
    Variant(name="logfire", title="logfire", environment="logfire", module="logfire"),
    Variant(
        name="logfire-10",
        title="logfire, 10 % sampled",
        environment="logfire",
        module="logfire",
        options={"share": 0.1},
    ),
    Variant(
        name="prometheus",
        title="prometheus-fastapi-instrumentator (metrics only)",
        environment="prometheus",
        module="prometheus",
        exports=False,
    ),
    Variant(name="sentry", title="sentry-sdk, 100 % sampled", environment="sentry", module="sentry", exports=False),
    Variant(
        name="sentry-0",
        title="sentry-sdk, 0 % sampled",
        environment="sentry",
        module="sentry",
        options={"share": 0.0},
        exports=False,
    ),
    Variant(name="ddtrace", title="ddtrace", environment="ddtrace", module="ddtrace", exports=False),
    Variant(name="elasticapm", title="elastic-apm", environment="elasticapm", module="elasticapm", exports=False),
    Variant(
        name="elasticapm-10",
        title="elastic-apm, 10 % sampled",
        environment="elasticapm",
        module="elasticapm",
        options={"share": 0.1},
        exports=False,
    ),
)

AGENTS: Final = (
    Variant(name="bare", title="an empty function", environment="bare", module="bare", exports=False),
    Variant(
        name="clew",
        title="clew, without records",
        environment="clew-llm",
        module="clew",
        variables={"CLEW_HISTORY": "false"},
    ),
    Variant(
        name="clew-records",
        title="clew, recorded in SQLite",
        environment="clew-llm",
        module="clew",
        variables={"CLEW_HISTORY": "true", "CLEW_DATABASE_AUTO_UPGRADE": "true"},
    ),
)

MESSAGES: Final = (
    Variant(name="bare", title="bare FastStream", environment="faststream", module="bare", exports=False),
    Variant(
        name="stock",
        title="FastStream's own middleware, OpenTelemetry SDK",
        environment="faststream-otel",
        module="stock",
    ),
    Variant(
        name="clew",
        title="clew, without records",
        environment="clew-faststream",
        module="clew",
        variables={"CLEW_HISTORY": "false"},
    ),
    Variant(
        name="clew-records",
        title="clew, each message recorded in SQLite",
        environment="clew-faststream",
        module="clew",
        variables={"CLEW_HISTORY": "true", "CLEW_DATABASE_AUTO_UPGRADE": "true"},
    ),
)

CLEW: Final = _clew("clew", "clew")
STOCK: Final = _stock("stock", "OpenTelemetry SDK, OTLP/HTTP")
GRPC: Final = _stock("stock-grpc", "OpenTelemetry SDK, OTLP/gRPC", protocol="grpc")
LOGFIRE: Final = Variant(name="logfire", title="logfire", environment="logfire", module="logfire")
FASTOTEL: Final = Variant(
    name="fastotel",
    title="OpenTelemetry SDK, fastotel's processor",
    environment="fastotel",
    module="fastotel",
    drops=False,
)
PROMETHEUS: Final = Variant(
    name="prometheus", title="prometheus_client", environment="prometheus", module="prometheus", exports=False
)
STRUCTLOG: Final = Variant(
    name="structlog", title="structlog", environment="structlog", module="structlog", exports=False
)
