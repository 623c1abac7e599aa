"""What dashboards are made of: PromQL over declared metrics, and panels in one style."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from grafana_foundation_sdk.builders import common, logs, loki, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common as models
from grafana_foundation_sdk.models import dashboard as dashboard_models

from clew.catalog.kind import Metric, OperationKind
from clew.engine.exposition import prometheus_name

PROMETHEUS: Final = dashboard_models.DataSourceRef(type_val="prometheus", uid="prometheus")
LOKI: Final = dashboard_models.DataSourceRef(type_val="loki", uid="loki")

SERVICE: Final = 'service_name=~"$service"'
"""The services chosen at the top of a dashboard, for metrics and logs alike."""

PERCENTILES: Final = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


# ---- PromQL from the catalogue


def label(metric: Metric, attribute: str) -> str:
    """Return an attribute's name as a Prometheus label.

    Raises:
        ValueError: the catalogue does not declare that label for the metric.
    """
    if attribute not in metric.labels:
        raise ValueError(f"{metric.name} has no label {attribute}: it has {', '.join(metric.labels)}")
    return re.sub(r"\W", "_", attribute)


def duration(kind: OperationKind) -> Metric:
    """Return the histogram of an operation's durations."""
    if kind.duration is None:
        raise ValueError(f"{kind.name} has no duration")
    return kind.duration


def active(kind: OperationKind) -> Metric:
    """Return the up-down counter of an operation's runs in progress."""
    if kind.active is None:
        raise ValueError(f"{kind.name} has no up-down counter of runs in progress")
    return kind.active


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A metric's series of the chosen services, narrowed by matchers of its labels."""

    metric: Metric
    where: tuple[tuple[str, str], ...] = ()
    """Pairs of an attribute and the rest of its matcher, such as ``("error.type", '!=""')``."""

    def series(self, part: Literal["", "bucket", "count", "sum"] = "") -> str:
        """Return the selector of the series, or of one part of a histogram."""
        if (self.metric.type == "histogram") != bool(part):
            raise ValueError(f"{self.metric.name} is a {self.metric.type}")
        name = prometheus_name(self.metric.name, self.metric.unit, monotonic=self.metric.type == "counter")
        matchers = ", ".join([SERVICE, *(f"{label(self.metric, key)}{rest}" for key, rest in self.where)])
        return f"{name}{f'_{part}' if part else ''}{{{matchers}}}"

    def _by(self, attributes: Sequence[str]) -> str:
        return f" by ({', '.join(label(self.metric, key) for key in attributes)})" if attributes else ""

    @property
    def _counting(self) -> Literal["", "count"]:
        return "count" if self.metric.type == "histogram" else ""

    def rate(self, *by: str) -> str:
        """Return how many a second: of events for a counter, of operations for a histogram."""
        return f"sum{self._by(by)} (rate({self.series(self._counting)}[$__rate_interval]))"

    def growth(self, *by: str) -> str:
        """Return how many there were in the chosen time; zero when there were none."""
        # increase() does not see a series begin, so it misses the first failure: what is new counts from nothing
        series = self.series(self._counting)
        new = f"max_over_time({series}[$__range]) unless {series} offset $__range"
        total = f"sum{self._by(by)} (({new}) or increase({series}[$__range]))"
        return total if by else f"{total} or vector(0)"

    def amount(self, *by: str) -> str:
        """Return how much a histogram's values add up to a second, such as tokens."""
        return f"sum{self._by(by)} (rate({self.series('sum')}[$__rate_interval]))"

    def now(self, *by: str) -> str:
        """Return the value of a gauge or an up-down counter."""
        return f"sum{self._by(by)} ({self.series()})"

    def quantile(self, q: float, *by: str) -> str:
        """Return a percentile of a histogram."""
        labels = ", ".join(["le", *(label(self.metric, key) for key in by)])
        return f"histogram_quantile({q:g}, sum by ({labels}) (rate({self.series('bucket')}[$__rate_interval])))"


def of(metric: Metric, *where: tuple[str, str]) -> Selected:
    """Return a metric's series of the chosen services."""
    return Selected(metric=metric, where=where)


def ratio(part: str, whole: str) -> str:
    """Return one query's share of another: zero when there is none of the part, nothing when there is no whole."""
    return f"({part} or vector(0)) / ({whole} > 0)"


# ---- panels


@dataclass(frozen=True, kw_only=True)
class Query:
    """One PromQL query of a panel.

    Attributes:
        expr: the query.
        legend: what its series are called; ``{{label}}`` is replaced.
        exemplars: show the exemplars of the series, each a click away from its trace.
    """

    expr: str
    legend: str = ""
    exemplars: bool = False


def percentiles(metric: Metric) -> tuple[Query, ...]:
    """Return the usual percentiles of a histogram, with the exemplars of its series (those are the same for all three)."""
    return tuple(Query(expr=of(metric).quantile(q), legend=name, exemplars=name == "p95") for q, name in PERCENTILES)


def row(title: str) -> builders.Row:
    """Return the heading of a group of panels."""
    return builders.Row(title)


def chart(title: str, description: str, unit: str, *queries: Query, width: int = 8) -> timeseries.Panel:
    """Return a panel of lines over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .unit(unit)
        .min(0)
        .span(width)
        .height(8)
        .line_width(1)
        .fill_opacity(10)
        .show_points(models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(models.LegendDisplayMode.LIST)
            .placement(models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(models.TooltipDisplayMode.MULTI).sort(models.SortOrder.DESCENDING))
    )
    for reference, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_target(query, reference).range())
    return panel


def number(title: str, description: str, unit: str, query: str, *, bad_above: float | None = None) -> stat.Panel:
    """Return a panel of one number, red above ``bad_above``."""
    steps = [dashboard_models.Threshold(value=None, color="text" if bad_above is None else "green")]
    if bad_above is not None:
        steps.append(dashboard_models.Threshold(value=bad_above, color="red"))
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .unit(unit)
        .no_value("-")
        .span(4)
        .height(4)
        .graph_mode(models.BigValueGraphMode.NONE)
        .color_mode(models.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(builders.ThresholdsConfig().mode(dashboard_models.ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(_target(Query(expr=query), "A").instant())
    )


def log_chart(title: str, description: str, expr: str, legend: str, *, width: int = 8) -> timeseries.Panel:
    """Return a panel that counts log lines over time, as stacked bars."""
    return (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(LOKI)
        .unit("short")
        .min(0)
        .span(width)
        .height(10)
        .draw_style(models.GraphDrawStyle.BARS)
        .fill_opacity(60)
        .stacking(common.StackingConfig().mode(models.StackingMode.NORMAL).group("A"))
        .with_target(loki.Dataquery().expr(expr).legend_format(legend).query_type("range").ref_id("A").datasource(LOKI))
    )


def log_lines(title: str, description: str, expr: str, *, width: int = 16) -> logs.Panel:
    """Return a panel of log lines; opening one shows its fields and the link to its trace."""
    return (
        logs.Panel()
        .title(title)
        .description(description)
        .datasource(LOKI)
        .span(width)
        .height(10)
        .show_time(True)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(models.LogsSortOrder.DESCENDING)
        .dedup_strategy(models.LogsDedupStrategy.NONE)
        .with_target(loki.Dataquery().expr(expr).query_type("range").max_lines(500).ref_id("A").datasource(LOKI))
    )


def _target(query: Query, reference: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(reference).datasource(PROMETHEUS)
    if query.legend:
        target.legend_format(query.legend)
    if query.exemplars:
        target.exemplar(True)
    return target
