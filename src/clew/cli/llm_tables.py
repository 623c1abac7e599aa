"""What is known of LLM calls, laid out for people."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clew.cli.job_tables import _table
from clew.cli.wording import NOTHING, duration, number, plain
from clew.http.llm_answers import LlmUsageAnswer, UsageAnswer

_MAX_NAME_LENGTH: Final = 80


def usage_table(console: Console, answer: LlmUsageAnswer) -> Table:
    """Return a row for each of what is told apart, and one for all of them."""
    rows = [
        [
            Text(
                plain(f"{one.provider}/{one.name}" if one.provider else one.name, max_length=_MAX_NAME_LENGTH)
                or NOTHING
            ),
            *_figures(one),
        ]
        for one in answer.usage
    ]
    if len(rows) != 1 or answer.is_cut:
        rows.append([Text("all", style="bold"), *_figures(answer.overall)])
    titles = [answer.by, ">cost", ">calls", ">failed", ">input", ">output", ">from cache", ">cached", ">average"]
    return _table(console, titles, rows, only_if_wide=("from cache", "cached", "average"), cut=(answer.by,))


def _figures(usage: UsageAnswer) -> list[Text]:
    return [
        Text(dollars(usage.cost_usd) if usage.priced else NOTHING),
        Text(number(usage.calls)),
        Text(number(usage.failed), style="red" if usage.failed else ""),
        Text(number(usage.input_tokens)),
        Text(number(usage.output_tokens)),
        Text(number(usage.cache_read_tokens)),
        Text(number(usage.cached)),
        Text(duration(usage.average_s)),
    ]


def dollars(usd: float) -> str:
    """Return an amount that can be read at a glance, also a small one.

    Example:
        >>> [dollars(amount) for amount in (0.0, 0.0000213, 0.0042, 1.5, 12345.678)]
        ['$0.00', '$0.000021', '$0.0042', '$1.50', '$12,345.68']
    """
    if usd >= 0.01 or usd <= 0:
        return f"${usd:,.2f}"
    return f"${usd:.4f}" if usd >= 0.0001 else f"${usd:.6f}"
