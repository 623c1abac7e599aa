"""What tokens cost: from the table that genai-prices ships, and from what the app says itself. Nothing is asked over the network.

The table takes a good part of a second to import, so a thread of its own does that, when the first call begins.

Source: https://github.com/pydantic/genai-prices
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from clew import clock
from clew.diagnostics import report
from clew.engine import ending

logger = logging.getLogger("clew.llm")

PER: Final = 1_000_000
"""Prices are in USD for so many tokens."""

_KINDS: Final = ("input", "output", "cache_read", "cache_write")
_MAX_REMEMBERED: Final = 1_000
_MAX_NAME_LENGTH: Final = 255
_MAX_PRICE: Final = 1e9
_FORK_WAIT_S: Final = 5.0
# The providers whose name in the GenAI conventions the table does not know
_IN_TABLE: Final = {"x_ai": "x-ai", "gcp.gen_ai": "google", "azure.ai.inference": "azure"}
# Where nothing but tokens has a price, and theirs do not depend on how many there are, what a call costs is a sum of products
_OF_TOKENS: Final = {"input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok"}
_OF_CALLS: Final = "requests_kcount"
# Some prices depend on the date or the time of the day
_GOOD_FOR_S: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens that a provider counted.

    Attributes:
        input: of the prompt, with those that were read from and written to the provider's cache.
        output: of the completion, with those of reasoning.
        cache_read: of the input, those that the provider had already.
        cache_write: of the input, those that the provider kept.
    """

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0


Price = Callable[[Usage], float | None]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """A model's prices, in USD for a million tokens.

    Attributes:
        input: of the prompt.
        output: of the completion.
        cache_read: of the prompt's tokens that the provider had already; by default they cost what others do.
        cache_write: of the prompt's tokens that the provider kept; by default they cost what others do.

    Example:
        >>> Rates(input=2.5, output=10.0, cache_read=1.25)(Usage(input=1_000_000, cache_read=500_000, output=100_000))
        2.875
    """

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None

    def __call__(self, usage: Usage) -> float:
        """Return what usage costs, in USD."""
        others = max(0, usage.input - usage.cache_read - usage.cache_write)
        cache_read = self.input if self.cache_read is None else self.cache_read
        cache_write = self.input if self.cache_write is None else self.cache_write
        costs = (
            others * self.input,
            usage.cache_read * cache_read,
            usage.cache_write * cache_write,
            usage.output * self.output,
        )
        return sum(costs) / PER


@dataclass(slots=True)
class _Loading:
    """The import of the table: what waits for it, and whether it and they are over."""

    done: Future[bool] = field(default_factory=Future)
    settled: threading.Event = field(default_factory=threading.Event)


class PriceList:
    """The prices of this process."""

    def __init__(self) -> None:
        self._own: dict[str, Rates] = {}
        self._known: dict[tuple[str, str], tuple[float, Price | None]] = {}
        self._lock = threading.RLock()
        self._loading: _Loading | None = None

    def override(self, prices: Mapping[str, Mapping[str, float]]) -> None:
        """Take over what the app says; see :func:`llm_prices`."""
        for model, given in prices.items():
            try:
                self._own[str(model).lower()] = _rates(given)
            except Exception as error:
                report("llm_prices", f"{str(model)[:80]!r}: {error}")

    @property
    def is_loaded(self) -> bool:
        """Whether the table was imported, or is known to be missing."""
        return self._loading is not None and self._loading.done.done()

    def load(self) -> None:
        """Import the table, in a thread. Once is enough."""
        if self._loading is not None:
            return
        with self._lock:
            if self._loading is not None:
                return
            self._loading = loading = _Loading()
        ending.add_part(self)
        try:
            threading.Thread(target=_load, args=(loading,), name="clew-llm-prices", daemon=True).start()
        except RuntimeError:
            # The interpreter is ending
            _load(loading)

    def when_loaded(self, then: Callable[[], object]) -> None:
        """Do something once prices are known: in the thread that imports them, or at once."""
        self.load()
        if self._loading is not None:
            self._loading.done.add_done_callback(lambda _: then())

    def cost_usd(self, provider: str, models: tuple[str, ...], usage: Usage) -> float | None:
        """Return what a call costs, or ``None`` where its price is not known.

        Args:
            provider: ``gen_ai.provider.name``.
            models: the names that the model goes by; the first one that has a price counts.
            usage: what the provider counted.
        """
        for model in models:
            own = self._own.get(f"{provider}/{model}".lower()) or self._own.get(model.lower())
            if own is not None:
                return own(usage)
        for model in models:
            if (price := self._price(provider, model)) is not None:
                return price(usage)
        return None

    def flush(self, timeout_s: float) -> bool:
        """Wait until calls that ended before prices were known have theirs."""
        return self._loading is None or self._loading.settled.wait(timeout_s)

    def shutdown(self, timeout_s: float) -> bool:
        """Wait as :meth:`flush` does: there is nothing to end."""
        return self.flush(timeout_s)

    def reset_after_fork(self) -> None:
        """Leave to the parent what was the parent's."""
        self._lock = threading.RLock()
        if self._loading is not None and not self._loading.settled.is_set():
            self._loading = None

    def _price(self, provider: str, model: str) -> Price | None:
        key, now_s = (provider, model), clock.monotonic_s()
        good_until_s, price = self._known.get(key, (0.0, None))
        if now_s < good_until_s or not self.is_loaded:
            return price
        price = _price_in_table(provider, model)
        if len(self._known) >= _MAX_REMEMBERED:
            self._known.clear()
        self._known[key] = now_s + _GOOD_FOR_S, price
        return price


def _load(loading: _Loading) -> None:
    found = False
    try:
        from genai_prices import data_snapshot

        data_snapshot.get_snapshot()
        found = True
    except ModuleNotFoundError as error:
        logger.info("what LLM calls cost is not known, because %s is missing: pip install 'clew[llm]'", error.name)
    except Exception as error:
        logger.warning("what LLM calls cost is not known: %r", error)
    finally:
        # Runs what waits for it
        loading.done.set_result(found)
        loading.settled.set()


def _price_in_table(provider: str, model: str) -> Price | None:
    try:
        from genai_prices import calc_price
        from genai_prices.types import Usage as TableUsage
    except Exception:
        return None
    provider_id, model_ref = _IN_TABLE.get(provider, provider)[:_MAX_NAME_LENGTH], model[:_MAX_NAME_LENGTH]

    def of_table(usage: Usage) -> float | None:
        counted = {
            "input_tokens": max(usage.input, usage.cache_read + usage.cache_write),
            "output_tokens": usage.output,
            "cache_read_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
        }
        try:
            # What is not counted is not priced: some prices are for no text at all
            used = TableUsage(**{name: number for name, number in counted.items() if number})
            return float(calc_price(used, model_ref, provider_id=provider_id).total_price)
        except Exception:
            return None

    try:
        found = calc_price(TableUsage(), model_ref, provider_id=provider_id).model_price
    except Exception:
        # It has no price
        return None
    amounts = {name: amount for name, amount in vars(found).items() if amount is not None}
    of_tokens = {name.removesuffix("_mtok"): amount for name, amount in amounts.items() if name in _OF_TOKENS}
    if of_tokens and _OF_CALLS not in amounts:
        with contextlib.suppress(TypeError, ValueError):
            # A thousandth of what asking the table takes; what depends on more is asked for each time
            return _rates({name: float(amount) for name, amount in of_tokens.items()})
    return of_table


def _rates(given: Mapping[str, Any]) -> Rates:
    if unknown := sorted(set(map(str, given)) - set(_KINDS)):
        raise ValueError(f"{', '.join(unknown)[:80]} is no kind of token: use {', '.join(_KINDS)}")
    rates = {name: float(amount) for name, amount in given.items()}
    for name, rate in rates.items():
        if not (math.isfinite(rate) and 0 <= rate <= _MAX_PRICE):
            raise ValueError(f"the price of {name} must be a number of USD for a million tokens, not {rate}")
    return Rates(**{"input": 0.0, "output": 0.0, **rates})


price_list: Final = PriceList()


def llm_prices(prices: Mapping[str, Mapping[str, float]], /) -> None:
    """Say what models cost, in USD for a million tokens: for those that no table has, and before what a table says.

    Args:
        prices: by model, or by ``provider/model``: the price of ``input``, ``output``, ``cache_read`` and ``cache_write`` tokens. A
            cached token costs what another does where it is left out.

    Example:
        >>> import clew
        >>> clew.llm_prices({"our-model": {"input": 0.5, "output": 1.5}, "openai/ours": {"input": 2.0, "output": 8.0}})
    """
    try:
        price_list.override(prices)
    except Exception as error:
        report("llm_prices", error)


def _before_fork() -> None:
    # A module that another thread is importing can't be imported in the child any more
    price_list.flush(_FORK_WAIT_S)


os.register_at_fork(before=_before_fork, after_in_child=lambda: price_list.reset_after_fork())  # noqa: PLW0108 - looked up then
