"""Write the dashboards, or tell whether the committed ones are what the code makes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tools.dashboards import FOLDER
from tools.dashboards.overview import overview

DASHBOARDS: Mapping[str, Callable[[], Dashboard]] = {"overview.json": overview}


def rendered() -> dict[str, str]:
    """Return the text of every dashboard's file, by name."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    texts = {}
    for name, make in DASHBOARDS.items():
        dashboard = make().build()
        # The builders leave this out; links to a panel need it
        for number, panel in enumerate(dashboard.panels or (), 1):
            panel.id_val = number
        texts[name] = f"{encoder.encode(dashboard)}\n"
    return texts


def outdated() -> list[str]:
    """Return the files that are missing, differ from the code, or are made by none."""
    made = rendered()
    found = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    return sorted(name for name in made.keys() | found.keys() if made.get(name) != found.get(name))


def main() -> None:
    """Do what the command line asks."""
    if sys.argv[1:] == ["write"]:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name, text in rendered().items():
            (FOLDER / name).write_text(text)
            print(f"clew dashboards: wrote grafana/dashboards/{name}")
    elif sys.argv[1:] == ["check"]:
        if names := outdated():
            sys.exit(f"clew dashboards: out of date: {', '.join(names)}: run 'python -m tools.dashboards write'.")
    else:
        sys.exit("clew dashboards: say write or check, for example: python -m tools.dashboards write")


if __name__ == "__main__":
    main()
