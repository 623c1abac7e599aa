"""The store over time: restarts, many writers and readers, retention by age and by size."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from clew.console import queries
from clew.console.model import Batch, LogRecord, MeasuredPoint, Metric, MetricPoint, Resource, Scope, Span, SpanLink
from clew.console.retention import RetentionLimits
from clew.console.server import ConsoleServer
from clew.console.store import Store

HOUR_NS = 3600 * 10**9


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * 10**9

    def __call__(self) -> int:
        return self.now_ns


def batch_of_all_signals(number: int, *, padding: str = "") -> Batch:
    resource = Resource(attributes={"service.name": f"service-{number}"})
    scope = Scope(name="test")
    trace_id, span_id = f"{number:032x}", f"{number:016x}"
    return Batch(
        spans=(
            Span(
                trace_id=trace_id,
                span_id=span_id,
                name="work",
                start_time_unix_nano=number,
                end_time_unix_nano=number + 1,
                links=(SpanLink(trace_id="f" * 32, span_id="f" * 16),),
                attributes={"padding": padding},
                resource=resource,
                scope=scope,
            ),
        ),
        logs=(LogRecord(time_unix_nano=number, body=f"line {number}{padding}", resource=resource, scope=scope),),
        points=(
            MeasuredPoint(
                metric=Metric(name=f"metric.{number}", type="gauge"),
                attributes={},
                point=MetricPoint(time_unix_nano=number, value=number),
                resource=resource,
                scope=scope,
            ),
        ),
    )


def test_everything_is_there_after_a_restart(tmp_path: Path, otlp: Any) -> None:
    with ConsoleServer(data_dir=tmp_path, port=0) as console:
        console.store.add(batch_of_all_signals(1)).result(timeout=10)
        before = queries.summary(console.store)
        trace = queries.trace(console.store, otlp.trace_id(1))
        url = console.url
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/api/healthz")
    with ConsoleServer(data_dir=tmp_path, port=0) as console:
        assert queries.summary(console.store) == before
        assert queries.trace(console.store, otlp.trace_id(1)) == trace
        console.store.add(batch_of_all_signals(1)).result(timeout=10)
        after = queries.summary(console.store)
        assert (after.traces, after.spans, after.metric_points, after.logs) == (1, 1, 1, 2)


def test_many_writers_and_readers_at_once(console: ConsoleServer, otlp: Any) -> None:
    writers, requests = 6, 25
    done = threading.Event()

    def write(writer: int) -> int:
        statuses = []
        with httpx.Client(base_url=console.url, timeout=30) as client:
            for number in range(requests):
                spans = [otlp.span(1 + number, 1 + 100 * writer + span) for span in range(10)]
                body = otlp.spans(*spans, service=f"writer-{writer}").SerializeToString()
                statuses.append(client.post("/v1/traces", content=body, headers=otlp.protobuf).status_code)
        return statuses.count(200)

    def read() -> int:
        last = rounds = 0
        with httpx.Client(base_url=console.url, timeout=30) as client:
            while not done.is_set():
                summary = client.get("/api/summary").json()
                assert summary["spans"] >= last
                assert summary["spans"] % 10 == 0  # a batch is seen as a whole or not at all
                last = summary["spans"]
                found = client.get("/api/traces", params={"text": "work"}).json()["traces"]
                assert all(trace["span_count"] % 10 == 0 for trace in found)
                rounds += 1
        return rounds

    with ThreadPoolExecutor(writers + 3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        written = [pool.submit(write, number) for number in range(writers)]
        assert [future.result(timeout=60) for future in written] == [requests] * writers
        done.set()
        assert all(future.result(timeout=60) > 0 for future in readers)
    summary = queries.summary(console.store)
    assert (summary.traces, summary.spans, len(summary.services)) == (requests, requests * writers * 10, writers)


def test_what_is_too_old_goes_and_nothing_of_it_stays(tmp_path: Path) -> None:
    clock = Clock()
    with Store(tmp_path, clock_ns=clock, retention=RetentionLimits(age_s=48 * 3600)) as store:
        store.add(batch_of_all_signals(1)).result(timeout=10)
        clock.now_ns += 47 * HOUR_NS
        store.add(batch_of_all_signals(2)).result(timeout=10)
        store.sweep().result(timeout=10)
        assert queries.summary(store).services == ("service-1", "service-2")
        clock.now_ns += 2 * HOUR_NS
        store.sweep().result(timeout=10)
        summary = queries.summary(store)
        assert (summary.traces, summary.spans, summary.logs, summary.metrics, summary.metric_points) == (1, 1, 1, 1, 1)
        assert summary.services == ("service-2",)
        assert [item.metric.name for item in queries.metrics(store)] == ["metric.2"]
        assert queries.linked_traces(store, f"{1:032x}") == ()
        clock.now_ns += 48 * HOUR_NS
        store.sweep().result(timeout=10)
        assert queries.summary(store).services == ()
        with store.reading() as connection:
            for table in ("spans", "span_links", "logs", "points", "series", "metrics", "scopes", "resources"):
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        store.add(batch_of_all_signals(1)).result(timeout=10)
        assert queries.summary(store).spans == 1


def test_a_trace_is_kept_as_a_whole_for_its_latest_span(tmp_path: Path) -> None:
    clock = Clock()
    with Store(tmp_path, clock_ns=clock, retention=RetentionLimits(age_s=3600)) as store:
        resource, scope = Resource(), Scope()
        for span_id in ("1" * 16, "2" * 16):
            span = Span(
                trace_id="a" * 32,
                span_id=span_id,
                name="long",
                start_time_unix_nano=1,
                end_time_unix_nano=2,
                resource=resource,
                scope=scope,
            )
            store.add(Batch(spans=(span,))).result(timeout=10)
            clock.now_ns += HOUR_NS // 2 + 1
        store.sweep().result(timeout=10)
        assert queries.summary(store).spans == 2
        clock.now_ns += HOUR_NS // 2
        store.sweep().result(timeout=10)
        assert queries.summary(store).spans == 0


def test_the_oldest_goes_when_there_is_too_much(tmp_path: Path) -> None:
    clock = Clock()
    limit = 2_000_000
    with Store(tmp_path, clock_ns=clock, retention=RetentionLimits(size_bytes=limit), max_bytes=50_000_000) as store:
        for number in range(1, 1501):
            clock.now_ns += 10**9
            future = store.add(batch_of_all_signals(number, padding="x" * 1500))
            if number % 50 == 0:
                future.result(timeout=30)
        assert queries.summary(store).stored_bytes > limit
        before = store.path.stat().st_size
        store.sweep().result(timeout=30)
        summary = queries.summary(store)
        assert summary.stored_bytes <= limit
        assert 100 < summary.traces < 1500
        kept = queries.logs(store, limit=10_000)
        assert [log.time_unix_nano for log in kept] == list(range(1500, 1500 - len(kept), -1))
        with store.reading() as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        assert queries.trace(store, f"{1500:032x}") is not None
        assert queries.trace(store, f"{1:032x}") is None
    assert store.path.stat().st_size < before


def test_a_full_store_makes_room_by_itself(tmp_path: Path) -> None:
    with Store(
        tmp_path, retention=RetentionLimits(size_bytes=1_000_000), max_bytes=1_200_000, sweep_interval_s=3600
    ) as store:
        refused = 0
        for number in range(1, 1200):
            future = store.add(batch_of_all_signals(number, padding="x" * 1500))
            if future.exception(timeout=30) is not None:
                refused += 1
        assert 0 < refused < 100
        assert queries.logs(store, limit=1)[0].time_unix_nano > 1100


def test_sweeping_goes_on_by_itself(tmp_path: Path, wait_until: Any) -> None:
    clock = Clock()
    with Store(tmp_path, clock_ns=clock, sweep_interval_s=0.02) as store:
        store.add(batch_of_all_signals(1)).result(timeout=10)
        clock.now_ns += 49 * HOUR_NS
        wait_until(lambda: queries.summary(store).spans == 0)


def test_two_stores_on_one_file_share_it(tmp_path: Path) -> None:
    clock = Clock()
    with Store(tmp_path, clock_ns=clock) as first, Store(tmp_path, clock_ns=clock) as second:
        first.add(batch_of_all_signals(1)).result(timeout=10)
        clock.now_ns += 49 * HOUR_NS
        second.sweep().result(timeout=10)  # takes away rows whose ids the first remembers
        first.add(batch_of_all_signals(1)).result(timeout=10)
        second.add(batch_of_all_signals(2)).result(timeout=10)
        assert queries.summary(first).services == ("service-1", "service-2")


def test_a_server_can_be_started_again_after_a_stop(tmp_path: Path) -> None:
    console = ConsoleServer(data_dir=tmp_path, port=0)
    for _ in range(2):
        console.start()
        assert httpx.get(f"{console.url}/api/healthz").status_code == 200
        console.stop()
        console.stop()
    assert not console.is_running


def test_the_console_logs_nothing_about_requests(console: ConsoleServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    httpx.get(f"{console.url}/api/summary")
    httpx.post(f"{console.url}/v1/logs", json={})
    httpx.post(f"{console.url}/v1/logs", content=b"nonsense")
    assert [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))] == []
