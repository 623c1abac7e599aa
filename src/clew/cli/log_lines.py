"""The log lines of a trace, from where they are kept: clew's console or Loki. Bounded in time and size; what fails is said.

Source: https://grafana.com/docs/loki/latest/reference/loki-http-api/#query-logs-within-a-range-of-time
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

TIMEOUT_S: Final = 2.0
MAX_LINES: Final = 200
_MAX_BYTES: Final = 4 * 1024 * 1024
# What a backend is told of the run's time, since clocks differ and lines come late
_MARGIN: Final = timedelta(minutes=5)
_LABELS: Final = frozenset({"service_name", "trace_id", "span_id", "flags", "observed_timestamp"})
# Loki keeps what tells of the process beside what tells of the line, with nothing to tell one from the other but the
# standard's names: https://opentelemetry.io/docs/specs/semconv/resource/
_OF_PROCESS: Final = re.compile(
    r"(telemetry_(sdk|distro)|process_(pid|parent_pid|runtime|executable|command|owner)|service_(namespace|instance_id|version)|"
    r"deployment_environment|host_(id|name|arch|type)|os_(type|name|version|description)|container_(id|name|image)|k8s|cloud|"
    r"scope_(name|version)|severity|detected_level)(_|$)"
)


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A log line.

    Attributes:
        at: its time.
        level: such as ``INFO``.
        service: who wrote it.
        text: what it says.
        fields: what goes with it.
    """

    at: datetime
    level: str
    service: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)


class NoLogsError(Exception):
    """There are no log lines to be had; the text says why."""


def log_lines(url: str, trace_id: str, *, begin: datetime, end: datetime, service: str) -> list[LogLine]:
    """Return the log lines of a trace, oldest first, :data:`MAX_LINES` at most.

    Args:
        url: of the console, or of Loki: which one it is is found out.
        trace_id: the trace.
        begin: when the run began, or should have begun.
        end: when it ended, or now.
        service: the service that ran it: Loki has to be told one.

    Raises:
        NoLogsError: nothing answers there within :data:`TIMEOUT_S`, or nothing that is known.
    """
    found: list[list[LogLine]] = []
    failed: list[str] = []

    def look() -> None:
        try:
            found.append(_lines(url, trace_id, begin - _MARGIN, end + _MARGIN, service))
        except NoLogsError as error:
            failed.append(str(error))
        except Exception as error:
            failed.append(f"{url} answered what can't be read ({type(error).__name__})")

    # A server that sends a byte now and then would hold up any timeout of a socket's
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if found:
        return found[0]
    raise NoLogsError(failed[0] if failed else f"{url} did not answer within {TIMEOUT_S:.0f} s")


def _lines(url: str, trace_id: str, begin: datetime, end: datetime, service: str) -> list[LogLine]:
    asked = {"trace_id": trace_id, "oldest_first": "true", "limit": MAX_LINES}
    answer = _get(f"{url}/api/logs?{urlencode(asked)}")
    if answer is not None and "logs" in answer:
        return [_of_console(record) for record in answer["logs"]]
    # LogQL's strings are Go's, which JSON's are as well
    query = f"{{service_name={json.dumps(service)}}} | trace_id={json.dumps(trace_id)}"
    window = {"start": _ns(begin), "end": _ns(end), "limit": MAX_LINES, "direction": "forward"}
    answer = _get(f"{url}/loki/api/v1/query_range?{urlencode({'query': query, **window})}")
    if answer is None or "data" not in answer:
        raise NoLogsError(f"{url} is neither clew's console nor Loki: name one of them with CLEW_LOGS_URL")
    entries = [
        (int(entry[0]), {**stream["stream"], **(entry[2] if len(entry) > 2 else {})}, entry[1])
        for stream in answer["data"]["result"]
        for entry in stream["values"]
    ]
    entries.sort(key=lambda entry: entry[0])
    return [_of_loki(*entry) for entry in entries[:MAX_LINES]]


def _get(url: str, *, token: str | None = None) -> Any:
    """Return the JSON that is answered; ``None`` where there is nothing of that path."""
    path = url.partition("?")[0]
    request = Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310 - a checked setting
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=TIMEOUT_S) as answer:
            content = json.loads(answer.read(_MAX_BYTES))
            return content if isinstance(content, dict) else None
    except HTTPError as error:
        with error:
            status = error.code
    except (URLError, OSError) as error:
        cause = getattr(error, "reason", error)
        why = getattr(cause, "strerror", None) or str(cause)
        raise NoLogsError(f"nothing answers at {_address(url)} ({why})") from error
    except ValueError:
        return None
    if status in (401, 403):
        # The token is shown to nobody who did not ask for one
        known = None if token else os.environ.get("CLEW_CONSOLE_ADMIN_TOKEN")
        if known:
            return _get(url, token=known)
        raise NoLogsError(f"{path} wants a token: set CLEW_CONSOLE_ADMIN_TOKEN to the console's")
    if status in (400, 422, 429) or status >= 500:
        raise NoLogsError(f"{path} answered with status {status}")
    return None


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _of_console(record: Mapping[str, Any]) -> LogLine:
    attributes = record.get("attributes") or {}
    return LogLine(
        at=datetime.fromisoformat(record["time"]),
        level=str(record.get("severity_text") or record.get("severity_number") or ""),
        service=str(record.get("service") or ""),
        text=_text(record.get("body")),
        fields=dict(attributes),
    )


def _of_loki(time_ns: int, labels: Mapping[str, str], body: Any) -> LogLine:
    return LogLine(
        at=datetime.fromtimestamp(time_ns / 1e9, tz=UTC),
        level=str(labels.get("severity_text") or labels.get("detected_level") or ""),
        service=str(labels.get("service_name") or ""),
        text=_text(body),
        fields={name: value for name, value in labels.items() if name not in _LABELS and not _OF_PROCESS.match(name)},
    )


def _text(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str)


def _ns(at: datetime) -> str:
    return str(int(at.timestamp() * 1_000_000) * 1_000)
