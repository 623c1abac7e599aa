"""Jobs: what a run that is traced, measured and recorded takes over a bare run of APScheduler's."""

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
_SECONDS: Final = "2"
_FIGURES: Final = ("median_us", "mean_us")


def run(plan: Plan) -> Result:
    """Run an empty job in fresh processes, each kind in turn."""
    with databases() as (folder, urls):
        kinds: dict[str, dict[str, str] | None] = {
            "bare APScheduler": None,
            "clew, no history": {"CLEW_HISTORY": "false"},
        }
        for name, url in urls.items():
            kinds[f"clew, recorded in {name}"] = {"CLEW_DATABASE_URL": url, "CLEW_DATABASE_AUTO_UPGRADE": "true"}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
        for _ in range(plan.times(7)):
            for name, variables in kinds.items():
                rounds[name].append(_measured(folder, variables))
    rows: list[list[Cell]] = []
    bare: dict[str, float] = {}
    for name, measured in rounds.items():
        found = {figure: Summary.of([one[figure] for one in measured]).minimum for figure in _FIGURES}
        bare = bare or found
        rows.append([name, *(cell for figure in _FIGURES for cell in (found[figure], found[figure] - bare[figure]))])
    return Result(
        scenario="jobs",
        tables=[
            Table(
                title="A run of an empty job, by APScheduler",
                headings=["kind", "µs a run, median", "over the bare run", "µs a run, mean", "over the bare run, mean"],
                rows=rows,
                notes=[
                    "The least of all rounds' medians, and of their means.",
                    (
                        "A recorded run waits for two commits, before its work and after it, but for none while the database is "
                        "late: what few runs waited for is in the mean."
                    ),
                ],
            )
        ],
        aims=[],
        settings=f"{plan.times(7)} rounds of {_SECONDS} s each, in fresh processes; telemetry is sent to nobody",
    )


def _measured(folder: Path, variables: dict[str, str] | None) -> dict[str, float]:
    environment = {
        **os.environ,
        "CLEW_SPOOL_DIR": str(folder / "spool"),
        "CLEW_LOG_FORMAT": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        **(variables or {}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.jobs", "bare" if variables is None else "clew", _SECONDS],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured
