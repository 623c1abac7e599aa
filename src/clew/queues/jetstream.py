"""How much waits in a subject of NATS JetStream, and since when: for a durable consumer, or in its stream where nobody has one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from clew import clock
from clew.queues.depth import Depth

_MAX_CONSUMERS: Final = 256
"""How many of a stream's consumers the server tells of at a time."""


async def measure(client: Any, subject: str, *, consumer: str | None = None) -> Depth:
    """Return what waits in a subject.

    Args:
        client: a connection of nats-py, or its JetStream context.
        subject: the subject or pattern that consumers take messages of.
        consumer: the durable consumer; by default the one of the subject that is furthest behind.

    Raises:
        nats.errors.Error: the server does not answer, or does not let the client ask.

    Source: https://docs.nats.io/reference/reference-protocols/nats_api_reference
    """
    from nats.js.errors import NotFoundError

    streams = client.jetstream() if hasattr(client, "jetstream") else client
    try:
        stream = await streams.find_stream_name_by_subject(subject)
    except NotFoundError:
        return Depth(kind="none", problem=f"no stream has the subject {subject}")
    if consumer is not None:
        try:
            return await _behind(streams, await streams.consumer_info(stream, consumer))
        except NotFoundError:
            return Depth(kind="stream", problem=f"no consumer {consumer!r} reads it")
    depths = [await _behind(streams, each) for each in await _consumers(streams, stream) if _takes(each, subject)]
    # The slowest one tells
    return max(depths, key=lambda depth: depth.length) if depths else await _kept(streams, stream, subject)


async def _behind(streams: Any, consumer: Any) -> Depth:
    length = (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
    # All up to there is acknowledged
    after = consumer.ack_floor.stream_seq if consumer.ack_floor is not None else 0
    age_s = await _age_s(streams, consumer.stream_name, after + 1, _filters(consumer) or [">"]) if length else None
    return Depth(kind="stream", length=length, oldest_age_s=age_s)


async def _kept(streams: Any, stream: str, subject: str) -> Depth:
    info = await streams.stream_info(stream, subjects_filter=subject)
    length = sum((info.state.subjects or {}).values())
    age_s = await _age_s(streams, stream, info.state.first_seq, [subject]) if length else None
    return Depth(kind="stream", length=length, oldest_age_s=age_s)


async def _consumers(streams: Any, stream: str) -> list[Any]:
    found: list[Any] = []
    while True:
        some = await streams.consumers_info(stream, offset=len(found))
        found += some
        if len(some) < _MAX_CONSUMERS:
            return found


def _takes(consumer: Any, subject: str) -> bool:
    """Tell whether a consumer outlives its connection, and takes what the subject has: that of others is not told apart."""
    return bool(consumer.config.durable_name) and subject in (_filters(consumer) or [subject])


def _filters(consumer: Any) -> list[str]:
    config = consumer.config
    one, several = config.filter_subject, getattr(config, "filter_subjects", None)
    return list(several) if several else [one] if one else []


async def _age_s(streams: Any, stream: str, seq: int, subjects: Iterable[str]) -> float | None:
    """Return how old the first message is that is there from a sequence number on; ``None`` where it has gone meanwhile."""
    from nats.js.errors import NotFoundError

    times = []
    for subject in subjects:
        try:
            first = await streams.get_msg(stream, seq=max(1, seq), subject=subject, next=True)
        except NotFoundError:
            continue
        times.append(first.time.timestamp())
    return max(0.0, clock.now_ns() / 1e9 - min(times)) if times else None
