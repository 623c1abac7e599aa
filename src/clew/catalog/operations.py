"""The kinds of operation. A span, metrics, log events and a durable record are derived from each row: to add a kind, add a row."""

from __future__ import annotations

from clew.catalog import semconv
from clew.catalog.kind import LLM_SECONDS_BUCKETS, LONG_SECONDS_BUCKETS, Metric, OperationEvents, OperationKind, Role
from clew.catalog.metrics import HTTP_LABELS

SPAN = OperationKind(
    name="span",
    span_name="{clew.span.name}",
    description="A piece of work that the app names itself, with clew.span().",
)

HTTP_SERVER = OperationKind(
    name="http.server",
    span_name="{http.request.method} {http.route}",
    description="An HTTP request that this service answers.",
    role=Role.SERVER,
    labels=HTTP_LABELS,
    duration=Metric(
        name=semconv.HTTP_SERVER_REQUEST_DURATION,
        type="histogram",
        unit="s",
        description="Duration of HTTP server requests, until the response ended.",
        labels=(*HTTP_LABELS, semconv.ERROR_TYPE),
    ),
    active=Metric(
        name=semconv.HTTP_SERVER_ACTIVE_REQUESTS,
        type="up_down_counter",
        unit="{request}",
        description="HTTP requests in progress.",
        labels=(semconv.HTTP_REQUEST_METHOD, semconv.URL_SCHEME),
    ),
    events=OperationEvents(start="request_in", end="request_out", error="request_out"),
)

BACKGROUND_TASK = OperationKind(
    name="http.background",
    span_name="background {http.route}",
    description="What an HTTP request left to do after its response ended.",
    labels=(semconv.HTTP_ROUTE,),
    duration=Metric(
        name="clew.http.background.duration",
        type="histogram",
        unit="s",
        description="Duration of the background tasks of a response.",
        labels=(semconv.HTTP_ROUTE, semconv.ERROR_TYPE),
    ),
)

WEBSOCKET = OperationKind(
    name="websocket",
    span_name="{http.request.method} {http.route}",
    description="A websocket connection, from its handshake to its close.",
    role=Role.SERVER,
    labels=(semconv.HTTP_ROUTE,),
    duration=Metric(
        name="clew.websocket.duration",
        type="histogram",
        unit="s",
        description="Duration of websocket connections.",
        labels=(semconv.HTTP_ROUTE, semconv.ERROR_TYPE),
        buckets=LONG_SECONDS_BUCKETS,
    ),
    active=Metric(
        name="clew.websocket.active",
        type="up_down_counter",
        unit="{connection}",
        description="Websocket connections that are open.",
    ),
    events=OperationEvents(start="websocket_open", end="websocket_close", error="websocket_close"),
)

_MESSAGING = (semconv.MESSAGING_SYSTEM, semconv.MESSAGING_DESTINATION_NAME, semconv.MESSAGING_OPERATION_NAME)

_MESSAGING_CLIENT_DURATION = Metric(
    name=semconv.MESSAGING_CLIENT_OPERATION_DURATION,
    type="histogram",
    unit="s",
    description="Duration of calls to a message broker, as operation.name says to send, or to receive.",
    labels=(*_MESSAGING, semconv.ERROR_TYPE),
)

MESSAGE_SEND = OperationKind(
    name="message.send",
    span_name="send {messaging.destination.name}",
    description="A message handed to a broker.",
    role=Role.PRODUCER,
    labels=_MESSAGING,
    duration=_MESSAGING_CLIENT_DURATION,
    events=OperationEvents(end="queue_push", error="queue_push", level="debug"),
    record="queue_messages",
)

MESSAGE_RECEIVE = OperationKind(
    name="message.receive",
    span_name="receive {messaging.destination.name}",
    description="A call that asks a broker for messages. One that brings none has no span.",
    role=Role.CLIENT,
    labels=_MESSAGING,
    duration=_MESSAGING_CLIENT_DURATION,
)

MESSAGE_PROCESS = OperationKind(
    name="message.process",
    span_name="process {messaging.destination.name}",
    description="A message, or a batch of them, that a consumer works on.",
    role=Role.CONSUMER,
    labels=_MESSAGING,
    duration=Metric(
        name=semconv.MESSAGING_PROCESS_DURATION,
        type="histogram",
        unit="s",
        description="Duration of processing a message.",
        labels=(*_MESSAGING, semconv.ERROR_TYPE),
        buckets=LONG_SECONDS_BUCKETS,
    ),
    active=Metric(
        name="clew.queue.active",
        type="up_down_counter",
        unit="{message}",
        description="Messages that are being processed.",
        labels=(semconv.MESSAGING_DESTINATION_NAME,),
    ),
    events=OperationEvents(start="queue_pop", error="queue_error"),
    record="queue_messages",
)

JOB = OperationKind(
    name="job",
    span_name="run {clew.job.name}",
    description="A run of a job, scheduled or not.",
    labels=("clew.job.name", "clew.job.status"),
    duration=Metric(
        name="clew.job.duration",
        type="histogram",
        unit="s",
        description="Duration of runs of jobs.",
        labels=("clew.job.name", "clew.job.status", semconv.ERROR_TYPE),
        buckets=LONG_SECONDS_BUCKETS,
    ),
    active=Metric(
        name="clew.job.active",
        type="up_down_counter",
        unit="{run}",
        description="Runs of jobs in progress.",
        labels=("clew.job.name",),
    ),
    events=OperationEvents(start="job_start", end="job_end", error="job_error", others=("job_lost", "job_duplicate")),
    record="job_runs",
)

JOB_NOT_RUN = OperationKind(
    name="job.not_run",
    span_name="run {clew.job.name}",
    description="A run of a job that was due and did not start: too late, too many of it were running, or it was called off.",
    labels=JOB.labels,
    duration=JOB.duration,
    events=OperationEvents(end="job_missed"),
    record="job_runs",
)

JOB_CUT_SHORT = OperationKind(
    name="job.cut_short",
    span_name="run {clew.job.name}",
    description="A run of a job whose process was killed, as told by the process that did it.",
    labels=JOB.labels,
    duration=JOB.duration,
    events=OperationEvents(end="job_end", error="job_error"),
    record="job_runs",
)

AGENT_TASK = OperationKind(
    name="agent.task",
    span_name="invoke_agent {gen_ai.agent.name}",
    description="A task that an agent works on.",
    labels=(semconv.GEN_AI_AGENT_NAME, "clew.agent.type"),
    duration=Metric(
        name="clew.agent.task.duration",
        type="histogram",
        unit="s",
        description="Duration of tasks of agents.",
        labels=(semconv.GEN_AI_AGENT_NAME, "clew.agent.type", semconv.ERROR_TYPE),
        buckets=LONG_SECONDS_BUCKETS,
    ),
    active=Metric(
        name="clew.agent.active",
        type="up_down_counter",
        unit="{task}",
        description="Tasks that agents are working on.",
        labels=(semconv.GEN_AI_AGENT_NAME,),
    ),
    events=OperationEvents(
        start="agent_task_start", end="agent_task_end", error="agent_task_error", others=("agent_task_lost",)
    ),
    record="agent_tasks",
)

HANDOFF = OperationKind(
    name="agent.handoff",
    span_name="execute_tool transfer_to_{gen_ai.transfer.target.name}",
    description="A task that one agent hands to another.",
    labels=("clew.handoff.source", semconv.GEN_AI_TRANSFER_TARGET_NAME, semconv.GEN_AI_TRANSFER_MODE),
    duration=Metric(
        name="clew.agent.handoff.duration",
        type="histogram",
        unit="s",
        description="Duration of handoffs: until the task was passed on, or until it came back.",
        labels=(
            "clew.handoff.source",
            semconv.GEN_AI_TRANSFER_TARGET_NAME,
            semconv.GEN_AI_TRANSFER_MODE,
            semconv.ERROR_TYPE,
        ),
        buckets=LONG_SECONDS_BUCKETS,
    ),
    events=OperationEvents(
        start="agent_handoff",
        error="agent_handoff_error",
        others=("agent_handoff_loop", "agent_handoff_too_deep", "agent_handoff_unclaimed", "agent_handoff_lost"),
    ),
    record="handoffs",
)

WORKFLOW = OperationKind(
    name="agent.workflow",
    span_name="invoke_workflow {gen_ai.workflow.name}",
    description="A run of several agents as a whole.",
    labels=(semconv.GEN_AI_WORKFLOW_NAME,),
    duration=Metric(
        name="clew.agent.workflow.duration",
        type="histogram",
        unit="s",
        description="Duration of runs of several agents.",
        labels=(semconv.GEN_AI_WORKFLOW_NAME, semconv.ERROR_TYPE),
        buckets=LONG_SECONDS_BUCKETS,
    ),
    events=OperationEvents(start="workflow_start", end="workflow_end", error="workflow_error"),
)

_GUARDRAIL = ("clew.guardrail.name", "clew.guardrail.triggered")

GUARDRAIL = OperationKind(
    name="agent.guardrail",
    span_name="guardrail {clew.guardrail.name}",
    description="A check of what an agent is given or says.",
    labels=_GUARDRAIL,
    duration=Metric(
        name="clew.agent.guardrail.duration",
        type="histogram",
        unit="s",
        description="Duration of checks of what agents are given or say.",
        labels=(*_GUARDRAIL, semconv.ERROR_TYPE),
        buckets=LONG_SECONDS_BUCKETS,
    ),
    events=OperationEvents(error="guardrail_error", others=("guardrail_triggered",)),
)

_LLM = (semconv.GEN_AI_OPERATION_NAME, semconv.GEN_AI_PROVIDER_NAME, semconv.GEN_AI_REQUEST_MODEL)

LLM_CALL = OperationKind(
    name="llm.call",
    span_name="{gen_ai.operation.name} {gen_ai.request.model}",
    description="A request to a language model.",
    role=Role.CLIENT,
    labels=_LLM,
    duration=Metric(
        name=semconv.GEN_AI_CLIENT_OPERATION_DURATION,
        type="histogram",
        unit="s",
        description="Duration of requests to language models.",
        labels=(*_LLM, semconv.ERROR_TYPE),
        buckets=LLM_SECONDS_BUCKETS,
    ),
    events=OperationEvents(
        start="llm_call",
        end="llm_response",
        error="llm_error",
        others=("llm_budget_warning", "llm_budget_exceeded"),
    ),
    record="llm_calls",
)

TOOL_CALL = OperationKind(
    name="tool.call",
    span_name="execute_tool {gen_ai.tool.name}",
    description="A tool that an agent or a model uses.",
    labels=(semconv.GEN_AI_TOOL_NAME,),
    duration=Metric(
        name="clew.tool.duration",
        type="histogram",
        unit="s",
        description="Duration of calls of tools.",
        labels=(semconv.GEN_AI_TOOL_NAME, semconv.ERROR_TYPE),
        buckets=LONG_SECONDS_BUCKETS,
    ),
    events=OperationEvents(start="tool_call", end="tool_result", error="tool_error"),
)

_MEMORY = ("clew.memory.operation", "clew.memory.store")

MEMORY_OPERATION = OperationKind(
    name="memory.operation",
    span_name="memory {clew.memory.operation} {clew.memory.store}",
    description="What an agent does with its memory.",
    role=Role.CLIENT,
    labels=_MEMORY,
    duration=Metric(
        name="clew.memory.duration",
        type="histogram",
        unit="s",
        description="Duration of operations on memories of agents.",
        labels=(*_MEMORY, semconv.ERROR_TYPE),
    ),
    events=OperationEvents(end="memory_operation", error="memory_error"),
)

RETRIEVAL = OperationKind(
    name="retrieval",
    span_name="retrieval {gen_ai.data_source.id}",
    description="A search for what a model is to know.",
    role=Role.CLIENT,
    labels=(semconv.GEN_AI_DATA_SOURCE_ID,),
    duration=Metric(
        name="clew.retrieval.duration",
        type="histogram",
        unit="s",
        description="Duration of searches for what a model is to know.",
        labels=(semconv.GEN_AI_DATA_SOURCE_ID, semconv.ERROR_TYPE),
    ),
    events=OperationEvents(end="retrieval", error="retrieval_error"),
)

DOCUMENT = OperationKind(
    name="document",
    span_name="process document {clew.document.kind}",
    description="A document that is worked on.",
    labels=("clew.document.kind",),
    duration=Metric(
        name="clew.document.duration",
        type="histogram",
        unit="s",
        description="Duration of work on a document.",
        labels=("clew.document.kind", semconv.ERROR_TYPE),
        buckets=LONG_SECONDS_BUCKETS,
    ),
    events=OperationEvents(end="document_processed", error="document_error"),
)

CACHE = OperationKind(
    name="cache",
    span_name="cache {clew.cache.name}",
    description="A look into a cache.",
    labels=("clew.cache.name", "clew.cache.outcome"),
    duration=Metric(
        name="clew.cache.duration",
        type="histogram",
        unit="s",
        description="Duration of looks into caches; the outcome is hit or miss.",
        labels=("clew.cache.name", "clew.cache.outcome", semconv.ERROR_TYPE),
    ),
    events=OperationEvents(error="cache_error", level="debug"),
)

_EXTERNAL = ("clew.external.service", "clew.external.endpoint", "clew.external.status")

EXTERNAL_CALL = OperationKind(
    name="external.call",
    span_name="{clew.external.service} {clew.external.endpoint}",
    description="A call of a service of somebody else, by whatever protocol, with its retries.",
    role=Role.CLIENT,
    labels=_EXTERNAL,
    duration=Metric(
        name="clew.external.duration",
        type="histogram",
        unit="s",
        description="Duration of calls of other people's services, retries included.",
        labels=(*_EXTERNAL, semconv.ERROR_TYPE),
    ),
    events=OperationEvents(end="external_call", error="external_error"),
)

_DATABASE = (semconv.DB_SYSTEM_NAME, semconv.DB_OPERATION_NAME)

DB_QUERY = OperationKind(
    name="db.query",
    span_name="{db.operation.name} {db.collection.name}",
    description="A statement or command sent to a database.",
    role=Role.CLIENT,
    labels=_DATABASE,
    duration=Metric(
        name=semconv.DB_CLIENT_OPERATION_DURATION,
        type="histogram",
        unit="s",
        description="Duration of database statements and commands.",
        labels=(*_DATABASE, semconv.ERROR_TYPE),
        buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0),
    ),
)

OPERATIONS = tuple(value for value in list(globals().values()) if isinstance(value, OperationKind))
