"""All that can be asked of a store, in one place; every function takes the store first and answers frozen values."""

# ruff: noqa: S608 - what is put into statements are names from this package; values are always bound

from __future__ import annotations

from dataclasses import dataclass

from clew.console.log_queries import logs
from clew.console.metric_queries import MetricSeries, MetricSummary, metric_series, metrics
from clew.console.retention import used_bytes
from clew.console.store import Store
from clew.console.trace_queries import LinkedTrace, Trace, TraceSummary, TreeSpan, linked_traces, trace, traces

__all__ = [
    "LinkedTrace",
    "MetricSeries",
    "MetricSummary",
    "Summary",
    "Trace",
    "TraceSummary",
    "TreeSpan",
    "linked_traces",
    "logs",
    "metric_series",
    "metrics",
    "summary",
    "trace",
    "traces",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """How much the store holds now: counts, `errors` (spans with status error), sorted `services`, `stored_bytes`."""

    traces: int
    spans: int
    logs: int
    metrics: int
    metric_points: int
    errors: int
    services: tuple[str, ...]
    stored_bytes: int


def summary(store: Store) -> Summary:
    """Return counts for one line of live status.

    Args:
        store: where to look.

    Raises:
        StoreUnavailableError: the store cannot answer.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     summary(store).spans
        0
    """
    with store.reading() as connection:

        def count(what: str) -> int:
            number: int = connection.execute(f"SELECT count(*) FROM {what}").fetchone()[0]
            return number

        services = connection.execute("SELECT DISTINCT service FROM resources ORDER BY service")
        return Summary(
            traces=count("traces"),
            spans=count("spans"),
            logs=count("logs"),
            metrics=count("metrics"),
            metric_points=count("points"),
            errors=count("spans WHERE status_code = 2"),
            services=tuple(name for (name,) in services),
            stored_bytes=used_bytes(connection),
        )
