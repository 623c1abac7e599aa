"""Nothing is lost while the Collector is killed again and again: what the clients emitted is what the backends hold."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.stack.backends import HOST, Stack, eventually, free_ports, loki_query, prometheus_query, running_stack

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("backends_built"), pytest.mark.timeout(280, func_only=True)]

CLIENTS = 6
OUTAGES = 4
SETTLED_WITHIN_S = 60.0

APP = """
    import clew
    from fastapi import FastAPI
    from opentelemetry import trace

    log = clew.get_logger("orders")
    placed = clew.counter("outage.orders.placed")
    app = FastAPI()
    clew.instrument(app)

    @app.get("/orders/{number}")
    async def place(number: int):
        with clew.span("price", number=number) as span:
            log.info("order.placed", number=number)
            placed.add()
            context = trace.get_current_span().get_span_context()
            return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
"""


@dataclass
class Load:
    """Requests that several threads make, and what was answered: the trace and the span that each request made."""

    ports: list[int]
    requests: int
    answered: dict[int, tuple[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = iter(range(self.requests))
        self._taking = threading.Lock()
        self.threads = [threading.Thread(target=self._run, args=(client,), daemon=True) for client in range(CLIENTS)]

    def _run(self, client: int) -> None:
        connection = http.client.HTTPConnection(HOST, self.ports[client % len(self.ports)], timeout=30)
        while True:
            with self._taking:
                number = next(self._numbers, None)
            if number is None:
                return
            try:
                connection.request("GET", f"/orders/{number}")
                answer = json.loads(connection.getresponse().read())
                self.answered[number] = answer["trace_id"], answer["span_id"]
            except Exception as error:
                self.problems.append(f"{number}: {error!r}")
                return

    @property
    def goes_on(self) -> bool:
        """Tell whether requests are still being made."""
        return any(thread.is_alive() for thread in self.threads)

    def reach(self, count: int) -> None:
        """Wait until so many requests were answered, or all are done."""
        while len(self.answered) < count and self.goes_on:
            time.sleep(0.005)


@contextmanager
def app(folder: Path, endpoint: dict[str, str], service: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the app in a process of its own, with a spool that it shares with others, and end it with SIGTERM."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orders.py").write_text(textwrap.dedent(APP))
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "orders:app", "--host", HOST, "--port", str(port), "--no-access-log"],
            cwd=folder,
            env={**os.environ, **endpoint, "OTEL_SERVICE_NAME": service, "CLEW_SPOOL_DIR": str(folder / "spool")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: _answers(port), timeout_s=30, what=f"the app on {port}")
        yield process
    finally:
        process.kill()
        process.wait(10)


def _answers(port: int) -> bool:
    try:
        httpx.get(f"http://{HOST}:{port}/docs", timeout=2)
    except httpx.HTTPError:
        return False
    return True


def stored_spans(stack: Stack, service: str, start_s: float) -> Counter[tuple[str, str, str]]:
    """Return how often Jaeger has each span of a service: trace, span and name; asked for in slices of time."""
    found: Counter[tuple[str, str, str]] = Counter()
    at, width = start_s, 2.0
    while at < time.time() + 1:
        answered = httpx.get(
            f"{stack.jaeger_url}/api/traces",
            params={
                "service": service,
                "start": int(at * 1e6),
                "end": int((at + width) * 1e6),
                "limit": 20_000,
                "raw": "true",
            },
            timeout=60,
        )
        for trace in answered.raise_for_status().json()["data"]:
            for span in trace["spans"]:
                if at * 1e6 <= span["startTime"] < (at + width) * 1e6:
                    found[span["traceID"], span["spanID"], span["operationName"]] += 1
        at += width
    return found


def stored_lines(stack: Stack, service: str, start_s: float) -> Counter[tuple[int, str, str]]:
    """Return how often Loki has each line of the app: the number of the order, its trace and its span."""
    found: Counter[tuple[int, str, str]] = Counter()
    at, width = start_s, 2.0
    while at < time.time() + 1:
        lines = loki_query(stack, f'{{service_name="{service}"}} |= `order.placed`', start=at, end=at + width)
        assert len(lines) < 5_000, "a slice of time is too wide for one query"
        found.update((int(line.labels["number"]), line.labels["trace_id"], line.labels["span_id"]) for line in lines)
        at += width
    return found


@pytest.mark.parametrize(("protocol", "requests"), [("http/protobuf", 10_000), ("grpc", 4_000)])
def test_what_was_emitted_in_outages_is_what_the_backends_hold(
    protocol: str, requests: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = 20_260_101
    chance = random.Random(seed)
    kills = sorted(chance.sample(range(300, requests - 1_000, 400), OUTAGES))
    service = f"orders-{protocol[:4]}"
    with running_stack(tmp_path / "stack") as stack:
        endpoint = {
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.otlp_http_url
            if protocol != "grpc"
            else f"http://{stack.otlp_grpc_target}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "CLEW_LOG_LEVEL": "info",
        }
        started = time.time() - 1
        with ExitStack() as running:
            ports = free_ports(2)
            apps = [running.enter_context(app(tmp_path / "app", endpoint, service, port)) for port in ports]
            load = Load(ports, requests)
            for thread in load.threads:
                thread.start()
            for at in kills:
                load.reach(at)
                stack.kill("collector")
                load.reach(at + chance.randrange(100, 600))
                stack.start("collector")
            load.reach(requests)
            # The last outage is one at the end of the processes: what they hold then is on disk, for the next start
            stack.kill("collector")
            for process in apps:
                process.send_signal(signal.SIGTERM)
            for process in apps:
                process.wait(20)
        assert load.problems == []
        assert len(load.answered) == requests
        left = sum(path.stat().st_size for path in (tmp_path / "app").rglob("*.spool"))
        stack.start("collector")
        next_start = "import clew; clew.configure(); clew.flush(20); print(clew.accounts())"
        replayed = subprocess.run(
            [sys.executable, "-c", next_start],
            env={
                **os.environ,
                **endpoint,
                "OTEL_SERVICE_NAME": "next-start",
                "CLEW_SPOOL_DIR": str(tmp_path / "app" / "spool"),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert not list((tmp_path / "app").rglob("*.spool")), replayed.stderr

        wanted_lines = {(number, *ids) for number, ids in load.answered.items()}
        wanted_prices = {(*ids, "price") for ids in load.answered.values()}

        def total(metric: str, labels: str = "") -> float:
            found = prometheus_query(stack, f'sum({metric}{{service_name="{service}"{labels}}})')
            return sum(one.value for one in found)

        def settled() -> bool:
            assert total("outage_orders_placed_total") == requests
            assert total("http_server_request_duration_seconds_count", ', http_route="/orders/{number}"') == requests
            return len(stored_lines(stack, service, started)) >= requests

        eventually(settled, timeout_s=SETTLED_WITHIN_S, what="all that was emitted in the backends")
        spans, lines = stored_spans(stack, service, started), stored_lines(stack, service, started)
        servers = Counter(trace_id for trace_id, _, name in spans if name == "GET /orders/{number}")
        told = (
            f"seed {seed}, Collector killed after {kills} requests and at the end, {left} bytes left on disk; twice or more: "
            f"{sum(count - 1 for count in spans.values())} of {sum(spans.values())} spans, "
            f"{sum(count - 1 for count in lines.values())} of {sum(lines.values())} log records"
        )
        with capsys.disabled():
            sys.stdout.write(f"\n{told}\n")
        assert set(lines) == wanted_lines
        assert {one for one in spans if one[2] == "price"} == wanted_prices
        assert servers == dict.fromkeys((ids[0] for ids in load.answered.values()), 1)
