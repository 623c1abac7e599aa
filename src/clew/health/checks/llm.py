"""Providers of language models: a key is there, and the list of models can be asked for, which costs nothing."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from clew import clock
from clew._version import __version__
from clew.health.check import Check, HealthResult, Status

_MAX_READ_BYTES: Final = 1


def llm(
    base_url: str,
    api_key: str | Callable[[], str | None] | None,
    *,
    name: str = "llm",
    headers: Mapping[str, str] | None = None,
    critical: bool = False,
    timeout_s: float = 5.0,
    fresh_s: float = 30.0,
) -> Check:
    """Return a check of a provider with OpenAI's interface, by ``GET {base_url}/models``.

    Failed without a key, when it is refused, or without an answer; degraded when it answers slowly or says it is too busy.
    Redirects are not followed: the key is for the address that was given.

    Args:
        base_url: such as ``https://api.openai.com/v1``.
        api_key: the key, or a function that returns it; sent as a bearer token.
        name: the check's name.
        headers: sent besides, or in the place of the bearer token: ``{"x-api-key": key, "anthropic-version": "2023-06-01"}``.
        critical: see :class:`~clew.health.check.Check`.
        timeout_s: the same; above half of it, an answer is slow.
        fresh_s: the same.

    Raises:
        ValueError: the address is none of HTTP.

    Example:
        >>> llm("file:///etc/passwd", "key")
        Traceback (most recent call last):
        ...
        ValueError: base_url must be an http:// or https:// address
    """
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("base_url must be an http:// or https:// address")
    probe = partial(_probe, f"{base_url.rstrip('/')}/models", api_key, dict(headers or {}), timeout_s)
    return Check(name=name, probe=probe, critical=critical, timeout_s=timeout_s, fresh_s=fresh_s)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Return no request to follow with."""


_opener: Final = urllib.request.build_opener(_NoRedirects)


def _probe(
    url: str, api_key: str | Callable[[], str | None] | None, headers: dict[str, str], timeout_s: float
) -> HealthResult:
    key = api_key() if callable(api_key) else api_key
    if not key and not headers:
        return HealthResult(status="failed", text="no API key is set")
    given = {"User-Agent": f"clew/{__version__}", **headers}
    if key and not headers:
        given["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, headers=given)  # noqa: S310 - of HTTP, as was made sure of
    started_s = clock.monotonic_s()
    try:
        with _opener.open(request, timeout=timeout_s) as answer:
            code = answer.status
            answer.read(_MAX_READ_BYTES)
    except urllib.error.HTTPError as error:
        code = error.code
        error.close()
    latency_s = clock.monotonic_s() - started_s
    status, text = _meaning(code, latency_s, timeout_s)
    return HealthResult(status=status, text=text, data={"latency_s": latency_s, "http_status": code})


def _meaning(code: int, latency_s: float, timeout_s: float) -> tuple[Status, str]:
    if code in (401, 403):
        return "failed", f"it refused the API key ({code})"
    if code == 429:
        return "degraded", "it says that there were too many requests (429)"
    if 300 <= code < 400:
        return "failed", f"it redirects ({code}), which is not followed: give the address that it redirects to"
    if code >= 400:
        return "failed", f"it answered {code}"
    slow = latency_s > timeout_s / 2
    return "degraded" if slow else "ok", f"answered in {latency_s * 1000:.0f} ms"
