"""The tables."""

from __future__ import annotations

from clew.history.models.agents import Agent, AgentTask, AgentTaskTotal, Handoff, HandoffTotal
from clew.history.models.columns import MAX_NAME_LENGTH, Base, UtcDateTime
from clew.history.models.health import HealthCheck
from clew.history.models.jobs import JobCommand, JobRun, JobRunDailyTotal, JobRunTotal, ScheduledJob
from clew.history.models.llm import LlmBudgetAlarm, LlmCall, LlmUsageTotal
from clew.history.models.messages import QueueMessage, QueueMessageTotal

__all__ = [
    "MAX_NAME_LENGTH",
    "Agent",
    "AgentTask",
    "AgentTaskTotal",
    "Base",
    "Handoff",
    "HandoffTotal",
    "HealthCheck",
    "JobCommand",
    "JobRun",
    "JobRunDailyTotal",
    "JobRunTotal",
    "LlmBudgetAlarm",
    "LlmCall",
    "LlmUsageTotal",
    "QueueMessage",
    "QueueMessageTotal",
    "ScheduledJob",
    "UtcDateTime",
]
