"""Requests to a real uvicorn, one row for each kind: what became of the span, the metrics and the log lines."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from clew.instrumentation.asgi.request import LATE_WORK_S
from clew.testing import CapturedSpan
from tests.integration.library_versions import folder_with
from tests.integration.server_process import ServerProcess, uvicorn
from tests.otlp_sink import OtlpSink

HERE = Path(__file__).parent
_numbers = itertools.count()
# A connection for each request, and what TLS needs only once
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))


@pytest.fixture(scope="module")
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        yield sink


# FastAPI has telemetry of its own from 0.142 on
VERSIONS = {"installed": (), "0.115": ("fastapi==0.115.0", "starlette==0.38.6")}


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(version: str, sink: OtlpSink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("edges")
    libraries = [str(folder_with(*VERSIONS[version]))] if VERSIONS[version] else []
    path = os.pathsep.join([*libraries, str(HERE)])
    environment = {**sink.environment, "OTEL_SERVICE_NAME": "edges", "PYTHONPATH": path}
    sink.clear()
    with ServerProcess(uvicorn("http_edges_app:app"), cwd=folder, environment=environment) as server:
        yield server


@dataclass(frozen=True, kw_only=True)
class Row:
    """A request and what must be seen of it. ``size`` is the response's body in bytes, as the app sent it."""

    path: str
    name: str
    method: str = "GET"
    status: int = 200
    route: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    error: str | None = None
    failed: bool = False
    exception: str | None = None
    size: int | None = None
    original: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path} {dict(self.headers) or ''}".strip()


def matched(method: str, path: str, route: str, **more: Any) -> Row:
    name = f"HTTP {route}" if "original" in more else f"{method} {route}"
    return Row(method=method, path=path, route=route, name=name, **more)


ROWS = [
    # Templates
    matched("GET", "/items/1", "/items/{item_id}", size=13),
    matched("GET", "/items/x", "/items/{item_id}", status=422),
    matched("GET", "/sync/a%20b?page=2", "/sync/{name}", size=5),
    matched("GET", "/v1/shop/orders/7", "/v1/shop/orders/{order_id}"),
    matched("GET", "/v1/shop/orders/7/lines/3", "/v1/shop/orders/{order_id}/lines/{line}"),
    matched("GET", "/m/things/lamp", "/m/things/{thing}"),
    matched("GET", "/m/s/17", "/m/s/{x}"),
    matched("GET", "/starlette/a/4", "/starlette/a/{b}"),
    matched("GET", "/starlette/t/acme/p/q", "/starlette/t/{tenant}/{page}"),
    matched("GET", "/wrapped/w/9", "/wrapped/w/{x}"),
    matched("GET", "/hosted/9", "/hosted/{x}", headers=(("host", "tenant.example"),)),
    matched("GET", "/wsgi/deep/er", "/wsgi", size=len("wsgi /deep/er")),
    matched("GET", "/plain/anything", "/plain", size=5),
    matched("GET", "/static/http_edges_app.py", "/static"),
    matched("GET", "/static/none.txt", "/static", status=404),
    matched("GET", "/openapi.json", "/openapi.json"),
    # Methods
    matched("HEAD", "/headed", "/headed", size=0),
    matched("POST", "/echo", "/echo", body=b"z" * 70_000, size=70_000),
    matched("POST", "/items/1", "/items/{item_id}", status=405),
    matched("OPTIONS", "/items/1", "/items/{item_id}", status=405),
    matched("PUT", "/starlette/t/acme/p", "/starlette/t/{tenant}/{page}"),
    matched("BREW", "/items/1", "/items/{item_id}", status=405, original="BREW"),
    # No route: one name for all of them
    Row(path="/no/such/path", name="GET", status=404),
    Row(path="/m/no-such", name="GET", status=404),
    Row(path="/m/s/too/deep", name="GET", status=404),
    Row(path="/starlette/no-such", name="GET", status=404),
    Row(path="/wrapped/no-such", name="GET", status=404),
    Row(path="/items/1/", name="GET", status=307),
    Row(method="PURGE", path="/no/such", name="HTTP", status=404, original="PURGE"),
    # Redirects and failures
    matched("GET", "/redirect", "/redirect", status=307),
    matched("GET", "/boom", "/boom", status=500, error="ValueError", failed=True, exception="ValueError"),
    matched("GET", "/m/boom", "/m/boom", status=500, error="KeyError", failed=True, exception="KeyError"),
    matched("GET", "/chosen/404", "/chosen/{status}", status=404),
    matched("GET", "/chosen/503", "/chosen/{status}", status=503, error="503", failed=True),
    matched("GET", "/answered/400", "/answered/{status}", status=400),
    matched("GET", "/answered/500", "/answered/{status}", status=500, error="500", failed=True),
    matched("GET", "/refused", "/refused", status=418),
    # Answered by a handler, in another task: only the status is left of it
    matched("GET", "/overloaded", "/overloaded", status=503, error="503", failed=True),
    matched(
        "GET",
        "/plain/raise",
        "/plain",
        status=500,
        error="ZeroDivisionError",
        failed=True,
        exception="ZeroDivisionError",
    ),
    Row(
        path="/items/1",
        name="GET",
        status=500,
        headers=(("x-break", "middleware"),),
        error="LookupError",
        failed=True,
        exception="LookupError",
    ),
    # Bodies in pieces
    matched("GET", "/stream/5", "/stream/{chunks}", size=5_000),
]


# What older versions do otherwise: Starlette's middleware of functions swallowed what a mounted app raised
OTHERWISE: dict[tuple[str, str], dict[str, Any]] = {("0.115", "/m/boom"): {"error": "500", "exception": None}}


def request(server: ServerProcess, row: Row) -> str:
    """Send a row's request and return the correlation id by which it is found again."""
    cid = f"row-{next(_numbers)}"
    headers = {**dict(row.headers), "x-correlation-id": cid}
    response = CLIENT.request(
        row.method, f"{server.url}{row.path}", headers=headers, content=row.body or None, timeout=30
    )
    assert response.status_code == row.status
    assert response.headers.get_list("x-correlation-id") == [cid]
    return cid


def server_spans(sink: OtlpSink, cid: str) -> list[CapturedSpan]:
    return [span for span in sink.spans if span.attributes.get("clew.correlation.id") == cid and span.kind == "server"]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_request_is_one_span_one_measurement_and_two_log_lines(
    server: ServerProcess, version: str, sink: OtlpSink, row: Row
):
    row = replace(row, **OTHERWISE.get((version, row.path), {}))
    labels = {"http.request.method": "_OTHER" if row.original else row.method, "url.scheme": "http"}
    labels["http.response.status_code"] = row.status  # type: ignore[assignment]
    optional = {"http.route": row.route, "error.type": row.error}
    labels |= {name: value for name, value in optional.items() if value is not None}

    def measured(name: str, ours: dict[str, Any]) -> tuple[int, float]:
        points = [point for point in sink.metrics if point.name == name and point.attributes == ours]
        return sum(point.count for point in points), sum(point.value for point in points)

    size_labels = {name: value for name, value in labels.items() if name != "error.type"}
    sizes = ("http.server.request.body.size", "http.server.response.body.size")
    before = measured("http.server.request.duration", labels), *(measured(name, size_labels) for name in sizes)

    cid = request(server, row)

    span = sink.wait(lambda s: server_spans(s, cid), what=f"server span of {row}")[0]
    assert span.name == row.name
    assert span.attributes.get("http.route") == row.route
    assert span.attributes["http.response.status_code"] == row.status
    assert span.attributes.get("http.request.method_original") == row.original
    assert span.attributes.get("error.type") == row.error
    assert span.status == ("error" if row.failed else "unset")
    exceptions = [event.attributes["exception.type"] for event in span.events if event.name == "exception"]
    assert exceptions == ([row.exception] if row.exception else [])
    assert span.attributes["url.path"] == httpx.URL(row.path).path
    assert span.parent_id == ""

    logs = sink.wait_for_all(
        lambda s: [log for log in s.logs if log.span_id == span.span_id and log.logger == "clew.http.server"],
        2,
        what=f"log lines of {row}",
    )
    assert [log.body for log in logs] == ["request_in", "request_out"]
    assert logs[1].severity == ("ERROR" if row.failed else "INFO")
    assert logs[1].attributes["http.response.status_code"] == row.status
    assert logs[1].attributes["duration_s"] >= 0
    assert logs[1].attributes["correlation_id"] == cid
    assert "hunter2" not in str(logs) + str(span)

    sink.wait(
        lambda s: measured("http.server.request.duration", labels)[0] == before[0][0] + 1,
        what=f"duration with {labels}",
    )
    count, received = measured(sizes[0], size_labels)
    assert (count - before[1][0], received - before[1][1]) == (1, len(row.body))
    count, sent = measured(sizes[1], size_labels)
    assert count - before[2][0] == 1
    if row.size is not None:
        assert sent - before[2][1] == row.size
    # Nothing else claims to have served it, and no label has a raw path
    assert len(server_spans(sink, cid)) == 1
    routes = {point.attributes.get("http.route") for point in sink.metrics if point.name.startswith("http.server")}
    assert not {route for route in routes if route and ("no" in route or "17" in route)}


def test_the_span_says_who_asked_for_what(server: ServerProcess, sink: OtlpSink):
    cid = "who-asked"
    httpx.get(
        f"{server.url}/items/3?page=2&token=s3cr3ts3cr3t",
        headers={"x-correlation-id": cid, "user-agent": "Theseus/1.0", "host": "shop.example:8443"},
    )
    span = sink.wait(lambda s: server_spans(s, cid), what="server span")[0]
    wanted = {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/items/3",
        "url.query": "page=2&token=[redacted]",
        "server.address": "shop.example",
        "server.port": 8443,
        "client.address": "127.0.0.1",
        "user_agent.original": "Theseus/1.0",
        "network.protocol.version": "1.1",
    }
    assert wanted.items() <= span.attributes.items()


def test_the_thread_comes_in_and_reaches_what_the_app_does(server: ServerProcess, sink: OtlpSink):
    trace_id, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    httpx.get(
        f"{server.url}/sync/ariadne",
        headers={"traceparent": f"00-{trace_id}-{caller}-00", "x-correlation-id": "the-thread"},
    )
    served = sink.wait(lambda s: server_spans(s, "the-thread"), what="server span")[0]
    # The caller's flag says "not sampled", which does not silence this service
    assert (served.trace_id, served.parent_id) == (trace_id, caller)
    inside = sink.wait(lambda s: [span for span in s.named("inside") if span.trace_id == trace_id], what="inner span")[
        0
    ]
    assert inside.parent_id == served.span_id
    line = sink.wait(
        lambda s: [log for log in s.logs if log.body == "sync.read" and log.trace_id == trace_id], what="line"
    )[0]
    assert (line.span_id, line.attributes["correlation_id"]) == (inside.span_id, "the-thread")


@pytest.mark.parametrize(
    "given",
    ["", "with space", "a" * 129, 'quote"', "semi;colon", "é", "<script>"],
)
def test_a_correlation_id_that_could_do_harm_is_replaced(server: ServerProcess, sink: OtlpSink, given: str):
    response = httpx.get(f"{server.url}/items/1", headers={b"x-correlation-id": given.encode()})
    answered = response.headers["x-correlation-id"]
    assert answered != given
    assert len(answered) == 32
    assert sink.wait(lambda s: server_spans(s, answered), what="server span")


def test_a_request_without_a_correlation_id_gets_one(server: ServerProcess):
    first, second = (httpx.get(f"{server.url}/items/1").headers["x-correlation-id"] for _ in range(2))
    assert first != second


def test_background_tasks_are_no_part_of_the_request(server: ServerProcess, sink: OtlpSink):
    cid = request(server, matched("GET", "/background?seconds=0.3", "/background"))
    served = sink.wait(lambda s: server_spans(s, cid), what="server span")[0]
    assert served.duration_s < 0.25

    def late(s: OtlpSink) -> list[CapturedSpan]:
        return [span for span in s.named("background /background") if span.trace_id == served.trace_id]

    task = sink.wait(late, what="background span")[0]
    assert task.duration_s >= 0.29
    assert task.start_ns >= served.start_ns + int(served.duration_s * 1e9) - 5_000_000
    assert (task.kind, task.parent_id) == ("internal", served.span_id)
    assert [(link.trace_id, link.span_id) for link in task.links] == [(served.trace_id, served.span_id)]
    # Both of its tasks are in the one span, and what they do is beneath it
    children = sink.wait_for_all(
        lambda s: [span for span in s.named("clean up") if span.parent_id == task.span_id],
        2,
        what="spans of the tasks",
    )
    lines = sink.wait_for_all(
        lambda s: [log for log in s.logs if log.span_id in {child.span_id for child in children}],
        2,
        what="lines of the tasks",
    )
    assert {line.attributes["correlation_id"] for line in lines} == {cid}
    assert len(late(sink)) == 1
    assert sink.wait(
        lambda s: s.total("clew.http.background.duration", http__route="/background") == 1, what="background duration"
    )


def test_a_background_task_that_fails_is_its_own_failure(server: ServerProcess, sink: OtlpSink):
    cid = request(server, matched("GET", "/background?seconds=0&fails=true", "/background"))
    served = sink.wait(lambda s: server_spans(s, cid), what="server span")[0]
    assert (served.status, served.attributes["http.response.status_code"]) == ("unset", 200)
    tasks = sink.wait(
        lambda s: [span for span in s.named("background /background") if span.parent_id == served.span_id], what="task"
    )
    assert [(task.status, task.attributes["error.type"]) for task in tasks] == [("error", "RuntimeError")]


def test_what_takes_long_after_the_response_gets_a_span_too(server: ServerProcess, version: str, sink: OtlpSink):
    cid = request(server, matched("GET", "/after", "/after"))
    served = sink.wait(lambda s: server_spans(s, cid), what="server span")[0]
    if version == "0.115":
        # Dependencies were left before the response was sent
        assert served.duration_s > 0.19
        return
    assert served.duration_s < 0.19
    late = sink.wait(lambda s: s.named("background /after"), what="late span")[0]
    assert late.parent_id == served.span_id
    assert 0.15 < late.duration_s < 2


def test_quick_requests_leave_no_background_span(server: ServerProcess, sink: OtlpSink):
    cid = request(server, matched("GET", "/items/1", "/items/{item_id}"))
    sink.wait(lambda s: server_spans(s, cid), what="server span")
    # On a machine that is busy with other things even a return may take long, and then the span is right
    assert not [span for span in sink.named("background /items/{item_id}") if span.duration_s < LATE_WORK_S]


def test_metrics_are_answered_in_both_formats_and_leave_no_trace(server: ServerProcess, sink: OtlpSink):
    request(server, matched("GET", "/items/1", "/items/{item_id}"))
    plain = httpx.get(f"{server.url}/metrics")
    assert plain.status_code == 200
    assert plain.headers["content-type"].startswith("text/plain")
    assert "http_server_request_duration_seconds_count{" in plain.text
    assert 'http_route="/items/{item_id}"' in plain.text
    rich = httpx.get(f"{server.url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert rich.headers["content-type"].startswith("application/openmetrics-text")
    assert rich.text.endswith("# EOF\n")
    assert "trace_id=" in rich.text
    head = httpx.head(f"{server.url}/metrics")
    assert (head.status_code, head.content) == (200, b"")
    # A scrape comes before this request, which has arrived: so the scrape left nothing
    cid = request(server, matched("GET", "/items/2", "/items/{item_id}"))
    sink.wait(lambda s: server_spans(s, cid), what="server span")
    assert not [span for span in sink.spans if span.attributes.get("url.path") == "/metrics"]
    assert "/metrics" not in plain.text
    posted = httpx.post(f"{server.url}/metrics")
    assert posted.status_code == 404


def test_active_requests_return_to_zero(server: ServerProcess, sink: OtlpSink):
    def active(s: OtlpSink) -> set[float]:
        return {point.value for point in s.metrics if point.name == "http.server.active_requests"}

    assert sink.wait(lambda s: active(s) == {0.0}, what="no request in progress")
