"""Runs one variant in an environment of its own, and measures what it is told to. Standard library only.

``python -m benchmarks.worker MODULE OPTIONS``: a module of :mod:`benchmarks.variants`, and its options as JSON.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import threading
import time
from array import array
from collections.abc import Callable, Coroutine, MutableMapping
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.orders import serve
from benchmarks.variants.parts import Asgi, Labels, Messages, Operations, Options, Served, Spans

Message = MutableMapping[str, Any]


class Clocks:
    """The clocks at one moment: of this thread, of the whole process, and on the wall."""

    def __init__(self) -> None:
        self._wall = time.perf_counter_ns()
        self._process = time.process_time_ns()
        self._thread = time.thread_time_ns()

    def since(self) -> dict[str, int]:
        """Return what has passed, in nanoseconds."""
        thread, process, wall = time.thread_time_ns(), time.process_time_ns(), time.perf_counter_ns()
        return {
            "thread_ns": thread - self._thread,
            "process_ns": process - self._process,
            "wall_ns": wall - self._wall,
        }


def rss_bytes() -> int:
    """Return the memory that this process has in RAM."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def requests(app: Asgi, count: int) -> None:
    """Send requests to an app, one after the other, as a server would."""
    statuses: set[int] = set()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.add(message["status"])

    for number in range(count):
        path = f"/items/{number % 97}"
        scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"shop.example"), (b"user-agent", b"bench/1"), (b"accept", b"application/json")],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8000),
        }
        await app(scope, _receive, send)
    if statuses != {200}:
        raise RuntimeError(f"the app answered {sorted(statuses)}")


def aside(work: Callable[[], object]) -> None:
    """Do something in another thread and wait for it, so that its CPU time is not this thread's."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


class Worker:
    """What a variant's process can be told to do.

    Args:
        module: the variant's module.
        options: how it is set up.
    """

    def __init__(self, module: str, options: Options) -> None:
        self._module = module
        self._options = options
        self._part: Any = None
        self._loop = asyncio.new_event_loop()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run_until_complete(work)

    def prepare(self, part: str) -> dict[str, Any]:
        """Set the variant up for one part of what it offers."""
        asyncio.set_event_loop(self._loop)
        module = importlib.import_module(f"benchmarks.variants.{self._module}")
        self._part = getattr(module, part)(self._options)
        if isinstance(self._part, Messages):
            self._loop.run_until_complete(self._part.start())
        return {"operations": sorted(self._part.each) if isinstance(self._part, Operations) else []}

    def messages(self, count: int) -> dict[str, int]:
        """Send messages and process them; the time ends with the last one, the CPU time when all that was emitted has been sent."""
        part: Messages = self._part
        clocks = Clocks()
        self._loop.run_until_complete(part.run(count))
        wall_ns = clocks.since()["wall_ns"]
        aside(part.flush)
        return {**clocks.since(), "wall_ns": wall_ns}

    def requests(self, count: int, *, sent: bool) -> dict[str, int]:
        """Answer requests; with ``sent`` until all that they emitted has been sent, too."""
        part: Served = self._part
        clocks = Clocks()
        self._run(requests(part.app, count))
        if sent:
            aside(part.flush)
        spent = clocks.since()
        if not sent:
            aside(part.flush)
        return spent

    def operation(self, name: str, count: int, *, sent: bool = False) -> dict[str, int]:
        """Do one thing again and again; with ``sent``, the time of the process ends when all that it emitted has been sent."""
        part: Operations = self._part
        operation = part.each[name]
        clocks = Clocks()
        for _ in repeat(None, count):
            operation()
        spent = clocks.since()
        aside(part.flush)
        return {**spent, "process_ns": clocks.since()["process_ns"]} if sent else spent

    def export(self, count: int, chunk: int) -> dict[str, int]:
        """Make spans and send them, in chunks that every queue has room for; another thread flushes after each."""
        part: Spans = self._part
        clocks = Clocks()
        for _ in range(count // chunk):
            for _ in repeat(None, chunk):
                part.emit()
            aside(part.flush)
        spent = clocks.since()
        return {**spent, "export_ns": spent["process_ns"] - spent["thread_ns"]}

    def pace(self, rate: int, seconds: float) -> dict[str, float]:
        """Make spans at a rate, in small groups every millisecond; without waiting for anything."""
        part: Spans = self._part
        count = int(rate * seconds)
        clocks = Clocks()
        started = time.perf_counter()
        for number in range(count):
            if number % 20 == 0:
                ahead = started + number / rate - time.perf_counter()
                if ahead > 0:
                    time.sleep(ahead)
            part.emit()
        spent = clocks.since()
        aside(part.flush)
        return {"emitted": count, "process_ns": spent["process_ns"], "took_s": spent["wall_ns"] / 1e9}

    def work(self, rate: float, seconds: float) -> dict[str, Any]:
        """Do request-like operations at a rate; each is timed from the moment at which it was due."""
        part: Spans = self._part
        order = {"id": 7, "lines": [{"sku": f"A-{number}", "amount": number * 1.5} for number in range(20)]}
        count = int(rate * seconds)
        latencies = array("d", bytes(8 * count))
        before = rss_bytes()
        most = before
        started = time.perf_counter() + 0.01
        for number in range(count):
            due = started + number / rate
            ahead = due - time.perf_counter()
            if ahead > 0:
                time.sleep(ahead)
            part.emit_request()
            json.loads(json.dumps(order))
            latencies[number] = time.perf_counter() - due
            if number % 1000 == 0:
                most = max(most, rss_bytes())
        ordered = sorted(latencies)
        middle = count // 2
        halves = [sorted(half)[len(half) * 99 // 100] for half in (latencies[:middle], latencies[middle:])]
        most = max(most, rss_bytes())
        return {
            "operations": count,
            "p50_s": ordered[count // 2],
            "p99_s": ordered[count * 99 // 100],
            "p99_halves_s": halves,
            "rss_growth_bytes": most - before,
        }

    def labels(self, count: int) -> dict[str, int]:
        """Count under many different label values."""
        part: Labels = self._part
        for number in range(100):
            part.add(f"first-{number}")
        before = rss_bytes()
        for number in range(count):
            part.add(f"customer-{number}")
        return {"rss_growth_bytes": rss_bytes() - before}

    def flush(self) -> None:
        """Send everything."""
        self._part.flush()

    def shutdown(self) -> dict[str, Any]:
        """End telemetry, as a program does before it ends."""
        part: Spans = self._part
        part.shutdown()
        return {}

    def account(self) -> dict[str, int]:
        """Return what the variant itself says became of its spans."""
        part: Spans = self._part
        return part.account()


def main() -> None:
    """Take orders; nothing of the variant is imported before the first."""
    worker = Worker(sys.argv[1], Options(**json.loads(sys.argv[2])))
    names = "prepare requests messages operation export pace work labels flush shutdown account"
    serve({name: getattr(worker, name) for name in names.split()})


if __name__ == "__main__":
    main()
