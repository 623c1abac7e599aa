"""The overview: is it up, is it fast, is it failing, and is telemetry itself arriving? One row for each kind of work."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

from clew.catalog import metrics, operations, semconv
from clew.engine.exposition import prometheus_name
from tools.dashboards.parts import (
    PROMETHEUS,
    SERVICE,
    Query,
    active,
    chart,
    duration,
    log_chart,
    log_lines,
    number,
    of,
    percentiles,
    ratio,
    row,
)

REQUESTS: Final = duration(operations.HTTP_SERVER)
CALLS: Final = duration(operations.MESSAGE_SEND)
PROCESSING: Final = duration(operations.MESSAGE_PROCESS)
JOBS: Final = duration(operations.JOB)
TASKS: Final = duration(operations.AGENT_TASK)
HANDOFFS: Final = duration(operations.HANDOFF)
LLM: Final = duration(operations.LLM_CALL)

FAILED: Final = (semconv.ERROR_TYPE, '!=""')
SERVER_ERROR: Final = (semconv.HTTP_RESPONSE_STATUS_CODE, '=~"5.."')

COLLECTOR: Final = 'job="otel-collector"'
"""The job under which Prometheus scrapes the Collector's own metrics."""


def overview() -> builders.Dashboard:
    """Return the dashboard."""
    dashboard = (
        builders.Dashboard("clew: overview")
        .uid("clew-overview")
        .description("Requests, messages, jobs, agents, LLM calls, logs, and whether telemetry itself arrives.")
        .tags(["clew"])
        .readonly()
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(_service())
        .with_variable(_level())
        .with_variable(builders.TextBoxVariable("search").label("Log lines with").default_value(""))
    )
    for fill in (_glance, _http, _queues, _jobs, _agents, _llm, _logs, _telemetry):
        fill(dashboard)
    return dashboard


def _service() -> builders.QueryVariable:
    # Every service that clew is in emits this one, whatever it does
    emitted = prometheus_name(metrics.TELEMETRY_EMITTED.name, metrics.TELEMETRY_EMITTED.unit, monotonic=True)
    return (
        builders.QueryVariable("service")
        .label("Service")
        .datasource(PROMETHEUS)
        .query(f"label_values({emitted}, service_name)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(models.VariableOption(text=["All"], value=["$__all"]))
    )


def _level() -> builders.CustomVariable:
    # As Loki names the levels it detects
    return (
        builders.CustomVariable("level")
        .label("Log level")
        .values("debug,info,warn,error,fatal")
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(models.VariableOption(text=["All"], value=["$__all"]))
    )


def _glance(dashboard: builders.Dashboard) -> None:
    errors = ratio(of(REQUESTS, SERVER_ERROR).rate(), of(REQUESTS).rate())
    for panel in (
        number("Requests", "HTTP requests a second.", "reqps", of(REQUESTS).rate()),
        number("Failed requests", "Share of responses with a 5xx status.", "percentunit", errors, bad_above=0.05),
        number("Slow requests", "95 % of the requests are faster than this.", "s", of(REQUESTS).quantile(0.95)),
        number("Failed jobs", "In the chosen time.", "short", of(JOBS, FAILED).growth(), bad_above=1),
        number("Failed agent tasks", "In the chosen time.", "short", of(TASKS, FAILED).growth(), bad_above=1),
        number(
            "Telemetry lost",
            "Spans, log records and metric points that services had to drop in the chosen time.",
            "short",
            of(metrics.TELEMETRY_DROPPED).growth(),
            bad_above=1,
        ),
    ):
        dashboard.with_panel(panel)


def _http(dashboard: builders.Dashboard) -> None:
    method, route, status = (
        semconv.HTTP_REQUEST_METHOD,
        semconv.HTTP_ROUTE,
        semconv.HTTP_RESPONSE_STATUS_CODE,
    )
    dashboard.with_row(row("HTTP"))
    for panel in (
        chart(
            "Request rate by route",
            "Requests a second. Unmatched paths share one route.",
            "reqps",
            Query(expr=of(REQUESTS).rate(method, route), legend="{{http_request_method}} {{http_route}}"),
        ),
        chart(
            "Responses by status",
            "Responses a second.",
            "reqps",
            Query(expr=of(REQUESTS).rate(status), legend="{{http_response_status_code}}"),
        ),
        chart(
            "Request errors by type",
            "Requests a second that ended with an error: an exception, a disconnect or a 5xx status.",
            "reqps",
            Query(expr=of(REQUESTS, FAILED).rate(route, semconv.ERROR_TYPE), legend="{{http_route}} {{error_type}}"),
        ),
        chart(
            "Request duration",
            "Until the response ended. A dot is one request: click it for its trace.",
            "s",
            *percentiles(REQUESTS),
            width=12,
        ),
        chart(
            "Requests in progress",
            "By service and method.",
            "short",
            Query(expr=of(active(operations.HTTP_SERVER)).now(method), legend="{{http_request_method}}"),
            width=12,
        ),
    ):
        dashboard.with_panel(panel)


def _queues(dashboard: builders.Dashboard) -> None:
    queue = semconv.MESSAGING_DESTINATION_NAME
    dashboard.with_row(row("Queues"))
    for panel in (
        chart(
            "Messages sent and processed",
            "Messages a second by queue.",
            "ops",
            Query(expr=of(metrics.MESSAGES_SENT).rate(queue), legend="sent to {{messaging_destination_name}}"),
            Query(expr=of(PROCESSING).rate(queue), legend="processed from {{messaging_destination_name}}"),
        ),
        chart(
            "Queue wait",
            "Time between sending a message and starting to process it: the longest 5 % by queue.",
            "s",
            Query(
                expr=of(metrics.QUEUE_WAIT).quantile(0.95, queue),
                legend="{{messaging_destination_name}}",
                exemplars=True,
            ),
        ),
        chart(
            "Message processing",
            "How long consumers work on a message.",
            "s",
            *percentiles(PROCESSING),
        ),
        chart(
            "Message errors",
            "Failed sends, receives and processing a second, by queue and type.",
            "ops",
            Query(
                expr=of(CALLS, FAILED).rate(queue, semconv.MESSAGING_OPERATION_NAME, semconv.ERROR_TYPE),
                legend="{{messaging_operation_name}} {{messaging_destination_name}} {{error_type}}",
            ),
            Query(
                expr=of(PROCESSING, FAILED).rate(queue, semconv.ERROR_TYPE),
                legend="process {{messaging_destination_name}} {{error_type}}",
            ),
        ),
        chart(
            "Messages rejected",
            "Messages a second whose envelope could not be read.",
            "ops",
            Query(
                expr=of(metrics.QUEUE_REJECTED).rate(queue, semconv.ERROR_TYPE),
                legend="{{messaging_destination_name}} {{error_type}}",
            ),
        ),
        chart(
            "Messages in progress",
            "By queue.",
            "short",
            Query(
                expr=of(active(operations.MESSAGE_PROCESS)).now(queue),
                legend="{{messaging_destination_name}}",
            ),
        ),
    ):
        dashboard.with_panel(panel)


def _jobs(dashboard: builders.Dashboard) -> None:
    job, status = "clew.job.name", "clew.job.status"
    dashboard.with_row(row("Jobs"))
    for panel in (
        chart(
            "Job runs",
            "Runs a second by job and how they ended.",
            "ops",
            Query(expr=of(JOBS).rate(job, status), legend="{{clew_job_name}} {{clew_job_status}}"),
        ),
        chart(
            "Failed job runs",
            "Runs a second that failed, by job and type of error.",
            "ops",
            Query(expr=of(JOBS, FAILED).rate(job, semconv.ERROR_TYPE), legend="{{clew_job_name}} {{error_type}}"),
        ),
        chart(
            "Job duration",
            "The longest 5 % by job.",
            "s",
            Query(expr=of(JOBS).quantile(0.95, job), legend="{{clew_job_name}}", exemplars=True),
        ),
        chart(
            "Job lateness",
            "Time between when a run was due and when it started: the latest 5 % by job.",
            "s",
            Query(expr=of(metrics.JOB_LATENESS).quantile(0.95, job), legend="{{clew_job_name}}", exemplars=True),
        ),
        chart(
            "Job misfires",
            "Runs in the chosen time that were due but not started.",
            "short",
            Query(
                expr=of(metrics.JOB_MISFIRES).growth(job, "clew.job.misfire.reason"),
                legend="{{clew_job_name}} {{clew_job_misfire_reason}}",
            ),
        ),
        chart(
            "Jobs running",
            "Runs in progress by job.",
            "short",
            Query(expr=of(active(operations.JOB)).now(job), legend="{{clew_job_name}}"),
        ),
    ):
        dashboard.with_panel(panel)


def _agents(dashboard: builders.Dashboard) -> None:
    agent, source, target = semconv.GEN_AI_AGENT_NAME, "clew.handoff.source", semconv.GEN_AI_TRANSFER_TARGET_NAME
    dashboard.with_row(row("Agents"))
    for panel in (
        chart(
            "Agent tasks",
            "Tasks a second by agent.",
            "ops",
            Query(expr=of(TASKS).rate(agent), legend="{{gen_ai_agent_name}}"),
        ),
        chart(
            "Agent task errors",
            "Failed tasks a second by agent and type.",
            "ops",
            Query(
                expr=of(TASKS, FAILED).rate(agent, semconv.ERROR_TYPE), legend="{{gen_ai_agent_name}} {{error_type}}"
            ),
        ),
        chart(
            "Agent task duration",
            "The longest 5 % by agent.",
            "s",
            Query(expr=of(TASKS).quantile(0.95, agent), legend="{{gen_ai_agent_name}}", exemplars=True),
        ),
        chart(
            "Handoffs",
            "Handoffs a second, from agent to agent.",
            "ops",
            Query(
                expr=of(HANDOFFS).rate(source, target),
                legend="{{clew_handoff_source}} to {{gen_ai_transfer_target_name}}",
            ),
        ),
        chart(
            "Handoff duration",
            "Until the task was passed on, or came back: the longest 5 %.",
            "s",
            Query(
                expr=of(HANDOFFS).quantile(0.95, source, target),
                legend="{{clew_handoff_source}} to {{gen_ai_transfer_target_name}}",
                exemplars=True,
            ),
        ),
        chart(
            "Agents at work",
            "Tasks in progress by agent.",
            "short",
            Query(expr=of(active(operations.AGENT_TASK)).now(agent), legend="{{gen_ai_agent_name}}"),
        ),
    ):
        dashboard.with_panel(panel)


def _llm(dashboard: builders.Dashboard) -> None:
    model, token = semconv.GEN_AI_REQUEST_MODEL, semconv.GEN_AI_TOKEN_TYPE
    dashboard.with_row(row("LLM calls"))
    for panel in (
        chart(
            "LLM call duration",
            "A dot is one call: click it for its trace.",
            "s",
            *percentiles(LLM),
            width=6,
        ),
        chart(
            "LLM calls by model",
            "Calls a second.",
            "ops",
            Query(expr=of(LLM).rate(model), legend="{{gen_ai_request_model}}"),
            width=6,
        ),
        chart(
            "LLM tokens",
            "Tokens a second by model and type.",
            "short",
            Query(
                expr=of(metrics.LLM_TOKENS).amount(model, token),
                legend="{{gen_ai_request_model}} {{gen_ai_token_type}}",
            ),
            width=6,
        ),
        chart(
            "LLM errors",
            "Failed calls a second by model and type.",
            "ops",
            Query(
                expr=of(LLM, FAILED).rate(model, semconv.ERROR_TYPE),
                legend="{{gen_ai_request_model}} {{error_type}}",
            ),
            width=6,
        ),
    ):
        dashboard.with_panel(panel)


def _logs(dashboard: builders.Dashboard) -> None:
    chosen = f'{{{SERVICE}}} | detected_level=~"$level" |= `$search`'
    dashboard.with_row(row("Logs"))
    dashboard.with_panel(
        log_chart(
            "Log lines by service and level",
            "Lines in each interval.",
            f"sum by (service_name, detected_level) (count_over_time({chosen} [$__interval]))",
            "{{service_name}} {{detected_level}}",
        )
    )
    dashboard.with_panel(
        log_lines("Log lines", "Open a line for its fields; trace_id has a link to the trace.", chosen)
    )


def _telemetry(dashboard: builders.Dashboard) -> None:
    signal, reason = "clew.signal", "clew.drop.reason"
    dashboard.with_row(row("Telemetry itself"))
    for panel in (
        chart(
            "Telemetry made and delivered",
            "Spans, log records and metric points a second, at the services.",
            "ops",
            Query(expr=of(metrics.TELEMETRY_EMITTED).rate(signal), legend="{{clew_signal}} made"),
            Query(expr=of(metrics.TELEMETRY_DELIVERED).rate(signal), legend="{{clew_signal}} delivered"),
        ),
        chart(
            "Telemetry lost at services",
            "Lost a second, by signal and reason.",
            "ops",
            Query(
                expr=of(metrics.TELEMETRY_DROPPED).rate(signal, reason),
                legend="{{clew_signal}} {{clew_drop_reason}}",
            ),
        ),
        chart(
            "Telemetry waiting at services",
            "In memory and in the spool; it grows while the Collector is down.",
            "short",
            Query(expr=of(metrics.TELEMETRY_PENDING).now(signal), legend="{{clew_signal}}"),
        ),
        chart(
            "Collector queues",
            "How full the queue to each backend is; it grows while that backend is down.",
            "percentunit",
            Query(
                expr=f"sum by (exporter) (otelcol_exporter_queue_size{{{COLLECTOR}}})"
                f" / sum by (exporter) (otelcol_exporter_queue_capacity{{{COLLECTOR}}})",
                legend="{{exporter}}",
            ),
        ),
        chart(
            "Collector accepts",
            "Items a second that the Collector took from the services.",
            "ops",
            *(
                Query(
                    expr=f"sum (rate(otelcol_receiver_accepted_{items}_total{{{COLLECTOR}}}[$__rate_interval]))",
                    legend=items.replace("_", " "),
                )
                for items in ("spans", "log_records", "metric_points")
            ),
        ),
        chart(
            "Collector refuses or loses",
            "Items a second: refused ones stay in the services' spools, failed ones are lost.",
            "ops",
            *(
                Query(
                    expr=f"sum (rate(otelcol_receiver_refused_{items}_total{{{COLLECTOR}}}[$__rate_interval]))",
                    legend=f"refused {items.replace('_', ' ')}",
                )
                for items in ("spans", "log_records", "metric_points")
            ),
            *(
                Query(
                    expr="sum by (exporter) "
                    f"(rate(otelcol_exporter_send_failed_{items}_total{{{COLLECTOR}}}[$__rate_interval]))",
                    legend=f"lost {items.replace('_', ' ')} at {{{{exporter}}}}",
                )
                for items in ("spans", "log_records", "metric_points")
            ),
        ),
    ):
        dashboard.with_panel(panel)
