"""A Celery app whose tasks do what tests of workers need, for programs that are started as ``celery -A tests.integration.celery_app``.

``CELERY_PLAIN`` leaves clew out; ``VALKEY_URL`` is the broker, and where tasks leave what tests wait for.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from datetime import timedelta
from typing import Any

import redis
from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.schedules import crontab
from celery.signals import beat_init
from celery.utils.log import get_task_logger

URL = os.environ.get("VALKEY_URL", "redis://127.0.0.1:6379/0")
LIMIT_S = 60.0

app = Celery("shop", broker=URL, backend=URL)
app.conf.update(
    broker_transport_options={"visibility_timeout": float(os.environ.get("VISIBILITY_TIMEOUT_S", "3600"))},
    broker_connection_retry_on_startup=True,
    result_expires=600,
    task_default_queue=os.environ.get("CELERY_QUEUE", "work"),
    task_protocol=int(os.environ.get("CELERY_PROTOCOL", "2")),
    timezone="Europe/Berlin",
    worker_prefetch_multiplier=1,
    # Whatever a test starts, it looks again often
    worker_timer_precision=0.1,
    beat_max_loop_interval=0.1,
)
if os.environ.get("CELERY_PLAIN") != "1" and os.environ.get("CLEW_RUN") != "1":
    import clew

    clew.instrument(app)

store: Any = redis.Redis.from_url(URL, socket_timeout=LIMIT_S + 5)


def wait_for(key: str) -> str:
    """Wait until a test allows a task to go on."""
    found = store.blpop([key], timeout=LIMIT_S)
    assert found is not None, f"nobody said {key}"
    return str(found[1].decode())


@app.task(name="shop.add")
def add(left: int, right: int) -> int:
    logging.getLogger("shop").warning("adding %s", left)
    get_task_logger("shop.tasks").warning("task logger")
    return left + right


@app.task(name="shop.nested")
def nested(number: int) -> str:
    return str(add.delay(number, 1).id)


@app.task(name="shop.say")
def say(text: str) -> None:
    print(text)  # noqa: T201 - what is printed is looked for


@app.task(name="shop.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="shop.flaky", bind=True, max_retries=2)
def flaky(self: Any, fails: int) -> int:
    if self.request.retries < fails:
        raise self.retry(exc=ConnectionError(f"try {self.request.retries + 1}"), countdown=0.2)
    return int(self.request.retries)


@app.task(name="shop.poll", bind=True, max_retries=5)
def poll(self: Any) -> str:
    if self.request.retries < 1:
        self.retry(countdown=0)
    return "ready"


@app.task(name="shop.fail")
def fail(text: str = "out of stock") -> None:
    raise ValueError(text)


@app.task(name="shop.ignore")
def ignore() -> None:
    raise Ignore


@app.task(name="shop.reject", bind=True, acks_late=True)
def reject(self: Any, *, requeue: bool) -> str:
    if self.request.delivery_info.get("redelivered") or store.incr(f"rejected:{self.request.id}") > 1:
        return "taken"
    raise Reject("not mine", requeue=requeue)


@app.task(name="shop.leave")
def leave() -> None:
    sys.exit(3)


@app.task(name="shop.request", bind=True)
def request(self: Any) -> dict[str, Any]:
    return {
        "args": self.request.args,
        "headers": dict(self.request.headers or {}),
        "retries": self.request.retries,
    }


@app.task(name="shop.hold", bind=True)
def hold(self: Any, key: str) -> str:
    """Say who runs it, and wait to be let go."""
    store.rpush(f"{key}:held", os.getpid())
    return wait_for(f"{key}:go")


@app.task(name="shop.hold_late", bind=True, acks_late=True, reject_on_worker_lost=True)
def hold_late(self: Any, key: str) -> str:
    store.rpush(f"{key}:held", os.getpid())
    return wait_for(f"{key}:go")


@app.task(name="shop.soft", soft_time_limit=0.3)
def soft() -> None:
    threading.Event().wait(LIMIT_S)


@app.task(name="shop.hard", time_limit=1)
def hard() -> None:
    threading.Event().wait(LIMIT_S)


@app.task(name="shop.deaf", time_limit=1)
def deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Event().wait(LIMIT_S)


@app.task(name="shop.many")
def many(number: int) -> int:
    return number


if os.environ.get("CELERY_BEAT") == "1":
    app.conf.beat_schedule = {
        "often": {"task": "shop.add", "schedule": timedelta(seconds=0.5), "args": (1, 1)},
        "nightly": {"task": "shop.total", "schedule": crontab(), "args": ([1],)},
    }

    @beat_init.connect
    def _long_ago(sender: Any = None, **_: Any) -> None:
        # So that beat takes what is due each minute for due at once
        entry = sender.scheduler.schedule["nightly"]
        entry.last_run_at -= timedelta(minutes=2)
