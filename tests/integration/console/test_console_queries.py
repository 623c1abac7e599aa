"""Questions to the store, in Python and over HTTP: filters, trees, links, search, and answers to wrong questions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from clew.console import queries
from clew.console.errors import QueryError
from clew.console.server import ConsoleServer
from clew.console.store import Store

START = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


@pytest.fixture
def shop(send: Any, otlp: Any) -> None:
    """Four traces: 1 spans two services, 2 has an error, 3 is long and links to 1, 4 lost its root."""
    send(otlp.spans(otlp.span(1, 1, "GET /orders"), service="gateway"))
    send(otlp.spans(otlp.span(1, 2, "work", parent=1, start_s=0.2), otlp.span(1, 3, "price", parent=1, start_s=0.1)))
    failed = otlp.span(2, 1, "work", start_s=10, status={"code": 2, "message": "Überlauf im Lager"})
    send(otlp.spans(failed))
    send(
        otlp.spans(otlp.span(3, 1, "export", start_s=20, duration_s=60, links=[(1, 2)], attributes={"q": '50% "off"'}))
    )
    send(otlp.spans(otlp.span(4, 2, "late", parent=1, start_s=30), service="worker"))


def ids(found: tuple[queries.TraceSummary, ...]) -> list[int]:
    return [int(item.trace_id, 16) for item in found]


def test_traces_by_each_condition(shop: None, console: ConsoleServer) -> None:
    store = console.store
    assert ids(queries.traces(store)) == [4, 3, 2, 1]
    assert ids(queries.traces(store, limit=2)) == [4, 3]
    assert ids(queries.traces(store, service="gateway")) == [1]
    assert ids(queries.traces(store, service="orders", operation="work")) == [2, 1]
    assert ids(queries.traces(store, service="gateway", operation="work")) == []
    assert ids(queries.traces(store, min_duration_s=1)) == [3]
    assert ids(queries.traces(store, errors_only=True)) == [2]
    assert ids(queries.traces(store, since=START + timedelta(seconds=10), until=START + timedelta(seconds=30))) == [
        3,
        2,
    ]
    assert ids(queries.traces(store, text="überLAUF")) == [2]
    assert ids(queries.traces(store, text='50% "OFF"')) == [3]
    assert ids(queries.traces(store, text="%")) == [3]
    assert ids(queries.traces(store, service="gateway", text="überlauf")) == []
    first = queries.traces(store, service="gateway")[0]
    assert (first.root_name, first.root_service, first.services) == ("GET /orders", "gateway", ("gateway", "orders"))
    assert (first.start_time, first.duration_s, first.has_root) == (START, 0.7, True)
    assert queries.traces(store, service="worker")[0].has_root is False


def test_a_trace_is_a_tree_in_order_of_start(shop: None, console: ConsoleServer, otlp: Any) -> None:
    found = queries.trace(console.store, otlp.trace_id(1))
    assert found is not None
    assert [(item.span.name, item.depth) for item in found.spans] == [("GET /orders", 0), ("price", 1), ("work", 1)]
    assert not found.is_cut
    cut = queries.trace(console.store, otlp.trace_id(1), max_spans=2)
    assert cut is not None
    assert cut.is_cut
    assert len(cut.spans) == 2
    rootless = queries.trace(console.store, otlp.trace_id(4))
    assert rootless is not None
    (orphan,) = rootless.spans
    assert (orphan.depth, orphan.is_orphan) == (0, True)
    assert queries.trace(console.store, otlp.trace_id(5)) is None


def test_a_circle_of_parents_and_a_very_deep_trace_are_shown(send: Any, client: httpx.Client, otlp: Any) -> None:
    send(otlp.spans(otlp.span(1, 1, parent=2), otlp.span(1, 2, parent=1), otlp.span(1, 3, parent=3)))
    found = client.get(f"/api/traces/{otlp.trace_id(1)}").json()
    assert [(span["span_id"][-1], span["depth"]) for span in found["spans"]] == [("1", 0), ("2", 1), ("3", 0)]
    send(otlp.spans(*(otlp.span(2, number, parent=number - 1 or None) for number in range(1, 3001))))
    found = client.get(f"/api/traces/{otlp.trace_id(2)}").json()
    assert found["spans"][-1]["depth"] == 2999


def test_links_are_found_from_both_ends(shop: None, console: ConsoleServer, client: httpx.Client, otlp: Any) -> None:
    (outgoing,) = queries.linked_traces(console.store, otlp.trace_id(3))
    assert (outgoing.direction, outgoing.trace_id) == ("outgoing", otlp.trace_id(1))
    assert (outgoing.span_id, outgoing.linked_span_id) == (otlp.span_id(1), otlp.span_id(2))
    assert outgoing.summary is not None
    assert outgoing.summary.root_name == "GET /orders"
    (incoming,) = queries.linked_traces(console.store, otlp.trace_id(1))
    assert (incoming.direction, incoming.trace_id) == ("incoming", otlp.trace_id(3))
    assert (incoming.span_id, incoming.linked_span_id) == (otlp.span_id(2), otlp.span_id(1))
    assert incoming.summary is not None
    assert incoming.summary.root_name == "export"
    (linked,) = client.get(f"/api/traces/{otlp.trace_id(1)}").json()["linked_traces"]
    assert linked["trace"]["root_name"] == "export"


def test_a_link_to_a_trace_that_is_not_there(send: Any, console: ConsoleServer, otlp: Any) -> None:
    send(otlp.spans(otlp.span(1, 1, links=[(1, 1), (9, 9)])))
    (linked,) = queries.linked_traces(console.store, otlp.trace_id(1))
    assert (linked.trace_id, linked.summary) == (otlp.trace_id(9), None)


def test_logs_by_each_condition(send: Any, console: ConsoleServer, otlp: Any) -> None:
    store = console.store
    send(otlp.logs(otlp.log("first", trace=1, severity=5), otlp.log("second", trace=1, time_s=1, severity=17)))
    send(otlp.logs(otlp.log("Straße gesperrt", time_s=2, attributes={"order_id": "A-1"}), service="maps"))

    def bodies(**conditions: Any) -> list[Any]:
        return [log.body for log in queries.logs(store, **conditions)]

    assert bodies() == ["Straße gesperrt", "second", "first"]
    assert bodies(oldest_first=True, limit=2) == ["first", "second"]
    assert bodies(trace_id=otlp.trace_id(1)) == ["second", "first"]
    assert bodies(service="maps") == ["Straße gesperrt"]
    assert bodies(min_severity=9) == ["Straße gesperrt", "second"]
    assert bodies(text="STRASSE") == []  # ASCII text is compared as ASCII
    assert bodies(text="straße") == ["Straße gesperrt"]
    assert bodies(text="a-1") == ["Straße gesperrt"]
    assert bodies(text="a_1") == []
    assert bodies(since=START + timedelta(seconds=1), until=START + timedelta(seconds=2)) == ["second"]


def test_the_summary_counts_what_is_there(shop: None, send: Any, client: httpx.Client, otlp: Any) -> None:
    send(otlp.logs(otlp.log("hello")))
    gauge = {"gauge": {"dataPoints": [{"timeUnixNano": "1", "asInt": "3"}]}, "name": "depth"}
    body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [gauge]}]}]}
    assert client.post("/v1/metrics", json=body).status_code == 200
    found = client.get("/api/summary").json()
    assert found.pop("stored_bytes") > 0
    assert found == {
        "traces": 4,
        "spans": 6,
        "logs": 1,
        "metrics": 1,
        "metric_points": 1,
        "errors": 1,
        "services": ["gateway", "orders", "unknown_service", "worker"],
    }


def test_metric_series_in_a_window(console: ConsoleServer, client: httpx.Client) -> None:
    points = [{"timeUnixNano": str(1_700_000_000_000_000_000 + n * 10**9), "asDouble": n / 2} for n in range(10)]
    other = {
        "timeUnixNano": "1700000000000000000",
        "asInt": "7",
        "attributes": [{"key": "q", "value": {"stringValue": "x"}}],
    }
    gauge = {"name": "queue/depth", "unit": "{message}", "gauge": {"dataPoints": [*points, other, *points]}}
    assert client.post("/v1/metrics", json={"resourceMetrics": [{"scopeMetrics": [{"metrics": [gauge]}]}]}).json() == {}
    window = {"since": "2023-11-14T22:13:22Z", "until": "2023-11-14T23:13:26+01:00", "max_points": "3"}
    series = client.get("/api/metrics/queue/depth", params=window).json()["series"]
    assert [(item["attributes"], item["latest"]["value"]) for item in series] == [({}, 4.5), ({"q": "x"}, 7)]
    assert [point["value"] for point in series[0]["points"]] == [1.5, 2.0, 2.5]
    assert series[1]["points"] == []
    assert len(queries.metric_series(console.store, "queue/depth", max_series=1)) == 1
    (listed,) = client.get("/api/metrics").json()["metrics"]
    assert (listed["name"], listed["unit"], listed["series_count"]) == ("queue/depth", "{message}", 2)


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/api/traces?limit=0", 422, "limit=0 is not usable: give a whole number from 1"),
        ("/api/traces?limit=many", 422, "limit='many' is not usable"),
        ("/api/traces?limit=%D9%A3", 422, "is not usable"),
        ("/api/traces?limit=" + "9" * 5000, 422, "limit has 5000 characters"),
        ("/api/traces?min_duration_s=-1", 422, "min_duration_s=-1.0 is not usable: give seconds, 0 or more"),
        ("/api/traces?min_duration_s=nan", 422, "min_duration_s=nan is not usable"),
        ("/api/traces?min_duration_s=long", 422, "min_duration_s='long' is not usable: give seconds"),
        ("/api/traces?errors_only=maybe", 422, "errors_only='maybe' is not usable: give true or false"),
        (
            "/api/traces?since=2023-11-14T22:13:20",
            422,
            "since='2023-11-14T22:13:20' is not usable: give an ISO 8601 time",
        ),
        ("/api/traces?since=2023-11-14T22:13:20+00:00", 422, "write the + of an offset as %2B"),
        ("/api/traces?servce=orders", 422, "the parameter 'servce' is not known here: use service, operation"),
        ("/api/summary?x=1", 422, "use none"),
        ("/api/logs?trace_id=xyz", 422, "trace_id='xyz' is not an id: give 32 hexadecimal digits"),
        ("/api/logs?span_id=1", 422, "span_id='1' is not an id: give 16 hexadecimal digits"),
        (
            "/api/logs?min_severity=loud",
            422,
            "min_severity='loud' is not usable: give a number from 1 to 24, or one of",
        ),
        ("/api/logs?min_severity=25", 422, "min_severity=25 is not usable"),
        ("/api/traces/nonsense", 422, "trace_id='nonsense' is not an id"),
        ("/api/traces/" + "a" * 32, 404, f"there is no trace {'a' * 32} in the store: it never came in, or"),
        ("/api/metrics/nothing", 404, "there is no metric 'nothing' in the store: /api/metrics lists them"),
        ("/api/metrics/nothing?service=x", 404, "from service 'x'"),
        ("/api/nothing", 404, "there is nothing at /api/nothing"),
    ],
)
def test_wrong_questions_are_answered_with_one_sentence(
    client: httpx.Client, path: str, status: int, sentence: str
) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]["message"]
    assert len(answer.json()["error"]["message"]) < 400


def test_limits_are_capped_and_said(client: httpx.Client) -> None:
    assert client.get("/api/traces?limit=999999").json() == {"traces": [], "limit": 1000}
    assert client.get("/api/logs?limit=5&min_severity=warn&service=&since=9999-12-31T00:00:00Z").json()["limit"] == 5


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda store: queries.traces(store, limit=0), "limit=0"),
        (
            lambda store: queries.traces(store, since=START.replace(tzinfo=None)),
            "since=2023-11-14T22:13:20 has no time zone",
        ),
        (lambda store: queries.traces(store, text="x" * 1001), "text has 1001 characters"),
        (lambda store: queries.traces(store, min_duration_s=float("inf")), "min_duration_s=inf"),
        (lambda store: queries.trace(store, "12"), "trace_id='12'"),
        (lambda store: queries.metric_series(store, "x", max_points=10_001), "max_points=10001"),
    ],
)
def test_wrong_arguments_are_named(console: ConsoleServer, ask: Callable[[Store], object], sentence: str) -> None:
    with pytest.raises(QueryError) as refused:
        ask(console.store)
    assert sentence in str(refused.value)
