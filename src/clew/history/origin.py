"""Who writes the rows: the service and its instance, and the process that can be looked for when it falls silent."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil

from clew.catalog import semconv
from clew.engine import runtime
from clew.history import processes


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Who writes.

    Attributes:
        service: ``service.name``.
        instance: ``service.instance.id``.
        host: the machine's name.
        pid: the process.
        process_started_at: when it started.
        process_key: what tells it from another of the same number, whatever the clock does.
    """

    service: str
    instance: str
    host: str
    pid: int
    process_started_at: datetime
    process_key: str | None


def origin() -> Origin:
    """Return who this process is."""
    resource = runtime.resource_attributes()
    pid = os.getpid()
    return Origin(
        service=str(resource.get(semconv.SERVICE_NAME, "")),
        instance=str(resource.get(semconv.SERVICE_INSTANCE_ID, "")),
        host=socket.gethostname(),
        pid=pid,
        process_started_at=datetime.fromtimestamp(psutil.Process(pid).create_time(), tz=UTC),
        process_key=processes.key_of(pid),
    )
