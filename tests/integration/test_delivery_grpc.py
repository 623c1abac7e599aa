"""OTLP over gRPC: the same worker, spool and account behind another way of sending."""

from __future__ import annotations

import sys
import time
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from clew.pipeline.transport import OtlpTransport, Outcome, compress
from clew.settings import Settings
from tests.integration.certificates import make_certificates
from tests.integration.endpoints import EMIT, closed_port, half_open, run, serving, start
from tests.integration.grpc_sink import GrpcSink

BODY = ExportTraceServiceRequest().SerializeToString()


def send(endpoint: str, *, timeout_s: float = 5.0, **given: object) -> Outcome:
    transport = OtlpTransport(Settings.load(endpoint=endpoint, protocol="grpc", **given))
    try:
        return transport.send("traces", compress(BODY), compressed=True, timeout_s=timeout_s)
    finally:
        transport.close()


def test_the_three_signals_arrive_at_exit(spool_dir):
    with GrpcSink() as sink:
        done = run(EMIT.format(n=300), **sink.environment, OTEL_EXPORTER_OTLP_HEADERS="X-Tenant=a%20b")
        assert done.returncode == 0, done.stderr
        assert len([span for span in sink.spans if span.name == "place"]) == 300
        assert len([log for log in sink.logs if log.body == "order.placed"]) == 300
        assert sink.count("metrics") >= 1
        assert {sent["x-tenant"] for sent in sink.metadata} == {"a b"}
        assert all(sent["user-agent"].startswith("clew/") for sent in sink.metadata)
    assert not list(spool_dir.rglob("*.spool"))


@pytest.mark.parametrize(
    ("code", "asks_s", "retry"),
    [
        (grpc.StatusCode.UNAVAILABLE, None, True),
        (grpc.StatusCode.UNAVAILABLE, 2.5, True),
        (grpc.StatusCode.ABORTED, None, True),
        (grpc.StatusCode.DATA_LOSS, None, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 12.0, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, None, False),
        (grpc.StatusCode.INVALID_ARGUMENT, None, False),
        (grpc.StatusCode.UNAUTHENTICATED, None, False),
        (grpc.StatusCode.INTERNAL, None, False),
    ],
    ids=str,
)
def test_the_status_decides(code, asks_s, retry):
    with GrpcSink() as sink:
        sink.refuse_with, sink.retry_after_s = code, asks_s
        outcome = send(f"http://127.0.0.1:{sink.port}")
    assert (outcome.delivered, outcome.retry, outcome.retry_after_s) == (False, retry, asks_s)
    assert code.name in outcome.problem
    assert "as the test says" in outcome.problem


def test_a_part_that_is_refused_is_counted():
    partial = ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
    with GrpcSink() as sink:
        sink.answer = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
        outcome = send(f"http://127.0.0.1:{sink.port}")
    assert (outcome.delivered, outcome.rejected, outcome.problem) == (True, 3, "too old")


@pytest.mark.parametrize("endpoint", [half_open, lambda: serving(None), lambda: serving(lambda connection: None)])
def test_where_nobody_answers_a_batch_may_be_sent_again(endpoint):
    with endpoint() as url:
        started = time.monotonic()
        outcome = send(url, timeout_s=0.5)
        assert time.monotonic() - started < 10
    assert outcome.retry


def test_a_server_that_is_silent_is_left_at_the_deadline_and_at_a_cancel(spool_dir):
    with GrpcSink() as sink:
        sink.silent = True
        assert "no answer in time" in send(f"http://127.0.0.1:{sink.port}", timeout_s=0.5).problem
        started = time.monotonic()
        done = run(EMIT.format(n=20), **sink.environment, CLEW_SHUTDOWN_TIMEOUT_S="2")
        assert time.monotonic() - started < 15
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert len(list(spool_dir.rglob("*.spool"))) == 3


def test_an_endpoint_that_comes_back_gets_what_waited(spool_dir):
    port = closed_port()
    environment = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with start(
        "import clew, sys\nwith clew.span('early'): pass\nclew.flush()\nprint('ready', flush=True)\n"
        "sys.stdin.readline()\nprint(clew.accounts()['traces'], flush=True)",
        **environment,
    ) as app:
        assert app.stdout is not None
        assert app.stdout.readline() == "ready\n"
        assert list(spool_dir.rglob("*.spool"))
        with GrpcSink(port=port) as sink:
            deadline = time.monotonic() + 20
            while not sink.spans and time.monotonic() < deadline:
                time.sleep(0.05)
            out, _ = app.communicate("go\n", timeout=30)
    assert "emitted=1, delivered=1, dropped={}, spooled=0" in out
    assert [span.name for span in sink.spans] == ["early"]


def test_an_address_without_a_scheme_is_tls_unless_it_is_said_to_be_insecure():
    with GrpcSink() as sink:
        outcome = send(f"127.0.0.1:{sink.port}", insecure=True)
        assert outcome.delivered
        # Without the word, TLS is meant
        assert send(f"127.0.0.1:{sink.port}", timeout_s=2).retry


def test_tls_with_a_private_authority_and_certificates_of_both_sides(tmp_path, spool_dir):
    ours, theirs = make_certificates(tmp_path / "ours"), make_certificates(tmp_path / "theirs")
    with GrpcSink(certificates=ours, mutual=True) as sink:
        url = f"https://127.0.0.1:{sink.port}"
        shown: dict[str, Any] = {"client_certificate": ours.client, "client_key": ours.client_key}
        assert send(url, certificate=ours.authority, **shown).delivered
        assert send(url, certificate=ours.authority).retry
        assert send(url, certificate=theirs.authority, **shown).retry
        assert send(url, certificate=tmp_path / "absent.pem").retry


FORKS = """
    import os, clew
    clew.configure()
    orders = clew.counter("orders.placed")
    with clew.span("parent"): pass
    orders.add()
    clew.flush()
    for _ in range(3):
        if os.fork() == 0:
            with clew.span("child"): pass
            orders.add()
            print(clew.shutdown(), clew.accounts(), flush=True)
            os._exit(0)
    while True:
        try: os.wait()
        except ChildProcessError: break
    with clew.span("parent"): pass
"""


def test_forked_children_have_channels_of_their_own(spool_dir):
    with GrpcSink() as sink:
        done = run(FORKS, **sink.environment)
        assert done.returncode == 0, done.stderr
        assert sorted(span.name for span in sink.spans) == ["child"] * 3 + ["parent"] * 2
        assert len({span.resource["service.instance.id"] for span in sink.spans}) == 4
    assert "Traceback" not in done.stderr
    assert not list(spool_dir.rglob("*.spool"))


def test_a_missing_library_is_named_with_its_pip_line_and_nothing_is_lost(spool_dir, tmp_path):
    (tmp_path / "grpc.py").write_text("raise ImportError(\"No module named 'grpc'\")")
    done = run(EMIT.format(n=2), OTEL_EXPORTER_OTLP_PROTOCOL="grpc", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    assert "pip install 'clew[grpc]'" in done.stderr
    assert len(list(spool_dir.rglob("*.spool"))) == 3


def test_the_library_is_imported_by_nobody_who_has_not_chosen_it(otlp_sink, spool_dir):
    done = run(
        "import clew, sys\nwith clew.span('x'): pass\nclew.flush()\nprint('grpc' in sys.modules)",
        **otlp_sink.environment,
    )
    assert done.stdout == "False\n", (done.stderr, sys.path)
