"""Write docs/reference/ from the code: the settings, every name that clew emits, and what is answered over HTTP. ``--check`` says what has drifted."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI

import clew
from clew.catalog.kind import Metric, OperationKind
from clew.catalog.metrics import METRICS
from clew.catalog.operations import OPERATIONS
from clew.engine.exposition import prometheus_name
from clew.settings import SIGNALS, Settings, SignalSettings, variable

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTE = "<!-- Written by tools/reference.py from the code. Change it there. -->\n"


def settings_page() -> str:
    """Return the page of the settings."""
    rows = []
    for name, field in Settings.model_fields.items():
        if name in SIGNALS:
            continue
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, "", (), {}) else f"`{str(default).lower() if default is not None else ''}`"
        rows.append((f"`{variable(name)}`", f"`{name}`", shown, (field.description or "").replace("``", "`")))
    own = [
        (f"`{variable(f'traces.{name}')}`", f'`traces={{"{name}": ...}}`', (field.description or "").replace("``", "`"))
        for name, field in SignalSettings.model_fields.items()
    ]
    return (
        f"{NOTE}# Settings\n\n"
        "Every setting is an environment variable; `clew.configure()` takes it by its name in code, which wins. "
        "A value that can't be used is named in the log together with what is allowed, and the default is used; "
        "`clew doctor` and `clew run` refuse it. Variables that end in milliseconds in the OpenTelemetry specification do so here; "
        "names in code end in `_s` and count seconds.\n\n"
        + _table(("variable", "in code", "default", "what it does"), rows)
        + "\n## For one signal alone\n\n"
        "What is set here wins over what is set for all; metrics and logs have the same, `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` and so on.\n\n"
        + _table(("variable", "in code", "what it does"), own)
    )


def telemetry_page() -> str:
    """Return the page of the names."""
    return f"{NOTE}# Telemetry\n\n" + "".join(_telemetry())


def _telemetry() -> Iterator[str]:
    yield (
        "Every name that clew emits. Names of a standard are the standard's "
        "(OpenTelemetry semantic conventions); clew's own start with `clew.`. "
        "Every span and log record carries the correlation id (`clew.correlation.id`, `correlation_id`).\n\n"
        "## Operations\n\nA span, metrics and log events are derived from each kind of operation.\n\n"
    )
    yield _table(
        ("operation", "span", "kind", "metrics", "log events"),
        [
            (
                f"**{kind.name}**<br>{kind.description}",
                f"`{kind.span_name}`",
                kind.role.value,
                "<br>".join(f"`{metric.name}`" for metric in _metrics_of(kind)),
                "<br>".join(f"`{event}`" for event in dict.fromkeys(_events(kind))),
            )
            for kind in OPERATIONS
        ],
    )
    yield "\n## Metrics\n\n"
    metrics = [metric for kind in OPERATIONS for metric in _metrics_of(kind)] + list(METRICS)
    yield _table(
        ("metric", "in Prometheus", "type", "unit", "labels", "what it measures"),
        [
            (
                f"`{metric.name}`",
                f"`{prometheus_name(metric.name, metric.unit, monotonic=metric.type == 'counter')}`",
                metric.type.replace("_", "-"),
                f"`{metric.unit}`",
                "<br>".join(f"`{label}`" for label in metric.labels),
                metric.description,
            )
            for metric in sorted(metrics, key=lambda metric: metric.name)
        ],
    )


def _metrics_of(kind: OperationKind) -> list[Metric]:
    return [metric for metric in (kind.duration, kind.active) if metric is not None]


def _events(kind: OperationKind) -> Iterable[str]:
    events = (kind.events.start, kind.events.end, kind.events.error, *kind.events.others)
    return [event for event in events if event is not None]


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def http_page() -> str:
    """Return the page of the routes, from what they say of themselves in OpenAPI."""
    return f"{NOTE}# HTTP\n\n" + "".join(_http())


def _http() -> Iterator[str]:
    app = FastAPI()
    app.include_router(clew.jobs_router())
    app.include_router(clew.llm_router())
    app.include_router(clew.health_router())
    document = app.openapi()
    schemas = document["components"]["schemas"]
    yield (
        "What `clew.jobs_router()`, `clew.llm_router()` and `clew.health_router()` add to an app of FastAPI; the app's own `/openapi.json` has it as well. "
        'Times are ISO 8601 in UTC, durations are seconds. What goes wrong is answered as `{"detail": ...}`: a sentence, or with 422 a '
        "list that names each field and what is allowed.\n"
    )
    answers: list[str] = []
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield f"\n## `{verb.upper()} {path}`\n\n{operation['summary']}.\n"
            codes = [
                (f"`{code}`", answer["description"].rstrip("."), _answered(answer, answers))
                for code, answer in sorted(operation["responses"].items())
            ]
            if parameters := operation.get("parameters"):
                rows = [
                    (f"`{one['name']}`", one["in"], _kind(one["schema"]), one.get("description", ""))
                    for one in parameters
                ]
                yield "\n" + _table(("parameter", "in", "type", "meaning"), rows)
            yield "\n" + _table(("status", "when", "answer"), codes)
    yield "\n## Answers\n"
    # Those that answers are made of follow them
    for name in answers:
        fields = [
            (f"`{field}`", _kind(schema, answers), schema.get("description", ""))
            for field, schema in schemas[name].get("properties", {}).items()
        ]
        yield f"\n### {name}\n\n{schemas[name].get('description', '')}\n\n" + _table(
            ("field", "type", "meaning"), fields
        )


def _answered(answer: dict[str, Any], answers: list[str]) -> str:
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return _kind(schema, answers) if schema else ""


def _kind(schema: dict[str, Any], answers: list[str] | None = None) -> str:
    """Return a type in words, and note the answers that it is made of."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if answers is not None and name not in answers:
            answers.append(name)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_kind(part, answers) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}), answers)}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'], answers)}"
    default = schema.get("default")
    shown = f", by default {default}" if default is not None else ""
    kind: str = "time" if schema.get("format") == "date-time" else schema.get("type", "anything")
    return kind + shown


PAGES = {"settings.md": settings_page, "telemetry.md": telemetry_page, "http.md": http_page}


def drifted() -> list[str]:
    """Return the pages that no longer say what the code says."""
    return [
        name
        for name, page in PAGES.items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text(encoding="utf-8") != page()
    ]


def main() -> None:
    """Write the pages, or check them."""
    if "--check" in sys.argv[1:]:
        if names := drifted():
            sys.exit(f"docs/reference: {', '.join(names)} drifted from the code: run python tools/reference.py.")
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        print(f"docs/reference/{name} written")


if __name__ == "__main__":
    main()
