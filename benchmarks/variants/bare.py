"""FastAPI alone, and Python alone."""

from __future__ import annotations

from benchmarks.variants.parts import Operations, Options, Served, nothing
from benchmarks.variants.shop import shop


def request(_options: Options) -> Served:
    """Return the app as it is."""
    return Served(app=shop())


def operations(_options: Options) -> Operations:
    """Return the cost of a call, which is in every other figure."""
    return Operations(each={"call": nothing})
