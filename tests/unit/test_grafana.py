"""Grafana cannot be run where tests run: its files are checked for what would break, and its queries by Prometheus's own parser."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from clew.catalog import metrics, operations, semconv
from clew.engine.exposition import prometheus_name
from tools.backends import program_path
from tools.dashboards import SUBSTITUTES, panels, queries, substituted
from tools.dashboards.__main__ import outdated
from tools.dashboards.parts import of

ROOT = Path(__file__).resolve().parents[2]
PROVISIONING = ROOT / "grafana" / "provisioning"
SOURCES: dict[str, dict[str, Any]] = {
    source["uid"]: source
    for source in yaml.safe_load((PROVISIONING / "datasources" / "datasources.yaml").read_text())["datasources"]
}
DASHBOARDS = {path.name: json.loads(path.read_text()) for path in (ROOT / "grafana" / "dashboards").glob("*.json")}
QUERIES = queries()

# Emitted by other programs than clew: the Collector's own metrics
FOREIGN = {
    "otelcol_exporter_queue_size",
    "otelcol_exporter_queue_capacity",
    *(
        f"otelcol_{what}_{items}_total"
        for what in ("receiver_accepted", "receiver_refused", "exporter_send_failed")
        for items in ("spans", "log_records", "metric_points")
    ),
}


def each_dashboard(test: Any) -> Any:
    return pytest.mark.parametrize("name", sorted(DASHBOARDS))(test)


def filled_in(value: Any) -> Any:
    """What Grafana makes of a provisioning file: ``$$`` is a dollar sign."""
    return json.loads(json.dumps(value).replace("$$", "$"))


def promql() -> list[str]:
    return [query.expr for query in QUERIES if query.datasource == "prometheus"]


def metric_names(expr: str) -> set[str]:
    return set(re.findall(r"([a-zA-Z_:][\w:]*)\{", expr))


def declared_names() -> set[str]:
    declared = [
        *metrics.METRICS,
        *(metric for kind in operations.OPERATIONS for metric in (kind.duration, kind.active) if metric is not None),
    ]
    names = set()
    for metric in declared:
        name = prometheus_name(metric.name, metric.unit, monotonic=metric.type == "counter")
        names |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if metric.type == "histogram" else {name}
    return names


# ---- data sources


def test_the_three_backends_are_data_sources_with_fixed_ids():
    assert {uid: source["type"] for uid, source in SOURCES.items()} == {
        "prometheus": "prometheus",
        "loki": "loki",
        "jaeger": "jaeger",
    }
    assert [uid for uid, source in SOURCES.items() if source.get("isDefault")] == ["prometheus"]


def test_an_exemplar_opens_its_trace():
    (link,) = SOURCES["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (link["name"], link["datasourceUid"]) == ("trace_id", "jaeger")


def test_a_log_line_opens_its_trace():
    (field,) = filled_in(SOURCES["loki"]["jsonData"]["derivedFields"])
    assert (field["matcherType"], field["matcherRegex"]) == ("label", "trace_id")
    assert (field["url"], field["datasourceUid"]) == ("${__value.raw}", "jaeger")


def test_a_span_opens_the_log_lines_of_its_trace():
    link = filled_in(SOURCES["jaeger"]["jsonData"]["tracesToLogsV2"])
    assert link["datasourceUid"] == "loki"
    assert link["customQuery"] is True
    assert link["query"] == '{service_name=~".+"} | trace_id = "${__trace.traceId}"'


def test_a_span_opens_the_metrics_of_its_operation():
    link = filled_in(SOURCES["jaeger"]["jsonData"]["tracesToMetrics"])
    assert link["datasourceUid"] == "prometheus"
    names = {name for query in link["queries"] for name in metric_names(query["query"])}
    assert names == {"traces_span_metrics_calls_total", "traces_span_metrics_duration_seconds_bucket"}
    assert all('span_name="${__span.name}"' in query["query"] for query in link["queries"])


def test_the_data_sources_hold_no_secret_and_no_address():
    for source in SOURCES.values():
        assert re.fullmatch(r"\$[A-Z]+_URL", source["url"])
        assert not source.keys() & {"secureJsonData", "basicAuth", "password"}


def test_dashboards_are_read_from_where_compose_mounts_them():
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "dashboards.yaml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounted = {mount["target"]: mount["source"] for mount in compose["services"]["grafana"]["volumes"]}
    assert mounted[provider["options"]["path"]] == "./grafana/dashboards"
    assert mounted["/etc/grafana/provisioning"] == "./grafana/provisioning"


# ---- dashboards


def test_the_committed_dashboards_are_what_the_code_makes():
    assert outdated() == [], "run 'python -m tools.dashboards write'"


def test_check_says_what_to_do(tmp_path):
    asked = subprocess.run(
        [sys.executable, "-m", "tools.dashboards", "check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (asked.returncode, asked.stderr) == (0, "")
    wrong = subprocess.run(
        [sys.executable, "-m", "tools.dashboards"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert "say write or check" in wrong.stderr


@each_dashboard
def test_panels_are_complete(name):
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"]
    assert dashboard["editable"] is False
    for panel in panels(dashboard):
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]


@each_dashboard
def test_panels_can_be_told_apart_and_do_not_overlap(name):
    shown = list(DASHBOARDS[name]["panels"])
    for key in ("id", "title"):
        values = [panel[key] for panel in shown]
        assert len(set(values)) == len(values), key
    for one, other in itertools.combinations([panel["gridPos"] for panel in shown], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in shown)


@each_dashboard
def test_panels_and_variables_use_data_sources_that_exist(name):
    dashboard = DASHBOARDS[name]
    users = [
        *panels(dashboard),
        *(target for panel in panels(dashboard) for target in panel["targets"]),
        *(one for one in dashboard["templating"]["list"] if one["type"] == "query"),
    ]
    for user in users:
        source = user["datasource"]
        assert SOURCES[source["uid"]]["type"] == source["type"]


@each_dashboard
def test_every_variable_of_a_query_is_declared(name):
    dashboard = DASHBOARDS[name]
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = {
        match
        for panel in panels(dashboard)
        for target in panel["targets"]
        for match in re.findall(r"\$\{?(\w+)", target["expr"])
    }
    assert {variable for variable in used if not variable.startswith("__")} == declared
    assert declared <= SUBSTITUTES.keys()


def test_the_overview_shows_every_kind_of_work():
    rows = [panel["title"] for panel in DASHBOARDS["overview.json"]["panels"] if panel["type"] == "row"]
    assert rows == ["HTTP", "Queues", "Jobs", "Agents", "LLM calls", "Logs", "Telemetry itself"]


def test_the_overview_shows_exemplars_of_durations():
    titles = {query.panel for query in QUERIES if query.exemplars}
    assert {
        "Request duration",
        "Message processing",
        "Job duration",
        "Agent task duration",
        "LLM call duration",
    } <= titles


# ---- queries


def test_queries_have_every_variable_filled_in():
    assert len(QUERIES) > 40
    assert not [query for query in QUERIES if "$" in query.expr]
    with pytest.raises(KeyError, match="stranger"):
        substituted("up{a=~'$stranger'}")


def test_metric_names_are_declared_ones():
    used = {name for expr in promql() for name in metric_names(expr)}
    assert used <= declared_names() | FOREIGN
    assert used >= FOREIGN, "a name in the list of foreign ones that no query uses"


def test_the_service_variable_asks_for_a_declared_metric():
    (variable,) = (one for one in DASHBOARDS["overview.json"]["templating"]["list"] if one["name"] == "service")
    name = re.fullmatch(r"label_values\((\w+), service_name\)", variable["query"])[1]  # type: ignore[index]
    assert name in declared_names()


def test_a_renamed_metric_changes_the_query():
    before = of(metrics.JOB_MISFIRES).rate()
    assert of(replace(metrics.JOB_MISFIRES, name="clew.job.missed")).rate() != before


def test_a_label_that_the_catalogue_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"clew\.job\.misfires has no label http\.route"):
        of(metrics.JOB_MISFIRES).rate(semconv.HTTP_ROUTE)


def test_a_part_that_the_metric_does_not_have_is_refused():
    with pytest.raises(ValueError, match="is a counter"):
        of(metrics.JOB_MISFIRES).quantile(0.5)


def test_prometheus_can_read_every_query():
    if (promtool := program_path("promtool")) is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is not built: run 'python tools/backends.py build prometheus'")
        pytest.skip("promtool is not built: 'make backends' builds it")
    links = filled_in(SOURCES["jaeger"]["jsonData"]["tracesToMetrics"]["queries"])
    for expr in [*promql(), *(link["query"] for link in links)]:
        asked = subprocess.run(
            [str(promtool), "--experimental", "promql", "format", expr], capture_output=True, text=True, check=False
        )
        assert asked.returncode == 0, f"{expr}: {asked.stderr}"
