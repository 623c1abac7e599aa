"""Checks the telemetry of a scenario against what is expected of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from clew.demo.expectations import (
    Edge,
    JobRecord,
    LogEvent,
    MetricName,
    SeenSpan,
    SpanName,
    SpanRecord,
    Story,
    expected_edges,
    expected_log_events,
    expected_metrics,
    expected_records,
    expected_span_records,
    missing_edges,
)
from clew.demo.records import Run, records_of_trace, runs_of_jobs
from clew.demo.scenario import ScenarioResult
from clew.demo.settings import Queue
from clew.demo.telemetry import Console

_POLL_EVERY_S: Final = 0.25
_ENDED_WELL: Final = frozenset({"sent", "processed", "completed"})


@dataclass(frozen=True, kw_only=True)
class Expectations:
    """What a demo is expected to emit, as the tables in ``expectations.py`` have it."""

    edges: tuple[Edge, ...]
    log_events: tuple[LogEvent, ...]
    metrics: tuple[MetricName, ...]
    records: tuple[JobRecord, ...]
    span_records: tuple[SpanRecord, ...]
    queue: Queue

    def __str__(self) -> str:
        return (
            f"{len(self.edges)} edges, {len(self.log_events)} log events, {len(self.metrics)} metrics "
            f"and {len(self.records) + len(self.span_records)} records"
        )

    @classmethod
    def of(cls, *, apart: tuple[str, ...], model: str, stand_in: bool, queue: Queue) -> Expectations:
        """Return what a demo with these settings is expected to emit."""
        edges = expected_edges(apart=apart, model=model, stand_in=stand_in, queue=queue)
        return cls(
            edges=edges,
            log_events=expected_log_events(apart=apart, stand_in=stand_in, queue=queue),
            metrics=expected_metrics(apart=apart, stand_in=stand_in, queue=queue),
            records=expected_records(edges, queue=queue),
            span_records=expected_span_records(edges),
            queue=queue,
        )


def missing(
    expected: Expectations, console: Console, result: ScenarioResult, since: datetime, *, gateway_url: str
) -> list[str]:
    """Return a line for each edge, log event and metric that the console does not have, and for each record.

    Args:
        expected: what is expected.
        console: where to look.
        gateway_url: who has the records of jobs.
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
    lines += [f"record: {record}" for record in _missing_records(expected, console, gateway_url, since)]
    return lines + [f"record: {record}" for record in _missing_span_records(expected, console, gateway_url, result)]


def await_nothing_missing(
    expected: Expectations,
    console: Console,
    result: ScenarioResult,
    since: datetime,
    *,
    gateway_url: str,
    timeout_s: float,
    should_stop: Callable[[], bool],
) -> list[str]:
    """Wait until everything has come in, and return what has not when the time is up.

    Args:
        expected: what is expected.
        console: where to look.
        result: which document and which export.
        since: the start of the scenario.
        gateway_url: who has the records of jobs.
        timeout_s: how long to wait at most.
        should_stop: asked again and again.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        lines = missing(expected, console, result, since, gateway_url=gateway_url)
        if not lines or time.monotonic() > deadline or should_stop():
            return lines
        time.sleep(_POLL_EVERY_S)


def _missing_records(expected: Expectations, console: Console, gateway_url: str, since: datetime) -> list[JobRecord]:
    runs = [run for run in runs_of_jobs(gateway_url, since) if run.status == "completed"]

    def is_joined(run: Run) -> bool:
        if run.trace_id is None:
            return False
        spans = (span.seen for span in console.trace(run.trace_id))
        return any(
            (span.span_id, span.service, span.name) == (run.span_id, run.service, f"run {run.job}") for span in spans
        )

    return [
        record
        for record in expected.records
        if not any((run.service, run.job) == (record.service, record.job) and is_joined(run) for run in runs)
    ]


def _missing_span_records(
    expected: Expectations, console: Console, gateway_url: str, result: ScenarioResult
) -> list[SpanRecord]:
    traces: dict[Story, str] = {"document": result.shown.trace_id, "export": result.export_trace_id}
    joined: set[SpanRecord] = set()
    for story, trace_id in traces.items():
        spans = {
            span.seen.span_id: SpanName(service=span.seen.service, name=span.seen.name)
            for span in console.trace(trace_id)
        }
        for found in records_of_trace(gateway_url, trace_id, queue=expected.queue):
            named = SpanName(service=found.service, name=found.span_name)
            if found.status in _ENDED_WELL and found.span_id is not None and spans.get(found.span_id) == named:
                joined.add(SpanRecord(story=story, kind=found.kind, span=named))
    return [record for record in expected.span_records if record not in joined]


def _spans(expected: Expectations, console: Console, result: ScenarioResult, since: datetime) -> list[SeenSpan]:
    trace_ids = {result.shown.trace_id, result.export_trace_id}
    for edge in expected.edges:
        if edge.story == "periodic":
            trace_ids.update(console.trace_ids(service=edge.target.service, operation=edge.target.name, since=since))
    spans = [span.seen for trace_id in trace_ids for span in console.trace(trace_id)]
    linked = {link_trace for span in spans for link_trace, _ in span.links} - trace_ids
    return spans + [span.seen for trace_id in linked for span in console.trace(trace_id)]
