"""What LangChain's callbacks tell of: nodes and models."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langgraph.constants import TAG_HIDDEN
from opentelemetry import context as otel_context

from clew.diagnostics import report
from clew.engine.spans import span as app_span
from clew.instrumentation.langgraph.ending import WHERE
from clew.instrumentation.langgraph.model import Model
from clew.instrumentation.langgraph.run import NODE_KEY, Node, Run, current_run, end_node
from clew.pipeline.current import attach, get_current


class Callbacks(BaseCallbackHandler):
    """Told by LangChain of what begins and ends, in the thread or the task that does it. It never raises."""

    run_inline = True

    def __init__(self) -> None:
        self._nodes: dict[Any, tuple[Run, Node]] = {}
        self._models: dict[Any, Model] = {}

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, **told: Any) -> None:
        """Begin a node of a workflow; other chains are no nodes."""
        name, run, tags = str(told.get("name")), current_run(), told.get("tags") or ()
        # The start, where it has a router, is none that the app has made
        is_node = any(str(tag).startswith("graph:step:") for tag in tags) and TAG_HIDDEN not in tags
        if run is None or run.is_agent or not is_node or name != (told.get("metadata") or {}).get("langgraph_node"):
            return
        try:
            sources = run.handed.get(name)
            before = get_current()
            given = sources.pop() if sources else None
            node = Node(name=name, within=run.node, given=given, before=before, context=before)
            if name not in run.agents:
                node.operation = app_span(name)
                node.operation.begin()
            context = (node.operation.context if node.operation is not None else None) or before
            node.context = otel_context.set_value(NODE_KEY, node, context)
            attach(node.context)
            self._nodes[run_id] = run, node
        except Exception as error:
            report(WHERE, error)

    def on_chain_end(self, outputs: Any, *, run_id: Any, **_: Any) -> None:
        """End a node."""
        if run_id in self._nodes:
            end_node(*self._nodes.pop(run_id), outputs, None)

    def on_chain_error(self, error: BaseException, *, run_id: Any, **_: Any) -> None:
        """End a node that failed, was interrupted, or gave control away."""
        if run_id in self._nodes:
            end_node(*self._nodes.pop(run_id), None, error)

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: Any, **told: Any) -> None:
        """Expect a call of a chat model."""
        try:
            if current_run() is not None:
                said = [{"role": _role(one.type), "content": one.content} for one in messages[0]]
                self._models[run_id] = Model(told.get("metadata") or {}, said)
        except Exception as error:
            report(WHERE, error)

    def on_llm_start(self, serialized: Any, prompts: Any, *, run_id: Any, **told: Any) -> None:
        """Expect a call of a model that completes texts."""
        try:
            if current_run() is not None:
                self._models[run_id] = Model(told.get("metadata") or {}, prompts)
        except Exception as error:
            report(WHERE, error)

    def on_llm_new_token(self, token: Any, *, run_id: Any, **_: Any) -> None:
        """Take note of a piece of a streamed answer."""
        try:
            if (model := self._models.get(run_id)) is not None:
                model.piece()
        except Exception as error:
            report(WHERE, error)

    def on_llm_end(self, response: Any, *, run_id: Any, **_: Any) -> None:
        """End a call."""
        self._end_model(run_id, response, None)

    def on_llm_error(self, error: BaseException, *, run_id: Any, **_: Any) -> None:
        """End a call that failed."""
        self._end_model(run_id, None, error)

    def _end_model(self, run_id: Any, answer: Any, error: BaseException | None) -> None:
        try:
            if (model := self._models.pop(run_id, None)) is not None:
                model.end(answer, error)
        except Exception as problem:
            report(WHERE, problem)


def _role(kind: str) -> str:
    return {"human": "user", "ai": "assistant"}.get(kind, kind)
