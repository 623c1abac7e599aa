"""How processes end, fork and share, and what becomes of their telemetry."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clew.pipeline.ledger import Account
from tests.integration.endpoints import EMIT, closed_port, run, serving, start
from tests.otlp_sink import OtlpSink

# How an app prints its account
TELL = """
    import dataclasses, json
    def tell(accounts):
        print(json.dumps({name: dataclasses.asdict(one) | {"pending": one.pending} for name, one in accounts.items()}), flush=True)
"""


def accounts(line: str) -> dict[str, Account]:
    """Read what an app told, and see that each account adds up."""
    told = {}
    for name, numbers in json.loads(line).items():
        pending = numbers.pop("pending")
        account = told[name] = Account(**numbers)
        assert account.emitted == account.delivered + sum(account.dropped.values()) + pending, account
        assert account.spooled <= pending, account
        assert min(account.emitted, account.delivered, pending, account.spooled) >= 0, account
    return told


def distinct(sink: OtlpSink, name: str) -> int:
    """Return how many spans of a name arrived, each counted once: a post that is cut short is sent again."""
    return len({span.span_id for span in sink.named(name)})


def spooled_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.spool"))


def test_the_account_adds_up_at_every_moment(otlp_sink, spool_dir):
    code = (
        TELL
        + """
    import threading, clew
    log = clew.get_logger("app")
    def work():
        for number in range(2_000):
            with clew.span("work"): log.info("worked")
    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    while any(thread.is_alive() for thread in threads):
        tell(clew.accounts())
    clew.flush()
    tell(clew.accounts())
    """
    )
    done = run(code, **otlp_sink.environment)
    assert done.returncode == 0, done.stderr[-2000:]
    # Until it is set up there is none
    told = [accounts(line) for line in done.stdout.splitlines() if line != "{}"]
    assert len(told) > 3
    emitted = [one["traces"].emitted for one in told]
    assert emitted == sorted(emitted)
    assert told[-1]["traces"] == Account(emitted=8_000, delivered=8_000)
    assert len(otlp_sink.named("work")) == 8_000


def test_a_full_queue_drops_and_counts(spool_dir):
    # The endpoint takes connections and says nothing: the export thread waits, and the queue fills
    with serving(None) as url:
        code = (
            TELL
            + """
    import clew
    clew.get_logger("app")
    for _ in range(20_000):
        with clew.span("work"): pass
    tell(clew.accounts())
    clew.shutdown(1.0)
    """
        )
        done = run(
            code,
            OTEL_EXPORTER_OTLP_ENDPOINT=url,
            OTEL_BSP_MAX_QUEUE_SIZE="1000",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="100",
            OTEL_LOGS_EXPORTER="none",
        )
    told = accounts(done.stdout)["traces"]
    assert told.emitted == 20_000
    assert told.dropped["queue_full"] > 15_000
    assert "queue_full" in done.stderr
    assert "Traceback" not in done.stderr
    assert spooled_bytes(spool_dir) > 1_000


def test_a_slow_endpoint_of_one_signal_costs_the_others_nothing(spool_dir):
    with serving(None) as silent, OtlpSink() as sink:
        done = run(
            EMIT.format(n=50),
            **{**sink.environment, "OTEL_BSP_SCHEDULE_DELAY": "60000"},
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{silent}/v1/traces",
            CLEW_SHUTDOWN_TIMEOUT_S="2",
        )
        assert done.returncode == 0, done.stderr
        assert len([log for log in sink.logs if log.body == "order.placed"]) == 50
        assert sink.total("orders.placed") == 50
    assert len(list(spool_dir.rglob("*.traces.spool"))) == 1
    # The line that tells of the outage came when the time for sending was up
    assert "can't be delivered" in done.stderr
    assert len(list(spool_dir.rglob("*.logs.spool"))) == 1


LIFESPAN = """
    import asyncio, os, signal, clew
    from starlette.applications import Starlette
    app = Starlette()
    clew.instrument(app)
    async def live():
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        async def receive(): return messages.pop(0)
        async def send(message): pass
        await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    with clew.span("work"): pass
    asyncio.run(live())
"""


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGTERM)\n    signal.pause()"])
def test_the_steps_at_the_end_of_a_server_share_one_deadline(spool_dir, end):
    # Lifespan, then SIGTERM or the interpreter's end: with a silent endpoint each would take the whole deadline
    with serving(None) as url:
        started = time.monotonic()
        done = run(f"{LIFESPAN}\n    {end}", OTEL_EXPORTER_OTLP_ENDPOINT=url, CLEW_SHUTDOWN_TIMEOUT_S="6")
        took_s = time.monotonic() - started
    assert done.returncode == (-signal.SIGTERM if end else 0), done.stderr
    # Twice the deadline is what it would be at least, beside the start
    assert took_s < 11
    assert len(list(spool_dir.rglob("*.traces.spool"))) == 1
    assert "Traceback" not in done.stderr


def test_who_asks_for_the_end_while_it_goes_on_waits_for_it(spool_dir):
    with serving(None) as url:
        code = """
            import clew, threading, time
            with clew.span("work"): pass
            threading.Thread(target=clew.shutdown, daemon=True).start()
            until = time.monotonic() + 20
            while not any(thread.name == "clew-shutdown" for thread in threading.enumerate()):
                assert time.monotonic() < until
                time.sleep(0.01)
        """
        done = run(code, OTEL_EXPORTER_OTLP_ENDPOINT=url, CLEW_SHUTDOWN_TIMEOUT_S="2")
    assert done.returncode == 0
    assert list(spool_dir.rglob("*.traces.spool"))
    assert "Traceback" not in done.stderr


def test_sigterm_in_the_middle_of_a_flush_loses_nothing(spool_dir):
    with serving(None) as url:
        code = """
            import clew, os, signal, threading
            for _ in range(100):
                with clew.span("work"): pass
            threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM)).start()
            clew.flush(timeout_s=30)
        """
        done = run(code, OTEL_EXPORTER_OTLP_ENDPOINT=url, CLEW_SHUTDOWN_TIMEOUT_S="2")
        assert done.returncode == -signal.SIGTERM
        assert "Traceback" not in done.stderr
    port = int(url.rpartition(":")[2])
    with OtlpSink(port=port) as sink:
        run("import clew\nclew.configure()\nclew.flush()", OTEL_EXPORTER_OTLP_ENDPOINT=url)
        assert len(sink.named("work")) == 100


def test_a_handler_that_logs_while_anything_is_interrupted_does_not_deadlock(otlp_sink, spool_dir):
    code = """
        import clew, signal
        log = clew.get_logger("app")
        handled = 0
        def handle(*_):
            global handled
            handled += 1
            with clew.span("handled"): log.info("handled")
            clew.accounts()
        clew.configure()
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        # Fewer than wait in memory at most: none is dropped
        for spans in range(1, 30_001):
            with clew.span("work"): clew.accounts()
        signal.setitimer(signal.ITIMER_REAL, 0)
        clew.flush(2)
        print(spans, handled)
    """
    done = run(code, **otlp_sink.environment, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="20")
    assert done.returncode == 0, done.stderr[-2000:]
    spans, handled = map(int, done.stdout.split())
    # On a slow machine the flush is cut short by its deadline, and the rest waits on disk for the next start
    run("import clew\nclew.configure()\nclew.flush(50)", **otlp_sink.environment)
    assert (distinct(otlp_sink, "work"), distinct(otlp_sink, "handled")) == (spans, handled)


def test_an_exit_that_skips_everything_loses_memory_and_keeps_the_disk(spool_dir):
    url = f"http://127.0.0.1:{closed_port()}"
    code = """
        import clew, os
        for _ in range(10):
            with clew.span("on disk"): pass
        clew.flush()
        with clew.span("in memory"): pass
        os._exit(3)
    """
    assert run(code, OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="60000").returncode == 3
    with OtlpSink(port=int(url.rpartition(":")[2])) as sink:
        run("import clew\nclew.configure()\nclew.flush()", OTEL_EXPORTER_OTLP_ENDPOINT=url)
        assert {span.name for span in sink.spans} == {"on disk"}
        assert len(sink.spans) == 10


def test_threads_that_go_on_while_the_interpreter_ends_print_no_traceback(otlp_sink, spool_dir):
    code = """
        import clew, threading, time
        log = clew.get_logger("app")
        clew.configure()
        def work():
            while True:
                with clew.span("work"): log.info("worked")
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        until = time.monotonic() + 20
        while clew.accounts()["traces"].emitted < 1_000:
            assert time.monotonic() < until
            time.sleep(0.01)
    """
    done = run(code, **otlp_sink.environment)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Fatal" not in done.stderr
    assert len(otlp_sink.named("work")) > 10


def test_loops_that_close_take_nothing_with_them(otlp_sink, spool_dir):
    code = """
        import asyncio, clew
        async def work():
            with clew.span("work"): await asyncio.sleep(0)
        for _ in range(20):
            asyncio.run(work())
        loop = asyncio.new_event_loop()
        loop.create_task(work())
        loop.close()
    """
    done = run(code, **otlp_sink.environment)
    assert done.returncode == 0
    assert "clew" not in "".join(line for line in done.stderr.splitlines() if "Traceback" in line)
    assert len(otlp_sink.named("work")) == 20


def test_processors_of_others_are_flushed_and_ended_within_the_deadline(otlp_sink, spool_dir):
    code = """
        import clew, time
        from opentelemetry import trace
        from opentelemetry.sdk.trace import SpanProcessor
        class Guest(SpanProcessor):
            def force_flush(self, timeout_millis=30_000):
                print("flushed", timeout_millis <= 3_000, flush=True)
                return True
            def shutdown(self):
                print("ended", flush=True)
        class Stuck(SpanProcessor):
            def shutdown(self):
                time.sleep(30)
        clew.configure()
        trace.get_tracer_provider().add_span_processor(Stuck())
        trace.get_tracer_provider().add_span_processor(Guest())
        with clew.span("work"): pass
        clew.flush(3)
    """
    started = time.monotonic()
    done = run(code, **otlp_sink.environment, CLEW_SHUTDOWN_TIMEOUT_S="2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["flushed True", "ended"]
    assert time.monotonic() - started < 20
    assert len(otlp_sink.named("work")) == 1


def test_where_no_thread_starts_any_more_each_signal_has_its_share_of_the_deadline(spool_dir):
    # As in Python 3.12, when the interpreter ends
    with serving(None) as silent, OtlpSink() as sink:
        code = """
            import clew, threading
            log = clew.get_logger("app")
            for number in range(50):
                with clew.span("place"):
                    log.info("order.placed")
            def refuse(thread):
                raise RuntimeError("can't create new thread at interpreter shutdown")
            threading.Thread.start = refuse
        """
        done = run(
            code,
            **{**sink.environment, "OTEL_BSP_SCHEDULE_DELAY": "60000"},
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{silent}/v1/traces",
            CLEW_SHUTDOWN_TIMEOUT_S="3",
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert len([log for log in sink.logs if log.body == "order.placed"]) == 50
    assert len(list(spool_dir.rglob("*.traces.spool"))) == 1


def test_metrics_of_an_outage_arrive_in_the_order_of_time(spool_dir):
    port = closed_port()
    code = """
        import clew, sys
        clew.configure()
        orders = clew.counter("orders.placed")
        for number in range(5):
            orders.add()
            clew.flush()
        print("spooled", flush=True)
        sys.stdin.readline()
    """
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
    with start(code, **environment, OTEL_BSP_SCHEDULE_DELAY="100") as app:
        assert app.stdout is not None
        assert app.stdout.readline() == "spooled\n"
        with OtlpSink(port=port) as sink:
            sink.wait(lambda it: it.total("orders.placed") == 5, what="the last of the counts")
            sink.wait(lambda it: not list(spool_dir.rglob("*.metrics.spool")), what="an empty spool")
            app.communicate("go\n", timeout=30)
            values = sink.history("orders.placed")
    assert values == sorted(values)
    assert set(values) == {1, 2, 3, 4, 5}


GUNICORN = """
import clew
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
clew.configure()
orders = clew.counter("orders.placed")
with clew.span("preloaded"):
    orders.add(100)
async def order(request):
    orders.add()
    with clew.span("order"):
        return PlainTextResponse("ok")
app = Starlette(routes=[Route("/", order)])
clew.instrument(app)
"""


def test_preloaded_workers_of_gunicorn_sum_up(otlp_sink, spool_dir, tmp_path):
    (tmp_path / "shop.py").write_text(GUNICORN)
    port = closed_port()
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "shop:app",
        "--preload",
        "-w",
        "3",
        "-k",
        "uvicorn.workers.UvicornWorker",
    ]
    with subprocess.Popen(
        [*command, "-b", f"127.0.0.1:{port}"],
        # Delivered within the time, and not spooled, however busy the machine is
        env={**os.environ, **otlp_sink.environment, "CLEW_SHUTDOWN_TIMEOUT_S": "20"},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        for _ in range(60):
            answer = _get(port)
            assert answer.endswith(b"ok")
        server.terminate()
        _, errors = server.communicate(timeout=30)
    assert len(otlp_sink.named("order")) == 60, errors
    assert len(otlp_sink.named("preloaded")) == 1
    assert otlp_sink.total("orders.placed") == 160
    assert "Traceback" not in errors


def _get(port: int) -> bytes:
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
                answer = b""
                while data := connection.recv(65536):
                    answer += data
                return answer
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_children_that_fork_while_the_parent_exports_are_exact(otlp_sink, spool_dir):
    code = """
        import os, threading, clew
        clew.configure()
        orders = clew.counter("orders.placed")
        ended = threading.Event()
        def work():
            # As fast as a busy machine can take them in
            while not ended.wait(0.001):
                for _ in range(10):
                    with clew.span("parent"): orders.add()
        threads = [threading.Thread(target=work) for _ in range(2)]
        [thread.start() for thread in threads]
        for number in range(8):
            if os.fork() == 0:
                for _ in range(10):
                    with clew.span("child"): orders.add(1_000_000)
                os._exit(0 if clew.shutdown(10) else 1)
        statuses = [os.wait()[1] for _ in range(8)]
        ended.set()
        [thread.join() for thread in threads]
        assert clew.flush(60), clew.accounts()
        print(statuses, clew.accounts()["traces"].emitted)
    """
    done = run(code, **otlp_sink.environment)
    assert done.returncode == 0, done.stderr[-2000:]
    statuses, _, emitted = done.stdout.strip().rpartition(" ")
    assert statuses == str([0] * 8), done.stderr[-2000:]
    assert len(otlp_sink.named("child")) == 80
    assert len(otlp_sink.named("parent")) == int(emitted)
    assert otlp_sink.total("orders.placed") == 80_000_000 + int(emitted)


def test_processes_that_share_a_spool_deliver_each_batch_once_and_their_accounts_agree(spool_dir):
    port = closed_port()
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    code = (
        TELL
        + """
    import clew, sys
    for number in range(100):
        with clew.span("work", number=number): pass
        if number % 10 == 9: clew.flush()
    print("spooled", flush=True)
    sys.stdin.readline()
    clew.flush(10)
    tell(clew.accounts())
    """
    )
    apps = [start(code, **environment) for _ in range(3)]
    for app in apps:
        assert app.stdout is not None
        assert app.stdout.readline() == "spooled\n"
    with OtlpSink(port=port) as sink:
        sink.wait_for_all(lambda it: it.named("work"), 300, what="spans of three processes", timeout_s=40)
        outs = [app.communicate("go\n", timeout=30)[0] for app in apps]
        ids = [span.span_id for span in sink.named("work")]
    assert len(ids) == len(set(ids)) == 300
    told = [accounts(out.splitlines()[-1])["traces"] for out in outs]
    assert [(one.emitted, one.delivered, one.pending) for one in told] == [(100, 100, 0)] * 3
    assert not list(spool_dir.rglob("*.spool"))


def test_a_folder_that_can_only_be_read_is_said_and_counted(spool_dir):
    spool_dir.mkdir()
    # As root writes where the mode forbids it, the process gives that right up first
    code = """
        import os
        os.chmod(os.environ["CLEW_SPOOL_DIR"], 0o555)
        import clew
        if os.getuid() == 0: os.setuid(65534)
        for _ in range(4):
            with clew.span("place"): pass
    """
    done = run(code, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{closed_port()}")
    assert "the spool can't take it" in done.stderr
    assert "4 spool_error of 4 emitted" in done.stderr


def test_a_spool_that_is_full_is_said_and_counted_and_takes_again_when_it_has_room(spool_dir):
    port = closed_port()
    endpoint = f"http://127.0.0.1:{port}"
    code = "import clew, os\nfor n in range(200):\n  with clew.span('work', noise=os.urandom(200).hex()): pass\n  if n % 20 == 19: clew.flush()\n"
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "CLEW_SPOOL_MAX_BYTES": "30000"}
    done = run(code, **environment, OTEL_METRICS_EXPORTER="none", OTEL_LOGS_EXPORTER="none")
    assert "spool_full of 200 emitted" in done.stderr
    assert 10_000 < spooled_bytes(spool_dir) <= 30_000
    with OtlpSink(port=port) as sink:
        run("import clew\nclew.configure()\nclew.flush()", **environment)
        assert 20 <= len(sink.named("work")) < 200
    assert not list(spool_dir.rglob("*.spool"))


CAPTURING = """
import clew

def test_before():
    with clew.span("before"):
        pass
    assert clew.flush(5)
    assert clew.accounts()["traces"].spooled == 1

def test_captured(captured_telemetry):
    with clew.span("captured"):
        pass
    assert captured_telemetry.span("captured")

def test_after():
    with clew.span("after"):
        pass
    clew.flush(5)
    account = clew.accounts()["traces"]
    assert (account.emitted, account.spooled, account.pending) == (2, 2, 2)
"""


def test_what_a_test_captures_is_no_part_of_its_process_account(tmp_path, spool_dir):
    (tmp_path / "test_app.py").write_text(CAPTURING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{closed_port()}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
