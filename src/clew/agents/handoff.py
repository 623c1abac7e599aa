"""The handoff of a task to another agent: a span, metrics, events, and a durable record that both sides write."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Final, get_args

from clew import clock
from clew.agents.going_on import ending, handoffs
from clew.agents.record import HandoffRecord, handoff_record
from clew.agents.task import working
from clew.catalog import semconv
from clew.catalog.metrics import HANDOFF_PROBLEMS
from clew.catalog.operations import HANDOFF
from clew.diagnostics import is_strict, report
from clew.engine import logs
from clew.engine.context import Carried
from clew.engine.metrics import registry
from clew.engine.operation import Operation
from clew.engine.runtime import current_log_stream, ready
from clew.engine.transfer import Offer, Passage, TransferMode, agent_name, passage, with_passage
from clew.history.ids import new_id

_DEFAULT_MAX_DEPTH: Final = 16
_MAX_IDENTITY_LENGTH: Final = 128
_CUT: Final = "the process ended before the handoff did"


class Handoff(Operation):
    """A task that is handed to another agent. Made by :func:`handoff`."""

    __slots__ = ("_claim_within_s", "_message", "_mode", "_pid", "_record", "_summary", "_target", "id")

    def __init__(
        self,
        *operation: Any,
        mode: TransferMode,
        target: str,
        summary: Any = None,
        claim_within_s: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*operation, **options)
        self._mode = mode
        self._target = target
        self._summary = summary
        self._claim_within_s = claim_within_s
        self._pid = 0
        self._record: HandoffRecord | None = None
        self._message = ""
        self.id = new_id()
        self.attributes["clew.handoff.id"] = self.id

    def fail(self, error: BaseException | str, message: str = "") -> None:
        """Mark the handoff as failed without raising; see :meth:`Operation.fail`."""
        super().fail(error, message)
        self._message = str(message) or (logs._message(error) if isinstance(error, BaseException) else "")

    def begin(self, *, start_time_ns: int | None = None) -> None:
        """Start the handoff; what is sent from within it can be picked up by the other agent."""
        self._pid = os.getpid()
        current = working()
        source = current.agent if current is not None else ""
        self._record = handoff_record(self.id)
        self._parent = parent = self._parent_context()
        before = passage(parent)
        agents = (*before.agents, source) if source and before.agents[-1:] != (source,) else before.agents
        after = Passage(
            agents=agents,
            depth=before.depth + 1,
            offer=Offer(
                id=self.id,
                target=self._target,
                mode=self._mode,
                handed_ns=clock.now_ns() if start_time_ns is None else start_time_ns,
                task_id=self.attributes.get("clew.task.id"),
            ),
        )
        self.attributes["clew.handoff.source"] = source
        self.attributes["clew.handoff.depth"] = after.depth
        super().begin(start_time_ns=start_time_ns)
        if self.context is None:
            return
        self.context = with_passage(after, self.context)
        try:
            problems = self._problems(after)
            self._tell(problems)
            self._keep_start(after, current.record_id if current is not None else None, problems)
        except Exception as error:
            if is_strict():
                raise
            report("agent history", error)

    def finish(self, error: BaseException | None = None) -> None:
        """End the handoff; its record, where the task is to come back by then, or could not be handed over."""
        if self.context is None or self._pid != os.getpid():
            return
        handoffs.claim(self)
        super().finish(error)
        try:
            self._keep_end(error)
        except Exception as problem:
            if is_strict():
                raise
            report("agent history", problem)
        finally:
            handoffs.discard(self)

    def cut(self) -> None:
        """Mark the handoff as cancelled, because the process that waits for its end does not live to see it."""
        if self._record is not None and handoffs.claim(self):
            try:
                self._record.ended("cancelled", self._lasted_s(), ("shutdown", _CUT, None))
            finally:
                handoffs.discard(self)

    def again(self) -> Handoff:
        """Return a fresh handoff like this one, for one call of a decorated function."""
        return type(self)(
            self.kind,
            self.attributes.copy(),
            name=self._name,
            parent=self._parent,
            links=self._links,
            root=self._root,
            mode=self._mode,
            target=self._target,
            summary=self._summary,
            claim_within_s=self._claim_within_s,
        )

    def _problems(self, after: Passage) -> frozenset[str]:
        settings = ready().settings
        most = settings.handoff_max_depth if settings is not None else _DEFAULT_MAX_DEPTH
        found = {"loop"} if self._target in after.agents else set()
        return frozenset(found | ({"too_deep"} if after.depth > most else set()))

    def _tell(self, problems: frozenset[str]) -> None:
        if not problems or self.context is None:
            return
        labels = {name: self.attributes[name] for name in HANDOFF.labels[:2]}
        fields = {
            **labels,
            "clew.handoff.id": self.id,
            "clew.handoff.depth": self.attributes["clew.handoff.depth"],
            "clew.handoff.chain": " > ".join((*passage(self.context).agents, self._target)),
        }
        with Carried(self.context):
            for problem in sorted(problems):
                current_log_stream().take("warning", f"agent_handoff_{problem}", "clew.agent.handoff", fields)
                registry.declared(HANDOFF_PROBLEMS).add(1, **labels, **{"clew.handoff.problem": problem})

    def _keep_start(self, after: Passage, parent_id: str | None, problems: frozenset[str]) -> None:
        record = self._record
        if record is None or self.context is None:
            return
        ending.arm()
        record.begun(
            self.context,
            after,
            attributes=self.attributes,
            carrier=self.carrier,
            parent_id=parent_id,
            summary=self._summary,
            claim_within_s=self._claim_within_s,
            problems=problems,
        )
        if self._mode == "return_to_caller":
            handoffs.add(self, record)

    def _keep_end(self, error: BaseException | None) -> None:
        if self._record is None:
            return
        failed = isinstance(error, Exception) or (self.error_type is not None and not self._interrupted)
        left = self._interrupted or not (error is None or isinstance(error, (Exception, GeneratorExit)))
        status = "failed" if failed else "cancelled" if left else "completed"
        if status == "completed":
            if self._mode == "return_to_caller":
                self._record.ended(status, self._lasted_s(), (None, "", None))
            return
        message = self._message or (logs._message(error) if error is not None else "")
        cause = self._error if self._error is not None else error
        self._record.ended(status, self._lasted_s(), (self.error_type or "cancelled", message, cause))

    def _lasted_s(self) -> float:
        return (clock.monotonic_ns() - self._started_ns) / 1e9


def handoff(
    *,
    to: str,
    task: Any = None,
    mode: TransferMode = "return_to_caller",
    reason: str = "",
    summary: Any = None,
    claim_within_s: float | None = None,
    **attributes: Any,
) -> Handoff:
    """Hand a task to another agent, in this process or over a wire.

    Within the block everything belongs to the handoff. To cross a process, send ``handoff.carrier`` along with the task, and
    give it to :func:`agent_task` on the other side; where a library is instrumented that carries the thread, it carries this as well.

    Args:
        to: the agent that takes over.
        task: what it is about; its identity is recorded (``id`` attribute or key, or a short text), never its content.
        mode: ``return_to_caller`` when the result comes back by the end of the block, ``pass_control`` when it does not: the
            handoff is over when the other agent's task is.
        reason: why, in a few words.
        summary: what may be kept of what is handed over, as JSON, redacted and capped.
        claim_within_s: after how many seconds it is reported when no agent has picked it up; by default never.
        attributes: attributes of the handoff.

    Example:
        >>> import clew
        >>> with clew.handoff(to="topicizer", task={"id": "doc-17"}) as passing:
        ...     carrier = passing.carrier
    """
    if mode not in get_args(TransferMode):
        report("handoff", f"mode is {' or '.join(get_args(TransferMode))}, not {str(mode)[:80]!r}")
        mode = "return_to_caller"
    target = agent_name(to)
    given: dict[str, Any] = {
        semconv.GEN_AI_OPERATION_NAME: "execute_tool",
        semconv.GEN_AI_TOOL_NAME: f"transfer_to_{target}",
        semconv.GEN_AI_TRANSFER_TARGET_NAME: target,
        semconv.GEN_AI_TRANSFER_MODE: mode,
        "clew.handoff.source": "",
        **attributes,
    }
    if reason:
        given["clew.handoff.reason"] = reason
    if (identity := _identity(task)) is not None:
        given["clew.task.id"] = identity
    return Handoff(HANDOFF, given, mode=mode, target=target, summary=summary, claim_within_s=_seconds(claim_within_s))


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        report("handoff", "claim_within_s is a number of seconds")
        return None
    return seconds


def _identity(task: Any) -> str | None:
    if task is None:
        return None
    if isinstance(task, (str, int)):
        return str(task)[:_MAX_IDENTITY_LENGTH]
    try:
        found = task.get("id") if isinstance(task, Mapping) else getattr(task, "id", None)
        return str(found)[:_MAX_IDENTITY_LENGTH] if found is not None else None
    except Exception as error:
        report("handoff", error)
        return None
