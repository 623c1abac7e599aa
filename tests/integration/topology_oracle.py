"""What must come of a topology: a plain model of the rules for parents, links, threads, chains and ends, without any of clew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tests.integration.topologies import MAX_HANDOFFS, Mode, Topology, Work

Fate = Literal["well", "raised", "cancelled"]
TABLES = ("queue_messages", "agent_tasks", "handoffs", "llm_calls", "job_runs")


@dataclass(kw_only=True)
class Expected:
    """A span, and its row in the history.

    Attributes:
        name: the span's.
        parent: the key of the span above it; ``None`` for the root of a trace.
        thread: what it has a correlation id in common with.
        links: the keys of the spans that it links to.
        is_error: whether the span says that it failed.
        error_type: what is told of the failure.
        table: where its row is; ``""`` where it has none.
        statuses: what its row may say, one where there is no chance in it.
        columns: what else its row says; a ``Key`` stands for the id of that row.
    """

    name: str
    parent: str | None
    thread: str
    links: list[str] = field(default_factory=list)
    is_error: bool = False
    error_type: str | None = None
    table: str = ""
    statuses: set[str] = field(default_factory=set)
    columns: dict[str, Any] = field(default_factory=dict)


class Key(str):
    """Stands for the id of the row that belongs to a span."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A handoff that can be picked up."""

    key: str
    target: str
    mode: Mode


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something happens.

    Attributes:
        span: the key of the current span.
        thread: the correlation id.
        agents: the chain.
        depth: how many handoffs led here.
        offer: what is to be picked up.
        task: the key of the agent's task that goes on.
        source: who hands over here.
        agent: who is at work.
        user: for whom.
    """

    span: str | None = None
    thread: str | None = None
    agents: tuple[str, ...] = ()
    depth: int = 0
    offer: Offer | None = None
    task: str | None = None
    source: str = ""
    agent: str | None = None
    user: str | None = None

    def carried(self) -> Place:
        """Return what a carrier takes along."""
        return replace(self, task=None, source="", agent=None, user=None)


class Oracle:
    """Foretells all spans and rows of a topology."""

    def __init__(self, of: Topology, prefix: str) -> None:
        self.expected: dict[str, Expected] = {}
        self._later: list[Callable[[], Any]] = []
        self._ends: dict[str, list[str]] = {}
        self._is_orderly = not any(work.any_fans_out for work in of.works)
        start = Place(thread=prefix if of.is_correlated else None)
        for number, work in enumerate(of.works):
            self._do(work, f"{prefix}.{number}", start)
        while self._later:
            self._later.pop(0)()
        self._settle_handoffs()

    def _do(self, work: Work, key: str, at: Place, *, carried: bool = False) -> Fate:
        if work.kind == "send":
            return self._send(work, key, at.carried() if carried else at)
        if work.kind in ("unsent", "rejected"):
            return self._failed_message(work, key, at.carried() if carried else at)
        if work.kind == "batch":
            return self._batch(work, key, at.carried() if carried else at)
        if work.kind == "agent":
            return self._agent(work, key, at, carried=carried)
        at = at.carried() if carried else at
        return self._handoff(work, key, at) if work.kind == "handoff" else self._plain(work, key, at)

    def _begin(self, key: str, name: str, at: Place, **more: Any) -> tuple[Expected, Place]:
        assert key not in self.expected
        found = Expected(name=name, parent=at.span, thread=at.thread or key, **more)
        self.expected[key] = found
        return found, replace(at, span=key, thread=found.thread)

    def _inner(self, works: tuple[Work, ...], of: Work, key: str, at: Place, *, carried: bool = False) -> Fate:
        fates: list[Fate] = []
        for number, work in enumerate(works):
            fate = self._do(work, f"{key}.{number}", at, carried=carried)
            if fate == "cancelled" and (of.fans_out or work.own):
                fate = "well"
            if fate == "raised" and of.catches:
                fate = "well"
            if fate != "well" and not of.fans_out:
                return fate
            fates.append(fate)
        return "raised" if "raised" in fates else "well"

    def _end(self, found: Expected, work: Work, fate: Fate) -> Fate:
        if fate == "well" and work.end in ("raises", "hangs") and work.shape != "abandoned":
            fate = "raised" if work.end == "raises" else "cancelled"
        if fate == "raised":
            found.is_error, found.error_type = True, "BrokenError"
        elif fate == "cancelled":
            found.error_type = "cancelled"
        elif work.end in ("told", "dead"):
            found.is_error, found.error_type = True, "told"
        return fate

    def _plain(self, work: Work, key: str, at: Place) -> Fate:
        name, table = {
            "span": ("work", ""),
            "workflow": ("invoke_workflow digest", ""),
            "tool": ("execute_tool weather", ""),
            "llm": ("chat gpt-4o-mini", "llm_calls"),
            "job": ("run nightly", "job_runs"),
        }[work.kind]
        found, within = self._begin(key, name, at, table=table)
        if work.kind == "llm":
            found.columns = {"agent": at.agent, "user_id": at.user, "input_tokens": 5}
        fate = self._end(found, work, self._inner(work.inner, work, key, within))
        found.statuses = {_status(found)}
        return fate

    def _agent(self, work: Work, key: str, at: Place, *, carried: bool) -> Fate:
        above = at.carried() if carried else at
        found, within = self._begin(key, f"invoke_agent {work.name}", above, table="agent_tasks")
        # Also where a carrier says what it is about, it is done within the task of now
        found.columns = {
            "agent": work.name,
            "parent_id": Key(at.task) if at.task else None,
            "handoff_id": None,
            "user_id": work.user,
        }
        offer = at.offer if at.offer is not None and at.offer.target == work.name else None
        if offer is not None:
            found.columns["handoff_id"] = Key(offer.key)
            self.expected[offer.key].columns["is_accepted"] = True
            within = replace(within, offer=None)
        within = replace(within, task=key, source=work.name, agent=work.name, user=work.user or within.user)
        fate = self._end(found, work, self._inner(work.inner, work, key, within))
        found.statuses = {_status(found)}
        if offer is not None and offer.mode == "pass_control":
            self._ends[offer.key].append(_status(found))
        return fate

    def _handoff(self, work: Work, key: str, at: Place) -> Fate:
        found, within = self._begin(key, f"execute_tool transfer_to_{work.name}", at, table="handoffs")
        agents = (*at.agents, at.source) if at.source and at.agents[-1:] != (at.source,) else at.agents
        offer = Offer(key=key, target=work.name, mode=work.mode)
        within = replace(within, agents=agents, depth=at.depth + 1, offer=offer)
        found.columns = {
            "source": at.source,
            "target": work.name,
            "mode": work.mode,
            "depth": within.depth,
            "chain": list(agents),
            "is_loop": work.name in agents,
            "is_too_deep": within.depth > MAX_HANDOFFS,
            "parent_id": Key(at.task) if at.task else None,
            "is_accepted": False,
        }
        self._ends[key] = []
        fate: Fate = "well"
        if work.way == "stored":
            self._later.append(lambda: self._inner(work.inner, work, key, within.carried()))
        elif work.way == "message":
            fate = self._message(work, key, within)
        else:
            fate = self._inner(work.inner, work, key, within, carried=work.way == "carrier")
        fate = self._end(found, work, fate)
        if work.mode == "return_to_caller" or _status(found) != "completed":
            self._ends[key].append(_status(found))
        return fate

    def _settle_handoffs(self) -> None:
        for key, ends in self._ends.items():
            found = self.expected[key]
            if not ends:
                found.statuses = {"accepted" if found.columns["is_accepted"] else "waiting"}
            else:
                found.statuses = {ends[-1]} if self._is_orderly else set(ends)

    def _failed_message(self, work: Work, key: str, at: Place) -> Fate:
        if work.kind == "rejected":
            # Nobody knows where it came from; who tried to read it goes on
            found, _ = self._begin(key, f"process {work.queue}", Place(), table="queue_messages")
            found.is_error, found.error_type, found.statuses = True, "MessageError", {"rejected"}
            found.columns = {"messages": 1, "direction": "received"}
            return "well"
        found, _ = self._begin(key, f"send {work.queue}", at, table="queue_messages")
        fate = self._end(found, work, "well")
        found.statuses = {"cancelled" if found.error_type == "cancelled" else "failed" if found.error_type else "sent"}
        found.columns = {"attempt": 1, "messages": 1, "direction": "sent"}
        return fate

    def _message(self, work: Work, key: str, at: Place) -> Fate:
        sent, within = self._begin(f"{key}/sent", f"send {work.queue}", at, table="queue_messages")
        sent.statuses, sent.columns = {"sent"}, {"attempt": 1, "messages": 1, "direction": "sent"}
        return self._tries(replace(work, end="well"), f"{key}/taken", within.carried(), f"{key}/sent")

    def _send(self, work: Work, key: str, at: Place) -> Fate:
        if work.is_plain:
            return self._received(work, key, Place(), None)
        sent, within = self._begin(f"{key}/sent", f"send {work.queue}", at, table="queue_messages")
        sent.statuses, sent.columns = {"sent"}, {"attempt": 1, "messages": 1, "direction": "sent"}
        return self._received(work, key, within.carried(), f"{key}/sent")

    def _received(self, work: Work, key: str, carried: Place, sent: str | None) -> Fate:
        if work.way == "stored":
            self._later.append(lambda: self._tries(work, key, carried, sent))
            return "well"
        return self._tries(work, key, carried, sent)

    def _tries(self, work: Work, key: str, carried: Place, sent: str | None) -> Fate:
        attempt, earlier = 1, ""
        for number, fared in enumerate(work.tries):
            own = f"{key}#{number}"
            found, within = self._try(work, own, carried, (sent, earlier), attempt)
            found.is_error = fared in ("returned_failed", "redelivered")
            found.error_type = "BrokenError" if found.is_error else "cancelled" if fared == "crashed" else None
            found.statuses = {"failed" if fared == "redelivered" else "returned"}
            if fared in ("returned", "returned_failed"):
                attempt, earlier = attempt + 1, own
                if sent is None:
                    # From now on it has a thread
                    carried, sent = within.carried(), own
        found, within = self._try(work, key, carried, (sent, earlier), attempt)
        fate = self._end(found, work, self._inner(work.inner, work, key, within))
        status = {"well": "failed" if found.is_error else "processed", "raised": "failed", "cancelled": "returned"}[
            fate
        ]
        found.statuses = {"dead_lettered" if work.end == "dead" and fate == "well" else status}
        return fate

    def _try(
        self, work: Work, key: str, carried: Place, led_by: tuple[str | None, str], attempt: int
    ) -> tuple[Expected, Place]:
        found, within = self._begin(key, f"process {work.queue}", carried, table="queue_messages")
        found.links = list(dict.fromkeys(link for link in led_by if link))
        found.columns = {"attempt": attempt, "messages": 1, "direction": "received"}
        return found, within

    def _batch(self, work: Work, key: str, at: Place) -> Fate:
        threads: set[str | None] = {None} if work.origin == "plain" else set()
        sends = 1 if work.origin == "together" else work.messages
        for number in range(sends):
            own = f"{key}/sent{number}"
            where = replace(at, thread=own) if work.origin == "strangers" else at
            sent, within = self._begin(own, f"send {work.queue}", where, table="queue_messages")
            sent.statuses = {"sent"}
            sent.columns = {"attempt": 1, "messages": work.messages // sends, "direction": "sent"}
            threads.add(within.thread)
        start = Place(thread=threads.pop() if len(threads) == 1 else None)
        found, within = self._begin(key, f"process {work.queue}", start, table="queue_messages")
        found.links = [f"{key}/sent{number}" for number in range(sends)]
        found.columns = {"messages": work.messages + (work.origin == "plain"), "direction": "received"}
        fate = self._end(found, work, self._inner(work.inner, work, key, within))
        status = {"well": "failed" if found.is_error else "processed", "raised": "failed", "cancelled": "returned"}[
            fate
        ]
        found.statuses = {status}
        return fate


def _status(found: Expected) -> str:
    if found.is_error:
        return "failed"
    return "cancelled" if found.error_type == "cancelled" else "completed"
