"""The handoffs that led here: which agents had a task, and the handoff that somebody is to pick up. They travel with the thread.

The header ``clew-handoff`` carries them: a version, how many handoffs there were, and the agents, the oldest first; within a handoff
also its id, its target, its mode, when it was made, and what it is about. Whatever it says is a stranger's word: it is bounded, and nonsense in it is
passed over. It goes over queues, and to whom the app writes a carrier for; like baggage, it goes to no other host by itself than
those that ``CLEW_BAGGAGE_HOSTS`` names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import quote, unquote

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

TransferMode = Literal["return_to_caller", "pass_control"]

HEADER: Final = "clew-handoff"
"""The header that carries the handoffs."""

MAX_NAME_LENGTH: Final = 128
"""Characters of an agent's name that travel."""
MAX_AGENTS: Final = 32
"""Agents that travel; of a longer chain the last ones."""
MAX_DEPTH: Final = 1_000_000
_MAX_LENGTH: Final = 2_048
_MAX_AGE_NS: Final = 400 * 86_400 * 10**9
_VERSION: Final = "1"
_MODES: Final[dict[str, TransferMode]] = {"r": "return_to_caller", "p": "pass_control"}
_LETTERS: Final = {mode: letter for letter, mode in _MODES.items()}
_FORM: Final = re.compile(
    r"1;(?P<depth>[0-9]{1,7});(?P<agents>[A-Za-z0-9._~%,-]{0,2048})"
    r"(?:;(?P<id>[0-9a-f]{32});(?P<at>[0-9]{1,19});(?P<mode>[rp]);(?P<target>[A-Za-z0-9._~%-]{1,1536})"
    r"(?:;(?P<task>[A-Za-z0-9._~%-]{1,1536}))?)?",
    re.ASCII,
)
_KEY: Final = otel_context.create_key("clew-handoffs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A handoff that somebody is to pick up.

    Attributes:
        id: its record's.
        target: the agent that it is meant for.
        mode: whether the result comes back.
        handed_ns: when it was made, in nanoseconds since the epoch, by the clock of who made it.
        task_id: what it is about.
    """

    id: str
    target: str
    mode: TransferMode
    handed_ns: int
    task_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """The handoffs that led somewhere.

    Attributes:
        agents: who had the task, the oldest first; of a long chain the last ones.
        depth: how many handoffs there were.
        offer: the handoff that is to be picked up.
    """

    agents: tuple[str, ...] = ()
    depth: int = 0
    offer: Offer | None = None

    def taken(self) -> Passage:
        """Return it as it is for who has picked the handoff up."""
        return replace(self, offer=None)


_NOWHERE: Final = Passage()


def passage(context: Context | None = None) -> Passage:
    """Return the handoffs that led here."""
    found = otel_context.get_value(_KEY, context)
    return found if isinstance(found, Passage) else _NOWHERE


def with_passage(value: Passage, context: Context | None = None) -> Context:
    """Return a context that carries handoffs."""
    return otel_context.set_value(_KEY, value, context)


def agent_name(value: object) -> str:
    r"""Return an agent's name as it travels: a printable text of at most 128 characters.

    Example:
        >>> agent_name("a\nb"), len(agent_name("x" * 1000))
        ('a?b', 128)
    """
    text = str(value)[:MAX_NAME_LENGTH]
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def written(found: Passage) -> str | None:
    """Return handoffs as the header has them; ``None`` where there is nothing to tell.

    Example:
        >>> written(Passage(agents=("orchestrator", "a b"), depth=2))
        '1;2;orchestrator,a%20b'
    """
    if found is _NOWHERE or not (found.depth or found.agents or found.offer):
        return None
    agents = [quote(name, safe="", errors="replace") for name in found.agents[-MAX_AGENTS:]]
    end = ""
    if (offer := found.offer) is not None:
        end = f";{offer.id};{offer.handed_ns};{_LETTERS[offer.mode]};{quote(offer.target, safe='', errors='replace')}"
        if offer.task_id:
            about = f";{quote(offer.task_id[:MAX_NAME_LENGTH], safe='', errors='replace')}"
            # Two names of many bytes are too much: whom it is meant for comes first
            end += about if len(end) + len(about) < _MAX_LENGTH - 32 else ""
    head = f"{_VERSION};{min(found.depth, MAX_DEPTH)};"
    while agents and len(head) + len(end) + sum(len(name) + 1 for name in agents) > _MAX_LENGTH:
        agents.pop(0)
    return f"{head}{','.join(agents)}{end}"


def read(text: str) -> Passage | None:
    """Return handoffs from a header; ``None`` where it says nothing that can be used.

    Example:
        >>> read("1;2;orchestrator,a%20b").agents, read("nonsense")
        (('orchestrator', 'a b'), None)
    """
    form = _FORM.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if form is None:
        return None
    names = [name for name in form["agents"].split(",") if name]
    offer = None
    if form["id"] is not None:
        offer = Offer(
            id=form["id"],
            target=_name(form["target"]),
            mode=_MODES[form["mode"]],
            handed_ns=int(form["at"]),
            task_id=_name(form["task"]) if form["task"] is not None else None,
        )
    agents = tuple(_name(name) for name in names[-MAX_AGENTS:])
    return Passage(agents=agents, depth=min(int(form["depth"]), MAX_DEPTH), offer=offer)


def waited_s(offer: Offer, now_ns: int) -> float:
    """Return how long a handoff has waited, in seconds: never less than nothing, whatever its maker's clock said.

    Example:
        >>> waited_s(Offer(id="0" * 32, target="a", mode="pass_control", handed_ns=10**9), 3 * 10**9)
        2.0
    """
    passed_ns = now_ns - offer.handed_ns
    return passed_ns / 1e9 if 0 <= passed_ns <= _MAX_AGE_NS else 0.0


def _name(quoted: str) -> str:
    return agent_name(unquote(quoted, errors="replace"))


class TransferPropagator(TextMapPropagator):
    """Carries the handoffs that led here in a header.

    Args:
        may_leave: tells whether the next injection may have it.
    """

    def __init__(self, may_leave: Callable[[], bool]) -> None:
        self._may_leave = may_leave

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """Take what the carrier says of handoffs, where that can be used."""
        context = otel_context.get_current() if context is None else context
        values = getter.get(carrier, HEADER)
        found = read(values[0]) if values else None
        return context if found is None else with_passage(found, context)

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Write the handoffs that led here, where there are some."""
        text = written(passage(context))
        if text is not None and self._may_leave():
            setter.set(carrier, HEADER, text)

    @property
    def fields(self) -> set[str]:
        """The header it writes."""
        return {HEADER}
