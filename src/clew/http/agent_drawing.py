"""The graph of handoffs as a picture: agents in columns, in the order in which work goes through them. SVG, without a library.

Source: https://www.w3.org/TR/SVG11/
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

from clew.history.agents import AgentStatistics
from clew.history.handoffs import Edge, Graph

MAX_DRAWN: Final = 200
"""How many edges are drawn: more could not be told apart."""

_OUTSIDE: Final = "(no agent)"
_WIDTH: Final = 240
_HEIGHT: Final = 48
_COLUMN: Final = 430
_ROW: Final = 92
_LANE: Final = 32
_MARGIN: Final = 48
_MAX_LETTERS: Final = 24
_SWEEPS: Final = 8
_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#1f2937}"
    ".small{font-size:11px;fill:#6b7280}"
    ".node{fill:#f8fafc;stroke:#64748b;stroke-width:1.2}"
    ".bad{stroke:#dc2626}.outside{stroke-dasharray:4 3}"
    ".edge{fill:none;stroke:#94a3b8}.failing{stroke:#dc2626}"
    ".label{font-size:11px;fill:#374151;paint-order:stroke;stroke:#fff;stroke-width:5px;text-anchor:middle}"
    ".failed{fill:#dc2626;font-weight:600}"
)

# A place in the picture: an agent's name, or where a long edge passes a column
_Slot = str | tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class _Point:
    x: float
    y: float


def draw(graph: Graph) -> str:
    """Return a graph as SVG.

    Args:
        graph: who hands to whom; of more than :data:`MAX_DRAWN` edges those that are used most are drawn.

    Example:
        >>> draw(Graph(since=None, until=None, agents=[], edges=[]))[:4]
        '<svg'
    """
    edges = sorted(graph.edges, key=lambda edge: -edge.handoffs)[:MAX_DRAWN]
    names = sorted(
        {name for edge in edges for name in (edge.source, edge.target)} | {one.agent for one in graph.agents}
    )
    known = {one.agent: one for one in graph.agents}
    layers = _layers(names, edges)
    slots = _slots(layers, edges)
    places = {
        slot: _Point(_MARGIN + column * _COLUMN, _MARGIN + row * _ROW + (_tallest(slots) - len(found)) * _ROW / 2)
        for column, found in enumerate(slots)
        for row, slot in enumerate(found)
    }
    bottom = _MARGIN * 2 + max(1, _tallest(slots)) * _ROW
    backs = [edge for edge in edges if layers[edge.target] <= layers[edge.source] and edge.source != edge.target]
    width = _MARGIN * 2 + max(0, len(slots) - 1) * _COLUMN + _WIDTH
    height = bottom + len(backs) * _LANE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        "<title>Who hands over to whom</title>",
        f"<style>{_STYLE}</style>",
        _marker("arrow", "#94a3b8"),
        _marker("bad-arrow", "#dc2626"),
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    lines, labels = [], []
    for edge in edges:
        if layers[edge.target] > layers[edge.source]:
            line, label = _forward(edge, layers, places)
        else:
            depth = bottom + backs.index(edge) * _LANE if edge in backs else 0
            line, label = _backward(edge, places, depth)
        lines.append(line)
        labels.append(label)
    # Labels lie over all lines, so that none is crossed out
    parts += lines + [_node(name, places[name], known.get(name)) for name in names] + labels
    if not names:
        parts.append(f'<text x="{_MARGIN}" y="{_MARGIN}">No handoffs are known.</text>')
    return "".join((*parts, "</svg>"))


def _layers(names: Iterable[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Return the column of each agent: after all that hand over to it, but for edges that lead back."""
    onward: defaultdict[str, list[str]] = defaultdict(list)
    entered = {edge.target for edge in edges if edge.source != edge.target}
    for edge in edges:
        if edge.source != edge.target:
            onward[edge.source].append(edge.target)
    order: list[str] = []
    forward: defaultdict[str, list[str]] = defaultdict(list)
    done: set[str] = set()
    # First those that nobody hands over to: what leads back to them closes a circle
    for start in sorted(names, key=lambda name: (name in entered, name)):
        if start in done:
            continue
        path, on_path = [(start, iter(onward[start]))], {start}
        done.add(start)
        while path:
            name, following = path[-1]
            target = next(following, None)
            if target is None:
                path.pop()
                on_path.discard(name)
                order.append(name)
            elif target not in on_path:
                forward[name].append(target)
                if target not in done:
                    done.add(target)
                    on_path.add(target)
                    path.append((target, iter(onward[target])))
    layers = dict.fromkeys(order, 0)
    for name in reversed(order):
        for target in forward[name]:
            layers[target] = max(layers[target], layers[name] + 1)
    return layers


def _slots(layers: dict[str, int], edges: Sequence[Edge]) -> list[list[_Slot]]:
    """Return what is in each column, from top to bottom, so that few lines cross."""
    columns: list[list[_Slot]] = [[] for _ in range(max(layers.values(), default=-1) + 1)]
    for name, layer in sorted(layers.items()):
        columns[layer].append(name)
    beside: defaultdict[_Slot, list[_Slot]] = defaultdict(list)
    for edge in edges:
        way = _way(edge, layers)
        for layer, slot in enumerate(way[1:-1], layers[edge.source] + 1):
            columns[layer].append(slot)
        for one, other in pairwise(way):
            beside[one].append(other)
            beside[other].append(one)
    for sweep in range(_SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            rows = {slot: row for found in columns for row, slot in enumerate(found)}
            middle = {
                slot: sum(rows[other] for other in beside[slot]) / len(beside[slot]) if beside[slot] else rows[slot]
                for slot in column
            }
            column.sort(key=middle.__getitem__)
    return columns


def _way(edge: Edge, layers: dict[str, int]) -> list[_Slot]:
    first, last = layers[edge.source], layers[edge.target]
    if last <= first:
        return []
    return [edge.source, *((edge.source, edge.target, layer) for layer in range(first + 1, last)), edge.target]


def _tallest(columns: Sequence[Sequence[_Slot]]) -> int:
    return max((len(column) for column in columns), default=0)


def _forward(edge: Edge, layers: dict[str, int], places: dict[_Slot, _Point]) -> tuple[str, str]:
    way = [places[slot] for slot in _way(edge, layers)]
    start = _Point(way[0].x + _WIDTH, way[0].y + _HEIGHT / 2)
    path = [f"M{start.x:.0f} {start.y:.0f}"]
    label = start
    for number, place in enumerate(way[1:]):
        end = _Point(place.x, place.y + _HEIGHT / 2)
        half = (start.x + end.x) / 2
        path.append(f"C{half:.0f} {start.y:.0f} {half:.0f} {end.y:.0f} {end.x:.0f} {end.y:.0f}")
        if number == 0:
            label = _Point(half, (start.y + end.y) / 2)
        start = end
        if number < len(way) - 2:
            start = _Point(place.x + _WIDTH, end.y)
            path.append(f"L{start.x:.0f} {start.y:.0f}")
    return _line(edge, " ".join(path)), _label(edge, label)


def _backward(edge: Edge, places: dict[_Slot, _Point], depth: float) -> tuple[str, str]:
    """Lead a line that goes back below everything else."""
    source, target = places[edge.source], places[edge.target]
    if source is target:
        right, middle = source.x + _WIDTH, source.y + _HEIGHT / 2
        loop = f"M{right - 50:.0f} {source.y:.0f} c0 -34 70 -34 70 -4 S{right + 24:.0f} {middle - 12:.0f} {right:.0f} {middle - 12:.0f}"
        return _line(edge, loop), _label(edge, _Point(right - 15, source.y - 24))
    begin, end = source.x + _WIDTH * 0.6, target.x + _WIDTH * 0.4
    top, landing = source.y + _HEIGHT, target.y + _HEIGHT
    path = (
        f"M{begin:.0f} {top:.0f} C{begin:.0f} {depth:.0f} {begin:.0f} {depth:.0f} {(begin + end) / 2:.0f} {depth:.0f} "
    )
    path += f"S{end:.0f} {depth:.0f} {end:.0f} {landing:.0f}"
    return _line(edge, path), _label(edge, _Point((begin + end) / 2, depth + 4))


def _line(edge: Edge, path: str) -> str:
    kind, arrow = ("edge failing", "bad-arrow") if edge.failing else ("edge", "arrow")
    thickness = 1.2 + min(3.0, len(str(edge.handoffs)) * 0.6)
    return f'<path class="{kind}" stroke-width="{thickness:.1f}" marker-end="url(#{arrow})" d="{path}"/>'


def _label(edge: Edge, at: _Point) -> str:
    first = f"{edge.handoffs:,} × {_duration(edge.average_s)}" if edge.average_s is not None else f"{edge.handoffs:,}"
    if edge.average_wait_s is not None:
        first += f", waited {_duration(edge.average_wait_s)}"
    # Without a space between them: what belongs to one label stays together
    text = f'<text class="label" x="{at.x:.0f}" y="{at.y - 4:.0f}">{first}</text>'
    if edge.failing:
        text += f'<text class="label failed" x="{at.x:.0f}" y="{at.y + 10:.0f}">{edge.failing:,} failed</text>'
    return text


def _node(name: str, at: _Point, known: AgentStatistics | None) -> str:
    is_bad = known is not None and known.failed > 0
    kind = "node" + (" bad" if is_bad else "") + ("" if name else " outside")
    middle = at.x + _WIDTH / 2
    shown = f'<rect class="{kind}" x="{at.x:.0f}" y="{at.y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
    shown += f'<text x="{middle:.0f}" y="{at.y + 20:.0f}" text-anchor="middle">{_text(name or _OUTSIDE)}</text>'
    if known is not None and (known.tasks or known.active):
        said = [f"{known.tasks:,} tasks"]
        said += [_duration(known.average_s)] if known.average_s is not None else []
        said += [f"{known.failed:,} failed"] if known.failed else []
        said += [f"{known.active:,} active"] if known.active else []
        shown += (
            f'<text class="small" x="{middle:.0f}" y="{at.y + 37:.0f}" text-anchor="middle">{" · ".join(said)}</text>'
        )
    return f"<g><title>{_text(name or _OUTSIDE, letters=200)}</title>{shown}</g>"


def _marker(name: str, colour: str) -> str:
    return (
        f'<defs><marker id="{name}" markerUnits="userSpaceOnUse" markerWidth="12" markerHeight="10" refX="11" refY="5" '
        f'orient="auto"><path d="M0 0L12 5L0 10z" fill="{colour}"/></marker></defs>'
    )


def _text(value: str, letters: int = _MAX_LETTERS) -> str:
    """Return a text that XML can have: a name may come from anywhere."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in value)
    return escape(plain if len(plain) <= letters else plain[: letters - 1] + "…")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
