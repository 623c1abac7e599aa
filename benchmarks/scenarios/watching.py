"""A thousand queues in a real Valkey that are looked at, by ``clew.watch_queue``: the time and the CPU time of a round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.databases import databases
from benchmarks.environments import ROOT
from benchmarks.measure import Plan, Summary
from benchmarks.table import Cell, Result, Table
from benchmarks.valkey import valkey
from benchmarks.watching import fill

MINUTES: Final = 1.5
QUEUES: Final = 1_000


def run(plan: Plan) -> Result:
    """Look at the queues in fresh processes, each kind in turn."""
    times, looks = plan.times(4, least=1), plan.times(5)
    with databases() as (folder, urls), valkey() as address:
        fill(address, QUEUES)
        kinds: dict[str, dict[str, str] | None] = {
            "the same questions, bare redis-py": None,
            "clew.watch_queue, no history": {"CLEW_HISTORY": "false"},
        }
        for name, url in urls.items():
            kept = {"CLEW_DATABASE_URL": url, "CLEW_DATABASE_AUTO_UPGRADE": "true"}
            kinds[f"clew.watch_queue, kept in {name}"] = kept
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
        for _ in range(times):
            for name, variables in kinds.items():
                found[name].append(_measured(folder, address, variables, looks))
    rows: list[list[Cell]] = []
    bare: float | None = None
    for name, measured in found.items():
        wall = Summary.of([round_ms for one in measured for round_ms in one["rounds_ms"]])
        spent = Summary.of([one["cpu_ms"] for one in measured])
        bare = spent.minimum if bare is None else bare
        rows.append([name, wall.minimum, wall.median, spent.minimum, spent.median, spent.minimum / bare])
    table = Table(
        title=f"A round of looks at {QUEUES:,} queues: half streams with a group, half lists, 3 messages in each",
        headings=[
            "kind",
            "ms a round, least",
            "ms a round, median",
            "CPU ms a round, minimum",
            "CPU ms a round, median",
            "x bare",
        ],
        rows=rows,
        notes=[
            "Queues of one client are looked at one after the other, every 10 s by default.",
            "CPU time is the whole process's, with the metrics and, where they are kept, the rows.",
        ],
    )
    settings = f"{times} times {looks} rounds, in fresh processes; telemetry is sent to nobody"
    return Result(scenario="watching", tables=[table], aims=[], settings=settings)


def _measured(folder: Path, address: str, variables: dict[str, str] | None, looks: int) -> dict[str, Any]:
    environment = {
        **os.environ,
        "CLEW_SPOOL_DIR": str(folder / "spool"),
        "CLEW_LOG_FORMAT": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        **(variables or {}),
    }
    kind = "bare" if variables is None else "clew"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.watching", kind, address, str(QUEUES), str(looks)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
