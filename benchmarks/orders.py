"""The other end of a :class:`benchmarks.processes.Process`: reads orders, carries them out, answers. Standard library only."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

Handler = Callable[..., Mapping[str, Any] | None]


def serve(handlers: Mapping[str, Handler], *, quiet: bool = True) -> None:
    """Carry out orders until the one to end, or the end of the input.

    Args:
        handlers: what to call for an order; its details are the keyword arguments.
        quiet: send what is printed to nowhere, as a service whose terminal nobody reads.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    errors = os.fdopen(os.dup(2), "w", buffering=1)
    if quiet:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    for line in sys.stdin:
        details = json.loads(line)
        order = details.pop("order")
        if order == "end":
            return
        try:
            answer = handlers[order](**details) or {}
        except Exception as error:
            errors.write(traceback.format_exc())
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
