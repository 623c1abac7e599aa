"""What is answered about queues and messages. Times are UTC, durations are seconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self

from pydantic import Field

from clew.history.messages import QueueReport
from clew.history.paging import Page, Row
from clew.http.answers import Answer


class FiguresAnswer(Answer):
    """How many messages there were within a time."""

    sent: int = Field(description="Messages that producers handed on.")
    received: int = Field(description="Tries to process a message, whatever became of it.")
    processed: int = Field(description="Tries that ended well.")
    failed: int = Field(description="Tries that failed.")
    rejected: int = Field(description="Messages that nobody could read.")
    returned: int = Field(description="Tries that put their message back.")
    dead_lettered: int = Field(description="Messages that were given up.")
    not_sent: int = Field(description="Sends that failed.")
    cancelled: int = Field(description="Sends that were cancelled meanwhile: nobody knows whether they were sent.")
    sent_per_s: float | None = Field(description="Messages sent in a second, on average; null of all times.")
    received_per_s: float | None = Field(description="The same of those that were received.")
    wait_s: float | None = Field(description="How long messages waited to be processed, on average.")
    process_s: float | None = Field(description="How long a try took, on average.")


class WindowsAnswer(Answer):
    """Figures of all times, of the last day and of the last hour."""

    name: str = Field(description="The queue, type or source; empty where that is not known.")
    total: FiguresAnswer = Field(description="Since the first message that is still counted.")
    last_day: FiguresAnswer = Field(description="Of the last 24 hours, and of the hour that they began in.")
    last_hour: FiguresAnswer = Field(description="Of the last 60 minutes, and of the minute that they began in.")


class DepthAnswer(Answer):
    """What waited in a watched queue when it was looked at last."""

    queue: str
    system: str
    consumer_group: str | None
    kind: str = Field(description="list, stream, celery, or none where it is empty.")
    length: int = Field(description="Messages that wait, or that a consumer has and did not acknowledge.")
    oldest_age_s: float | None = Field(description="How long the oldest had waited, where that is known.")
    problem: str | None = Field(description="Why it is not known.")
    observed_at: datetime
    service: str = Field(description="Who looked.")
    instance: str


class QueuesAnswer(Answer):
    """The queues that messages went through, and those that are watched."""

    queues: list[WindowsAnswer] = Field(description="By name.")
    watched: list[DepthAnswer] = Field(description="By name, those that were looked at within a day.")
    is_cut: bool = Field(description="There are more queues than are told of one by one.")

    @classmethod
    def of(cls, report: QueueReport, depths: Sequence[Row] = ()) -> Self:
        """Return what is answered of a report, and of watched queues."""
        watched = [DepthAnswer.model_validate(dict(row)) for row in depths]
        known = {name: getattr(report, name) for name in cls.model_fields if name != "watched"}
        return cls.model_validate({**known, "watched": watched})


class QueueStatisticsAnswer(QueuesAnswer):
    """Statistics of queues, and of the types and sources of their messages."""

    overall: WindowsAnswer
    types: list[WindowsAnswer] = Field(description="By the type of messages.")
    sources: list[WindowsAnswer] = Field(description="By the service that sent them.")


class MessageAnswer(Answer):
    """A send, or a try to process a message; of a batch, of all its messages."""

    id: str
    system: str = Field(description="What carried it, such as redis.")
    queue: str
    direction: str = Field(description="sent, or received by who tried to process it.")
    status: str = Field(
        description="sent, cancelled (meanwhile), processed, failed, rejected (unreadable, or refused), returned (put back) or dead_lettered (given up)."
    )
    type: str | None
    source: str | None = Field(description="The service that sent it.")
    user_id: str | None
    message_id: str | None = Field(description="The id that the broker, or its envelope, gave it.")
    consumer_group: str | None
    envelope: str | None = Field(description="clew, or plain where the producer has no clew.")
    attempt: int
    messages: int = Field(description="How many, in a batch.")
    sent_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    wait_s: float | None
    duration_s: float | None
    size_bytes: int | None
    error_type: str | None
    error_message: str | None = Field(description="Of a message in a list, how it begins.")
    trace_id: str | None
    span_id: str | None
    correlation_id: str | None
    service: str
    instance: str
    recorded_at: datetime

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return what is answered of a message."""
        return cls.model_validate(dict(row))


class WholeMessage(MessageAnswer):
    """A message with all that is kept of it."""

    payload: Any = Field(description="What it carried, without secrets; cut where it was large.")


class MessagesAnswer(Answer):
    """Some messages, newest first."""

    messages: list[MessageAnswer]
    next: str | None = Field(description="Give it as `after` for older ones; null where there are none.")
    previous: str | None = Field(description="Give it as `before` for newer ones; null on the first page.")
    limit: int
    searched_to: datetime | None = Field(
        description="How far back was looked, where that had an end before the page was full: go on with `next`."
    )

    @classmethod
    def of(cls, page: Page, *, limit: int) -> Self:
        """Return what is answered of a page."""
        messages = [MessageAnswer.of(row) for row in page.rows]
        return cls(messages=messages, next=page.next, previous=page.previous, limit=limit, searched_to=page.searched_to)
