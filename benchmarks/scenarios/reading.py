"""Reading a history of jobs: the first page, the ten thousandth, and statistics, of a million runs."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, select

from benchmarks.environments import say
from benchmarks.measure import Plan, Summary
from benchmarks.runs import fill
from benchmarks.scenarios.history import postgresql
from benchmarks.table import Aim, Cell, Result, Table
from clew.history.database import Database
from clew.history.job_runs import RunFilter, page
from clew.history.job_statistics import report
from clew.history.models import JobRun
from clew.history.paging import DEFAULT_LIMIT
from clew.history.reading import Reader
from clew.settings import Settings

MINUTES: Final = 7.0
RUNS: Final = 1_000_000
PAGE: Final = 10_000
PAGE_MS: Final = 50.0
STATISTICS_MS: Final = 200.0

Question = Callable[[Connection], Any]


def run(plan: Plan) -> Result:
    """Fill each database, then ask it the same things in turn."""
    runs = max(20_000, round(RUNS * plan.scale))
    rounds = plan.times(30)
    took: dict[str, dict[str, Summary]] = {}
    with tempfile.TemporaryDirectory(prefix="clew-bench-") as made, contextlib.ExitStack() as servers:
        folder = Path(made)
        folder.chmod(0o755)
        urls = {"SQLite": f"sqlite:///{folder / 'history.db'}"}
        with contextlib.suppress(ImportError):
            urls["PostgreSQL 18"] = servers.enter_context(postgresql(folder / "postgresql"))
        for name, given in urls.items():
            url = Settings.load(database_url=given).history_url()
            database = Database(url)
            database.upgrade()
            say(f"filling {name} with {runs:,} runs ...")
            fill(database, runs)
            database.engine.dispose()
            took[name] = _timed(url, min(PAGE, runs // DEFAULT_LIMIT), rounds)
    questions = list(next(iter(took.values())))
    rows: list[list[Cell]] = [
        [question, *(figure for found in took.values() for figure in (found[question].minimum, found[question].median))]
        for question in questions
    ]
    table = Table(
        title=f"Reading, of {runs:,} runs of 40 jobs",
        headings=["question", *(f"{name}, {kind} ms" for name in took for kind in ("least", "median"))],
        rows=rows,
        notes=[f"A page has {DEFAULT_LIMIT} runs. What no index knows is looked for in 10,000 runs at a time."],
    )
    aims = [
        Aim(
            what=f"{question} in {name}",
            at_most=STATISTICS_MS if question.startswith("statistics") else PAGE_MS,
            measured=found[question].median,
            unit="ms",
        )
        for name, found in took.items()
        for question in questions
        if question.startswith(("page", "statistics"))
    ]
    settings = f"median of {rounds} rounds, a transaction each, in one process; without HTTP"
    return Result(scenario="reading", tables=[table], aims=aims, settings=settings)


def _timed(url: str, far: int, rounds: int) -> dict[str, Summary]:
    reader = Reader(url)
    with reader.open() as connection:
        reached = select(JobRun.id).order_by(JobRun.id.desc()).limit(1).offset((far - 1) * DEFAULT_LIMIT - 1)
        after = connection.scalar(reached)
    month = datetime.now(UTC) - timedelta(days=30, hours=5)
    questions: dict[str, Question] = {
        "page 1": page,
        f"page {far:,}": lambda connection: page(connection, after=after),
        f"page {far:,} of the failed": lambda connection: page(connection, RunFilter(status="failed"), after=after),
        "newest runs of a job that failed": lambda connection: page(
            connection, RunFilter(job="job-05", status="failed")
        ),
        "words that no error has": lambda connection: page(connection, RunFilter(error="no such words")),
        "statistics of all time": report,
        "statistics of 30 days": lambda connection: report(connection, since=month),
        "statistics of one job": lambda connection: report(connection, job="job-05"),
    }
    times: dict[str, list[float]] = {name: [] for name in questions}
    for number in range(rounds + 1):
        for name, question in questions.items():
            started = time.perf_counter()
            with reader.open() as connection:
                question(connection)
            if number:
                times[name].append((time.perf_counter() - started) * 1e3)
    reader.close()
    return {name: Summary.of(values) for name, values in times.items()}
