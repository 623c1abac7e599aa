"""Budgets: what LLM calls may cost in an hour or a day. They are watched, never enforced: no call is held up or refused."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from clew.catalog import semconv
from clew.catalog.metrics import LLM_BUDGET_USED
from clew.diagnostics import report
from clew.engine.metrics import registry
from clew.engine.runtime import current_log_stream, ready
from clew.history import payload
from clew.llm.record import the_recorder

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from clew.history.recorder import Recorder

logger = logging.getLogger("clew.llm")

WARNING_SHARE: Final = 0.8
"""From which share on a budget is nearly spent."""

WATCH_S: Final = 5.0
WATCH: Final = "llm budgets"
_MAX_BUDGETS: Final = 1_000
_MAX_NAME_BYTES: Final = 255


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What calls may cost.

    Attributes:
        name: what it is called.
        usd: how much, in USD.
        per: in which time: hours and days begin when those of UTC do.
        service: of this service's calls only.
        agent: of this agent's calls only.
        user: of calls for this user only.
    """

    name: str
    usd: float
    per: Literal["hour", "day"] = "day"
    service: str | None = None
    agent: str | None = None
    user: str | None = None


class _Watch:
    """The budgets of this process, and what it has said of them."""

    def __init__(self) -> None:
        self._budgets: dict[str, Budget] = {}
        self._said: dict[tuple[str, str], datetime] = {}

    def add(self, budget: Budget) -> None:
        if budget.name not in self._budgets and len(self._budgets) >= _MAX_BUDGETS:
            raise ValueError(f"there are {_MAX_BUDGETS} budgets already")
        self._budgets[budget.name] = budget

    def forget(self) -> None:
        self._budgets.clear()
        self._said.clear()

    def look(self, connection: Connection, recorder: Recorder) -> None:
        """Compare what was spent with what may be."""
        for budget in list(self._budgets.values()):
            self._look_at(budget, connection, recorder)

    def _look_at(self, budget: Budget, connection: Connection, recorder: Recorder) -> None:
        from clew.history import llm_budgets

        since, spent_usd = llm_budgets.spent(
            connection, grain=budget.per, service=budget.service, agent=budget.agent, user=budget.user
        )
        share = spent_usd / budget.usd
        registry.declared(LLM_BUDGET_USED).set(share, **{"clew.llm.budget": budget.name})
        if share < WARNING_SHARE:
            return
        level: Literal["warning", "exceeded"] = "exceeded" if share >= 1 else "warning"
        if self._said.get((budget.name, level)) == since:
            return
        known = {"spent_usd": round(spent_usd, 6), "budget_usd": budget.usd, "since": since}
        is_ours = llm_budgets.claim(
            connection,
            budget=budget.name,
            grain=budget.per,
            level=level,
            service=recorder.origin.service,
            instance=recorder.origin.instance,
            **known,
        )
        self._said[budget.name, level] = since
        if is_ours:
            self._say(budget, level, share, known)

    def _say(self, budget: Budget, level: str, share: float, known: dict[str, Any]) -> None:
        whose = {"of_service": budget.service, semconv.GEN_AI_AGENT_NAME: budget.agent, "user.id": budget.user}
        fields = {
            "clew.llm.budget": budget.name,
            "per": budget.per,
            "share": round(share, 4),
            **{name: value for name, value in whose.items() if value is not None},
            **known,
        }
        severity = "error" if level == "exceeded" else "warning"
        current_log_stream().take(severity, f"llm_budget_{level}", "clew.llm.call", fields)


_watch: Final = _Watch()


def llm_budget(
    name: str,
    /,
    *,
    usd: float,
    per: Literal["hour", "day"] = "day",
    service: str | None = None,
    agent: str | None = None,
    user: str | None = None,
) -> None:
    """Have it said when LLM calls cost more than they may. Nothing is held up or refused.

    What is counted are the calls that all processes record in the history. At 80 % there is the event ``llm_budget_warning``, and
    at 100 % ``llm_budget_exceeded``: once in an hour or day, by one of the processes that watch it. The metric
    ``clew.llm.budget.used`` is the share that is spent.

    Args:
        name: what the budget is called, of low cardinality; the same name again replaces it.
        usd: how much may be spent, in USD.
        per: in which time, ``hour`` or ``day``: those of UTC.
        service: of this service's calls only.
        agent: of this agent's calls only.
        user: of calls for this user only, not together with an agent.

    Example:
        >>> import clew
        >>> clew.llm_budget("team", usd=20.0, per="day")
        >>> clew.llm_budget("topicizer", usd=0.5, per="hour", agent="topicizer")
    """
    try:
        amount = float(usd)
        if not (math.isfinite(amount) and amount > 0):
            raise ValueError(f"usd must be a number of USD above 0, not {amount}")  # noqa: TRY301 - it is told in one place
        if per not in ("hour", "day"):
            raise ValueError(f"per must be 'hour' or 'day', not {str(per)[:50]!r}")  # noqa: TRY301 - the same
        if agent is not None and user is not None:
            raise ValueError("it is of an agent or of a user: what one spends for the other is not counted")  # noqa: TRY301 - the same
        named = payload.text(name, max_bytes=_MAX_NAME_BYTES) or "budget"
        _watch.add(Budget(name=named, usd=amount, per=per, service=service, agent=agent, user=user))
        _begin_to_watch()
    except Exception as error:
        report("llm_budget", error)


def _begin_to_watch() -> None:
    state = ready()
    recorder = the_recorder()
    if recorder is None:
        if not state.capturing:
            logger.warning("budgets of LLM calls are not watched: they are read from the history, which is off here")
        return
    from clew.history.recorder import Chore

    watching = recorder
    chore = Chore(name=WATCH, interval_s=WATCH_S, do=lambda connection: _watch.look(connection, watching))
    recorder.add_chore(chore)
