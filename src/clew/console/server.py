"""Running the console: in the foreground, or in a thread of a program that wants one for itself."""

from __future__ import annotations

import errno
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from clew.console.app import console_app
from clew.console.body import BodyLimits
from clew.console.errors import ConsoleError
from clew.console.retention import RetentionLimits
from clew.console.store import Store
from clew.http.access import is_loopback_name

DEFAULT_PORT = 4318

_START_TIMEOUT_S = 10.0
_BACKLOG = 256
_KEEP_ALIVE_S = 75  # longer than the pauses between a sender's batches


class _QuietProtocol(H11Protocol):
    """Writes no access log: in a program that exports its logs to this console, each line would bring the next."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False


class ConsoleServer:
    """The console in a thread of this process.

    Args:
        data_dir: folder of the store; made when it is not there.
        host: address to listen on; one that other machines can reach needs a token.
        port: port to listen on; 0 takes any free one.
        token: bearer token that senders must present.
        admin_token: bearer token that lets clients on other machines look.
        retention: how long, and how much, is kept.
        max_bytes: the database file may not grow past this; None: as far as the disk goes.
        limits: how much the receiver takes in.

    Example:
        >>> import tempfile
        >>> with ConsoleServer(data_dir=tempfile.mkdtemp(), port=0) as console:
        ...     console.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self,
        *,
        data_dir: Path | str,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        token: str | None = None,
        admin_token: str | None = None,
        retention: RetentionLimits | None = None,
        max_bytes: int | None = None,
        limits: BodyLimits | None = None,
    ) -> None:
        self._data_dir = Path(data_dir)
        self._host = host
        self._port = port
        self._token = token
        self._admin_token = admin_token
        self._retention = retention
        self._max_bytes = max_bytes
        self._limits = limits
        self._store: Store | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._address: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where programs on this machine reach the console, such as ``http://127.0.0.1:4318``.

        Raises:
            ConsoleError: it is not started.
        """
        if self._address is None:
            raise ConsoleError("the console is not started: call start() before asking for its url")
        host, port = self._address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def store(self) -> Store:
        """The store, for `clew.console.queries`.

        Raises:
            ConsoleError: the console is not started.
        """
        if self._store is None:
            raise ConsoleError("the console is not started: call start() before asking for its store")
        return self._store

    @property
    def is_running(self) -> bool:
        """Whether the console is answering requests."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Open the store and answer requests from a thread; returns once it does.

        Raises:
            ConsoleError: already started, the port is taken, the host is not usable or needs a token, or the store
                cannot be opened.
        """
        if self._thread is not None:
            raise ConsoleError(f"the console is already started at {self.url}: stop it first")
        listener = _listener(self._host, self._port, has_token=self._token is not None)
        try:
            self._store = Store(self._data_dir, retention=self._retention, max_bytes=self._max_bytes)
        except BaseException:
            listener.close()
            raise
        self._address = listener.getsockname()[:2]
        app = console_app(self._store, token=self._token, admin_token=self._admin_token, limits=self._limits)
        config = uvicorn.Config(
            app,
            http=_QuietProtocol,
            ws="none",
            lifespan="off",
            log_config=None,  # the program's logging is the program's
            proxy_headers=False,  # a forwarded address must not make a stranger local
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="clew-console", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise ConsoleError(f"the console did not start at {self._host}:{self._port}: see the log above")
            time.sleep(0.005)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Finish the requests at hand, write what was accepted and close the store; stopping twice is harmless.

        Args:
            timeout_s: seconds it may take; requests cut off by then were not acknowledged.
        """
        deadline = time.monotonic() + timeout_s
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout_s)
        if self._store is not None:
            self._store.close(max(0.1, deadline - time.monotonic()))
        self._server = self._thread = self._store = self._address = None


def serve(  # noqa: PLR0913 - each is a setting of its own, and named
    *,
    data_dir: Path | str,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    token: str | None = None,
    admin_token: str | None = None,
    retention: RetentionLimits | None = None,
    max_bytes: int | None = None,
    limits: BodyLimits | None = None,
    stop_timeout_s: float = 5.0,
    on_ready: Callable[[ConsoleServer], None] | None = None,
) -> None:
    """Run the console until SIGINT or SIGTERM; call it from the main thread.

    Args:
        data_dir: folder of the store; made when it is not there.
        host: address to listen on; one that other machines can reach needs a token.
        port: port to listen on; 0 takes any free one.
        token: bearer token that senders must present.
        admin_token: bearer token that lets clients on other machines look.
        retention: how long, and how much, is kept.
        max_bytes: the database file may not grow past this; None: as far as the disk goes.
        limits: how much the receiver takes in.
        stop_timeout_s: seconds that stopping may take.
        on_ready: called with the running console.

    Raises:
        ConsoleError: the port is taken, the host is not usable or needs a token, or the store cannot be opened.

    Example:
        >>> import os, tempfile
        >>> serve(data_dir=tempfile.mkdtemp(), port=0, on_ready=lambda console: os.kill(os.getpid(), signal.SIGTERM))
    """
    console = ConsoleServer(
        data_dir=data_dir,
        host=host,
        port=port,
        token=token,
        admin_token=admin_token,
        retention=retention,
        max_bytes=max_bytes,
        limits=limits,
    )
    wanted = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        wanted.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        console.start()
        if on_ready is not None:
            on_ready(console)
        while not wanted.wait(0.5) and console.is_running:
            pass
    finally:
        console.stop(stop_timeout_s)
        for number, handler in before.items():
            signal.signal(number, handler)


def _listener(host: str, port: int, *, has_token: bool) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ConsoleError(f"port {port} is not a port: give 0 to 65535 with CLEW_CONSOLE_PORT or --port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConsoleError(
            f"host {host!r} is not an address of this machine: give one, such as 127.0.0.1, with CLEW_CONSOLE_HOST"
        ) from error
    if not has_token and not is_loopback_name(str(address[0])):
        raise ConsoleError(
            f"host {host!r} can be reached from other machines: set CLEW_CONSOLE_TOKEN to a secret that senders "
            "present, or listen on 127.0.0.1 only"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # here, since two sockets may be bound to one port until one of them listens
    except OSError as error:
        listener.close()
        raise ConsoleError(_refused_port(host, port, error)) from error
    return listener


def _refused_port(host: str, port: int, error: OSError) -> str:
    mend = "choose another with CLEW_CONSOLE_PORT or --port"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop the program that has it, or {mend}"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights than this user has: {mend}"
    return f"cannot listen on {host} port {port}: {error.strerror or error}; give another host or port"
