"""A worker or a beat of Celery as a real process, which is gone when the test is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.integration.server_process import BIN, ROOT
from tests.integration.waiting import eventually

APP = "tests.integration.celery_app"


class CeleryProcess:
    """``celery -A tests.integration.celery_app ...``. What it says is kept in ``output``."""

    def __init__(
        self,
        *arguments: str,
        url: str,
        folder: Path,
        environment: Mapping[str, str],
        run_by: tuple[str, ...] = (),
        app: str = APP,
    ) -> None:
        program = list(run_by) or [sys.executable, "-m"]
        self._command = [*program, "celery", "-A", app, *arguments]
        self._environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
            "VALKEY_URL": url,
            "CLEW_SPOOL_DIR": str(folder / "spool"),
            "OTEL_SERVICE_NAME": "shop",
            **environment,
        }
        self._folder = folder
        self.output = folder / f"celery-{id(self)}.txt"
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None and error is None:
            self.stop()
        self.kill()

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self.output.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait until a worker takes tasks."""
        eventually(lambda: " ready." in self.said or self.process.poll() is not None, "the worker is ready")
        assert self.process.poll() is None, self.said

    def stop(self) -> int:
        """Let it finish what it does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it did not stop; it said:\n{self.said}") from None

    def kill(self) -> None:
        """End it and its children at once."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait(20)
