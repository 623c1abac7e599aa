"""Servers as real processes on loopback: started, waited for, stopped by signals, their output kept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class ServerProcess:
    """A command that listens on a port. ``{port}`` in its arguments is replaced by a free one."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], timeout_s: float = 60.0
    ) -> None:
        self.port = free_port()
        self.output = cwd / f"output-{self.port}.txt"
        self._timeout_s = timeout_s
        # What the tests' own process was started with is no part of the scene
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CLEW_", "OTEL_"))}
        self._environment = {
            **inherited,
            "PATH": f"{BIN}{os.pathsep}{inherited.get('PATH', '')}",
            "CLEW_SPOOL_DIR": str(cwd / "spool"),
            "CLEW_DATABASE_URL": f"sqlite:///{cwd / 'history.db'}",
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        self._command = [part.replace("{port}", str(self.port)) for part in command]
        self._cwd = cwd
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    said = self.said
                    self.kill()
                    raise AssertionError(f"{' '.join(self._command)} did not come up; it said:\n{said}") from None
                time.sleep(0.05)
            else:
                # Another process may have been quicker to take the port, and would answer in its place
                if self.process.poll() is not None:
                    raise AssertionError(f"{' '.join(self._command)} ended at once; it said:\n{self.said}")
                return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        """Everything on its standard output and error so far."""
        return self.output.read_text(errors="replace")

    def stop(self, with_signal: int = signal.SIGTERM, *, timeout_s: float = 20.0) -> int:
        """Send a signal, wait, and return the exit code."""
        self.process.send_signal(with_signal)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            said = self.said
            self.kill()
            raise AssertionError(f"{' '.join(self._command)} did not stop; it said:\n{said}") from None

    def kill(self) -> None:
        """End it and what it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait(20)


def uvicorn(app: str, *options: str) -> list[str]:
    """Return the command that serves ``app`` by uvicorn."""
    return [sys.executable, "-m", "uvicorn", app, "--port", "{port}", *options]
