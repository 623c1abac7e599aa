"""What is answered about LLM calls: the same for the HTTP API and for the command line. Times are UTC, durations are seconds."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any, Self

from pydantic import Field

from clew.history.llm_usage import By, Group, Report
from clew.history.paging import Page, Row
from clew.http.answers import Answer


class UsageAnswer(Answer):
    """What calls used."""

    calls: int = Field(description="Calls that ended, however they did.")
    failed: int
    cancelled: int
    cached: int = Field(description="Calls that were answered without the provider.")
    priced: int = Field(description="Calls whose cost is known.")
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = Field(description="Of the input, what the provider had already.")
    cost_usd: float = Field(description="What the calls cost together whose cost is known.")
    average_s: float | None


class UsageOfAnswer(UsageAnswer):
    """What calls used that have something in common."""

    name: str = Field(description="The model, the agent, the user or the day, in UTC; empty where calls have none.")
    provider: str | None = Field(description="Whose model it is, where models are told apart.")

    @classmethod
    def of(cls, group: Group) -> Self:
        """Return what is answered of a group."""
        return cls(name=group.name, provider=group.provider, **asdict(group.usage))


class LlmUsageAnswer(Answer):
    """What calls used, all together and by what was asked for."""

    since: datetime | None = Field(serialization_alias="from", description="The whole hour that it begins with.")
    until: datetime | None = Field(serialization_alias="to", description="The whole hour that it ends with.")
    by: By
    overall: UsageAnswer
    usage: list[UsageOfAnswer] = Field(description="The dearest first; days in their order.")
    is_cut: bool = Field(description="There are more than are told of one by one.")

    @classmethod
    def of(cls, report: Report) -> Self:
        """Return what is answered of a report."""
        return cls(
            since=report.since,
            until=report.until,
            by=report.by,
            overall=UsageAnswer(**asdict(report.overall)),
            usage=[UsageOfAnswer.of(group) for group in report.groups],
            is_cut=report.is_cut,
        )


class LlmCallAnswer(Answer):
    """A call that has ended."""

    id: str
    provider: str
    model: str = Field(description="The one that was asked for.")
    response_model: str | None = Field(description="The one that answered.")
    operation: str
    agent: str | None
    user_id: str | None
    status: str = Field(description="completed, failed or cancelled.")
    started_at: datetime
    duration_s: float | None
    first_token_s: float | None = Field(description="Until the first piece of a streamed answer.")
    tokens_per_s: float | None = Field(description="Of the output, from the first piece of a streamed answer on.")
    retries: int
    is_cached: bool = Field(description="It was answered without the provider.")
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None = Field(description="Of the input, what the provider had already.")
    cache_write_tokens: int | None = Field(description="Of the input, what the provider kept.")
    reasoning_tokens: int | None = Field(description="Of the output, what nobody reads.")
    cost_usd: float | None = Field(description="null where it is not known.")
    error_type: str | None
    error_message: str | None = Field(description="Of a call in a list, how it begins.")
    trace_id: str | None
    span_id: str | None
    correlation_id: str | None
    service: str
    instance: str
    recorded_at: datetime

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return what is answered of a call."""
        return cls.model_validate({**row, "tokens_per_s": _tokens_per_s(row)})


class WholeLlmCall(LlmCallAnswer):
    """A call with all that is kept of it."""

    prompt: Any = Field(description="Where CLEW_LLM_CONTENT was on; cut where it was large.")
    completion: Any = Field(description="Where CLEW_LLM_CONTENT was on; cut where it was large.")


class LlmCallsAnswer(Answer):
    """Some calls, newest first."""

    calls: list[LlmCallAnswer]
    next: str | None = Field(description="Give it as `after` for older calls; null where there are none.")
    previous: str | None = Field(description="Give it as `before` for newer calls; null on the first page.")
    limit: int
    searched_to: datetime | None = Field(
        description="How far back was looked, where that had an end before the page was full: go on with `next`."
    )

    @classmethod
    def of(cls, page: Page, *, limit: int) -> Self:
        """Return what is answered of a page."""
        calls = [LlmCallAnswer.of(row) for row in page.rows]
        return cls(calls=calls, next=page.next, previous=page.previous, limit=limit, searched_to=page.searched_to)


def _tokens_per_s(row: Row) -> float | None:
    first_s, duration_s, tokens = row["first_token_s"], row["duration_s"], row["output_tokens"]
    if first_s is None or duration_s is None or not tokens or duration_s <= first_s:
        return None
    return round(float(tokens / (duration_s - first_s)), 3)
