"""clew: one thread through HTTP requests, queue messages, scheduled jobs, agent handoffs and LLM calls.

This is all that app code imports.

Example:
    >>> import clew
    >>> clew.configure(service_name="orders")
    >>> with clew.span("price", sku="A-17") as span:
    ...     span.set("currency", "EUR")
"""

from clew import maintenance
from clew._version import __version__
from clew.agents.handoff import handoff
from clew.agents.task import agent, agent_task
from clew.agents.workflow import workflow
from clew.diagnostics import ClewError
from clew.engine.concurrency import carry, submit
from clew.engine.context import correlation, correlation_id, extract, inject
from clew.engine.ending import flush, shutdown
from clew.engine.exposition import prometheus_text
from clew.engine.logger import get_logger
from clew.engine.metrics import counter, gauge, histogram, timer, up_down_counter
from clew.engine.operation import Operation
from clew.engine.runtime import accounts, configure
from clew.engine.spans import span, trace_id
from clew.engine.summary import summary
from clew.health.check import HealthReport, HealthResult
from clew.health.monitor import check_health, health_check, unwatch, watch
from clew.health.queue_watch import unwatch_queue, watch_queue
from clew.health.startup import startup
from clew.http.facade import agents_router, health_router, jobs_router, llm_router, queues_router, serve_worker
from clew.instrumentation.registry import instrument
from clew.jobs.run import job
from clew.llm.budget import llm_budget
from clew.llm.call import llm_call
from clew.llm.memory import memory_operation
from clew.llm.prices import llm_prices
from clew.llm.retrieval import retrieval
from clew.llm.tool import tool_call
from clew.queues.envelope import MessageError
from clew.queues.hand_made import message_process, message_receive, message_send
from clew.settings import Settings, SettingsError
from clew.work.cache import cache
from clew.work.document import document_processed
from clew.work.external import external_call
from clew.work.problem import error

__all__ = [
    "ClewError",
    "HealthReport",
    "HealthResult",
    "MessageError",
    "Operation",
    "Settings",
    "SettingsError",
    "__version__",
    "accounts",
    "agent",
    "agent_task",
    "agents_router",
    "cache",
    "carry",
    "check_health",
    "configure",
    "correlation",
    "correlation_id",
    "counter",
    "document_processed",
    "error",
    "external_call",
    "extract",
    "flush",
    "gauge",
    "get_logger",
    "handoff",
    "health_check",
    "health_router",
    "histogram",
    "inject",
    "instrument",
    "job",
    "jobs_router",
    "llm_budget",
    "llm_call",
    "llm_prices",
    "llm_router",
    "maintenance",
    "memory_operation",
    "message_process",
    "message_receive",
    "message_send",
    "prometheus_text",
    "queues_router",
    "retrieval",
    "serve_worker",
    "shutdown",
    "span",
    "startup",
    "submit",
    "summary",
    "timer",
    "tool_call",
    "trace_id",
    "unwatch",
    "unwatch_queue",
    "up_down_counter",
    "watch",
    "watch_queue",
    "workflow",
]
