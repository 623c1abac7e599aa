"""A history of messages, of agents' tasks and handoffs, and of LLM calls to measure with, as a service of some weeks would have left them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from clew.history.ids import least_id

QUEUES: Final = 40
USERS: Final = 2_000
AGENTS: Final = 20

_TYPES: Final = ("document", "page", "topic")
_SOURCES: Final = ("gateway", "extraction")
_TRIED: Final = ("processed",) * 95 + ("failed",) * 3 + ("returned", "dead_lettered")
_ENDED: Final = ("completed",) * 97 + ("failed",) * 2 + ("cancelled",)
_MODELS: Final = (("openai", "gpt-4o-mini"), ("openai", "gpt-4o"), ("anthropic", "claude-sonnet-4-5"))


def messages(count: int, *, until: datetime, over: timedelta = timedelta(days=30), seed: int = 0) -> Iterator[Any]:
    """Yield records of messages, oldest first: one that was sent, then one of the try to process it, and so on.

    Args:
        count: how many records.
        until: when the last one ended.
        over: the time over which they are spread evenly.
        seed: the same one gives the same records.
    """
    chance = random.Random(seed)  # noqa: S311 - the same records each time
    for number in range(0, count, 2):
        kind = min(int(chance.expovariate(0.15)), QUEUES - 1)
        at = until - over + over * ((number + 1) / count)
        sent = {
            **_thread(chance, at),
            "system": "redis",
            "queue": f"queue-{kind:02d}",
            "direction": "sent",
            "status": "sent",
            "type": chance.choice(_TYPES),
            "source": chance.choice(_SOURCES),
            "message_id": f"{int(at.timestamp() * 1000)}-{number}",
            "envelope": "clew",
            "attempt": 1,
            "messages": 1,
            "sent_at": at,
            "duration_s": 0.0004,
            "size_bytes": 412,
            "payload": {"document": f"d-{number}", "pages": chance.randrange(40)},
        }
        yield sent
        if number + 1 == count:
            return
        status = chance.choice(_TRIED)
        yield {
            **sent,
            **_ids(chance, at),
            "direction": "received",
            "status": status,
            "consumer_group": "workers",
            "started_at": at,
            "finished_at": at,
            "wait_s": chance.expovariate(20),
            "duration_s": chance.lognormvariate(-3.0, 0.5),
            "error_type": None if status == "processed" else "builtins.ValueError",
            "error_message": None if status == "processed" else f"document {number} can't be read",
        }


def calls(count: int, *, until: datetime, over: timedelta = timedelta(days=30), seed: int = 0) -> Iterator[Any]:
    """Yield LLM calls, oldest first, of :data:`AGENTS` agents for :data:`USERS` users.

    Args:
        count: how many.
        until: when the last one ended.
        over: the time over which they are spread evenly.
        seed: the same one gives the same calls.
    """
    chance = random.Random(seed)  # noqa: S311 - the same calls each time
    for number in range(count):
        at = until - over + over * ((number + 1) / count)
        provider, model = chance.choice(_MODELS)
        tokens = chance.randrange(50, 4_000)
        yield {
            **_thread(chance, at),
            "provider": provider,
            "model": model,
            "response_model": model,
            "operation": "chat",
            "agent": name_of(chance.randrange(AGENTS)),
            "user_id": f"u-{chance.randrange(USERS)}",
            "status": chance.choice(_ENDED),
            "started_at": at,
            "duration_s": chance.lognormvariate(0.0, 0.5),
            "first_token_s": 0.3,
            "retries": 0,
            "is_cached": False,
            "input_tokens": tokens,
            "output_tokens": tokens // 5,
            "cost_usd": tokens * 2e-6,
        }


def tasks(
    count: int, agents: int, *, until: datetime, over: timedelta = timedelta(days=30), seed: int = 0
) -> Iterator[Any]:
    """Yield tasks of agents that ended, oldest first, as many of each agent.

    Args:
        count: how many.
        agents: of how many agents.
        until: when the last one ended.
        over: the time over which they are spread evenly.
        seed: the same one gives the same tasks.
    """
    chance = random.Random(seed)  # noqa: S311 - the same tasks each time
    for number in range(count):
        at = until - over + over * ((number + 1) / count)
        took_s = chance.lognormvariate(0.0, 0.5)
        yield {
            **_thread(chance, at),
            "agent": name_of(number % agents),
            "type": "topicization",
            "version": "1",
            "task_id": f"d-{number}",
            "status": chance.choice(_ENDED),
            "attempt": 1,
            "started_at": at - timedelta(seconds=took_s),
            "finished_at": at,
            "duration_s": took_s,
        }


def handoffs(
    count: int, agents: int, *, until: datetime, over: timedelta = timedelta(days=30), seed: int = 0
) -> Iterator[Any]:
    """Yield handoffs from each agent to the two that come after it, oldest first.

    Args:
        count: how many.
        agents: between how many agents.
        until: when the last one was over.
        over: the time over which they are spread evenly.
        seed: the same one gives the same handoffs.
    """
    chance = random.Random(seed)  # noqa: S311 - the same handoffs each time
    for number in range(count):
        at = until - over + over * ((number + 1) / count)
        wait_s, took_s = chance.expovariate(20), chance.lognormvariate(0.0, 0.5)
        begun = at - timedelta(seconds=wait_s + took_s)
        yield {
            **_thread(chance, at),
            "source": name_of(number % agents),
            "target": name_of((number + chance.randrange(1, 3)) % agents),
            "mode": "pass_control",
            "status": chance.choice(_ENDED),
            "depth": 1,
            "is_loop": False,
            "is_too_deep": False,
            "handed_at": begun,
            "accepted_at": begun + timedelta(seconds=wait_s),
            "finished_at": at,
            "wait_s": wait_s,
            "duration_s": took_s,
        }


def name_of(agent: int) -> str:
    """Return the name of an agent.

    Example:
        >>> name_of(7)
        'agent-0007'
    """
    return f"agent-{agent:04d}"


def _thread(chance: random.Random, at: datetime) -> dict[str, Any]:
    return {
        **_ids(chance, at),
        "service": "bench",
        "instance": "bench-1",
        "trace_id": f"{chance.getrandbits(128):032x}",
        "correlation_id": f"{chance.getrandbits(128):032x}",
        "recorded_at": at,
    }


def _ids(chance: random.Random, at: datetime) -> dict[str, str]:
    return {
        "id": f"{int(least_id(at), 16) | 7 << 76 | chance.getrandbits(76):032x}",
        "span_id": f"{chance.getrandbits(64):016x}",
    }
