"""The dashboards as code, and every query in them as a table, so that tests can run each against the real backends.

``python -m tools.dashboards write`` builds ``grafana/dashboards/*.json``, ``check`` says which of them is out of date.
Names of metrics and labels come from the catalogue, so a renamed metric changes the JSON and ``check`` fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "grafana" / "dashboards"

SUBSTITUTES: Final = {
    "__rate_interval": "1m",
    "__interval": "1m",
    "__range": "1h",
    "service": ".+",
    "level": ".+",
    "search": "",
}
"""What Grafana puts in the place of a variable: its own, and those of the dashboards when nothing is chosen."""

_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


@dataclass(frozen=True, kw_only=True)
class DashboardQuery:
    """One query of one panel, ready to be sent to its backend.

    Attributes:
        dashboard: the dashboard's uid.
        panel: the panel's title.
        datasource: the data source's uid: ``prometheus`` or ``loki``.
        expr: PromQL or LogQL with the variables filled in.
        exemplars: whether the panel shows the exemplars of its series.
    """

    dashboard: str
    panel: str
    datasource: str
    expr: str
    exemplars: bool


def substituted(expr: str, substitutes: Mapping[str, str] = SUBSTITUTES) -> str:
    """Return a query as Grafana would send it.

    Raises:
        KeyError: the query has a variable that has no substitute.

    Example:
        >>> substituted('rate(up{service_name=~"$service"}[$__rate_interval])')
        'rate(up{service_name=~".+"}[1m])'
    """
    return _VARIABLE.sub(lambda match: substitutes[match[1] or match[2]], expr)


def queries(folder: Path = FOLDER) -> list[DashboardQuery]:
    """Return every query of the committed dashboards, in the order of their panels."""
    return [
        DashboardQuery(
            dashboard=dashboard["uid"],
            panel=panel["title"],
            datasource=target["datasource"]["uid"],
            expr=substituted(target["expr"]),
            exemplars=target.get("exemplar", False),
        )
        for dashboard in (json.loads(path.read_text()) for path in sorted(folder.glob("*.json")))
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the panels that show something, also those inside collapsed rows."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel
