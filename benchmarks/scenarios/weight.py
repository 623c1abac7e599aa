"""What it costs to have at all: the time of its import, the size of what is installed."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Final

from benchmarks.environments import ROOT, Environment, NotInstalledError, say
from benchmarks.measure import Plan, Summary
from benchmarks.table import Cell, Result, Table

MINUTES: Final = 1.5

# What a service imports to set it up
IMPORTS: Final = (
    ("FastAPI", "bare", "import fastapi"),
    ("clew", "clew", "import clew"),
    (
        "OpenTelemetry SDK, OTLP/HTTP, FastAPI instrumentor",
        "otel",
        (
            "import opentelemetry.sdk.trace, opentelemetry.sdk.metrics, opentelemetry.sdk._logs; "
            "import opentelemetry.exporter.otlp.proto.http.trace_exporter, "
            "opentelemetry.exporter.otlp.proto.http.metric_exporter, opentelemetry.exporter.otlp.proto.http._log_exporter; "
            "import opentelemetry.instrumentation.fastapi"
        ),
    ),
    (
        "OpenTelemetry SDK, OTLP/gRPC, FastAPI instrumentor",
        "otel",
        (
            "import opentelemetry.sdk.trace, opentelemetry.sdk.metrics, opentelemetry.sdk._logs; "
            "import opentelemetry.exporter.otlp.proto.grpc.trace_exporter, "
            "opentelemetry.exporter.otlp.proto.grpc.metric_exporter, opentelemetry.exporter.otlp.proto.grpc._log_exporter; "
            "import opentelemetry.instrumentation.fastapi"
        ),
    ),
    ("logfire", "logfire", "import logfire"),
    ("fastotel, OpenTelemetry SDK", "fastotel", "import fastotel"),
    ("prometheus-fastapi-instrumentator", "prometheus", "import prometheus_fastapi_instrumentator"),
    ("sentry-sdk", "sentry", "import sentry_sdk"),
    ("ddtrace", "ddtrace", "import ddtrace; ddtrace.patch(fastapi=True, starlette=True)"),
    ("elastic-apm", "elasticapm", "import elasticapm.contrib.starlette"),
)


def run(plan: Plan) -> Result:
    """Time the imports in turn, each in a fresh process, and add up the files."""
    rounds = plan.times(9)
    environments: dict[str, Environment] = {"bare": plan.environments.get("bare")}
    missing: dict[str, str] = {}
    for _, name, _ in IMPORTS:
        try:
            environments[name] = plan.environments.get(name)
        except NotInstalledError as error:
            say(str(error))
            missing[name] = str(error)
    times: dict[str, list[float]] = {title: [] for title, *_ in IMPORTS}
    nothing: list[float] = []
    for number in range(rounds + 1):
        for title, name, statement in (("", "bare", "pass"), *IMPORTS):
            if name not in environments:
                continue
            took_s = _import_s(environments[name], statement)
            if number:
                (times[title] if title else nothing).append(took_s * 1e3)
    base = Summary.of(nothing)
    bare_bytes = _size_bytes(environments["bare"])
    rows: list[list[Cell]] = []
    for title, name, _ in IMPORTS:
        if name not in environments:
            rows.append([f"{title}: {missing[name]}", None, None, None])
            continue
        summary = Summary.of(times[title])
        added = None if name == "bare" else (_size_bytes(environments[name]) - bare_bytes) / 1e6
        rows.append([title, summary.minimum - base.minimum, summary.median - base.median, added])
    table = Table(
        title="Import in a fresh process, and size on disk",
        headings=["what is imported", "ms, minimum", "ms, median", "MB added to FastAPI's"],
        rows=rows,
        notes=[
            (
                "Wall time less that of a Python that imports nothing. Instrumentations of FastAPI import FastAPI, whose own "
                "time is the first row; clew and others do so only when they are given an app."
            ),
            (
                "Sizes are of the site-packages folders without byte code; clew's has its own source in it. Both rows of the "
                "OpenTelemetry SDK are of one environment, which has HTTP and gRPC."
            ),
        ],
    )
    return Result(scenario="weight", tables=[table], settings=f"{rounds} rounds")


def _import_s(environment: Environment, statement: str) -> float:
    started = time.perf_counter()
    subprocess.run(
        [str(environment.python), "-c", statement],
        check=True,
        cwd=ROOT / "docs",
        env={**os.environ, "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false", "DD_TRACE_ENABLED": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def _size_bytes(environment: Environment) -> int:
    folders = [environment.packages]
    if environment.name == "clew":
        folders.append(ROOT / "src" / "clew")
    return sum(_folder_bytes(folder) for folder in folders)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
