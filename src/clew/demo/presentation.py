"""What the demo shows on the terminal: a trace as a tree, its log lines, and the metrics. Fits 80 columns, and uses more."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clew.demo.records import Run
from clew.demo.scenario import ScenarioResult
from clew.demo.telemetry import LogLine, Series, Span

_WIDE: Final = 116
_COLOURS: Final = ("cyan", "green", "magenta", "yellow", "blue", "bright_red", "bright_cyan", "bright_green")
_SEVERITY_STYLES: Final = {"ERROR": "bold red", "FATAL": "bold red", "WARN": "yellow", "DEBUG": "dim"}
_STATUS_STYLES: Final = {"completed": "green", "failed": "bold red", "lost": "bold red", "running": "cyan"}
_OWN_TELEMETRY: Final = "clew.telemetry."
# Fields of a log line that the tree, or the next column, already shows
_HIDDEN_FIELDS: Final = frozenset(
    """
    code.file.path code.line.number code.function.name correlation_id clew.correlation.id duration_s url.scheme
    network.protocol.version network.protocol.name client.address server.address server.port user_agent.original
    gen_ai.operation.name gen_ai.tool.name gen_ai.transfer.mode clew.agent.type messaging.system messaging.operation.name
    messaging.operation.type messaging.consumer.group.name messaging.message.id clew.job.id
    """.split()  # noqa: SIM905 - a list that reads as one
)


class Palette:
    """Gives each service a colour of its own, the same everywhere."""

    def __init__(self) -> None:
        self._styles: dict[str, str] = {}

    def service(self, name: str) -> Text:
        """Return a service's name in its colour."""
        style = self._styles.setdefault(name, _COLOURS[len(self._styles) % len(_COLOURS)])
        return Text(name, style=style)


def trace_tree(spans: Sequence[Span], palette: Palette, *, width: int) -> RenderableType:
    """Return a trace as a tree with times.

    Args:
        spans: depth first.
        palette: the services' colours.
        width: columns of the terminal.
    """
    wide = width >= _WIDE
    names = {(span.seen.trace_id, span.seen.span_id): span.seen.name for span in spans}
    table = Table(
        box=None, pad_edge=False, padding=(0, 1 if not wide else 2, 0, 0), show_header=True, header_style="dim"
    )
    table.add_column("span", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("service", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("at ms", justify="right", no_wrap=True)
    table.add_column("took ms", justify="right", no_wrap=True)
    for guide, span in zip(_guides(spans, wide=wide), spans, strict=True):
        failed = span.status == "error"
        name = Text.assemble((guide, "dim"), (span.seen.name, "bold red" if failed else ""))
        for link in span.seen.links:
            target = names.get(link)
            where = f"'{target}'" if target is not None else f"trace {link[0][:8]}"
            name.append(f" ⇠ {where}" if wide else " ⇠", style="blue")
        table.add_row(
            name,
            palette.service(span.seen.service),
            Text(span.kind if span.kind != "internal" else "", style="dim"),
            _milliseconds(span.offset_s),
            _milliseconds(span.duration_s),
        )
    table.expand = True
    return table


def log_table(lines: Sequence[LogLine], palette: Palette) -> RenderableType:
    """Return the log lines of a trace.

    Args:
        lines: oldest first.
        palette: the services' colours.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=True, header_style="dim")
    table.add_column("at ms", justify="right", no_wrap=True)
    table.add_column("service", no_wrap=True)
    table.add_column("event and its fields", no_wrap=True, overflow="ellipsis", ratio=1)
    for line in lines:
        text = Text(line.body, style=_SEVERITY_STYLES.get(line.severity, ""))
        if line.severity != "INFO":
            text = Text.assemble(f"{line.severity.lower()}: ", text)
        text.append(f"  {_fields(line.attributes)}", style="dim")
        table.add_row(_milliseconds(line.offset_s), palette.service(line.service), text)
    return table


def job_table(runs: Sequence[tuple[Run, int]], palette: Palette) -> RenderableType:
    """Return the last run of each job.

    Args:
        runs: with how many there were of the same status.
        palette: the services' colours.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=True, header_style="dim")
    table.add_column("job", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("service", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for heading in ("runs", "late ms", "took ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("trace", no_wrap=True)
    for run, count in runs:
        table.add_row(
            run.job,
            palette.service(run.service),
            Text(run.status, style=_STATUS_STYLES.get(run.status, "")),
            f"{count:,}",
            _milliseconds(run.lateness_s) if run.lateness_s is not None else "",
            _milliseconds(run.duration_s) if run.duration_s is not None else "",
            Text((run.trace_id or "")[:8], style="dim"),
        )
    return table


def metric_table(series: Sequence[Series], palette: Palette, *, width: int) -> RenderableType:
    """Return the metrics, a line for each series, with units.

    Args:
        series: sorted by name.
        palette: the services' colours.
        width: columns of the terminal.
    """
    wide = width >= _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=True, header_style="dim")
    table.add_column(Text("metric [unit], service and labels"), no_wrap=True, overflow="ellipsis", ratio=1)
    for heading in ("value", "p50", "p95", "p99"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=12 if wide else 8)
    by_metric = itertools.groupby(over_all_services(series), key=lambda item: (item.name, item.unit))
    for (name, unit), group in by_metric:
        items = list(group)
        table.add_row(Text.assemble((name, "bold"), (f" [{unit or '1'}]", "dim")))
        varying = _varying_labels(items)
        for item in items:
            title = Text.assemble(
                "  ", palette.service(item.service), " ", (_labels(item.labels, varying, wide=wide), "dim")
            )
            if item.value is None:
                percentiles = [amount(value, item.unit) for value in item.percentiles] or ["", "", ""]
                table.add_row(title, f"n={item.count:,}", *percentiles)
            else:
                table.add_row(title, amount(item.value, item.unit))
    return table


def over_all_services(series: Sequence[Series]) -> list[Series]:
    """Sum up what each service says of its own telemetry: nobody reads that five times over.

    Args:
        series: sorted by name.
    """
    kept = [item for item in series if not item.name.startswith(_OWN_TELEMETRY)]
    totals: dict[tuple[str, str, tuple[tuple[str, Any], ...]], float] = {}
    services = set()
    for item in series:
        if item.name.startswith(_OWN_TELEMETRY):
            key = (item.name, item.unit, tuple(sorted(item.labels.items())))
            totals[key] = totals.get(key, 0) + (item.value or 0)
            services.add(item.service)
    kept += [
        Series(service=f"all {len(services)} services", name=name, unit=unit, labels=dict(labels), value=total)
        for (name, unit, labels), total in totals.items()
    ]
    return sorted(kept, key=lambda item: item.name)


def outcome(result: ScenarioResult) -> RenderableType:
    """Return what became of a scenario, in a few lines.

    Args:
        result: of the scenario.
    """
    lines = [
        f"{len(result.documents)} documents read in {result.duration_s:.1f} s; the export has {result.exported_documents}.",
        f"Topics: {', '.join(result.topics)}",
        *(
            f"Refused, as it must be: {refusal.what} ({refusal.status}: {refusal.message})"
            for refusal in result.refusals
        ),
    ]
    return Group(*(Text(line) for line in lines))


def amount(value: float, unit: str) -> str:
    """Return a number with its unit, in the size that a person would say it in.

    Args:
        value: the number.
        unit: its UCUM unit.

    Example:
        >>> amount(0.0123, "s"), amount(2048, "By"), amount(3, "{document}"), amount(0.5, "1")
        ('12.3 ms', '2.0 KiB', '3', '0.5')
    """
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "By":
        for size, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if abs(value) >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.0f} B"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _guides(spans: Sequence[Span], *, wide: bool) -> list[str]:
    """Return the lines of the tree to the left of each span."""
    last = _is_last(spans)
    pipe, blank, tee, corner = ("│  ", "   ", "├─ ", "└─ ") if wide else ("│", " ", "├", "└")
    guides, trunk = [], list[str]()
    for span, is_last in zip(spans, last, strict=True):
        del trunk[max(0, span.depth - 1) :]
        guides.append("".join(trunk) + ((corner if is_last else tee) if span.depth else ""))
        if span.depth:
            trunk.append(blank if is_last else pipe)
    return guides


def _is_last(spans: Sequence[Span]) -> list[bool]:
    """Tell for each span whether no sibling comes after it."""
    last = [True] * len(spans)
    open_depths: set[int] = set()
    for index in range(len(spans) - 1, -1, -1):
        depth = spans[index].depth
        last[index] = depth not in open_depths
        open_depths = {other for other in open_depths if other < depth} | {depth}
    return last


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}"


def _fields(attributes: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in attributes.items() if key not in _HIDDEN_FIELDS}
    return " ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in shown.items())


def _varying_labels(series: Sequence[Series]) -> list[str]:
    """Return the labels that tell series apart; all of them where there is but one series."""
    keys = sorted({key for item in series for key in item.labels})
    return [key for key in keys if len(series) == 1 or len({str(item.labels.get(key)) for item in series}) > 1]


def _labels(labels: Mapping[str, Any], shown: Sequence[str], *, wide: bool) -> str:
    given = [key for key in shown if labels.get(key) not in (None, "")]
    return " ".join(f"{_short_key(key, shown)}={labels[key]}" if wide else str(labels[key]) for key in given)


def _short_key(key: str, keys: Iterable[str]) -> str:
    """Return the last word of a key, or the last two where two keys end in the same word."""
    words = key.split(".")
    ambiguous = sum(other.rpartition(".")[2] == words[-1] for other in keys) > 1
    return ".".join(words[-2:] if ambiguous else words[-1:])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(text.split())
