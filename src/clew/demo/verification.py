"""Checks the telemetry of a scenario against what is expected of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from clew.demo.expectations import (
    Edge,
    LogEvent,
    MetricName,
    SeenSpan,
    expected_edges,
    expected_log_events,
    expected_metrics,
    missing_edges,
)
from clew.demo.scenario import ScenarioResult
from clew.demo.telemetry import Console

_POLL_EVERY_S: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Expectations:
    """What a demo is expected to emit, as the tables in ``expectations.py`` have it."""

    edges: tuple[Edge, ...]
    log_events: tuple[LogEvent, ...]
    metrics: tuple[MetricName, ...]

    @classmethod
    def of(cls, *, apart: tuple[str, ...], model: str, stand_in: bool) -> Expectations:
        """Return what a demo with these settings is expected to emit."""
        return cls(
            edges=expected_edges(apart=apart, model=model, stand_in=stand_in),
            log_events=expected_log_events(apart=apart, stand_in=stand_in),
            metrics=expected_metrics(apart=apart, stand_in=stand_in),
        )


def missing(expected: Expectations, console: Console, result: ScenarioResult, since: datetime) -> list[str]:
    """Return a line for each edge, log event and metric that the console does not have.

    Args:
        expected: what is expected.
        console: where to look.
        result: which document and which export.
        since: the start of the scenario; what is older counts for nothing.
    """
    lines = [f"edge: {edge}" for edge in missing_edges(expected.edges, _spans(expected, console, result, since))]
    logged = {(line.service, line.body) for line in console.logs(result.shown.trace_id)}
    lines += [f"log: {event}" for event in expected.log_events if (event.service, event.event) not in logged]
    measured = {(series.service, series.name, series.unit) for series in console.series(since)}
    lines += [
        f"metric: {metric}" for metric in expected.metrics if (metric.service, metric.name, metric.unit) not in measured
    ]
    return lines


def await_nothing_missing(
    expected: Expectations,
    console: Console,
    result: ScenarioResult,
    since: datetime,
    *,
    timeout_s: float,
    should_stop: Callable[[], bool],
) -> list[str]:
    """Wait until everything has come in, and return what has not when the time is up.

    Args:
        expected: what is expected.
        console: where to look.
        result: which document and which export.
        since: the start of the scenario.
        timeout_s: how long to wait at most.
        should_stop: asked again and again.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        lines = missing(expected, console, result, since)
        if not lines or time.monotonic() > deadline or should_stop():
            return lines
        time.sleep(_POLL_EVERY_S)


def _spans(expected: Expectations, console: Console, result: ScenarioResult, since: datetime) -> list[SeenSpan]:
    trace_ids = {result.shown.trace_id, result.export_trace_id}
    for edge in expected.edges:
        if edge.story == "periodic":
            trace_ids.update(console.trace_ids(service=edge.target.service, operation=edge.target.name, since=since))
    spans = [span.seen for trace_id in trace_ids for span in console.trace(trace_id)]
    linked = {link_trace for span in spans for link_trace, _ in span.links} - trace_ids
    return spans + [span.seen for trace_id in linked for span in console.trace(trace_id)]
