"""A worker, or a scheduler, of a queue of tasks as a real process, which is gone when the test is over."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.integration.server_process import BIN, ROOT
from tests.integration.waiting import eventually


class QueueProcess:
    """A program of a queue of tasks. What it says is kept in ``output``."""

    def __init__(
        self,
        *command: str,
        url: str,
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._command = list(command)
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
        self.output = folder / f"output-{id(self)}.txt"
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

    def wait_until_said(self, text: str) -> None:
        """Wait until it has said something while it runs."""
        eventually(lambda: text in self.said or self.process.poll() is not None, f"it says {text}")
        assert self.process.poll() is None, self.said

    def stop(self) -> int:
        """Let it finish what it does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            # A child of Celery's may wait 30 s for its parent to read a result which it has read
            return self.process.wait(75)
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
