"""What may be asked about LLM calls, and what is allowed: the same for the HTTP API and for the command line."""

from __future__ import annotations

from pydantic import Field

from clew.history.llm_calls import CallFilter, CallStatus
from clew.history.llm_usage import MAX_GROUPS, By
from clew.http.question import PageQuestion, Text, TimeQuestion, TraceId


class UsageQuestion(TimeQuestion):
    """Whose usage is asked for."""

    by: By = Field(default="model", description="What is told apart.")
    service: Text | None = Field(default=None, description="Of this service only.")
    limit: int = Field(
        default=MAX_GROUPS, ge=1, description=f"How many are told of one by one; not more than {MAX_GROUPS}."
    )


class CallsQuestion(PageQuestion):
    """Which calls are asked for."""

    model: Text | None = Field(default=None, description="Calls that asked for this model.")
    provider: Text | None = Field(default=None, description="Calls of this provider.")
    agent: Text | None = Field(default=None, description="Calls that this agent made.")
    user: Text | None = Field(default=None, description="Calls for this user.")
    service: Text | None = Field(default=None, description="Calls of this service.")
    status: CallStatus | None = Field(default=None, description="Calls that ended so.")
    error: Text | None = Field(
        default=None, description="Words that the error's type or message has, each of them, in any order."
    )
    trace_id: TraceId | None = Field(default=None, description="Calls of this trace: 32 hexadecimal digits.")
    correlation_id: Text | None = Field(default=None, description="Calls with this correlation id.")

    def filter(self) -> CallFilter:
        """Return it as the history takes it."""
        return CallFilter(
            model=self.model,
            provider=self.provider,
            agent=self.agent,
            user=self.user,
            service=self.service,
            status=self.status,
            since=self.begin(),
            until=self.until,
            error=self.error,
            trace_id=self.trace_id,
            correlation_id=self.correlation_id,
        )
