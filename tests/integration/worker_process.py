"""A worker without a server of its own, that works until SIGTERM and takes its time to end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from types import FrameType

import clew

go_on = threading.Event()


def until_told(path: str) -> None:
    """Wait until a file is there: the test says when."""
    while not os.path.exists(path):  # noqa: PTH110 - in a signal's time
        time.sleep(0.01)


def plain(end: str, port: int) -> None:
    def handle(_number: int, _frame: FrameType | None) -> None:
        go_on.set()

    signal.signal(signal.SIGTERM, handle)
    clew.serve_worker(port=port)
    go_on.wait()
    until_told(end)


def default(_end: str, port: int) -> None:
    clew.serve_worker(port=port)
    go_on.wait()


def hanging(_end: str, port: int) -> None:
    @clew.health_check("hangs", timeout_s=0.2)
    def hangs() -> None:
        threading.Event().wait()

    clew.serve_worker(port=port)
    clew.check_health()


def forking(end: str, port: int) -> None:
    clew.serve_worker(port=port)
    if os.fork() == 0:
        until_told(end)
        # The parent is gone by now; what the child has of its own works
        clew.unwatch("cpu")
        status = clew.check_health().status
        server = clew.serve_worker(port=port)
        assert server is not None, "the port is still taken"
        server.stop()
        os.write(1, f"child {status}\n".encode())
        os._exit(0)


async def asyncio_worker(end: str, port: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    @clew.health_check("coroutine", critical=True)
    async def coroutine() -> None:
        await asyncio.sleep(0)

    async with clew.startup() as start:
        clew.serve_worker(port=port)
        with start.step("wait for the test"):
            await asyncio.to_thread(until_told, f"{end}-started")
    await stop.wait()
    await asyncio.to_thread(until_told, end)


async def blocked(_end: str, port: int) -> None:
    clew.serve_worker(port=port)
    await asyncio.sleep(0.1)
    time.sleep(3600)  # noqa: ASYNC251 - what is to be noticed


if __name__ == "__main__":
    kind, end, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    scene = {"asyncio": asyncio_worker, "blocked": blocked, "plain": plain, "default": default}
    scene |= {"hanging": hanging, "forking": forking}
    result = scene[kind](end, port)
    if asyncio.iscoroutine(result):
        asyncio.run(result)
