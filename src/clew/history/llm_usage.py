"""What LLM calls used and cost, read from the totals that every call adds to: as quick for a million calls as for a hundred."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, Float, case, cast, func, select

from clew.history.models import LlmUsageTotal
from clew.history.tally import begin_of, columns_of
from clew.history.totals import hour_of, until_hour

By = Literal["model", "agent", "user", "day"]

MAX_GROUPS: Final = 500
"""How many groups are told of one by one; those beyond are in the figures of all."""

_GROUPS: Final[dict[By, tuple[Any, ...]]] = {
    "model": (LlmUsageTotal.provider, LlmUsageTotal.name),
    "agent": (LlmUsageTotal.name,),
    "user": (LlmUsageTotal.name,),
    "day": (LlmUsageTotal.since,),
}
_SUMS: Final = columns_of(LlmUsageTotal)[1]
_COUNTED: Final = (*_SUMS, "failed", "cancelled")
_COST, _CALLS = _COUNTED.index("cost_usd"), _COUNTED.index("calls")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What calls used.

    Attributes:
        calls: how many ended, however they did.
        failed: those that failed.
        cancelled: those that were called off.
        cached: those that were answered without the provider.
        priced: those whose cost is known.
        input_tokens: of prompts.
        output_tokens: of completions.
        cache_read_tokens: of prompts, what the provider had already.
        cost_usd: what those whose cost is known cost together.
        average_s: the mean duration; ``None`` where there were no calls.
    """

    calls: int = 0
    failed: int = 0
    cancelled: int = 0
    cached: int = 0
    priced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cost_usd: float = 0.0
    average_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """What calls used that have something in common.

    Attributes:
        name: the model, the agent, the user or the day (``2026-01-31``, in UTC); empty where calls have none.
        provider: whose model it is, where the groups are models.
        usage: what they used.
    """

    name: str
    usage: Usage
    provider: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What calls used.

    Attributes:
        since: from when on, a whole hour; ``None`` for the beginning.
        until: until when, a whole hour; ``None`` for now.
        by: what the groups are.
        overall: what all calls used.
        groups: what those with something in common used: the dearest first, days in their order.
        is_cut: there are more groups than are told of one by one.
    """

    since: datetime | None
    until: datetime | None
    by: By
    overall: Usage
    groups: Sequence[Group]
    is_cut: bool = False


def report(
    connection: Connection,
    *,
    by: By = "model",
    since: datetime | None = None,
    until: datetime | None = None,
    service: str | None = None,
    limit: int = MAX_GROUPS,
) -> Report:
    """Return what LLM calls used that began within a time.

    Totals are kept by the hour, so the time begins and ends with whole hours: it takes in the hours that `since` and `until` are in.

    Args:
        connection: to the history.
        by: what is told apart.
        since: from then on, with a time zone; by default from the beginning.
        until: until then, with a time zone; by default until now.
        service: of this one only.
        limit: how many groups, :data:`MAX_GROUPS` at most.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     report(connection, by="user").overall.calls
        0
    """
    sums: dict[tuple[Any, ...], Sequence[float]] = {}
    # Each call is counted once in each dimension
    only = [LlmUsageTotal.dimension == ("model" if by == "day" else by)]
    if service is not None:
        only.append(LlmUsageTotal.service == service)
    for key, numbers in _totals(connection, _GROUPS[by], since, until, only):
        group = (begin_of(key[0], "day"),) if by == "day" else key
        sums[group] = _together(sums[group], numbers) if group in sums else numbers
    overall = [float(sum(numbers)) for numbers in zip(*sums.values(), strict=True)] or [0.0] * len(_COUNTED)
    groups = sorted(sums, key=None if by == "day" else lambda key: _dearest_first(key, sums[key]))
    told = max(1, min(limit, MAX_GROUPS))
    return Report(
        since=hour_of(since) if since is not None else None,
        until=until_hour(until) if until is not None else None,
        by=by,
        overall=_usage(overall),
        # Of days the last ones
        groups=[_group(by, key, _usage(sums[key])) for key in (groups[-told:] if by == "day" else groups[:told])],
        is_cut=len(groups) > told,
    )


def spent_usd(
    connection: Connection,
    *,
    since: datetime,
    grain: Literal["hour", "day"],
    service: str | None = None,
    agent: str | None = None,
    user: str | None = None,
) -> float:
    """Return what calls cost that began within one hour or one day.

    Args:
        connection: to the history.
        since: its beginning, in UTC.
        grain: how long it is.
        service: of this service's calls only.
        agent: of this agent's calls only.
        user: of calls for this user only, where no agent is given.
    """
    dimension, name = ("agent", agent) if agent is not None else ("user", user) if user is not None else ("model", None)
    query = select(func.sum(LlmUsageTotal.cost_usd)).where(
        LlmUsageTotal.grain == grain, LlmUsageTotal.dimension == dimension, LlmUsageTotal.since == since
    )
    if name is not None:
        query = query.where(LlmUsageTotal.name == name)
    if service is not None:
        query = query.where(LlmUsageTotal.service == service)
    return max(0.0, float(connection.scalar(query) or 0.0))


def _totals(
    connection: Connection,
    columns: tuple[Any, ...],
    since: datetime | None,
    until: datetime | None,
    only: Sequence[ColumnElement[bool]],
) -> Iterator[tuple[tuple[Any, ...], Sequence[float]]]:
    """Yield sums by columns: of whole days from the totals by day, of what is left at both ends from those by hour."""
    # By name alone: to group by status, too, would take the database half as long again
    numbers = [getattr(LlmUsageTotal, name) for name in _SUMS]
    numbers += [
        case((LlmUsageTotal.status == status, LlmUsageTotal.calls), else_=0) for status in _COUNTED[len(_SUMS) :]
    ]
    # SQLite sums whole numbers to whole ones, PostgreSQL some of them to decimal ones
    sums = [cast(func.sum(number), Float) for number in numbers]
    for grain, begin, end in _parts(since, until):
        query = select(*columns, *sums).where(LlmUsageTotal.grain == grain, *only).group_by(*columns)
        if begin is not None:
            query = query.where(LlmUsageTotal.since >= begin)
        if end is not None:
            query = query.where(LlmUsageTotal.since < end)
        width = len(columns)
        for row in connection.execute(query).all():
            yield tuple(row[:width]), row[width:]


def _together(one: Sequence[float], other: Sequence[float]) -> Sequence[float]:
    return [number + more for number, more in zip(one, other, strict=True)]


def _usage(numbers: Sequence[float]) -> Usage:
    of = dict(zip(_COUNTED, numbers, strict=True))
    cost_usd, duration_s = max(0.0, of.pop("cost_usd")), max(0.0, of.pop("duration_s"))
    return Usage(
        **{name: int(number) for name, number in of.items()},
        cost_usd=cost_usd,
        average_s=duration_s / of["calls"] if of["calls"] else None,
    )


def _parts(since: datetime | None, until: datetime | None) -> Iterator[tuple[str, datetime | None, datetime | None]]:
    first = hour_of(since) if since is not None else None
    last = until_hour(until) if until is not None else None
    from_day = None if first is None else begin_of(first + timedelta(hours=23), "day")
    to_day = None if last is None else begin_of(last, "day")
    if from_day is not None and to_day is not None and from_day >= to_day:
        yield "hour", first, last
        return
    yield "day", from_day, to_day
    if first != from_day:
        yield "hour", first, from_day
    if last != to_day:
        yield "hour", to_day, last


def _group(by: By, key: tuple[Any, ...], usage: Usage) -> Group:
    if by == "model":
        return Group(provider=key[0], name=key[1], usage=usage)
    return Group(name=f"{key[0]:%Y-%m-%d}" if by == "day" else str(key[0]), usage=usage)


def _dearest_first(key: tuple[Any, ...], numbers: Sequence[float]) -> tuple[Any, ...]:
    provider = key[0] if len(key) > 1 else ""
    return -max(0.0, numbers[_COST]), -numbers[_CALLS], key[-1], provider
