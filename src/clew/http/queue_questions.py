"""What may be asked about queues and messages: the same for the HTTP API and for the command line."""

from __future__ import annotations

from pydantic import Field

from clew.history.messages import MAX_NAMES, Direction, MessageFilter, MessageStatus
from clew.http.question import PageQuestion, Question, Text, TraceId


class QueuesQuestion(Question):
    """Which queues are asked for."""

    queue: Text | None = Field(default=None, description="This one only, by its name.")
    limit: int = Field(
        default=MAX_NAMES, ge=1, description=f"How many are told of one by one; not more than {MAX_NAMES}."
    )


class MessagesQuestion(PageQuestion):
    """Which messages are asked for."""

    queue: Text | None = Field(default=None, description="Messages of this queue, by its name.")
    direction: Direction | None = Field(default=None, description="Sends, or tries to process a message.")
    status: MessageStatus | None = Field(default=None, description="Messages of which this became.")
    type: Text | None = Field(default=None, description="Messages of this type.")
    source: Text | None = Field(default=None, description="Messages that this service sent.")
    user: Text | None = Field(default=None, description="Messages that were sent for this user.")
    error: Text | None = Field(
        default=None, description="Words that the error's type or message has, each of them, in any order."
    )
    trace_id: TraceId | None = Field(default=None, description="Messages of this trace: 32 hexadecimal digits.")
    correlation_id: Text | None = Field(default=None, description="Messages with this correlation id.")
    message_id: Text | None = Field(
        default=None, description="Every send of this message, and every try to process it."
    )

    def filter(self) -> MessageFilter:
        """Return it as the history takes it."""
        return MessageFilter(
            queue=self.queue,
            direction=self.direction,
            status=self.status,
            type=self.type,
            source=self.source,
            user=self.user,
            since=self.begin(),
            until=self.until,
            error=self.error,
            trace_id=self.trace_id,
            correlation_id=self.correlation_id,
            message_id=self.message_id,
        )
