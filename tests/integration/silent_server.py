"""A server that takes connections and what is sent, and never answers."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self


class SilentServer:
    """Listens on loopback until the block ends."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
