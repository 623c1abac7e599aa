"""Reading a history of messages, agents and LLM calls: pages and statistics of a million messages, usage by 2,000 users."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import delete, select

from benchmarks.conversations import AGENTS, QUEUES, USERS, calls, handoffs, messages, tasks
from benchmarks.databases import Question, analyze, ask, databases, fill
from benchmarks.environments import say
from benchmarks.measure import Plan, Summary
from benchmarks.scenarios.reading import reading_aims, reading_table
from benchmarks.table import Result
from clew.history.agents import statistics
from clew.history.database import Database
from clew.history.handoffs import graph
from clew.history.llm_usage import report as usage
from clew.history.messages import MessageFilter, page, report
from clew.history.models import AgentTask, Handoff, LlmCall, QueueMessage, QueueMessageTotal
from clew.history.paging import DEFAULT_LIMIT
from clew.history.reading import Reader
from clew.settings import Settings

MINUTES: Final = 7.0
MESSAGES: Final = 1_000_000
CALLS: Final = 200_000
PAGE: Final = 10_000
_KEPT_MINUTES: Final = timedelta(days=2)


def run(plan: Plan) -> Result:
    """Fill each database, then ask it the same things in turn."""
    count, number = max(20_000, round(MESSAGES * plan.scale)), max(10_000, round(CALLS * plan.scale))
    rounds = plan.times(30)
    took: dict[str, dict[str, Summary]] = {}
    with databases() as (_, urls):
        for name, given in urls.items():
            url = Settings.load(database_url=given).history_url()
            database = Database(url)
            database.upgrade()
            say(f"filling {name} with {count:,} messages, and {number:,} tasks, handoffs and LLM calls ...")
            now = datetime.now(UTC)
            fill(database, QueueMessage, messages(count, until=now))
            fill(database, LlmCall, calls(number, until=now))
            fill(database, AgentTask, tasks(number, AGENTS, until=now))
            fill(database, Handoff, handoffs(number, AGENTS, until=now))
            _forget_minutes(database, now - _KEPT_MINUTES)
            database.engine.dispose()
            took[name] = ask(given, _questions(url, min(PAGE, count // DEFAULT_LIMIT), now), rounds)
    table = reading_table(
        took,
        title=f"Reading, of {count:,} messages of {QUEUES} queues, and of {number:,} LLM calls for {USERS:,} users",
        notes=[
            "Half of the messages are records of a send, half of a try to process; 3 types, 2 sources, over 30 days.",
            f"A page has {DEFAULT_LIMIT} messages. {AGENTS} agents ended as many tasks and handoffs as they made LLM calls, with 3 models.",
            "Totals are those that the writer makes, and as they are after a clean-up: by minute of the last 2 days.",
        ],
    )
    settings = f"median of {rounds} rounds, a transaction each, in one process; without HTTP"
    return Result(scenario="messages", tables=[table], aims=reading_aims(took), settings=settings)


def _forget_minutes(database: Database, before: datetime) -> None:
    """Delete the totals that no clean-up leaves."""
    total = QueueMessageTotal
    with database.write() as connection:
        connection.execute(delete(total).where(total.grain == "minute", total.since < before))
    analyze(database, total.__tablename__)


def _questions(url: str, far: int, now: datetime) -> dict[str, Question]:
    reader = Reader(url)
    with reader.open() as connection:
        newest = select(QueueMessage.id).order_by(QueueMessage.id.desc())
        after = connection.scalar(newest.limit(1).offset((far - 1) * DEFAULT_LIMIT - 1))
    reader.close()
    failed, unknown = MessageFilter(queue="queue-05", status="failed"), MessageFilter(error="no such words")
    weeks = now - timedelta(days=20, hours=5)
    return {
        "page 1": page,
        f"page {far:,}": lambda connection: page(connection, after=after),
        "newest messages of a queue that failed": lambda connection: page(connection, failed),
        "words that no error has": lambda connection: page(connection, unknown),
        "statistics of all queues": report,
        "statistics of one queue": lambda connection: report(connection, queue="queue-05"),
        "statistics of LLM usage by user": lambda connection: usage(connection, by="user"),
        "statistics of LLM usage by user, of 20 days and 5 hours": lambda connection: usage(
            connection, by="user", since=weeks
        ),
        "statistics of LLM usage by agent": lambda connection: usage(connection, by="agent"),
        "statistics of LLM usage by model": lambda connection: usage(connection, by="model"),
        "statistics of LLM usage by day": lambda connection: usage(connection, by="day"),
        "statistics of agents": statistics,
        "statistics of who hands to whom": graph,
    }
