"""What settings change about requests, each on a server of its own."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration.server_process import ServerProcess, uvicorn
from tests.otlp_sink import OtlpSink

HERE = Path(__file__).parent
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@contextmanager
def edges(sink: OtlpSink, folder: Path, *options: str, **environment: str) -> Iterator[ServerProcess]:
    merged = {**sink.environment, "PYTHONPATH": str(HERE), **environment}
    with ServerProcess(uvicorn("http_edges_app:app", *options), cwd=folder, environment=merged) as server:
        yield server


def test_callers_that_are_not_trusted_are_linked_to(otlp_sink: OtlpSink, tmp_path: Path):
    sent = {
        "traceparent": f"00-{TRACE}-{CALLER}-01",
        "x-correlation-id": "theirs",
        "baggage": "tenant=theirs",
    }
    with edges(otlp_sink, tmp_path, CLEW_TRUST_INCOMING="false", CLEW_BAGGAGE_KEYS="tenant") as server:
        answered = httpx.get(f"{server.url}/items/1", headers=sent).headers["x-correlation-id"]
        span = otlp_sink.wait_for_span("GET /items/{item_id}")
    assert span.trace_id != TRACE
    assert span.parent_id == ""
    assert [(link.trace_id, link.span_id) for link in span.links] == [(TRACE, CALLER)]
    assert answered != "theirs"
    assert span.attributes["clew.correlation.id"] == answered


@pytest.mark.parametrize(
    ("off", "spans", "metrics", "logs"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, False, False, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, False, True, True),
        ({"OTEL_METRICS_EXPORTER": "none"}, True, False, True),
        ({"OTEL_LOGS_EXPORTER": "none"}, True, True, False),
    ],
    ids=["all", "traces", "metrics", "logs"],
)
def test_each_signal_can_be_off_and_the_app_serves(
    otlp_sink: OtlpSink, tmp_path: Path, off: dict[str, str], spans: bool, metrics: bool, logs: bool
):
    with edges(otlp_sink, tmp_path, **off) as server:
        answers = [
            httpx.get(f"{server.url}{path}") for path in ("/items/1", "/background?seconds=0", "/boom", "/metrics")
        ]
        said = server.said
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
    # The correlation id and the lines on the terminal do not depend on where telemetry goes
    assert len(answers[0].headers["x-correlation-id"]) == 32
    assert '"event": "request_out"' in said
    # The server has stopped, and what it had was sent before
    assert bool(otlp_sink.named("GET /items/{item_id}")) is spans
    assert bool(otlp_sink.total("http.server.request.duration")) is metrics
    assert bool([log for log in otlp_sink.logs if log.body == "request_out"]) is logs
    assert otlp_sink.spans == [] or spans
    assert {log.trace_id for log in otlp_sink.logs} == {""} or spans or not logs


@pytest.mark.parametrize(
    ("path", "found", "missing"), [("none", None, "/metrics"), ("/internal/m", "/internal/m", "/metrics")]
)
def test_the_metrics_page_can_be_moved_and_removed(
    otlp_sink: OtlpSink, tmp_path: Path, path: str, found: str | None, missing: str
):
    with edges(otlp_sink, tmp_path, CLEW_METRICS_PATH=path) as server:
        assert httpx.get(f"{server.url}{missing}").status_code == 404
        if found is not None:
            assert "target_info" in httpx.get(f"{server.url}{found}").text


def test_the_correlation_header_can_be_another(otlp_sink: OtlpSink, tmp_path: Path):
    with edges(otlp_sink, tmp_path, CLEW_CORRELATION_HEADER="X-Request-Id") as server:
        answer = httpx.get(f"{server.url}/items/1", headers={"x-request-id": "order-17", "x-correlation-id": "no"})
        span = otlp_sink.wait_for_span("GET /items/{item_id}")
    assert answer.headers["x-request-id"] == span.attributes["clew.correlation.id"] == "order-17"


def test_a_prefix_of_a_proxy_is_no_part_of_the_template(otlp_sink: OtlpSink, tmp_path: Path):
    with edges(otlp_sink, tmp_path, "--root-path", "/api") as server:
        assert httpx.get(f"{server.url}/m/s/1").status_code == 200
        span = otlp_sink.wait_for_span("GET /m/s/{x}")
        assert "target_info" in httpx.get(f"{server.url}/metrics").text
    assert span.attributes["http.route"] == "/m/s/{x}"


def test_an_endpoint_that_never_answers_holds_up_neither_requests_nor_the_end(otlp_sink: OtlpSink, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with edges(otlp_sink, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, CLEW_SHUTDOWN_TIMEOUT_S="2") as server:
            with httpx.Client(base_url=server.url) as client:
                started = time.monotonic()
                for number in range(50):
                    assert client.get(f"/items/{number}").status_code == 200
                took_s = time.monotonic() - started
            stopping = time.monotonic()
            server.stop()
            stopped_s = time.monotonic() - stopping
    assert took_s < 10
    # One deadline for telemetry, and what uvicorn takes by itself
    assert stopped_s < 2 + 3
