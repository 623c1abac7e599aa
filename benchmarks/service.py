"""Serves one variant's app with uvicorn on a port of its own.

``python -m benchmarks.service MODULE OPTIONS``, as :mod:`benchmarks.worker`. It starts with the order to listen.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any

from benchmarks.orders import serve
from benchmarks.variants.parts import Options, Served


class Service:
    """A server that runs in the main thread, while another takes orders."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        # Of TCP by name: asyncio leaves the delay of small packets on where a socket does not say that it is
        self._listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._served: Served | None = None
        self._server: Any = None

    def listen(self) -> dict[str, int]:
        """Take a port, and let the main thread begin."""
        self._listening.bind(("127.0.0.1", 0))
        self.wanted.set()
        deadline = time.monotonic() + 60
        while not (self._server and self._server.started):
            if time.monotonic() > deadline:
                raise TimeoutError("uvicorn did not start")
            time.sleep(0.02)
        port: int = self._listening.getsockname()[1]
        return {"port": port}

    def cpu(self) -> dict[str, int]:
        """Return the CPU time of the process so far."""
        return {"process_ns": time.process_time_ns()}

    def run(self, module: str, options: Options) -> None:
        """Serve, until :meth:`end`."""
        self._served = importlib.import_module(f"benchmarks.variants.{module}").request(options)
        import uvicorn

        config = uvicorn.Config(
            self._served.app, http="auto", loop="asyncio", lifespan="off", access_log=False, log_level="warning"
        )
        self._server = uvicorn.Server(config)
        self._server.run(sockets=[self._listening])

    def flush(self) -> None:
        """Send everything that was emitted."""
        if self._served is not None:
            self._served.flush()


def main() -> None:
    """Wait for the first order, then serve; the end of the orders is the end of the process."""
    service = Service()

    def take_orders() -> None:
        serve({"listen": service.listen, "cpu": service.cpu, "flush": service.flush})
        os._exit(0)

    threading.Thread(target=take_orders, daemon=True).start()
    service.wanted.wait()
    service.run(sys.argv[1], Options(**json.loads(sys.argv[2])))


if __name__ == "__main__":
    main()
