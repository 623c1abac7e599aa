"""Small random systems: services and agents that send, hand over, call, fail, hang and are cancelled, read from bytes.

A topology is a tree of :class:`Work`. Bytes are cheap to generate, and fewer and smaller ones make a smaller topology.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Literal

Kind = Literal["span", "agent", "handoff", "send", "batch", "llm", "tool", "job", "workflow", "unsent", "rejected"]
End = Literal["well", "raises", "told", "hangs", "dead"]
Try = Literal["returned", "returned_failed", "redelivered", "crashed"]
Origin = Literal["same", "strangers", "together", "plain"]
Shape = Literal["block", "function", "stream", "abandoned"]
Own = Literal["", "task", "thread"]
Way = Literal["block", "carrier", "message", "stored"]
Mode = Literal["return_to_caller", "pass_control"]

AGENTS: Final = ("ada", "bob", "cyd", "dan")
QUEUES: Final = ("documents", "topics")
MAX_HANDOFFS: Final = 3
"""What counts as an over-long chain where these run."""
_MAX_WORK: Final = 16
_MAX_NESTED: Final = 7

_KINDS: Final[tuple[Kind, ...]] = (
    *("span", "agent", "handoff", "send", "handoff", "agent", "llm", "tool", "batch", "handoff", "agent", "send"),
    *("workflow", "handoff", "agent", "job", "unsent", "rejected"),
)
_ENDS: Final[tuple[End, ...]] = ("well", "well", "well", "raises", "told", "hangs", "well", "dead")
_TRIES: Final[tuple[Try, ...]] = ("returned", "returned_failed", "redelivered", "crashed")
_ORIGINS: Final[tuple[Origin, ...]] = ("same", "strangers", "together", "plain")
_SHAPES: Final[tuple[Shape, ...]] = ("block", "block", "block", "function", "stream", "abandoned")
_OWN: Final[tuple[Own, ...]] = ("", "", "", "", "", "task", "task", "thread")
_WAYS: Final[tuple[Way, ...]] = ("block", "carrier", "message", "stored")


@dataclass(frozen=True, kw_only=True)
class Work:
    """A piece of work, with what is done within it.

    Attributes:
        kind: what it is.
        name: the agent that does it or takes over.
        queue: the queue of what is sent.
        end: how it ends, when what is within it has ended well.
        own: it runs in a task of asyncio of its own, or in a thread of its own; there it is cancelled when it hangs.
        shape: how an operation is written: as a block, as a decorated coroutine, or as a decorated async generator, of which whoever
            asked for it may take no more than the first item.
        catches: it goes on when something within it fails.
        fans_out: what is within it runs at the same time.
        way: how what is handed over reaches the other agent; of a message, ``stored`` where it is processed when all else is over.
        mode: of a handoff.
        tries: how a message fared before the last try.
        is_plain: the message's producer has no clew.
        messages: of a batch.
        origin: of a batch: sent on the same thread, by strangers, together in one go, or one of them without clew.
        user: for whom an agent works.
        inner: what is done within it.
    """

    kind: Kind
    name: str = AGENTS[0]
    queue: str = QUEUES[0]
    end: End = "well"
    own: Own = ""
    shape: Shape = "block"
    catches: bool = False
    fans_out: bool = False
    way: Way = "block"
    mode: Mode = "return_to_caller"
    tries: tuple[Try, ...] = ()
    is_plain: bool = False
    messages: int = 1
    origin: Origin = "same"
    user: str | None = None
    inner: tuple[Work, ...] = ()

    def __repr__(self) -> str:
        """Return it without what is as it mostly is."""
        told = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        return f"Work({', '.join(f'{name}={value!r}' for name, value in told.items())})"

    @property
    def any_fans_out(self) -> bool:
        """Whether anything within it runs at the same time as something else."""
        return self.fans_out or any(work.any_fans_out for work in self.inner)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A system: what its service does, one after the other.

    Attributes:
        is_correlated: it begins with a correlation id of the app's.
        works: each begins a trace.
    """

    is_correlated: bool
    works: tuple[Work, ...]


def topology(program: bytes) -> Topology:
    """Return the topology that bytes stand for; after their end there are noughts."""
    return _Reader(program).topology()


class _Reader:
    def __init__(self, program: bytes) -> None:
        self._left = iter(program)
        self._room = _MAX_WORK

    def topology(self) -> Topology:
        head = self._next()
        return Topology(
            is_correlated=head % 2 == 0,
            works=tuple(work for _ in range(1 + head // 2 % 2) for work in self._works(1, 0)),
        )

    def _next(self) -> int:
        return next(self._left, 0)

    def _works(self, count: int, nested: int, taker: str = "", *, is_agent: bool = False) -> tuple[Work, ...]:
        found = []
        for _ in range(count):
            if self._room > 0 and nested < _MAX_NESTED:
                self._room -= 1
                found.append(self._work(nested, taker, is_agent=is_agent))
        return tuple(found)

    def _work(self, nested: int, taker: str, *, is_agent: bool) -> Work:
        chosen, how, more, odd = self._next(), self._next(), self._next(), self._next()
        kind, name = _KINDS[chosen % len(_KINDS)], AGENTS[more // 8 % 4]
        # Mostly what is handed over is picked up, and often handed on: by chance alone there were few chains
        if taker and chosen % 4 < 3:
            kind, name = "agent", taker
        elif is_agent and chosen % 2 == 1:
            kind = "handoff"
        is_transfer, is_message = kind == "handoff", kind in ("send", "batch")
        way: Way = _WAYS[more // 32 % 4] if is_transfer or is_message else "block"
        end = _ENDS[how % 8]
        if end == "dead" and kind != "send":
            end = "well"
        tries = self._next() if kind == "send" or way == "message" else 0
        inner_count = (
            (is_transfer, 1, 1, 2, 1, 2, 3, 1)[more % 8] if kind not in ("llm", "tool", "unsent", "rejected") else 0
        )
        has_shape = not is_message and way == "block" and kind not in ("llm", "unsent", "rejected") and end != "told"
        return Work(
            kind=kind,
            name=name,
            queue=QUEUES[more // 8 % 2],
            end=end,
            own=_OWN[how // 8 % 8],
            shape=_SHAPES[odd % 6] if has_shape else "block",
            catches=how // 64 % 2 == 0,
            fans_out=how // 128 == 1 and odd // 6 % 2 == 1,
            way=way,
            mode="pass_control" if is_transfer and more // 128 else "return_to_caller",
            tries=tuple(_TRIES[tries // 4**place % 4] for place in range(tries // 64)),
            is_plain=kind == "send" and more // 128 == 1,
            messages=1 + (more // 16 % 4) if kind == "batch" else 1,
            origin=_ORIGINS[odd % 4] if kind == "batch" else "same",
            user=f"user-{odd % 7}" if kind == "agent" and odd % 7 > 3 else None,
            inner=self._works(
                inner_count, nested + 1, name if is_transfer else taker if is_message else "", is_agent=kind == "agent"
            ),
        )
