"""The delivery contract, with real processes and a real endpoint: what was emitted is delivered, waits on disk, or is counted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.otlp_sink import OtlpSink


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OTEL_SERVICE_NAME": "app", **environment}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


EMIT = """
    import clew
    log = clew.get_logger("app")
    orders = clew.counter("orders.placed")
    for number in range({n}):
        with clew.span("place", number=number):
            log.info("order.placed", number=number)
            orders.add()
"""


def test_the_three_signals_arrive_at_exit_without_a_call(otlp_sink, spool_dir):
    done = run(EMIT.format(n=500), **otlp_sink.environment)
    assert done.returncode == 0, done.stderr
    assert len(otlp_sink.named("place")) == 500
    assert len([log for log in otlp_sink.logs if log.body == "order.placed"]) == 500
    assert otlp_sink.total("orders.placed") == 500
    span, record = otlp_sink.named("place")[0], otlp_sink.logs[0]
    assert span.resource["service.name"] == "app"
    assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
    assert record.attributes["correlation_id"] == span.attributes["clew.correlation.id"]
    assert not list(spool_dir.rglob("*.spool"))


def test_counters_alone_are_sent_at_exit(otlp_sink, spool_dir):
    done = run("import clew\nclew.counter('orders.placed').add(3)", **otlp_sink.environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert otlp_sink.total("orders.placed") == 3


def test_an_endpoint_that_refuses_loses_nothing(spool_dir):
    port = closed_port()
    endpoint = f"http://127.0.0.1:{port}"
    started = time.monotonic()
    done = run(EMIT.format(n=300), OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert done.returncode == 0
    assert time.monotonic() - started < 15
    warnings = [line for line in done.stderr.splitlines() if "can't be delivered" in line]
    assert len(warnings) == 1
    assert f"127.0.0.1:{port}" in warnings[0]
    assert str(spool_dir) in warnings[0]
    assert list(spool_dir.rglob("*.spool"))
    with OtlpSink(port=port) as sink:
        done = run(
            "import clew\nwith clew.span('next start'): pass\nclew.flush()", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint
        )
        assert done.returncode == 0, done.stderr
        assert len(sink.named("place")) == 300
        assert len([log for log in sink.logs if log.body == "order.placed"]) == 300
        assert sink.total("orders.placed") == 300
    assert not list(spool_dir.rglob("*.spool"))


def test_an_endpoint_that_comes_back_gets_what_waited_from_the_same_process(spool_dir):
    port = closed_port()
    app = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import clew, sys\nwith clew.span('early'): pass\nclew.flush()\nprint('ready', flush=True)\n"
                "sys.stdin.readline()\nprint(clew.accounts()['traces'], flush=True)"
            ),
        ],
        env={
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert app.stdin is not None
    assert app.stdout is not None
    assert app.stdout.readline() == "ready\n"
    with OtlpSink(port=port) as sink:
        sink.wait_for_span("early")
        out, _ = app.communicate("go\n", timeout=30)
    assert "emitted=1, delivered=1, dropped={}, spooled=0" in out


def test_an_endpoint_that_accepts_and_stays_silent_does_not_hold_up_the_exit(spool_dir):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.listen(64)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        done = run(EMIT.format(n=50), OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, CLEW_SHUTDOWN_TIMEOUT_S="2")
        took_s = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert took_s < 8
    assert "Traceback" not in done.stderr
    assert sum(path.stat().st_size for path in spool_dir.rglob("*.spool")) > 500


def test_what_an_endpoint_refuses_for_good_is_counted_and_said(otlp_sink, spool_dir):
    otlp_sink.answer = 400
    done = run(EMIT.format(n=5), **otlp_sink.environment)
    assert done.returncode == 0
    assert "traces lost since the start: 5 rejected of 5 emitted" in done.stderr
    assert not list(spool_dir.rglob("*.spool"))


def test_a_disk_that_takes_nothing_degrades_to_counted_drops(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run(
        EMIT.format(n=5),
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{closed_port()}",
        CLEW_SPOOL_DIR=str(tmp_path / "file" / "spool"),
    )
    assert done.returncode == 0
    said = [line for line in done.stderr.splitlines() if "the spool can't take it" in line]
    assert len(said) == 1
    assert "CLEW_SPOOL_DIR" in said[0]
    assert "traces lost since the start: 5 spool_error of 5 emitted" in done.stderr


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_each_signal_can_be_off(otlp_sink, spool_dir, signal):
    done = run(EMIT.format(n=3), **otlp_sink.environment, **{f"OTEL_{signal.upper()}_EXPORTER": "none"})
    assert done.returncode == 0, done.stderr
    arrived = {
        "traces": bool(otlp_sink.spans),
        "metrics": bool(otlp_sink.metrics),
        "logs": bool(otlp_sink.logs),
    }
    assert arrived == {name: name != signal for name in ("traces", "metrics", "logs")}
    assert "order.placed" in done.stderr


def test_telemetry_as_a_whole_can_be_off(otlp_sink, spool_dir):
    done = run(EMIT.format(n=3), **otlp_sink.environment, OTEL_SDK_DISABLED="true")
    assert done.returncode == 0, done.stderr
    assert not otlp_sink.spans + otlp_sink.metrics + otlp_sink.logs
    assert "order.placed" in done.stderr


def test_forked_children_count_from_zero_and_sums_are_exact(otlp_sink, spool_dir):
    code = """
        import os, clew
        from opentelemetry import metrics
        clew.configure()
        library = metrics.get_meter("a.library").create_counter("library.calls")
        library.add(5)
        orders = clew.counter("orders.placed")
        bound = orders.bind(channel="web")
        orders.add(5, channel="web")
        with clew.span("parent"): pass
        clew.flush()
        for _ in range(3):
            if os.fork() == 0:
                bound.add(1)
                library.add(1)
                with clew.span("child"): pass
                clew.shutdown()
                os._exit(0)
        for _ in range(3):
            os.wait()
        bound.add(1)
    """
    done = run(code, **otlp_sink.environment)
    assert done.returncode == 0, done.stderr
    assert otlp_sink.total("orders.placed") == 9
    assert otlp_sink.total("library.calls") == 8
    assert len(otlp_sink.named("child")) == 3
    assert len(otlp_sink.named("parent")) == 1
    assert len({span.resource["service.instance.id"] for span in otlp_sink.spans}) == 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing_deliver_at_their_end(otlp_sink, spool_dir, tmp_path, method):
    script = tmp_path / "app.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, clew

            def work(number):
                with clew.span("work", number=number):
                    clew.counter("worked").add()

            if __name__ == "__main__":
                clew.configure(service_name="app")
                clew.counter("worked").add()
                context = multiprocessing.get_context("{method}")
                children = [context.Process(target=work, args=(n,)) for n in range(3)]
                [child.start() for child in children]
                [child.join() for child in children]
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **otlp_sink.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(otlp_sink.named("work")) == 3
    assert otlp_sink.total("worked") == 4


def test_sigterm_ends_a_process_with_its_telemetry_delivered(otlp_sink, spool_dir):
    code = """
        import clew, os, signal
        for number in range(50):
            with clew.span("work"): pass
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    """
    done = run(code, **{**otlp_sink.environment, "OTEL_BSP_SCHEDULE_DELAY": "60000"})
    assert done.returncode == -signal.SIGTERM
    assert len(otlp_sink.named("work")) == 50


def test_a_handler_of_the_apps_own_is_left_alone(otlp_sink, spool_dir):
    code = """
        import os, signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        import clew
        with clew.span("work"): pass
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    """
    assert run(code, **otlp_sink.environment).returncode == 7
    assert len(otlp_sink.named("work")) == 1


def test_signals_and_threads_during_a_flush_end_in_time(spool_dir):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = """
            import clew, os, signal, threading
            def emit():
                while True:
                    with clew.span("work"): pass
            for _ in range(3):
                threading.Thread(target=emit, daemon=True).start()
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
            clew.flush(timeout_s=30)
        """
        started = time.monotonic()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = run(code, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, CLEW_SHUTDOWN_TIMEOUT_S="2")
    assert done.returncode == -signal.SIGTERM
    assert time.monotonic() - started < 15
    assert "Traceback" not in done.stderr


def test_a_killed_process_loses_at_most_what_was_not_exported_yet(otlp_sink, spool_dir):
    code = "import clew, os, time\nfor n in range(50):\n  with clew.span('work'): pass\nclew.flush()\nos.kill(os.getpid(), 9)"
    done = run(code, **otlp_sink.environment)
    assert done.returncode == -9
    assert len(otlp_sink.named("work")) == 50


def test_a_library_that_was_first_keeps_its_provider_and_the_app_is_told(otlp_sink, spool_dir):
    code = """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        trace.set_tracer_provider(TracerProvider())
        import clew
        with clew.span("ours"): pass
    """
    done = run(code, **otlp_sink.environment)
    assert done.returncode == 0
    assert "another tracer provider (opentelemetry.sdk.trace.TracerProvider) was set before clew's" in done.stderr
    assert len(otlp_sink.named("ours")) == 1


def test_processors_of_others_can_be_added_to_the_global_provider(otlp_sink, spool_dir):
    code = """
        import clew
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        clew.configure()
        exporter = InMemorySpanExporter()
        provider = trace.get_tracer_provider()
        assert isinstance(provider, TracerProvider)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with clew.span("seen by both"): pass
        print([span.name for span in exporter.get_finished_spans()])
    """
    done = run(code, **otlp_sink.environment)
    assert "['seen by both']" in done.stdout, done.stderr
    assert len(otlp_sink.named("seen by both")) == 1


def test_credentials_of_the_endpoint_are_sent_and_never_printed(spool_dir):
    with OtlpSink(token="t0p-secret") as sink:
        done = run(
            EMIT.format(n=2),
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.url,
            OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20t0p-secret",
        )
        assert len(sink.named("place")) == 2
        refused = run(
            EMIT.format(n=2),
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.url,
            OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20wr0ng",
        )
    assert "t0p-secret" not in done.stderr
    assert "wr0ng" not in refused.stderr
    assert "refused it with 401" in refused.stderr


def test_spools_of_different_endpoints_do_not_mix(spool_dir: Path):
    run(EMIT.format(n=1), OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{closed_port()}")
    with OtlpSink() as other:
        run("import clew\nwith clew.span('mine'): pass", **other.environment)
        assert {span.name for span in other.spans} == {"mine"}
