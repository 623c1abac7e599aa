"""Health with ten checks: how long an answer takes while parts answer, and while one hangs."""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.catalogue import OURS
from benchmarks.measure import Plan
from benchmarks.processes import Process, cores
from benchmarks.table import Aim, Cell, Result, Table

MINUTES: Final = 1.6
AIM_MS: Final = 100.0
# Past a second, after which everything is looked at anew
_PAUSE_S: Final = 1.05


def run(plan: Plan) -> Result:
    """Poll an app and the small server beside it: looked at anew each time, told from what is fresh, and with a part that hangs."""
    rows: list[list[Cell]] = []
    reached: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="clew-bench-") as folder:
        environment = {
            "CLEW_DATABASE_URL": f"sqlite:///{Path(folder) / 'history.db'}",
            "CLEW_SPOOL_DIR": str(Path(folder) / "spool"),
            "BENCH_DATABASE": str(Path(folder) / "app.db"),
        }
        python = plan.environments.get(OURS).python
        with Process(
            python, "benchmarks.service", "health", json.dumps({}), environment=environment, core=cores()[0]
        ) as process:
            port = int(process.ask("listen")["port"])
            worker = int(_get(port, "/bench/worker")[1]["port"])
            for title, at in (("FastAPI, uvicorn", port), ("clew.serve_worker", worker)):
                for state, count, pause_s, hangs in (
                    ("all looked at anew", plan.times(30, least=4), _PAUSE_S, False),
                    ("fresh but for two", plan.times(1_000, least=20), 0.0, False),
                    ("one hangs", plan.times(300, least=20), 0.01, True),
                ):
                    took, cpu_ms = _poll(process, port, at, count, pause_s, hangs=hangs)
                    ordered = sorted(took)
                    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
                    rows.append([title, state, count, ordered[len(ordered) // 2], p99, ordered[-1], cpu_ms])
                    reached[f"{title}: {state}"] = p99
    table = Table(
        title="GET /health with ten checks",
        headings=["server", "checks", "polls", "ms, median", "ms, p99", "ms, most", "CPU ms a poll"],
        rows=rows,
        notes=[
            "Disk, memory, CPU, open files, event loop, telemetry, the history (SQLite), a database (SQLite), a function, a coroutine.",
            (
                "The function and the coroutine are looked at anew with each poll, the rest once a second (telemetry every 5 s). The part "
                "that hangs is critical, and has a second: a poll waits 50 ms for it while its last result will do, and none at all "
                "once it has failed."
            ),
            "CPU time is the whole process's, telemetry's own work and what the check of the event loop wakes included.",
        ],
    )
    aims = [
        Aim(what=f"{name}, p99", at_most=AIM_MS, measured=measured, unit="ms") for name, measured in reached.items()
    ]
    return Result(
        scenario="health",
        tables=[table],
        aims=aims,
        settings=f"a new connection for each poll; {plan.times(30, least=4)} polls a second apart, the rest at once",
    )


def _poll(
    process: Process, port: int, at: int, count: int, pause_s: float, *, hangs: bool
) -> tuple[list[float], float]:
    """Return how long each poll took in milliseconds, and the CPU time of one."""
    _get(at, "/health")
    _get(port, f"/bench/hang?on={int(hangs)}")
    before = process.ask("cpu")["process_ns"]
    took = []
    for _ in range(count):
        time.sleep(pause_s)
        took.append(_get(at, "/health")[0] * 1e3)
    spent_ns = process.ask("cpu")["process_ns"] - before
    _get(port, "/bench/hang?on=0")
    # What hung comes back
    time.sleep(0.05)
    return took, spent_ns / count / 1e6


def _get(port: int, path: str) -> tuple[float, Any]:
    """Return how long an answer took, in seconds, and what it was."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        body = connection.getresponse().read()
    finally:
        connection.close()
    return time.perf_counter() - started, json.loads(body)
