"""structlog that writes a JSON line to nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from benchmarks.variants.parts import Operations, Options


def operations(_options: Options) -> Operations:
    """Return one log line with time, level and bound context."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=Path(os.devnull).open("w", encoding="utf-8")),  # noqa: SIM115 - for the process's life
        cache_logger_on_first_use=True,
    )
    log = structlog.get_logger("bench")
    return Operations(each={"log line as JSON": lambda: log.info("order.placed", order_id=7, channel="web")})
