"""What ``clew doctor`` finds in the records of work: queues that nobody empties, agents that fail, calls without a price."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from clew import clock
from clew.cli.findings import Finding
from clew.cli.wording import ago

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from clew.history.paging import Row

_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_SHOWN: Final = 5
_OLD_S: Final = 3600.0


def recorded_work(connection: Connection) -> Iterator[Finding]:
    """Yield what the records of the last hour and the last day say of queues, agents, handoffs and LLM calls.

    None of it loses telemetry, so it is noted, and the doctor's exit code does not depend on it.

    Args:
        connection: to the history.
    """
    now = clock.utc_now()
    yield from _queues(connection, now)
    yield from _agents(connection)
    yield from _handoffs(connection, now)
    yield from _prices(connection, now)


def _queues(connection: Connection, now: datetime) -> Iterator[Finding]:
    from clew.history.messages import DEPTH_CURRENT_S, depths, report

    known = depths(connection)
    # Of what was seen before, nobody knows whether it is so still
    watched = [row for row in known if (now - row["observed_at"]).total_seconds() <= DEPTH_CURRENT_S]
    if old := [f"{row['queue']} ({ago(row['observed_at'], now)})" for row in known if row not in watched]:
        yield Finding(check="queues", text=f"watched before, not looked at any more: {_some(old)}")
    unread = [f"{row['queue']} ({row['problem']})" for row in watched if row["problem"] is not None]
    if unread:
        yield Finding(
            check="queues",
            verdict="note",
            text=f"watched, but can't be looked at: {_some(unread)}",
            mend="give clew.watch_queue() the queue's own kind, and a client that may read it",
        )
    last_hour = {queue.name: queue.last_hour for queue in report(connection).queues}
    left = [row for row in watched if row["length"] and not _takes(last_hour.get(row["queue"]))]
    neglected = [_waiting(row) for row in left if (row["oldest_age_s"] or 0.0) > _OLD_S]
    if neglected:
        yield Finding(
            check="queues",
            verdict="note",
            text=f"messages have waited for more than an hour, and nobody took one in that time: {_some(neglected)}",
            mend="start a consumer; 'clew queues show QUEUE' tells who took messages before",
        )
    # Those of producers without clew, in a list, do not tell when they were sent
    undated = [_waiting(row) for row in left if row["oldest_age_s"] is None]
    if undated:
        yield Finding(
            check="queues",
            verdict="note",
            text=f"messages wait, nothing tells since when, and no consumer is on record in the last hour: {_some(undated)}",
            mend="start a consumer, or instrument the one that runs; messages that clew sends tell how long they wait",
        )
    spoiled = [
        f"{name} ({hour.dead_lettered + hour.rejected:,})"
        for name, hour in last_hour.items()
        if hour.dead_lettered or hour.rejected
    ]
    if spoiled:
        yield Finding(
            check="queues",
            verdict="note",
            text=f"messages were given up or could not be read in the last hour: {_some(spoiled)}",
            mend="'clew queues messages --status dead_lettered' and '--status rejected' show them with their errors",
        )
    if not (unread or neglected or undated or spoiled) and (watched or last_hour):
        yield Finding(check="queues", text=f"{len(watched)} watched; in the last hour no message was given up")


def _waiting(row: Row) -> str:
    return f"{row['queue']} ({row['length']:,} wait)"


def _takes(figures: object) -> bool:
    return bool(getattr(figures, "received", 0))


def _agents(connection: Connection) -> Iterator[Finding]:
    from clew.history.agents import registered

    known = registered(connection)
    failing = [
        f"{agent.agent} ({agent.last_error_type})" if agent.last_error_type else agent.agent
        for agent in known
        if agent.state == "failing"
    ]
    if failing:
        yield Finding(
            check="agents",
            verdict="note",
            text=f"the last three tasks failed of: {_some(failing)}",
            mend="'clew agents history AGENT --status failed' shows why",
        )
    elif known:
        yield Finding(check="agents", text=f"{len(known)} known, none failing")


def _handoffs(connection: Connection, now: datetime) -> Iterator[Finding]:
    from clew.history.handoffs import HandoffFilter, page

    since = now - _DAY
    for what, wanted, mend in (
        (
            "nobody picked up",
            HandoffFilter(status="unclaimed", since=since),
            "start the agent, and give it the carrier; 'clew agents handoffs --status unclaimed' shows them",
        ),
        (
            "handed back to an agent that had the task already",
            HandoffFilter(problem="loop", since=since),
            "'clew agents handoffs --problem loop' shows the chains; mode='return_to_caller' is for results",
        ),
    ):
        found = page(connection, wanted, limit=_SHOWN).rows
        if found:
            edges = dict.fromkeys(f"{row['source'] or '(no agent)'} -> {row['target']}" for row in found)
            text = f"in the last day, {what}: {', '.join(edges)}"
            yield Finding(check="handoffs", verdict="note", text=text, mend=mend)


def _prices(connection: Connection, now: datetime) -> Iterator[Finding]:
    from clew.history.llm_usage import report

    groups = report(connection, by="model", since=now - _DAY).groups
    unpriced = [
        f"{group.provider or 'unknown'}/{group.name}"
        for group in groups
        if group.usage.priced < group.usage.calls - group.usage.failed - group.usage.cancelled
    ]
    if unpriced:
        yield Finding(
            check="LLM prices",
            verdict="note",
            text=f"what calls of the last day cost is not known of: {_some(unpriced)}",
            mend=_price_mend(),
        )
    elif groups:
        yield Finding(check="LLM prices", text=f"known for {len(groups)} models of the last day")


def _price_mend() -> str:
    # Its import takes longer than the database may take to answer, on a machine that is busy
    if find_spec("genai_prices") is None:
        return "pip install 'clew[llm]' for list prices, or say what a model costs with clew.llm_prices()"
    return "say what such a model costs with clew.llm_prices()"


def _some(names: Iterable[str]) -> str:
    listed: Sequence[str] = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"{', '.join(listed[:_SHOWN])}{more}"
