"""The log lines of a run, found by ``clew jobs show`` in a real Loki behind the Collector as they are found in clew's console."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clew.console.server import ConsoleServer
from tests.stack.backends import Stack, eventually, running_stack

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("backends_built"), pytest.mark.timeout(240, func_only=True)]

ARRIVES_WITHIN_S = 60.0
CLEW = Path(sys.executable).with_name("clew")
SERVICE = 'shop "east"'
PROGRAM = """
import clew
log = clew.get_logger("shop")
log.info("before the run")
with clew.job("cleanup") as run:
    log.info("cleanup.began", table="orders", rows=12, share=0.5, again=True)
    with clew.span("sweep"):
        log.warning("two\\nlines", nested={"a": [1, 2]})
    try:
        {}["missing"]
    except KeyError:
        log.exception("cleanup.failed")
print(run.id)
"""


class Shop:
    """A service that sends to one endpoint, and whose log lines are looked for at another."""

    def __init__(self, folder: Path, *, endpoint: str, logs: str) -> None:
        self._environment = {
            **os.environ,
            "CLEW_DATABASE_URL": f"sqlite:///{folder / 'history.db'}",
            "CLEW_SPOOL_DIR": str(folder / "spool"),
            "CLEW_LOGS_URL": logs,
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_SERVICE_NAME": SERVICE,
            "COLUMNS": "120",
        }

    def run(self) -> str:
        """Run the job and return the id of its run."""
        done = self._process(sys.executable, "-c", PROGRAM)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def show(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Have the command print a run."""
        done = self._process(str(CLEW), "jobs", "show", *arguments)
        assert done.returncode == 0, done.stderr
        return done

    def lines(self, run_id: str) -> list[dict[str, Any]]:
        """Return its log lines, when all of them are there."""

        def all_lines() -> list[dict[str, Any]] | None:
            found = json.loads(self.show(run_id, "--json").stdout)["logs"] or []
            return found if len(found) >= 5 else None

        found = eventually(all_lines, timeout_s=ARRIVES_WITHIN_S, what="the run's log lines")
        assert found is not None
        return found

    def _process(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Collector and a Loki that a test may stop."""
    with running_stack(tmp_path_factory.mktemp("stack"), backends=("loki", "collector")) as running:
        yield running


@pytest.fixture(scope="module")
def by_loki(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"), endpoint=stack.otlp_http_url, logs=stack.loki_url)


@pytest.fixture(scope="module")
def by_console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("console")
    with ConsoleServer(data_dir=folder / "console", port=0) as console:
        yield Shop(folder, endpoint=console.url, logs=console.url)


def as_loki_names(fields: dict[str, Any]) -> dict[str, str]:
    """Return fields as Loki keeps them: names without dots, and values that are texts."""
    return {
        name.replace(".", "_"): value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()
    }


def test_the_log_lines_of_a_run_are_found_in_loki_as_in_the_console(by_loki: Shop, by_console: Shop) -> None:
    run_id = by_loki.run()
    found, expected = by_loki.lines(run_id), by_console.lines(by_console.run())
    assert [line["text"] for line in found] == ["job_start", "cleanup.began", "two\nlines", "cleanup.failed", "job_end"]
    for line, same in zip(found, expected, strict=True):
        fields, wanted = line["fields"], as_loki_names(same["fields"])
        for differs in ("correlation_id", "duration_s"):
            assert (differs in fields) == (differs in wanted)
            fields.pop(differs, None)
            wanted.pop(differs, None)
        assert (line["text"], line["level"], line["service"]) == (same["text"], same["level"], same["service"])
        assert fields == wanted
    began, slow, failed = by_loki.show(run_id).stdout.splitlines()[-4:-1]
    assert began.endswith(f"info    {SERVICE}  cleanup.began  again=true rows=12 share=0.5 table=orders")
    assert slow.endswith(f'warn    {SERVICE}  two lines  nested={{"a": [1, 2]}}')
    assert failed.endswith(f"error   {SERVICE}  cleanup.failed  exception_message='missing' exception_type=KeyError")


def test_each_run_has_its_own_lines(by_loki: Shop) -> None:
    first, second = by_loki.run(), by_loki.run()
    ids = [{line["fields"]["correlation_id"] for line in by_loki.lines(run_id)} for run_id in (first, second)]
    assert [len(one) for one in ids] == [1, 1]
    assert ids[0] != ids[1]


def test_a_loki_that_is_away_is_told_of_and_the_run_is_shown(stack: Stack, by_loki: Shop) -> None:
    run_id = by_loki.run()
    stack.stop("loki")
    shown = by_loki.show(run_id)
    stack.start("loki")
    assert run_id in shown.stdout
    assert f"nothing answers at {stack.loki_url} (Connection refused)" in shown.stderr
    assert len(by_loki.lines(run_id)) == 5
