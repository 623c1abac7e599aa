"""The metrics that do not belong to one kind of operation, or that an operation records beside its duration."""

from __future__ import annotations

from clew.catalog import semconv
from clew.catalog.kind import BYTES_BUCKETS, LLM_SECONDS_BUCKETS, LONG_SECONDS_BUCKETS, TOKENS_BUCKETS, Metric

HTTP_LABELS = (
    semconv.HTTP_REQUEST_METHOD,
    semconv.HTTP_ROUTE,
    semconv.HTTP_RESPONSE_STATUS_CODE,
    semconv.URL_SCHEME,
)

HTTP_REQUEST_SIZE = Metric(
    name=semconv.HTTP_SERVER_REQUEST_BODY_SIZE,
    type="histogram",
    unit="By",
    description="Size of HTTP request bodies as received.",
    labels=HTTP_LABELS,
    buckets=BYTES_BUCKETS,
)
HTTP_RESPONSE_SIZE = Metric(
    name=semconv.HTTP_SERVER_RESPONSE_BODY_SIZE,
    type="histogram",
    unit="By",
    description="Size of HTTP response bodies as sent.",
    labels=HTTP_LABELS,
    buckets=BYTES_BUCKETS,
)
WEBSOCKET_MESSAGES = Metric(
    name="clew.websocket.messages",
    type="counter",
    unit="{message}",
    description="Messages that crossed websockets.",
    labels=(semconv.HTTP_ROUTE, "clew.websocket.direction"),
)
MESSAGES_SENT = Metric(
    name=semconv.MESSAGING_CLIENT_SENT_MESSAGES,
    type="counter",
    unit="{message}",
    description="Messages that producers sent.",
    labels=(semconv.MESSAGING_SYSTEM, semconv.MESSAGING_DESTINATION_NAME, semconv.ERROR_TYPE),
)
MESSAGES_CONSUMED = Metric(
    name=semconv.MESSAGING_CLIENT_CONSUMED_MESSAGES,
    type="counter",
    unit="{message}",
    description="Messages that were delivered to consumers.",
    labels=(semconv.MESSAGING_SYSTEM, semconv.MESSAGING_DESTINATION_NAME, semconv.ERROR_TYPE),
)
QUEUE_WAIT = Metric(
    name="clew.queue.wait.duration",
    type="histogram",
    unit="s",
    description="Time between sending a message and starting to process it.",
    labels=(semconv.MESSAGING_SYSTEM, semconv.MESSAGING_DESTINATION_NAME),
    buckets=LONG_SECONDS_BUCKETS,
)
QUEUE_REJECTED = Metric(
    name="clew.queue.rejected",
    type="counter",
    unit="{message}",
    description="Messages whose envelope could not be read.",
    labels=(semconv.MESSAGING_DESTINATION_NAME, semconv.ERROR_TYPE),
)
JOB_LATENESS = Metric(
    name="clew.job.lateness",
    type="histogram",
    unit="s",
    description="Time between when a run was due and when it started.",
    labels=("clew.job.name",),
    buckets=LONG_SECONDS_BUCKETS,
)
JOB_MISFIRES = Metric(
    name="clew.job.misfires",
    type="counter",
    unit="{run}",
    description="Runs that were due but were not started, because they were too late or because of too many running.",
    labels=("clew.job.name", "clew.job.misfire.reason"),
)
JOB_LOST = Metric(
    name="clew.job.lost",
    type="counter",
    unit="{run}",
    description="Runs whose process was gone before they ended, counted by the process that noticed.",
    labels=("clew.job.name",),
)
JOB_DUPLICATES = Metric(
    name="clew.job.duplicates",
    type="counter",
    unit="{run}",
    description="Runs of a job that another process had fired as well, counted by the process that noticed.",
    labels=("clew.job.name",),
)
JOB_LAST_SUCCESS = Metric(
    name="clew.job.last_success.age",
    type="gauge",
    unit="s",
    description="Time since a run of the job was last completed, by this process or before it started.",
    labels=("clew.job.name",),
)
LLM_TOKENS = Metric(
    name=semconv.GEN_AI_CLIENT_TOKEN_USAGE,
    type="histogram",
    unit="{token}",
    description="Tokens used by LLM calls.",
    labels=(
        semconv.GEN_AI_OPERATION_NAME,
        semconv.GEN_AI_PROVIDER_NAME,
        semconv.GEN_AI_REQUEST_MODEL,
        semconv.GEN_AI_TOKEN_TYPE,
    ),
    buckets=TOKENS_BUCKETS,
)
_LLM = (semconv.GEN_AI_OPERATION_NAME, semconv.GEN_AI_PROVIDER_NAME, semconv.GEN_AI_REQUEST_MODEL)
LLM_FIRST_CHUNK = Metric(
    name=semconv.GEN_AI_CLIENT_OPERATION_TIME_TO_FIRST_CHUNK,
    type="histogram",
    unit="s",
    description="Time between asking a model and the first piece of its streamed answer.",
    labels=_LLM,
    buckets=LLM_SECONDS_BUCKETS,
)
LLM_COST = Metric(
    name="clew.llm.cost",
    type="counter",
    unit="{USD}",
    description="What LLM calls cost, where the price of the model is known.",
    labels=(*_LLM, semconv.GEN_AI_AGENT_NAME),
)
LLM_RETRIES = Metric(
    name="clew.llm.retries",
    type="counter",
    unit="{retry}",
    description="Requests to language models that were sent once more.",
    labels=(*_LLM, semconv.ERROR_TYPE),
)
LLM_CACHE_HITS = Metric(
    name="clew.llm.cache.hits",
    type="counter",
    unit="{call}",
    description="LLM calls that were answered without the provider.",
    labels=_LLM,
)
LLM_BUDGET_USED = Metric(
    name="clew.llm.budget.used",
    type="gauge",
    unit="1",
    description="The share of a budget that LLM calls of all processes have spent in this hour or day; above 1 it is exceeded.",
    labels=("clew.llm.budget",),
)
RETRIEVAL_DOCUMENTS = Metric(
    name="clew.retrieval.documents",
    type="histogram",
    unit="{document}",
    description="Documents that a search for what a model is to know has found.",
    labels=(semconv.GEN_AI_DATA_SOURCE_ID,),
    buckets=(0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0, 1000.0),
)
EXTERNAL_RETRIES = Metric(
    name="clew.external.retries",
    type="counter",
    unit="{retry}",
    description="Calls of other people's services that were made once more.",
    labels=("clew.external.service", "clew.external.endpoint", semconv.ERROR_TYPE),
)
ERRORS = Metric(
    name="clew.errors",
    type="counter",
    unit="{error}",
    description="Errors that the app told of with clew.error().",
    labels=("clew.error.component", semconv.ERROR_TYPE),
)
HEALTH_STATUS = Metric(
    name="clew.health.check.status",
    type="gauge",
    unit="1",
    description="What a health check found when it was looked at last: 1 is ok, 0.5 degraded, 0 failed.",
    labels=("clew.health.check",),
)
HEALTH_DURATION = Metric(
    name="clew.health.check.duration",
    type="histogram",
    unit="s",
    description="How long a look of a health check took.",
    labels=("clew.health.check", "clew.health.status"),
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
TELEMETRY_EMITTED = Metric(
    name="clew.telemetry.emitted",
    type="counter",
    unit="{item}",
    description="Spans, log records and metric points that were made.",
    labels=("clew.signal",),
)
TELEMETRY_DELIVERED = Metric(
    name="clew.telemetry.delivered",
    type="counter",
    unit="{item}",
    description="Spans, log records and metric points that an endpoint accepted.",
    labels=("clew.signal",),
)
TELEMETRY_DROPPED = Metric(
    name="clew.telemetry.dropped",
    type="counter",
    unit="{item}",
    description="Spans, log records and metric points that were lost, by reason.",
    labels=("clew.signal", "clew.drop.reason"),
)
TELEMETRY_PENDING = Metric(
    name="clew.telemetry.pending",
    type="gauge",
    unit="{item}",
    description="Spans, log records and metric points that wait in memory or in this process's part of the spool.",
    labels=("clew.signal",),
)
HISTORY_ACCEPTED = Metric(
    name="clew.history.accepted",
    type="counter",
    unit="{row}",
    description="Rows that this process gave to the durable records.",
)
HISTORY_WRITTEN = Metric(
    name="clew.history.written",
    type="counter",
    unit="{row}",
    description="Rows of this process that are in the database.",
)
HISTORY_DROPPED = Metric(
    name="clew.history.dropped",
    type="counter",
    unit="{row}",
    description="Rows of this process that were lost, by reason.",
    labels=("clew.drop.reason",),
)
HISTORY_PENDING = Metric(
    name="clew.history.pending",
    type="gauge",
    unit="{row}",
    description="Rows that wait in memory or in this process's part of the spool.",
)

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
