"""An app with routes of health and ten checks, of which one can be made to hang; and the small server of workers beside it."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

from fastapi import FastAPI
from sqlalchemy import create_engine

import clew
from benchmarks.variants.clew import configure, flush
from benchmarks.variants.parts import Options, Served


def request(options: Options) -> Served:
    """Return the app: ten checks: what every process has but the scheduler, a database, a function and a coroutine."""
    configure(options)
    app = FastAPI()
    app.include_router(clew.health_router())
    clew.instrument(app)
    clew.watch(create_engine(f"sqlite:///{os.environ['BENCH_DATABASE']}"))
    clew.unwatch("scheduler")
    answers = threading.Event()
    answers.set()

    @clew.health_check("part", timeout_s=1.0, critical=True, fresh_s=0.0)
    def part() -> None:
        answers.wait()

    @clew.health_check("coroutine", fresh_s=0.0)
    async def coroutine() -> None:
        await asyncio.sleep(0)

    worker: Any = clew.serve_worker(port=0)

    @app.get("/bench/worker")
    async def port() -> dict[str, int]:
        return {"port": worker.port}

    @app.get("/bench/hang")
    async def hang(*, on: bool) -> None:
        (answers.clear if on else answers.set)()

    return Served(app=app, flush=flush)
