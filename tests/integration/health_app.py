"""An app with routes of health, and whatever a test wants of it by its environment."""

from __future__ import annotations

import os
import threading

from fastapi import FastAPI

import clew

never = threading.Event()
app = FastAPI()


@app.get("/orders/{order}/status")
async def order_status(order: int) -> dict[str, int]:
    return {"order": order}


if os.environ.get("HEALTH_MOUNTED"):
    inner = FastAPI()
    inner.include_router(clew.health_router())
    app.mount("/ops", inner)
else:
    app.include_router(clew.health_router(), prefix=os.environ.get("HEALTH_PREFIX", ""))
if not os.environ.get("HEALTH_PLAIN"):
    clew.instrument(app)

if os.environ.get("HEALTH_SCHEDULER"):
    from datetime import UTC

    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = clew.watch(BackgroundScheduler(timezone=UTC))
    scheduler.add_job(print, "interval", hours=1, id="digest", args=["secret-argument"])
    scheduler.start()


@clew.health_check("shop", timeout_s=0.3, critical=os.environ.get("HEALTH_CRITICAL") == "true", fresh_s=0.0)
def shop() -> clew.HealthResult:
    if os.environ.get("HEALTH_HANGS"):
        never.wait()
    if os.environ.get("HEALTH_RAISES"):
        raise ConnectionError("postgresql://app:hunter2@db/orders is away")
    return clew.HealthResult(text="it is open", data={"password": "hunter2"})


@clew.health_check("till")
async def till() -> None: ...
