"""What tests of jobs share: programs as processes, and what is in the history."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from sqlalchemy import func, select

from clew.engine import runtime
from clew.history import recorder as recording
from clew.history.database import Database
from clew.history.models import Base, JobRun, JobRunTotal, ScheduledJob
from clew.history.recorder import Recorder
from clew.settings import Settings
from tests.integration import waiting

ROOT = Path(__file__).parents[2]
BEAT_S = 0.5
# Several processes start at once
_WAIT_S = 60.0


def eventually(condition: Callable[[], Any], what: str) -> None:
    """Wait until something is so, of several processes."""
    waiting.eventually(condition, what, within_s=_WAIT_S)


class Program:
    """A program of :mod:`tests.integration.job_programs` as a process of its own."""

    module = "tests.integration.job_programs"

    def __init__(self, folder: Path, name: str, argument: str = "", **environment: str) -> None:
        self._output = folder / f"{name}-{id(self)}.out"
        self._events = folder / f"{name}-{id(self)}.err"
        chosen = {
            "CLEW_LOG_FORMAT": "json",
            "CLEW_HEARTBEAT_S": str(BEAT_S),
            "OTEL_SDK_DISABLED": "true",
            "OTEL_SERVICE_NAME": "jobs",
        }
        with self._output.open("wb") as output, self._events.open("wb") as events:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, name, argument],
                cwd=ROOT,
                env=os.environ | chosen | environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=events,
                restore_signals=True,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # With what it forked: a pool's processes outlive one that was killed
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def said(self, line: str) -> bool:
        """Tell whether it has said something."""
        return line in self._output.read_text().splitlines()

    def output(self) -> list[str]:
        """Return what it has said."""
        return self._output.read_text().splitlines()

    def wait_for(self, line: str) -> None:
        """Wait until it has said something."""
        eventually(lambda: self.said(line) or self.process.poll() is not None, f"the program says {line!r}")
        assert self.said(line), self._events.read_text()

    def events(self, name: str) -> list[Mapping[str, Any]]:
        """Return its log events of a name."""
        return [event for event in self._logged() if event["event"] == name]

    def levels(self) -> set[str]:
        """Return the levels of all that it has logged."""
        return {event["level"] for event in self._logged()}

    def _logged(self) -> list[Mapping[str, Any]]:
        lines = [line for line in self._events.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        return [json.loads(line) for line in lines]

    def end(self, number: signal.Signals) -> int:
        """Send it a signal and wait for its end."""
        self.process.send_signal(number)
        return self.process.wait(60)


class History:
    """What is in the database of CLEW_DATABASE_URL."""

    def __init__(self, url: str) -> None:
        self.database = Database(Settings.load(database_url=url).history_url())

    def __enter__(self) -> Self:
        self.database.ensure(auto_upgrade=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.database.engine.dispose()

    def all(self, model: type[Base], **equal: Any) -> list[Mapping[str, Any]]:
        """Return the rows of a table, the oldest first."""
        table: Any = model.__table__
        query = select(table).order_by(*table.primary_key.columns)
        for name, value in equal.items():
            query = query.where(table.c[name] == value)
        with self.database.read() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def runs(self, job: str, status: str | None = None) -> list[Mapping[str, Any]]:
        """Return the runs of a job."""
        return self.all(JobRun, job=job, **({} if status is None else {"status": status}))

    def wait_for_runs(self, job: str, number: int = 1) -> None:
        """Wait until so many runs of a job are on record: a run begins a second after it was told of, at the latest."""
        eventually(lambda: len(self.runs(job)) >= number, f"runs of {job} are on record")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have nobody write meanwhile, so that a process which is stopped here holds nothing that others wait for."""
        with self.database.write():
            yield

    def scheduled(self) -> list[Mapping[str, Any]]:
        """Return what schedulers have."""
        return self.all(ScheduledJob)

    def totals(self, job: str) -> dict[str, int]:
        """Return how many runs of a job ended, by status."""
        query = (
            select(JobRunTotal.status, func.sum(JobRunTotal.runs))
            .where(JobRunTotal.job == job)
            .group_by(JobRunTotal.status)
        )
        with self.database.read() as connection:
            return {status: int(runs) for status, runs in connection.execute(query) if runs}

    def check_totals(self, job: str) -> None:
        """Assert that the totals of a job agree with its runs."""
        counted: dict[str, int] = {}
        for run in self.runs(job):
            if run["finished_at"] is not None:
                counted[run["status"]] = counted.get(run["status"], 0) + 1
        assert self.totals(job) == counted


@contextmanager
def own_history(url: str, monkeypatch: pytest.MonkeyPatch, *, heartbeat_s: float) -> Iterator[History]:
    """Have this process's records go to a database of the test's own."""
    settings = runtime.ready().settings
    assert settings is not None
    if (before := recording._recorder) is not None:
        # What a process knows of its runs and schedulers is told to one history, once
        monkeypatch.setattr(before, "_chores", [])
    chosen = {"database_url": url, "database_auto_upgrade": True, "heartbeat_s": heartbeat_s}
    made = Recorder(settings.model_copy(update=chosen))
    monkeypatch.setattr(recording, "_recorder", made)
    with History(url) as opened:
        yield opened
        made.shutdown(10.0)
