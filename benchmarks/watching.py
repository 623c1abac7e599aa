"""The process that is measured by the scenario of watched queues: it looks at many queues, by clew or by bare redis-py.

``python -m benchmarks.watching bare|clew ADDRESS QUEUES ROUNDS`` prints one line of JSON: what each round took on the clock, in ms, and
the CPU time of the process for a round, in ms.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import redis

GROUP = "workers"
_INTERVAL_S = 0.1
_PATIENCE_S = 120.0


class Client(redis.Redis):
    """A client that knows when each round of looks begins and ends."""

    def __init__(self, first: str, last: str, **options: Any) -> None:
        super().__init__(**options)
        self._first, self._last = first, last
        self._begun_s = self._seen_s = 0.0
        self._is_last = False
        self.rounds_ms: list[float] = []
        self.told = threading.Condition()

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """Send a command; a round ends with the last one for its last key."""
        if arguments == ("TYPE", self._first):
            now_s = time.perf_counter()
            if self._is_last:
                with self.told:
                    self.rounds_ms.append((self._seen_s - self._begun_s) * 1e3)
                    self.told.notify_all()
            self._begun_s, self._is_last = now_s, False
        answer = super().execute_command(*arguments, **options)  # type: ignore[no-untyped-call] # redis-py has no types for it
        self._is_last = self._is_last or self._last in arguments
        self._seen_s = time.perf_counter()
        return answer


def names(queues: int) -> list[str]:
    """Return the keys of queues: streams and lists in turn."""
    return [f"{'list' if number % 2 else 'stream'}-{number:04d}" for number in range(queues)]


def fill(address: str, queues: int) -> None:
    """Put three messages in each of the queues."""
    with redis.Redis.from_url(address) as client, client.pipeline(transaction=False) as pipeline:
        for key in names(queues):
            for number in range(3):
                if key.startswith("list"):
                    pipeline.rpush(key, json.dumps({"headers": {"clew-sent-at": time.time()}, "body": number}))
                else:
                    pipeline.xadd(key, {"body": number})
            if not key.startswith("list"):
                pipeline.xgroup_create(key, GROUP, id="0")
                pipeline.xreadgroup(GROUP, "bench", {key: ">"}, count=1)
        pipeline.execute()


def group_of(key: str) -> str | None:
    """Return the consumer group of a queue; a list has none."""
    return None if key.startswith("list") else GROUP


def bare(address: str, queues: int, rounds: int) -> dict[str, Any]:
    """Ask the server the same, and do nothing with the answers."""
    from clew.queues.depth import measure

    took: list[float] = []
    with redis.Redis.from_url(address) as client:
        for number in range(rounds + 1):
            if number == 1:
                spent = time.process_time()
            started = time.perf_counter()
            for key in names(queues):
                measure(client, key, group=group_of(key))
            if number:
                took.append((time.perf_counter() - started) * 1e3)
    return {"rounds_ms": took, "cpu_ms": (time.process_time() - spent) * 1e3 / rounds}


def watched(address: str, queues: int, rounds: int) -> dict[str, Any]:
    """Have clew look at them, at intervals."""
    import clew

    keys = names(queues)
    options = redis.connection.parse_url(address)  # type: ignore[no-untyped-call] # redis-py has no types for it
    client = Client(keys[0], keys[-1], **options)
    for key in keys:
        clew.watch_queue(client, key, group=group_of(key), interval_s=_INTERVAL_S)
    _wait(client, 2)  # the first round may have begun before all were added
    before, spent = len(client.rounds_ms), time.process_time()
    _wait(client, before + rounds)
    cpu_ms = (time.process_time() - spent) * 1e3
    done = client.rounds_ms[before:]
    depths = [float(one.value or 0) for one in clew.summary("clew.queue.depth")]
    clew.unwatch_queue(*keys)
    if len(depths) != queues or set(depths) != {3.0}:
        raise RuntimeError(f"of {queues} queues with 3 messages each, {len(depths)} are known: {depths[:3]}")
    clew.shutdown()
    return {"rounds_ms": done, "cpu_ms": cpu_ms / len(done)}


def _wait(client: Client, rounds: int) -> None:
    with client.told:
        if not client.told.wait_for(lambda: len(client.rounds_ms) >= rounds, _PATIENCE_S):
            raise RuntimeError(f"{len(client.rounds_ms)} rounds in {_PATIENCE_S} s")


def main(kind: str, address: str, queues: str, rounds: str) -> None:
    """Measure, and print what was found."""
    measured = (bare if kind == "bare" else watched)(address, int(queues), int(rounds))
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
