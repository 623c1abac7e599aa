"""The demo's scenario against the real Collector, Prometheus, Loki and Jaeger: one thread, and the click path along it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from clew.demo.expectations import (
    EXPECTED_EDGES,
    EXPECTED_LOG_EVENTS,
    EXPECTED_METRICS,
    LogEvent,
    MetricName,
    SeenSpan,
    missing_edges,
)
from clew.demo.scenario import ScenarioResult, run_scenario
from clew.engine.exposition import prometheus_name
from tests.stack.backends import (
    Stack,
    StoredSpan,
    eventually,
    jaeger_search,
    jaeger_trace,
    loki_query,
    prometheus_exemplars,
    prometheus_query,
)
from tools.dashboards import DashboardQuery, queries

pytestmark = pytest.mark.stack

ARRIVES_WITHIN_S = 60.0
# Jaeger keeps one reference between two spans: of a parent that is also linked it shows the parent
PARENTS = {(edge.source, edge.target) for edge in EXPECTED_EDGES if edge.relation == "parent"}
SHOWN_EDGES = [
    edge for edge in EXPECTED_EDGES if edge.relation == "parent" or (edge.source, edge.target) not in PARENTS
]
SECRET = "hunter2-planted-by-a-test"
PLANTED = "request-with-a-planted-secret"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The running demo: where its gateway is, and what became of the scenario."""

    gateway_url: str
    result: ScenarioResult


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def demo(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo's processes, sending to the stack, after ten documents and an export."""
    folder = tmp_path_factory.mktemp("demo")
    port = free_port()
    command = [sys.executable, "-m", "clew.demo", "--endpoint", stack.otlp_http_url, "--port", str(port)]
    with (folder / "output").open("wb") as output:
        running = subprocess.Popen(
            [*command, "--data-dir", str(folder / "data")],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "CLEW_SPOOL_DIR": str(folder / "spool")},
        )
    url = f"http://127.0.0.1:{port}"
    try:

        def answers() -> bool:
            assert running.poll() is None, (folder / "output").read_text()
            return httpx.get(f"{url}/healthz").is_success

        eventually(answers, timeout_s=60, what="the gateway's answer")
        result = run_scenario(url, 10, timeout_s=90)
        httpx.post(
            f"{url}/documents?api_key={SECRET}",
            json={"title": f"password={SECRET}", "text": "A secret in a title."},
            headers={
                "Authorization": f"Bearer {SECRET}",
                "user-agent": f"test token={SECRET}",
                "x-correlation-id": PLANTED,
            },
        )
        yield Demo(gateway_url=url, result=result)
    finally:
        running.send_signal(signal.SIGTERM)
        started = time.monotonic()
        running.wait(20)
        assert time.monotonic() - started < 10, (folder / "output").read_text()


def stored(stack: Stack, *trace_ids: str) -> list[StoredSpan]:
    return [span for trace_id in trace_ids for span in jaeger_trace(stack, trace_id)]


def seen(spans: list[StoredSpan]) -> list[SeenSpan]:
    return [
        SeenSpan(
            service=span.service,
            name=span.name,
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_id=span.parent_id or "",
            links=span.links,
        )
        for span in spans
    ]


def test_every_edge_of_the_thread_is_in_jaeger(stack: Stack, demo: Demo) -> None:
    result = demo.result

    def nothing_missing() -> bool:
        spans = stored(stack, result.shown.trace_id, result.export_trace_id)
        spans += [
            span
            for operation in ("schedule periodic jobs", "run digest", "run health_check", "run cleanup")
            for trace in jaeger_search(stack, "scheduler", operation=operation)
            for span in trace
        ]
        missing = missing_edges(SHOWN_EDGES, seen(spans))
        assert not missing, "missing: " + "; ".join(str(edge) for edge in missing)
        return True

    eventually(nothing_missing, timeout_s=ARRIVES_WITHIN_S, what="every edge of the thread")


def test_each_document_is_one_trace_without_an_orphan(stack: Stack, demo: Demo) -> None:
    def whole() -> bool:
        for document in demo.result.documents:
            spans = jaeger_trace(stack, document.trace_id)
            ids = {span.span_id for span in spans}
            roots = [span.name for span in spans if span.parent_id is None]
            orphans = [span.name for span in spans if span.parent_id is not None and span.parent_id not in ids]
            assert roots == ["POST /documents"], (document.title, roots)
            assert orphans == [], (document.title, orphans)
            assert {span.service for span in spans} >= {"gateway", "orchestrator", "topicizer", "scheduler", "llm"}
        return True

    eventually(whole, timeout_s=ARRIVES_WITHIN_S, what="a whole trace for each document")


@pytest.mark.parametrize("expected", EXPECTED_LOG_EVENTS, ids=str)
def test_the_log_lines_of_a_document_are_in_loki(stack: Stack, demo: Demo, expected: LogEvent) -> None:
    query = f'{{service_name="{expected.service}"}} | trace_id = "{demo.result.shown.trace_id}"'
    eventually(
        lambda: [line for line in loki_query(stack, query) if line.line == expected.event],
        timeout_s=ARRIVES_WITHIN_S,
        what=f"{expected} in Loki",
    )


@pytest.mark.parametrize("expected", [row for row in EXPECTED_METRICS if row.name != "clew.queue.rejected"], ids=str)
def test_the_metrics_are_in_prometheus(stack: Stack, demo: Demo, expected: MetricName) -> None:
    counter = prometheus_name(expected.name, expected.unit, monotonic=True)
    plain = prometheus_name(expected.name, expected.unit)
    names = "|".join((counter, plain, f"{plain}_count"))
    eventually(
        lambda: prometheus_query(stack, f'{{__name__=~"{names}", service_name="{expected.service}"}}'),
        timeout_s=ARRIVES_WITHIN_S,
        what=f"{expected} in Prometheus",
    )


def test_counts_agree_with_what_was_done(stack: Stack, demo: Demo) -> None:
    done = len(demo.result.documents)

    def counted() -> bool:
        for name, least in (
            ("demo_documents_accepted_total", done),
            ("demo_documents_verified_total", done),
            ("demo_documents_refused_total", len(demo.result.refusals)),
        ):
            (series,) = prometheus_query(stack, f"sum({name})")
            assert series.value >= least, (name, series.value)
        return True

    eventually(counted, timeout_s=ARRIVES_WITHIN_S, what="the documents that were counted")


def test_the_click_path_from_a_metric_to_its_trace_to_its_logs_and_back(stack: Stack, demo: Demo) -> None:
    metric = 'http_server_request_duration_seconds_bucket{service_name="gateway", http_route="/documents"}'
    exemplar = eventually(
        lambda: prometheus_exemplars(stack, metric), timeout_s=ARRIVES_WITHIN_S, what="an exemplar of POST /documents"
    )[-1]
    trace_id = exemplar.labels["trace_id"]
    spans = eventually(
        lambda: jaeger_trace(stack, trace_id), timeout_s=ARRIVES_WITHIN_S, what="the exemplar's trace in Jaeger"
    )
    clicked = [span for span in spans if span.span_id == exemplar.labels["span_id"]]
    assert [(span.service, span.name) for span in clicked] == [("gateway", "POST /documents")]
    # As the Grafana data source for Jaeger asks Loki, and as the one for Loki asks Jaeger
    lines = eventually(
        lambda: loki_query(stack, f'{{service_name="{clicked[0].service}"}} | trace_id = "{trace_id}"'),
        timeout_s=ARRIVES_WITHIN_S,
        what="the trace's log lines in Loki",
    )
    assert {"request_in", "request_out"} <= {line.line for line in lines}
    back = {span.span_id for span in jaeger_trace(stack, lines[0].labels["trace_id"])}
    assert lines[0].labels["span_id"] in back
    assert lines[0].labels["correlation_id"] == clicked[0].attributes["clew.correlation.id"]


def test_a_planted_secret_is_found_in_none_of_the_three(stack: Stack, demo: Demo) -> None:
    def arrived() -> list[StoredSpan]:
        return [
            span
            for trace in jaeger_search(stack, "gateway", operation="POST /documents")
            for span in trace
            if span.attributes.get("clew.correlation.id") == PLANTED
        ]

    planted = eventually(arrived, timeout_s=ARRIVES_WITHIN_S, what="the request with the planted secret")
    trace_id = planted[0].trace_id
    eventually(
        lambda: loki_query(stack, f'{{service_name="gateway"}} | trace_id = "{trace_id}"'),
        timeout_s=ARRIVES_WITHIN_S,
        what="its log lines",
    )
    assert SECRET not in str(jaeger_trace(stack, trace_id))
    assert SECRET not in str(loki_query(stack, '{service_name=~".+"}'))
    for series in ("__name__", "http_route", "error_type", "url_scheme"):
        values = httpx.get(f"{stack.prometheus_url}/api/v1/label/{series}/values").text
        assert SECRET not in values


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.panel}: {query.expr}"[:80])
def test_every_query_of_the_dashboard_is_understood(stack: Stack, demo: Demo, query: DashboardQuery) -> None:
    if query.datasource == "loki":
        url = f"{stack.loki_url}/loki/api/v1/query_range"
    else:
        url = f"{stack.prometheus_url}/api/v1/query"
    answered = httpx.get(url, params={"query": query.expr}, timeout=10)
    assert answered.status_code == 200, answered.text
