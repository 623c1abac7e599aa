"""What tests of every kind share, the examples in docstrings included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.otlp_sink import OtlpSink


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the developer's own telemetry settings out, and the tests' unsent telemetry out of the developer's home."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("OTEL_", "CLEW_")) and name != "CLEW_BACKENDS_DIR":
                patch.delenv(name)
        patch.setenv("CLEW_SPOOL_DIR", str(tmp_path_factory.mktemp("spool")))
        yield


@pytest.fixture
def otlp_sink() -> Iterator[OtlpSink]:
    """An OTLP endpoint of this test's own, for apps that run in processes of their own."""
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
