"""A registry of a thousand agents: what their heartbeat takes, and the list of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.databases import databases
from benchmarks.environments import ROOT
from benchmarks.measure import Plan, Summary
from benchmarks.table import Cell, Result, Table

MINUTES: Final = 1.5
AGENTS: Final = 1_000
TASKS: Final = 50_000

Figures = dict[str, list[list[float]]]


def run(plan: Plan) -> Result:
    """Have a process of each database do everything in turn."""
    count, rounds = max(1_000, round(TASKS * plan.scale)), plan.times(20)
    with databases() as (folder, urls):
        found = {name: _measured(folder, url, count, rounds) for name, url in urls.items()}
    rows: list[list[Cell]] = []
    for work in next(iter(found.values())):
        row: list[Cell] = [work]
        for figures in found.values():
            wall, spent = (Summary.of([both[index] for both in figures[work]]) for index in (0, 1))
            row += [wall.minimum, wall.median, spent.minimum]
        rows.append(row)
    kinds = ("least ms", "median ms", "CPU ms of the process, least")
    table = Table(
        title=f"{AGENTS:,} agents of one process, which have ended {count:,} tasks in 30 days",
        headings=["work", *(f"{name}, {kind}" for name in found for kind in kinds)],
        rows=rows,
        notes=[
            "A process writes its heartbeat every 10 s by default, and what its agents did every second, on a thread of its own.",
            "The routes are called in process, with the client in the same process: what they take has the client's part in it.",
        ],
    )
    return Result(
        scenario="registry", tables=[table], aims=[], settings=f"{rounds} rounds in a process of each database"
    )


def _measured(folder: Path, url: str, count: int, rounds: int) -> Figures:
    environment = {
        **os.environ,
        "CLEW_DATABASE_URL": url,
        "CLEW_DATABASE_AUTO_UPGRADE": "true",
        "CLEW_HEARTBEAT_S": "60",
        "CLEW_SPOOL_DIR": str(folder / "spool"),
        "CLEW_LOG_FORMAT": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.registry", str(AGENTS), str(count), str(rounds)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found
