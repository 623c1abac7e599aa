"""elastic-apm, with its middleware for Starlette and a transport that drops what its thread has encoded."""

from __future__ import annotations

from typing import Any

from elasticapm.contrib.starlette import ElasticAPM, make_apm_client
from elasticapm.transport.base import Transport

from benchmarks.variants.parts import Options, Served
from benchmarks.variants.shop import shop


class Dropped(Transport):  # type: ignore[misc] # it is not in the environment of the type checker
    """Takes everything and drops it."""

    def __init__(self, url: str = "", **more: Any) -> None:
        super().__init__(**more)

    def send(self, data: Any, forced_flush: bool = False) -> None:  # noqa: FBT001, FBT002 - the interface's
        """Take one batch."""


def request(options: Options) -> Served:
    """Return the app with its middleware."""
    client = make_apm_client(
        {
            "SERVICE_NAME": "bench",
            "TRANSACTION_SAMPLE_RATE": options.share,
            "TRANSPORT_CLASS": f"{__name__}.Dropped",
            "CENTRAL_CONFIG": False,
            "CLOUD_PROVIDER": "none",
            "METRICS_INTERVAL": "0s",
        }
    )
    app = shop()
    app.add_middleware(ElasticAPM, client=client)
    return Served(app=app)
