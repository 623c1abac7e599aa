"""A process that does what it is told, one JSON line for each order and each answer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from benchmarks.environments import ROOT

ANSWER_TIMEOUT_S: Final = 180.0


class ProcessError(Exception):
    """A process could not do what it was told; the text is the last thing that it said."""


def cores() -> tuple[int | None, int | None]:
    """Return the core of what is measured, and the core of everything else; ``None`` where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)


class Process:
    """One program of this package, told what to do through its standard input.

    Args:
        python: the interpreter.
        module: the module to run.
        arguments: its arguments.
        environment: variables beside those of this process, whose own ``OTEL_*`` and ``CLEW_*`` are left out.
        core: the core that it is held on, or ``None``.
    """

    def __init__(
        self,
        python: Path,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        core: int | None = None,
    ) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OTEL_", "CLEW_", "DD_", "SENTRY_", "LOGFIRE_", "ELASTIC_APM_", "FASTAPI_"))
        }
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(python), "-m", module, *arguments],
            cwd=ROOT,
            env={**kept, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            bufsize=1,
        )
        if core is not None:
            # It imports nothing before its first order: threads that it starts later inherit this
            os.sched_setaffinity(self._process.pid, {core})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    def tell(self, order: str, **details: Any) -> None:
        """Give an order without waiting for its answer, which :meth:`answer` returns."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"order": order, **details}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise ProcessError(self._last_words()) from None

    def answer(self, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """Wait for the answer to an order.

        Raises:
            ProcessError: it died, or could not do it, or took too long.
        """
        assert self._process.stdout is not None
        watch = threading.Timer(timeout_s, self._process.kill)
        watch.daemon = True
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise ProcessError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ProcessError(str(answer["error"])[:300])
        return answer

    def ask(self, order: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **details: Any) -> dict[str, Any]:
        """Give an order and wait for its answer."""
        self.tell(order, **details)
        return self.answer(timeout_s)

    def end(self, timeout_s: float = 60.0) -> float:
        """Let it end by itself, as a program ends that has nothing more to do; return the seconds that it took."""
        started = time.monotonic()
        with contextlib.suppress(ProcessError):
            self.tell("end")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        took_s = time.monotonic() - started
        self.kill()
        return took_s

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().splitlines() if line.strip()]
        return (lines[-1] if lines else f"it ended with status {self._process.poll()}")[:300]
