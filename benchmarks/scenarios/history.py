"""The history: how many runs of jobs are recorded a second, and what it takes to archive a million of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.databases import databases
from benchmarks.environments import ROOT, say
from benchmarks.measure import Plan, Summary
from benchmarks.runs import fill
from benchmarks.table import Aim, Cell, Result, Table
from clew.history.database import Database
from clew.settings import Settings

MINUTES: Final = 18.0
RUNS: Final = 1_000_000
_MOST_GROWTH_MB: Final = 60.0


def run(plan: Plan) -> Result:
    """Record on both databases in turn, then fill each and archive everything."""
    runs = max(20_000, round(RUNS * plan.scale))
    with databases() as (folder, urls):
        rates: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
        for _ in range(plan.times(5)):
            for name, url in urls.items():
                rates[name].append(_measured(folder, "record", url, "2"))
        archived: dict[str, dict[str, Any]] = {}
        for name, url in urls.items():
            database = Database(Settings.load(database_url=url).history_url())
            database.downgrade("base")
            database.upgrade()
            say(f"filling {name} with {runs:,} runs ...")
            fill(database, runs)
            database.close()
            archived[name] = _measured(folder, "archive", url, str(folder / f"archive-{len(archived)}"))
    return Result(
        scenario="history",
        tables=[_rates(rates), _archives(archived)],
        aims=[
            Aim(
                what=f"growth of a process that archives {runs:,} runs in {name}",
                at_most=_MOST_GROWTH_MB,
                measured=found["rss_growth_mb"],
                unit="MB",
            )
            for name, found in archived.items()
        ],
        settings=f"{plan.times(5)} rounds of 2 s each, in fresh processes; {runs:,} runs archived",
    )


def _rates(rates: dict[str, list[dict[str, float]]]) -> Table:
    rows: list[list[Cell]] = []
    for name, rounds in rates.items():
        best = {key: max(found[key] for found in rounds) for key in ("waiting", "threads", "queued")}
        rows.append(
            [
                name,
                best["waiting"],
                best["threads"],
                best["queued"],
                Summary.of([found["queued_us"] for found in rounds]).minimum,
            ]
        )
    return Table(
        title="Runs recorded a second: start and end of each, every row committed",
        headings=[
            "database",
            "one thread that waits",
            "50 threads that wait",
            "without waiting",
            "µs of the app a run, without waiting",
        ],
        rows=rows,
        notes=["The most of all rounds. Where many wait at once, their rows are committed together."],
    )


def _archives(archived: dict[str, dict[str, Any]]) -> Table:
    return Table(
        title="Archive, verify and delete all runs of a history",
        headings=["database", "runs", "s", "archives", "MB of them", "MB of the process before", "MB it grew by"],
        rows=[
            [
                name,
                found["rows"],
                found["seconds"],
                found["files"],
                found["size_mb"],
                found["rss_mb"],
                found["rss_growth_mb"],
            ]
            for name, found in archived.items()
        ],
    )


def _measured(folder: Path, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "CLEW_SPOOL_DIR": str(folder / "spool"), "OTEL_SDK_DISABLED": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.history", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
