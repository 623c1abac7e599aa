"""A task that an agent works on: a span, metrics, events, and a durable record that its process and others can read."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from clew import clock
from clew.agents.going_on import tasks
from clew.agents.record import TaskRecord, task_record
from clew.agents.registry import Known, registry
from clew.catalog import semconv
from clew.catalog.metrics import HANDOFF_WAIT
from clew.catalog.operations import AGENT_TASK
from clew.diagnostics import is_strict, report
from clew.engine import logs
from clew.engine.context import Carried, with_agent, with_user
from clew.engine.metrics import registry as metrics
from clew.engine.operation import Operation
from clew.engine.transfer import Offer, Passage, agent_name, passage, waited_s, with_passage
from clew.history.companions import accompany

F = TypeVar("F", bound=Callable[..., Any])

_CUT: Final = "the process ended before the task did"
_WORKING_KEY: Final = otel_context.create_key("clew-agent-task")


class Working:
    """The task that is current: whose it is, and its record's id.

    Args:
        agent: the agent's name.
        record_id: its record's; ``None`` without one.
    """

    __slots__ = ("agent", "record_id")

    def __init__(self, agent: str, record_id: str | None) -> None:
        self.agent = agent
        self.record_id = record_id


def working() -> Working | None:
    """Return the task that is current, of this process."""
    found = otel_context.get_value(_WORKING_KEY)
    return found if isinstance(found, Working) else None


class AgentTask(Operation):
    """A task of one agent. Made by :func:`agent_task`.

    Its record is written when it begins and when it ends, and nothing waits for that.
    """

    __slots__ = ("_attempt", "_known", "_message", "_pid", "_record", "_result", "_taken")

    def __init__(self, *operation: Any, attempt: int = 1, **options: Any) -> None:
        super().__init__(*operation, **options)
        self._attempt = attempt
        self._pid = 0
        self._known: Known | None = None
        self._record: TaskRecord | None = None
        self._taken: tuple[Passage, Offer] | None = None
        self._message = ""
        self._result: tuple[Any, ...] = ()

    @property
    def id(self) -> str:
        """The id of the task's record; ``""`` where there is none."""
        return self._record.id if self._record is not None else ""

    def set_result(self, value: Any) -> None:
        """Keep what came of the task: as JSON, redacted, and no more than ``CLEW_PAYLOAD_MAX_BYTES`` of it.

        Args:
            value: anything.

        Example:
            >>> import clew
            >>> with clew.agent_task("topicizer") as task:
            ...     task.set_result({"topics": 3})
        """
        self._result = (value,)

    def fail(self, error: BaseException | str, message: str = "") -> None:
        """Mark the task as failed without raising; see :meth:`Operation.fail`."""
        super().fail(error, message)
        self._message = str(message) or (logs._message(error) if isinstance(error, BaseException) else "")

    def begin(self, *, start_time_ns: int | None = None) -> None:
        """Start the task, and pick up the handoff that is meant for its agent."""
        self._pid = os.getpid()
        before = working()
        # What a carrier says is read once, for the span and for the handoff
        self._parent = parent = self._parent_context()
        if (found := passage(parent)).offer is not None and found.offer.target == self._agent:
            self._taken = found, found.offer
            self.attributes["clew.handoff.id"] = found.offer.id
            if found.offer.task_id is not None:
                self.attributes.setdefault("clew.task.id", found.offer.task_id)
        # The first one of a process takes its time, which is none of the task's
        self._record = task_record()
        super().begin(start_time_ns=start_time_ns)
        if self.context is None:
            return
        try:
            self._keep_start(before)
        except Exception as error:
            if is_strict():
                raise
            report("agent history", error)

    def finish(self, error: BaseException | None = None) -> None:
        """End the task, and its record."""
        if self.context is None or self._pid != os.getpid():
            # A child that was forked within the task ends nothing of its parent's
            return
        # Should the end of the process have marked it, its record tells what came of it after all
        tasks.claim(self)
        super().finish(error)
        try:
            self._keep_end(error)
        except Exception as problem:
            if is_strict():
                raise
            report("agent history", problem)
        finally:
            tasks.discard(self)

    def cut(self) -> None:
        """Mark the task as cancelled, because its process ends; should it end yet, its record is completed all the same."""
        if self._record is not None and tasks.claim(self):
            try:
                failure = ("shutdown", _CUT, None)
                self._end_record("cancelled", failure)
            finally:
                tasks.discard(self)

    def again(self) -> AgentTask:
        """Return a fresh task like this one, for one call of a decorated function."""
        return type(self)(
            self.kind,
            self.attributes.copy(),
            name=self._name,
            parent=self._parent,
            links=self._links,
            root=self._root,
            attempt=self._attempt,
        )

    @property
    def _agent(self) -> str:
        return str(self.attributes[semconv.GEN_AI_AGENT_NAME])

    def _keep_start(self, before: Working | None) -> None:
        context = cast("Context", self.context)
        record = self._record
        current = Working(self._agent, record.id if record is not None else None)
        context = otel_context.set_value(_WORKING_KEY, current, with_agent(self._agent, context))
        if (user_id := self.attributes.get("user.id")) is not None:
            context = with_user(str(user_id), context)
        if self._taken is not None:
            found, offer = self._taken
            context = with_passage(found.taken(), context)
            source = found.agents[-1] if found.agents else ""
            labels = {"clew.handoff.source": source, semconv.GEN_AI_TRANSFER_TARGET_NAME: offer.target}
            with Carried(context):
                metrics.declared(HANDOFF_WAIT).record(waited_s(offer, clock.now_ns()), **labels)
        self.context = context
        type_, version = self.attributes.get("clew.agent.type"), self.attributes.get(semconv.GEN_AI_AGENT_VERSION)
        self._known = registry.note(self._agent, str(type_ or ""), version)
        if self._known is not None:
            registry.started(self._known)
        tasks.add(self, record)
        if record is not None:
            parent_id = before.record_id if before is not None else None
            record.begun(context, self.attributes, attempt=self._attempt, parent_id=parent_id, taken=self._taken)

    def _keep_end(self, error: BaseException | None) -> None:
        failed = isinstance(error, Exception) or (self.error_type is not None and not self._interrupted)
        left = self._interrupted or not (error is None or isinstance(error, (Exception, GeneratorExit)))
        status = "failed" if failed else "cancelled" if left else "completed"
        if self._known is not None:
            error_type = self.error_type if status == "failed" else None
            registry.ended(self._known, error_type, completed=status == "completed")
        cause = self._error if self._error is not None else error
        message = self._message or (logs._message(error) if error is not None else "")
        self._end_record(status, (self.error_type if status != "completed" else None, message, cause))

    def _end_record(self, status: str, failure: tuple[str | None, str, BaseException | None]) -> None:
        if self._record is not None:
            self._record.ended(
                status,
                self.attributes,
                duration_s=(clock.monotonic_ns() - self._started_ns) / 1e9,
                result=self._result,
                failure=failure,
                ends_handoff=self._taken is not None and self._taken[1].mode == "pass_control",
            )


def agent_task(
    agent: str,
    /,
    *,
    type: str = "",
    version: str | None = None,
    task_id: str | None = None,
    user_id: str | None = None,
    attempt: int = 1,
    carrier: Mapping[Any, Any] | Carried | None = None,
    **attributes: Any,
) -> AgentTask:
    """Trace, measure and record an agent at work on a task.

    Where the task came by a handoff to this agent, in this process or over a wire, the handoff is accepted, and with
    ``pass_control`` it is over when the task is.

    Args:
        agent: the agent's name, of low cardinality.
        type: what kind of agent it is, such as ``topicization``.
        version: which version of it.
        task_id: what the task is about, such as a document's id; by default what the handoff that it accepts is about.
        user_id: for whom it is done, and so the LLM calls within it, where they name nobody else.
        attempt: the how manieth try it is, where the app tries again.
        carrier: where the task came over a wire, what :attr:`Operation.carrier` of its handoff gave.
        attributes: attributes of the task, kept in its record.

    Example:
        >>> import clew
        >>> with clew.agent_task("topicizer", type="topicization", task_id="t-1"):
        ...     pass
    """
    given: dict[str, Any] = {
        semconv.GEN_AI_OPERATION_NAME: "invoke_agent",
        semconv.GEN_AI_AGENT_NAME: agent_name(agent),
        "clew.agent.type": str(type),
        **attributes,
    }
    if version is not None:
        given[semconv.GEN_AI_AGENT_VERSION] = str(version)
    if task_id is not None:
        given["clew.task.id"] = str(task_id)
    if user_id is not None:
        given["user.id"] = user_id
    if attempt != 1:
        given["clew.agent.task.attempt"] = attempt
    return AgentTask(AGENT_TASK, given, parent=carrier, attempt=attempt)


def agent(name: str, /, *, type: str = "", version: str | None = None, method: str = "__call__") -> Callable[[F], F]:
    """Make every call of a function a task of an agent, and register the agent.

    It works for functions, coroutines, generators and async generators; of a class, every call of one method becomes a task.

    Args:
        name: the agent's name.
        type: what kind of agent it is.
        version: which version of it.
        method: the method of a class that does the agent's work.

    Example:
        >>> import clew
        >>> @clew.agent("topicizer", type="topicization", version="2")
        ... def topics(text: str) -> list[str]:
        ...     return text.split()
        >>> topics("one two")
        ['one', 'two']
        >>> @clew.agent("summariser", method="run")
        ... class Summariser:
        ...     def run(self, text: str) -> str:
        ...         return text[:3]
        >>> Summariser().run("labyrinth")
        'lab'
    """
    recipe = agent_task(name, type=type, version=version)
    registry.note(recipe._agent, str(type), version)
    accompany(_be_told)

    def decorate(target: F) -> F:
        if inspect.isclass(target):
            return cast("F", _wrap_method(target, method, recipe))
        return cast("F", recipe(target))

    return decorate


def _be_told() -> None:
    """Have the agents that were declared told of by whatever records in this process."""
    from clew.agents.upkeep import the_recorder

    the_recorder()


def _wrap_method(target: Any, method: str, recipe: AgentTask) -> Any:
    found = next((vars(kind)[method] for kind in target.__mro__ if method in vars(kind)), None)
    wrapped: Any
    if isinstance(found, (staticmethod, classmethod)):
        wrapped = found.__class__(recipe(found.__func__))
    elif callable(found):
        wrapped = recipe(cast("Any", found))
    else:
        report("agent", f"{target.__qualname__} has no method {method!r}: name the one that works with method=")
        return target
    try:
        setattr(target, method, wrapped)
    except (AttributeError, TypeError) as error:
        report("agent", error)
    return target
