"""What tests of every kind share, the examples in docstrings included."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.otlp_sink import OtlpSink

_KEPT = frozenset({"CLEW_BACKENDS_DIR", "CLEW_OTHER_SQLALCHEMY"})


def pytest_configure(config: pytest.Config) -> None:
    """Keep the developer's own settings out, and the tests' unsent telemetry out of the developer's home.

    Before anything is collected: a module that is imported may configure clew.
    """
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(("OTEL_", "CLEW_")) and name not in _KEPT:
            patch.delenv(name)
    # What this process itself has to send is written to it until the very end
    spool = tempfile.TemporaryDirectory(prefix="clew-spool-", ignore_cleanup_errors=True)
    patch.setenv("CLEW_SPOOL_DIR", spool.name)
    patch.setenv("CLEW_DATABASE_URL", f"sqlite:///{spool.name}/history.db")
    # Nor can it be sent: said at any time, that would fall into whatever a test captures of a command
    logging.getLogger("clew.pipeline").addFilter(_can_be_sent)
    config.add_cleanup(spool.cleanup)
    config.add_cleanup(patch.undo)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Give the tests clew's plugin once coverage is measured: its import is the import of most of clew."""
    session.config.pluginmanager.import_plugin("clew.testing")


def _can_be_sent(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("telemetry can't be delivered")


@pytest.fixture
def otlp_sink() -> Iterator[OtlpSink]:
    """An OTLP endpoint of this test's own, for apps that run in processes of their own."""
    from tests.otlp_sink import OtlpSink

    with OtlpSink() as sink:
        yield sink


@pytest.fixture
def spool_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk spool of this test's own, for the processes that it starts."""
    folder = tmp_path / "spool"
    monkeypatch.setenv("CLEW_SPOOL_DIR", str(folder))
    return folder


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run of CI in which a test was left out."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped") and exitstatus == 0:
        reporter.write_line("CI=true and tests were skipped: nothing may be left out.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
