"""Processes of Celery: their logs leave once, and the children of a worker end with nothing left behind.

A worker takes every handler off the root logger and puts one of its own there, and sends what is printed to the log. What clew
says then reaches neither OTLP nor, as it is, the terminal; this puts it right after Celery has set up its logging.

Source: https://docs.celeryq.dev/en/stable/userguide/signals.html#logging-signals
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery import signals
from celery.utils.log import get_multiprocessing_logger

from clew.diagnostics import report
from clew.engine import ending, logs, runtime
from clew.instrumentation.celery.application import WHERE, is_instrumented, name_rival
from clew.jobs.record import the_recorder


def _logging_is_set_up(loglevel: Any = None, **_: Any) -> None:
    try:
        name_rival()
        # Before what is printed, to either of the standard streams, is sent to the log
        logs.write_to(sys.__stderr__)
        logs.install(runtime.current_log_stream())
        if (of_pools := get_multiprocessing_logger()) is not None:
            # Says that a child was killed
            logs.adopt(of_pools)
        if isinstance(loglevel, int) and loglevel:
            # What the worker's command line asks for is about Celery's own lines; the app's are CLEW_LOG_LEVEL's
            logging.getLogger("celery").setLevel(loglevel)
    except Exception as error:
        report(WHERE, error)


def _task_logging_is_set_up(logger: Any = None, **_: Any) -> None:
    try:
        logs.adopt(logger)
    except Exception as error:
        report(WHERE, error)


def _worker_starts(sender: Any = None, **_: Any) -> None:
    try:
        if is_instrumented(getattr(sender, "app", None)):
            # Before it forks: what this imports would else be imported by the first task of each child, within its time limit
            the_recorder()
    except Exception as error:
        report(WHERE, error)


def _child_ends(**_: Any) -> None:
    # The pool ends its children by os._exit, which runs nothing that was registered for the end
    ending.shutdown()


def connect() -> None:
    """Listen to what becomes of processes. Twice is harmless."""
    signals.after_setup_logger.connect(_logging_is_set_up, weak=False, dispatch_uid="clew")
    signals.after_setup_task_logger.connect(_task_logging_is_set_up, weak=False, dispatch_uid="clew")
    signals.worker_init.connect(_worker_starts, weak=False, dispatch_uid="clew")
    signals.worker_process_shutdown.connect(_child_ends, weak=False, dispatch_uid="clew")
