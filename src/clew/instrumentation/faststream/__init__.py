"""FastStream brokers: a send span for what they publish, a process span for what their subscribers get, a receive span for what is fetched.

By FastStream's own middleware, so that it is the same for Redis and Valkey, NATS, Kafka, RabbitMQ and MQTT. Only the methods by which
an app fetches messages itself are wrapped.

Source: https://faststream.ag2.ai/latest/getting-started/middlewares/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import wrapt
from faststream._internal.broker import BrokerUsecase

from clew.diagnostics import report
from clew.instrumentation.faststream.polling import wrap_polls
from clew.instrumentation.faststream.scope import ClewMiddleware

__all__ = ["instrument", "instrument_all"]

T = TypeVar("T")

_SYSTEMS: Final = {
    "redis": "redis",
    "nats": "nats",
    "kafka": "kafka",
    "confluent": "kafka",
    "rabbit": "rabbitmq",
    "mqtt": "mqtt",
}


def instrument(target: T) -> T:
    """Instrument a broker in place, or the broker of a FastStream app or of a FastAPI stream router. Twice is harmless.

    Args:
        target: a broker, before or after it has subscribers, started or not.

    Raises:
        TypeError: it has no broker.

    Example:
        >>> from faststream.redis import RedisBroker
        >>> broker = instrument(RedisBroker())
    """
    broker: Any = target if isinstance(target, BrokerUsecase) else getattr(target, "broker", None)
    if not isinstance(broker, BrokerUsecase):
        raise TypeError(f"a {type(target).__qualname__} is no FastStream broker and has none")
    if not any(isinstance(known, ClewMiddleware) for known in broker.middlewares):
        # The outermost, so that the other middlewares work within the span
        broker.insert_middleware(ClewMiddleware(system=_system(broker)))
        wrap_polls(_system_of)
    return target


def instrument_all() -> None:
    """Instrument every broker that the app makes from now on. Twice is harmless."""
    if isinstance(vars(BrokerUsecase)["__init__"], wrapt.FunctionWrapper):
        return

    def made(
        wrapped: Callable[..., None], broker: BrokerUsecase[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        wrapped(*args, **kwargs)
        try:
            instrument(broker)
        except Exception as error:
            report("instrument faststream", error)

    wrapt.wrap_function_wrapper(BrokerUsecase, "__init__", made)


def _system_of(subscriber: Any) -> str | None:
    for known in subscriber._broker_middlewares:
        if isinstance(known, ClewMiddleware):
            return known.system
    return None


def _system(broker: object) -> str:
    for kind in type(broker).__mro__:
        parts = kind.__module__.split(".")
        if parts[0] == "faststream" and len(parts) > 1 and parts[1] in _SYSTEMS:
            return _SYSTEMS[parts[1]]
    return "unknown"
