"""Reading a history of jobs: the first page, the ten thousandth, and statistics, of a million runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import select

from benchmarks.databases import Question, ask, databases
from benchmarks.environments import say
from benchmarks.measure import Plan, Summary
from benchmarks.runs import fill
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


def run(plan: Plan) -> Result:
    """Fill each database, then ask it the same things in turn."""
    runs = max(20_000, round(RUNS * plan.scale))
    rounds = plan.times(30)
    took: dict[str, dict[str, Summary]] = {}
    with databases() as (_, urls):
        for name, given in urls.items():
            url = Settings.load(database_url=given).history_url()
            database = Database(url)
            database.upgrade()
            say(f"filling {name} with {runs:,} runs ...")
            fill(database, runs)
            database.engine.dispose()
            took[name] = _timed(url, min(PAGE, runs // DEFAULT_LIMIT), rounds)
    table = reading_table(
        took,
        title=f"Reading, of {runs:,} runs of 40 jobs",
        notes=[f"A page has {DEFAULT_LIMIT} runs. What no index knows is looked for in 10,000 runs at a time."],
    )
    aims = reading_aims(took)
    settings = f"median of {rounds} rounds, a transaction each, in one process; without HTTP"
    return Result(scenario="reading", tables=[table], aims=aims, settings=settings)


def reading_table(took: Mapping[str, Mapping[str, Summary]], *, title: str, notes: Sequence[str]) -> Table:
    """Return the table of what questions took, by database and question."""
    questions = list(next(iter(took.values())))
    rows: list[list[Cell]] = [
        [question, *(figure for found in took.values() for figure in (found[question].minimum, found[question].median))]
        for question in questions
    ]
    headings = ["question", *(f"{name}, {kind} ms" for name in took for kind in ("least", "median"))]
    return Table(title=title, headings=headings, rows=rows, notes=list(notes))


def reading_aims(took: Mapping[str, Mapping[str, Summary]]) -> list[Aim]:
    """Return the aims that pages and statistics have, by database."""
    return [
        Aim(
            what=f"{question} in {name}",
            at_most=STATISTICS_MS if question.startswith("statistics") else PAGE_MS,
            measured=summary.median,
            unit="ms",
        )
        for name, found in took.items()
        for question, summary in found.items()
        if question.startswith(("page", "statistics"))
    ]


def _timed(url: str, far: int, rounds: int) -> dict[str, Summary]:
    reader = Reader(url)
    with reader.open() as connection:
        reached = select(JobRun.id).order_by(JobRun.id.desc()).limit(1).offset((far - 1) * DEFAULT_LIMIT - 1)
        after = connection.scalar(reached)
    reader.close()
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
    return ask(url, questions, rounds)
