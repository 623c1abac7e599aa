"""sentry-sdk, which instruments FastAPI by itself once it is set up."""

from __future__ import annotations

from typing import Any

import sentry_sdk
from sentry_sdk.transport import Transport

from benchmarks.variants.parts import Options, Served
from benchmarks.variants.shop import shop


class Dropped(Transport):  # type: ignore[misc] # it is not in the environment of the type checker
    """Takes everything and drops it."""

    def capture_envelope(self, envelope: Any) -> None:
        """Take one envelope."""


def request(options: Options) -> Served:
    """Return the app with tracing of the share of the options."""
    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", traces_sample_rate=options.share, transport=Dropped)
    return Served(app=shop())
