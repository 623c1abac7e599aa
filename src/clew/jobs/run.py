"""A run of a job: ``clew.job`` as a context manager and a decorator."""

from __future__ import annotations

from typing import Any

from clew.catalog.operations import JOB
from clew.engine.operation import Linkable, Operation


class JobRun(Operation):
    """A run of a job, with a status: ``completed``, ``failed`` or ``cancelled``. Made by :func:`job`."""

    __slots__ = ()

    def finish(self, error: BaseException | None = None) -> None:
        """End the run and give it its status."""
        if "clew.job.status" not in self.attributes:
            if isinstance(error, Exception) or self.error_type is not None:
                status = "failed"
            else:
                status = "completed" if error is None or isinstance(error, GeneratorExit) else "cancelled"
            self.set("clew.job.status", status)
        super().finish(error)


def job(name: str, /, *, user_id: str | None = None, **metadata: Any) -> JobRun:
    """Trace and measure a run of a job, scheduled or not.

    A run that is started within a trace belongs to it.

    Args:
        name: the job, of low cardinality.
        user_id: who asked for it.
        metadata: attributes of the run.

    Example:
        >>> import clew
        >>> with clew.job("digest", topics=3) as run:
        ...     run.set("sent", 12)
        >>> @clew.job("cleanup")
        ... def cleanup(): ...
    """
    attributes: dict[str, Any] = {"clew.job.name": str(name), **metadata}
    if user_id is not None:
        attributes["user.id"] = user_id
    return run(attributes)


def run(attributes: dict[str, Any], *, parent: Any = None, link: Linkable | None = None, root: bool = False) -> JobRun:
    """Return a run for a scheduler's instrumentation, which knows more than :func:`job` asks for.

    Args:
        attributes: at least ``clew.job.name``.
        parent: a carrier that the run continues.
        link: a carrier of the span that scheduled it.
        root: start a new trace.
    """
    return JobRun(JOB, attributes, parent=parent, links=(link,) if link is not None else (), root=root)
