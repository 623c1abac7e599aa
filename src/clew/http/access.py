"""Who may send telemetry, who may look at it, and who may see details of a process or steer its jobs.

Without a token only programs on this machine may, and only when they call it by a loopback name: a page on the web
can make a browser on this machine send requests here under a name of its own (DNS rebinding), but not under ours.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

from clew.engine import runtime

_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip")


class Headers(Protocol):
    """Headers by name, in whatever case."""

    def get(self, name: str, default: str, /) -> str:
        """Return a header's value."""
        ...

    def __contains__(self, name: str, /) -> bool: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks: what access goes by.

    Attributes:
        address: where the connection comes from, without a port; None where that is not known.
        headers: those of the request.
    """

    address: str | None
    headers: Headers

    @classmethod
    def of(cls, request: Any) -> Self:
        """Return the caller of a request of Starlette."""
        return cls(address=request.client.host if request.client is not None else None, headers=request.headers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a request is refused: HTTP `status` 401 or 403 and a sentence that says what to do."""

    status: int
    message: str


def refusal_to_send(caller: Caller, token: str | None) -> Refusal | None:
    """Return why this request may not bring telemetry, or None when it may.

    Args:
        caller: who sends.
        token: what senders must present as a bearer token; None lets programs on this machine send without one.
    """
    if token is not None:
        if _has_bearer(caller, token):
            return None
        return Refusal(status=401, message="the bearer token is missing or wrong: send Authorization: Bearer <token>")
    return _refusal_without_token(caller, "to receive from elsewhere, set CLEW_CONSOLE_TOKEN and send it")


def refusal_to_read(caller: Caller, admin_token: str | None, *, variable: str = "CLEW_ADMIN_TOKEN") -> Refusal | None:
    """Return why this request may not see what is not for everybody, or None when it may.

    Args:
        caller: who asks.
        admin_token: a bearer token that opens it to any client; without it, programs on this machine only.
        variable: the environment variable that sets the token.
    """
    if admin_token is not None and _has_bearer(caller, admin_token):
        return None
    refusal = _refusal_without_token(caller, f"to look from elsewhere, set {variable} and send it")
    if refusal is not None and admin_token is not None:
        return Refusal(status=401, message="the admin token is missing or wrong: send Authorization: Bearer <token>")
    return refusal


def refusal_to_control(caller: Caller, admin_token: str | None) -> Refusal | None:
    """Return why this request may not change anything, or None when it may.

    A page on the web can make a browser send requests to this machine; those are refused by what browsers say of them.

    Args:
        caller: who asks.
        admin_token: a bearer token that is asked for where it is set; without it, programs on this machine only.
    """
    headers = caller.headers
    site = headers.get("sec-fetch-site", "same-origin")
    origin = headers.get("origin", "")
    if site not in ("same-origin", "none") or (origin and urlsplit(origin).netloc != headers.get("host", "")):
        return Refusal(status=403, message="pages of other sites may not change anything here: this request is one's")
    if admin_token is None:
        return _refusal_without_token(caller, "to steer from elsewhere, set CLEW_ADMIN_TOKEN and send it")
    if _has_bearer(caller, admin_token):
        return None
    return Refusal(status=401, message="the admin token is missing or wrong: send Authorization: Bearer <token>")


def admin_token_in_force() -> str | None:
    """Return the token of ``CLEW_ADMIN_TOKEN``, or None."""
    settings = runtime.ready().settings
    token = settings.admin_token if settings is not None else None
    return token.get_secret_value() if token is not None else None


def is_loopback_name(host: str) -> bool:
    """Return whether a host name or address, without a port, can only mean this machine.

    Args:
        host: such as ``localhost``, ``127.0.0.1`` or ``::1``.

    Example:
        >>> is_loopback_name("127.0.0.1"), is_loopback_name("0.0.0.0"), is_loopback_name("localhost.evil.example")
        (True, False, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _refusal_without_token(caller: Caller, mend: str) -> Refusal | None:
    is_forwarded = any(name in caller.headers for name in _FORWARDED)  # a proxy's client is not on this machine
    if caller.address is None or is_forwarded or not is_loopback_name(caller.address):
        return Refusal(status=403, message=f"only programs on this machine are let in without a token; {mend}")
    host = _without_port(caller.headers.get("host", ""))
    if not is_loopback_name(host):
        return Refusal(
            status=403,
            message=f"the Host header {host[:80]!r} is not a name of this machine alone: use localhost or 127.0.0.1",
        )
    return None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _has_bearer(caller: Caller, token: str) -> bool:
    scheme, _, given = caller.headers.get("authorization", "").partition(" ")
    matches = hmac.compare_digest(given.strip().encode(), token.encode())  # in constant time
    return matches and scheme.lower() == "bearer"
