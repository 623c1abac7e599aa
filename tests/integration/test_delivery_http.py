"""What an endpoint can answer over HTTP, or fail to, and what becomes of the batch."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from clew.pipeline.breaker import Breaker
from clew.pipeline.transport import OtlpTransport, Outcome, compress, retry_after_s
from clew.settings import Settings
from tests.integration.endpoints import EMIT, answering, closed_port, half_open, run, serving, trickling
from tests.otlp_sink import OtlpSink

BODY = ExportTraceServiceRequest().SerializeToString()


def send(endpoint: str, *, timeout_s: float = 0.5, **given: object) -> Outcome:
    transport = OtlpTransport(Settings.load(endpoint=endpoint, **given))
    try:
        return transport.send("traces", compress(BODY), compressed=True, timeout_s=timeout_s)
    finally:
        transport.close()


def status(line: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {line}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


NOBODY = [
    ("silent", lambda: serving(None), "no answer in time"),
    ("half open", half_open, "no answer in time"),
    ("a byte now and then", lambda: serving(trickling), "no answer in time"),
    ("closes at once", lambda: serving(lambda connection: None), "closed the connection"),
    ("closes in its first line", lambda: serving(answering(b"HTTP/1.")), ""),
    ("speaks something else", lambda: serving(answering(b"SSH-2.0-OpenSSH_9.2\r\n")), "SSH"),
]


@pytest.mark.parametrize(("endpoint", "problem"), [row[1:] for row in NOBODY], ids=[row[0] for row in NOBODY])
def test_where_nobody_answers_a_batch_may_be_sent_again(
    endpoint: Callable[[], AbstractContextManager[str]], problem: str
):
    with endpoint() as url:
        started = time.monotonic()
        outcome = send(url)
        took_s = time.monotonic() - started
    assert (outcome.delivered, outcome.retry, outcome.answered) == (False, True, False)
    assert problem in outcome.problem
    # Twenty times the time it had: a hang would be without end
    assert took_s < 10


def test_a_refused_connection_is_said(spool_dir):
    outcome = send(f"http://127.0.0.1:{closed_port()}")
    assert (outcome.retry, outcome.answered) == (True, False)
    assert "Connection refused" in outcome.problem


@pytest.mark.parametrize("name", ["no.such.host.invalid", "127.0.0.1.nip.invalid"])
def test_a_name_that_is_not_found_is_said(name):
    assert send(f"http://{name}:4318").retry


@pytest.mark.parametrize(
    ("answer", "retry", "after_s", "problem"),
    [
        (status("429 Too Many Requests", "Retry-After: 7"), True, 7.0, "429"),
        (status("503 Service Unavailable"), True, None, "503"),
        (status("502 Bad Gateway", "Retry-After: soon"), True, None, "502"),
        (status("504 Gateway Timeout", "Retry-After: 0"), True, 0.0, "504"),
        (status("400 Bad Request", body=b"no such field"), False, None, "400: no such field"),
        (status("401 Unauthorized", body=b"<html>\nlog in"), False, None, "401"),
        (status("404 Not Found"), False, None, "404"),
        (status("413 Content Too Large"), False, None, "413"),
        (status("500 Internal Server Error"), False, None, "500"),
        (status("307 Temporary Redirect", "Location: http://elsewhere/"), True, None, "http://elsewhere/"),
        (status("301 Moved Permanently"), True, None, "redirects to nowhere"),
    ],
    ids=lambda value: value.split(b"\r\n")[0].decode() if isinstance(value, bytes) else "",
)
def test_what_an_endpoint_answers_decides(answer, retry, after_s, problem):
    with serving(answering(answer)) as url:
        outcome = send(url, timeout_s=5)
    assert (outcome.delivered, outcome.retry, outcome.retry_after_s) == (False, retry, after_s)
    assert problem in outcome.problem


@pytest.mark.parametrize(
    "answer",
    [
        status("200 OK"),
        status("202 Accepted"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-",
    ],
)
def test_a_success_is_one_also_when_the_connection_breaks_behind_its_headers(answer):
    with serving(answering(answer)) as url:
        assert send(url, timeout_s=5).delivered


def test_an_answer_that_ends_its_connection_is_read_whole():
    closing = status("400 Bad Request", "Connection: close", body=b"no such field" * 3)
    with serving(answering(closing)) as url:
        assert {send(url, timeout_s=5).problem for _ in range(30)} == {
            "the endpoint refused it with 400: no such fieldno such fieldno such field"
        }


def test_a_part_that_is_refused_is_counted_with_what_was_said():
    partial = ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
    body = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    with serving(answering(status("200 OK", body=body))) as url:
        outcome = send(url, timeout_s=5)
    assert (outcome.delivered, outcome.rejected, outcome.problem) == (True, 3, "too old")


def test_an_answer_that_makes_no_sense_is_a_success_all_the_same():
    with serving(answering(status("200 OK", body=b"\xff\xff{}"))) as url:
        assert send(url, timeout_s=5) == Outcome(delivered=True)


def test_a_date_in_retry_after_is_a_time_from_now():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after_s(format_datetime(now + timedelta(seconds=90), usegmt=True), now=now) == 90
    assert retry_after_s(format_datetime(now - timedelta(seconds=90), usegmt=True), now=now) == 0
    assert retry_after_s("Thu, 01 Jan 2026 00:00:00 -0000", now=now) is None


@pytest.mark.parametrize(("asked_s", "least_s", "most_s"), [(1e12, 299, 300), (0.0, 0.9, 1.0), (7.0, 6.9, 7.0)])
def test_what_retry_after_asks_is_granted_within_reason(asked_s, least_s, most_s):
    breaker = Breaker()
    assert breaker.trip(asked_s)
    assert not breaker.allows()
    assert least_s <= breaker.open_until - time.monotonic() <= most_s


def test_an_outage_that_several_signals_see_at_once_is_one():
    breaker = Breaker()
    assert breaker.trip()
    assert not breaker.trip()
    assert breaker.pause_s == 1.0
    assert breaker.mend()
    assert not breaker.mend()


def test_one_connection_is_kept_and_made_anew_when_the_endpoint_closed_it():
    with OtlpSink() as sink:
        transport = OtlpTransport(Settings.load(endpoint=sink.url))
        for _ in range(3):
            assert transport.send("traces", BODY, compressed=False, timeout_s=5).delivered
        assert sink.connections == 1
        transport.close()
    with serving(answering(status("200 OK"))) as url:
        transport = OtlpTransport(Settings.load(endpoint=url))
        assert all(transport.send("traces", BODY, compressed=False, timeout_s=5).delivered for _ in range(3))
        transport.close()


def test_what_waited_compressed_is_sent_as_the_setting_says():
    with OtlpSink() as sink:
        assert send(sink.url, compression="none").delivered
        assert "Content-Encoding" not in sink.requests[-1]
        assert send(sink.url, compression="gzip").delivered
        assert sink.requests[-1]["Content-Encoding"] == "gzip"
    assert gzip.decompress(compress(BODY)) == BODY


def test_each_signal_can_go_its_own_way(spool_dir):
    with OtlpSink() as common, OtlpSink(token="of logs") as logs:
        done = run(
            EMIT.format(n=3),
            OTEL_EXPORTER_OTLP_ENDPOINT=common.url,
            OTEL_EXPORTER_OTLP_HEADERS="X-Tenant=one%2Ctwo%20three,x-more=1",
            OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"{logs.url}/v1/logs",
            OTEL_EXPORTER_OTLP_LOGS_HEADERS="Authorization=Bearer%20of%20logs",
            OTEL_EXPORTER_OTLP_LOGS_COMPRESSION="none",
        )
    assert done.returncode == 0, done.stderr
    assert len(common.named("place")) == len(logs.logs) == 3
    assert not common.logs + logs.spans
    assert {(sent["X-Tenant"], sent["X-More"] if "X-More" in sent else sent["x-more"]) for sent in common.requests} == {
        ("one,two three", "1")
    }
    assert all("X-Tenant" not in sent and "Content-Encoding" not in sent for sent in logs.requests)


# The breaker of the full endpoint is open once something of it is on disk
WAIT_FOR_SPOOL = """
    import os, pathlib, time
    until = time.monotonic() + 20
    while not list(pathlib.Path(os.environ["CLEW_SPOOL_DIR"]).rglob("*.traces.spool")):
        assert time.monotonic() < until
        time.sleep(0.01)
    """


def test_an_endpoint_that_has_no_room_for_one_signal_gets_the_others(spool_dir):
    with serving(answering(status("503 Service Unavailable"), again=True)) as full, OtlpSink() as sink:
        done = run(
            EMIT.format(n=3) + WAIT_FOR_SPOOL + "print(clew.flush(2))",
            **sink.environment,
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{full}/v1/traces",
        )
    assert done.stdout == "True\n", done.stderr
    assert len([log for log in sink.logs if log.body == "order.placed"]) == 3
    assert not list(spool_dir.rglob("*.logs.spool"))
    assert list(spool_dir.rglob("*.traces.spool"))


def test_a_redirect_is_not_followed_and_loses_nothing(spool_dir):
    with OtlpSink() as target:
        moved = status("307 Temporary Redirect", f"Location: {target.url}/v1/traces")
        with serving(answering(moved, again=True)) as url:
            done = run(
                EMIT.format(n=2), OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_HEADERS="Authorization=secret"
            )
        assert target.requests == []
    assert target.url in done.stderr
    assert len(list(spool_dir.rglob("*.spool"))) == 3
