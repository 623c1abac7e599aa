"""FastAPI alone, and Python alone."""

from __future__ import annotations

from benchmarks.variants import parts
from benchmarks.variants.parts import Messages, Operations, Options, Served, nothing
from benchmarks.variants.shop import shop


def request(_options: Options) -> Served:
    """Return the app as it is."""
    return Served(app=shop())


def operations(_options: Options) -> Operations:
    """Return the cost of a call, which is in every other figure."""
    return Operations(each={"call": nothing})


def messages(options: Options) -> Messages:
    """Return FastStream as it is."""
    from benchmarks.variants.exchange import exchange

    return exchange(options.valkey)


def agents(_options: Options) -> Operations:
    """Return the cost of a call, under the names of what an agent does."""
    return Operations(each=dict.fromkeys(parts.AGENT_WORK, nothing))
