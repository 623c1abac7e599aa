"""Finding ports to listen on."""

from __future__ import annotations

import random
import socket
from typing import Final

from clew.demo.settings import DemoError

# Below the range that systems take for outgoing connections, so that none of those gets in between
_CHOICE: Final = range(20_000, 32_000)
_TRIES: Final = 200


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Tell whether nobody listens on a port.

    Args:
        port: its number.
        host: the address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a connection of an earlier run that is still winding down is in nobody's way
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def choose(what: str, *, option: str, asked: int | None, preferred: int) -> int:
    """Return a port to listen on.

    Args:
        what: who will listen, for messages.
        option: the option by which a user gives the port.
        asked: the port that the user gave; 0 for any, ``None`` for no wish.
        preferred: the port to take when nobody else has it and the user has no wish.

    Raises:
        DemoError: the port that the user gave is in use, or none is free.

    Example:
        >>> choose("the gateway", option="--port", asked=0, preferred=8000) in range(20_000, 32_000)
        True
    """
    if asked:
        if not is_free(asked):
            raise DemoError(
                f"port {asked} for {what} is in use: stop the program that has it, or choose another with {option}"
            )
        return asked
    if asked is None and is_free(preferred):
        return preferred
    for port in random.sample(_CHOICE, _TRIES):
        if is_free(port):
            return port
    raise DemoError(f"no port is free for {what}: give one with {option}")
