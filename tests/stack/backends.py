"""The real backends as processes of a test: start, stop, kill and query them.

``running_stack`` starts the built programs with the committed configuration files, unmodified; ports and folders come
from the environment variables that those files name. Nothing outlives the process that runs the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

ROOT = Path(__file__).resolve().parents[2]
ALL = ("prometheus", "loki", "jaeger", "collector")
READY_WITHIN_S = 60.0
STOPPED_WITHIN_S = 20.0
POLL_S = 0.05
HOST = "127.0.0.1"
PORTS = (
    "OTELCOL_GRPC_PORT",
    "OTELCOL_HTTP_PORT",
    "OTELCOL_HEALTH_PORT",
    "OTELCOL_METRICS_PORT",
    "PROMETHEUS_PORT",
    "LOKI_HTTP_PORT",
    "LOKI_GRPC_PORT",
    "JAEGER_OTLP_GRPC_PORT",
    "JAEGER_OTLP_HTTP_PORT",
    "JAEGER_QUERY_PORT",
    "JAEGER_QUERY_GRPC_PORT",
    "JAEGER_HEALTH_PORT",
    "JAEGER_METRICS_PORT",
)
"""Every port that a configuration file reads from the environment, and Prometheus's, which is a flag."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

T = TypeVar("T")


class BackendDidNotStartError(AssertionError):
    """A backend did not come up; the text ends with the tail of its log."""


def program(name: str) -> Path:
    """Return the path of a built program."""
    asked = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "backends.py"), "path", name], capture_output=True, text=True, check=False
    )
    if asked.returncode != 0:
        raise BackendDidNotStartError(asked.stderr.strip())
    return Path(asked.stdout.strip())


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nothing listens on, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(kw_only=True)
class _Backend:
    """How one backend is started, and its running process."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    ready_url: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def tail(self, lines: int = 25) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def launch(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder), **self.environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def await_ready(self, deadline: float) -> None:
        answer = "nothing"
        while time.monotonic() < deadline:
            assert self.process is not None
            if (status := self.process.poll()) is not None:
                raise BackendDidNotStartError(f"{self.name} ended with status {status}; its log ends:\n{self.tail()}")
            try:
                answered = httpx.get(self.ready_url, timeout=2)
                if answered.is_success:
                    return
                answer = f"{answered.status_code} {answered.text[:200]}"
            except httpx.HTTPError as error:
                answer = repr(error)
            time.sleep(POLL_S)
        raise BackendDidNotStartError(
            f"{self.name} was not ready at {self.ready_url} in time (last answer: {answer}); its log ends:\n{self.tail()}"
        )

    def end(self, how: signal.Signals) -> None:
        process = self.process
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOPPED_WITHIN_S)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The addresses of the running backends, and a hand on their processes.

    The names are ``collector``, ``prometheus``, ``loki`` and ``jaeger``.
    """

    otlp_http_url: str
    """The Collector's OTLP over HTTP, without ``/v1/traces``."""
    otlp_grpc_target: str
    """The Collector's OTLP over gRPC, as host:port."""
    prometheus_url: str
    loki_url: str
    jaeger_url: str
    collector_metrics_url: str
    """The Collector's own metrics, with their path."""
    collector_health_url: str
    _backends: Mapping[str, _Backend] = field(repr=False)

    def stop(self, name: str) -> None:
        """End a backend with SIGTERM and wait until it is gone."""
        self._backends[name].end(signal.SIGTERM)

    def kill(self, name: str) -> None:
        """End a backend with SIGKILL."""
        self._backends[name].end(signal.SIGKILL)

    def start(self, name: str) -> None:
        """Start a stopped backend again, on its old port and data, and wait until it is ready."""
        self._backends[name].launch()
        self._backends[name].await_ready(time.monotonic() + READY_WITHIN_S)

    def logs(self, name: str) -> str:
        """Return all that a backend has logged, over all its starts."""
        return self._backends[name].log.read_text(errors="replace")


def _prometheus_folder(folder: Path, targets: Mapping[str, int]) -> Path:
    """Lay the committed files beside targets of our own: Prometheus looks for both beside its configuration."""
    (folder / "targets").mkdir(parents=True)
    for name in ("prometheus.yml", "prometheus.args", "rules"):
        (folder / name).symlink_to(ROOT / "prometheus" / name)
    groups = [f"- labels: {{job: {job}}}\n  targets: ['{HOST}:{port}']\n" for job, port in targets.items()]
    (folder / "targets" / "test.yml").write_text("".join(groups))
    return folder


@contextlib.contextmanager
def running_stack(
    folder: Path,
    *,
    backends: Sequence[str] = ALL,
    token: str | None = None,
    redaction: bool = True,
    durable_traces: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Stack]:
    """Start backends on free ports of loopback, with their data and logs under ``folder``, and end them at the exit.

    ``token`` makes the Collector demand it, ``redaction=False`` switches its redaction off, ``durable_traces`` has
    Jaeger keep traces on disk, and ``environment`` adds to what all of them read. Call it in the main thread: the
    backends die with the thread that starts them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    url = {name: f"http://{HOST}:{number}" for name, number in port.items()}
    shared = {
        **{name: str(number) for name, number in port.items()},
        "OTELCOL_DATA_DIR": str(folder / "collector"),
        "OTELCOL_FLUSH_INTERVAL": "1s",
        "LOKI_DATA_DIR": str(folder / "loki"),
        "JAEGER_DATA_DIR": str(folder / "jaeger"),
        "JAEGER_OTLP_TARGET": f"{HOST}:{port['JAEGER_OTLP_GRPC_PORT']}",
        "PROMETHEUS_URL": url["PROMETHEUS_PORT"],
        "LOKI_URL": url["LOKI_HTTP_PORT"],
        **({} if token is None else {"OTELCOL_TOKEN": token}),
        **(environment or {}),
    }
    scraped = {
        "otel-collector": port["OTELCOL_METRICS_PORT"],
        "prometheus": port["PROMETHEUS_PORT"],
        "loki": port["LOKI_HTTP_PORT"],
        "jaeger": port["JAEGER_METRICS_PORT"],
    }
    prometheus = _prometheus_folder(folder / "prometheus", scraped)
    collector_files = [
        "collector.yaml",
        *([] if token is None else ["token.yaml"]),
        *([] if redaction else ["without-redaction.yaml"]),
    ]
    jaeger_files = ["jaeger.yaml", *(["badger.yaml"] if durable_traces else [])]
    commands: dict[str, tuple[list[str], str]] = {
        "prometheus": (
            [
                str(program("prometheus")),
                f"@{prometheus / 'prometheus.args'}",
                f"--config.file={prometheus / 'prometheus.yml'}",
                f"--storage.tsdb.path={prometheus / 'data'}",
                f"--web.listen-address={HOST}:{port['PROMETHEUS_PORT']}",
            ],
            f"{url['PROMETHEUS_PORT']}/-/ready",
        ),
        "loki": (
            [str(program("loki")), f"-config.file={ROOT / 'loki' / 'loki.yaml'}", "-config.expand-env=true"],
            f"{url['LOKI_HTTP_PORT']}/ready",
        ),
        "jaeger": (
            [str(program("jaeger")), *(f"--config={ROOT / 'jaeger' / name}" for name in jaeger_files)],
            f"{url['JAEGER_HEALTH_PORT']}/status",
        ),
        "collector": (
            [str(program("otelcol")), *(f"--config={ROOT / 'otel-collector' / name}" for name in collector_files)],
            url["OTELCOL_HEALTH_PORT"],
        ),
    }
    processes = {
        name: _Backend(
            name=name, command=commands[name][0], environment=shared, folder=folder, ready_url=commands[name][1]
        )
        for name in ALL
    }
    try:
        for name in backends:
            processes[name].launch()
        deadline = time.monotonic() + READY_WITHIN_S
        for name in backends:
            processes[name].await_ready(deadline)
        yield Stack(
            otlp_http_url=url["OTELCOL_HTTP_PORT"],
            otlp_grpc_target=f"{HOST}:{port['OTELCOL_GRPC_PORT']}",
            prometheus_url=url["PROMETHEUS_PORT"],
            loki_url=url["LOKI_HTTP_PORT"],
            jaeger_url=url["JAEGER_QUERY_PORT"],
            collector_metrics_url=f"{url['OTELCOL_METRICS_PORT']}/metrics",
            collector_health_url=url["OTELCOL_HEALTH_PORT"],
            _backends=processes,
        )
    finally:
        for process in processes.values():
            process.end(signal.SIGKILL)


# ---- queries


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series of an instant query: its labels and its value now."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """One exemplar: the series it hangs on, its own labels (``trace_id``, ``span_id``) and its value."""

    series: Mapping[str, str]
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line of Loki, its labels and structured metadata in one mapping."""

    at_ns: int
    line: str
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StoredSpan:
    """One span as Jaeger gives it back."""

    trace_id: str
    span_id: str
    parent_id: str | None
    links: tuple[tuple[str, str], ...]
    """Trace id and span id of what it links to."""
    service: str
    name: str
    kind: str
    """``server``, ``client``, ``producer``, ``consumer`` or ``internal``."""
    status: str
    """``UNSET``, ``OK`` or ``ERROR``."""
    start_us: int
    duration_us: int
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    events: tuple[Mapping[str, Any], ...]


def _get(url: str, **parameters: object) -> Any:
    answered = httpx.get(url, params={name: str(value) for name, value in parameters.items()}, timeout=10)
    if not answered.is_success:
        raise AssertionError(f"{answered.url} answered {answered.status_code}: {answered.text[:500]}")
    return answered.json()


def prometheus_query(stack: Stack, promql: str) -> list[Series]:
    """Run an instant query that gives a vector."""
    found = _get(f"{stack.prometheus_url}/api/v1/query", query=promql)["data"]["result"]
    return [Series(labels=one["metric"], value=float(one["value"][1])) for one in found]


def prometheus_samples(stack: Stack, selector: str, window: str = "1h") -> list[float]:
    """Return every stored sample of the series that a selector names, each series in the order of time."""
    found = _get(f"{stack.prometheus_url}/api/v1/query", query=f"{selector}[{window}]")["data"]["result"]
    return [float(value) for one in found for _at, value in one["values"]]


def prometheus_exemplars(
    stack: Stack, promql: str, start: float | None = None, end: float | None = None
) -> list[Exemplar]:
    """Return the exemplars of the series that a query touches, by default those of the last hour."""
    now = time.time()
    found = _get(
        f"{stack.prometheus_url}/api/v1/query_exemplars",
        query=promql,
        start=now - 3600 if start is None else start,
        end=now + 60 if end is None else end,
    )["data"]
    return [
        Exemplar(series=one["seriesLabels"], labels=exemplar["labels"], value=float(exemplar["value"]))
        for one in found
        for exemplar in one["exemplars"]
    ]


def loki_query(
    stack: Stack, logql: str, *, start: float | None = None, end: float | None = None, limit: int = 5000
) -> list[LogLine]:
    """Return the lines that a log query selects, oldest first, by default those of the last hour."""
    now = time.time()
    found = _get(
        f"{stack.loki_url}/loki/api/v1/query_range",
        query=logql,
        start=int((now - 3600 if start is None else start) * 1e9),
        end=int((now + 60 if end is None else end) * 1e9),
        limit=limit,
        direction="forward",
    )["data"]
    if found["resultType"] != "streams":
        raise AssertionError(f"{logql} is a metric query: loki_query returns lines only")
    lines = [
        LogLine(at_ns=int(at), line=line, labels=stream["stream"])
        for stream in found["result"]
        for at, line, *_ in stream["values"]
    ]
    return sorted(lines, key=lambda line: line.at_ns)


def _stored_spans(trace: Mapping[str, Any]) -> list[StoredSpan]:
    spans = []
    for span in trace["spans"]:
        process = trace["processes"][span["processID"]]
        tags = {tag["key"]: tag["value"] for tag in span["tags"]}
        references = [(one["refType"], one["traceID"], one["spanID"]) for one in span["references"]]
        parents = [
            span_id for kind, trace_id, span_id in references if kind == "CHILD_OF" and trace_id == span["traceID"]
        ]
        spans.append(
            StoredSpan(
                trace_id=span["traceID"],
                span_id=span["spanID"],
                parent_id=parents[0] if parents else None,
                links=tuple((trace_id, span_id) for kind, trace_id, span_id in references if kind == "FOLLOWS_FROM"),
                service=process["serviceName"],
                name=span["operationName"],
                kind=str(tags.get("span.kind", "internal")),
                status=str(tags.get("otel.status_code", "UNSET")),
                start_us=span["startTime"],
                duration_us=span["duration"],
                attributes=tags,
                resource={tag["key"]: tag["value"] for tag in process.get("tags", [])},
                events=tuple({one["key"]: one["value"] for one in log["fields"]} for log in span["logs"]),
            )
        )
    return sorted(spans, key=lambda span: span.start_us)


def jaeger_trace(stack: Stack, trace_id: str) -> list[StoredSpan]:
    """Return the spans of a trace, in the order they began; none when Jaeger does not know it."""
    answered = httpx.get(f"{stack.jaeger_url}/api/traces/{trace_id}", params={"raw": "true"}, timeout=10)
    if answered.status_code == httpx.codes.NOT_FOUND:
        return []
    if not answered.is_success:
        raise AssertionError(f"{answered.url} answered {answered.status_code}: {answered.text[:500]}")
    return [span for trace in answered.json()["data"] for span in _stored_spans(trace)]


def jaeger_search(
    stack: Stack,
    service: str,
    *,
    operation: str | None = None,
    tags: Mapping[str, str] | None = None,
    lookback: str = "1h",
    limit: int = 1000,
) -> list[list[StoredSpan]]:
    """Return the traces in which a service has a matching span."""
    parameters: dict[str, object] = {"service": service, "lookback": lookback, "limit": limit}
    if operation is not None:
        parameters["operation"] = operation
    if tags:
        parameters["tags"] = json.dumps(dict(tags))
    return [_stored_spans(trace) for trace in _get(f"{stack.jaeger_url}/api/traces", **parameters)["data"]]


def eventually(probe: Callable[[], T], *, timeout_s: float, what: str) -> T:
    """Return the probe's first true answer; when there is none in time, fail with ``what`` and its last answer."""
    deadline = time.monotonic() + timeout_s
    while True:
        last: object
        try:
            answer = probe()
            if answer:
                return answer
            last = answer
        except (AssertionError, httpx.HTTPError) as error:
            last = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; the last answer was {str(last)[:2000]!r}")
        time.sleep(POLL_S)
