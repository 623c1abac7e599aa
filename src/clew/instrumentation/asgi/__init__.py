"""FastAPI, Starlette and any ASGI app: requests, websockets, background tasks, and ``/metrics``.

One server span for each request, from the outermost app that was instrumented, until the last byte of the response. FastAPI's
own telemetry steps aside for it.

Source: https://asgi.readthedocs.io/en/latest/specs/main.html and
https://opentelemetry.io/docs/specs/semconv/http/
"""

from clew.instrumentation.asgi.application import instrument, instrument_all, instrument_server

__all__ = ["instrument", "instrument_all", "instrument_server"]
