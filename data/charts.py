"""Charts as inline SVG: text that any browser draws, without a library. Colours are the page's (`.s0`, `.s1`, …)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 290, 200  # of a chart's own units: about pixels as it is shown
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 10, 36  # margins around the plot
LEVELS = 8  # shades of a map


def histogram(
    edges: np.ndarray,
    series: Sequence[tuple[str, np.ndarray]],
    ticks: Sequence[tuple[float, str]],
    label: str,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Outlines of the shares of values in bins, one for each of `series` (name, values).

    edges: [K + 1], evenly spaced; values beyond are counted in the outer bins. ticks, marks: (place, text); marks have
    a line through the plot, with the text of the first to its left, of others to their right.
    label: what the values are.
    """
    shares = [_shares(values, edges) for _, values in series]
    top = _round_up(max((float(share.max()) for share in shares), default=0.0))
    plot_w, plot_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    low, high = float(edges[0]), float(edges[-1])

    def x(value: float) -> float:
        return LEFT + plot_w * (value - low) / (high - low)

    def y(share: float) -> float:
        return TOP + plot_h * (1 - share / top)

    parts = [_grid(top, y), _ticks(ticks, x)]
    for i, share in enumerate(shares):
        points = [f"{x(low):.1f},{y(0):.1f}"]
        for k, value in enumerate(share):
            points += [f"{x(float(edges[k])):.1f},{y(value):.1f}", f"{x(float(edges[k + 1])):.1f},{y(value):.1f}"]
        points.append(f"{x(high):.1f},{y(0):.1f}")
        parts.append(f'<polygon class="area s{i}" points="{" ".join(points)}"/>')
    for i, (value, text) in enumerate(marks):
        parts.append(f'<line class="mark" x1="{x(value):.1f}" y1="{TOP}" x2="{x(value):.1f}" y2="{TOP + plot_h}"/>')
        parts.append(_text(x(value) + 3, TOP + 9, text, "start") if i else _text(x(value) - 3, TOP + 9, text, "end"))
    return _svg(parts, label)


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / max(len(values), 1)


def _round_up(share: float) -> float:
    """The end of a scale from 0 that takes `share` in and divides by four into round parts."""
    steps = (0.004, 0.008, 0.02, 0.04, 0.08, 0.12, 0.2, 0.4, 0.6, 0.8)
    return next((step for step in steps if share <= step), 1.0)


def _grid(top: float, y) -> str:
    lines = []
    for quarter in range(5):
        share = top * quarter / 4
        lines.append(
            f'<line class="grid" x1="{LEFT}" y1="{y(share):.1f}" x2="{WIDTH - RIGHT}" y2="{y(share):.1f}"/>'
            + _text(LEFT - 5, y(share) + 3.5, f"{share:.1%}" if top < 0.04 else f"{share:.0%}", "end")
        )
    return "".join(lines)


def _ticks(ticks: Sequence[tuple[float, str]], x) -> str:
    bottom = HEIGHT - BOTTOM
    return "".join(
        f'<line class="axis" x1="{x(value):.1f}" y1="{bottom}" x2="{x(value):.1f}" y2="{bottom + 4}"/>'
        + _text(x(value), bottom + 15, text, "middle")
        for value, text in ticks
    )


def heat_map(grid: np.ndarray, x_label: str, y_label: str, up: bool = False) -> str:
    """A square map of counts `[rows, columns]` over shares of an image; stronger where there is more (square root).

    up: the first row is at the bottom, as in a plot, not on top, as in an image.
    """
    grid = grid[::-1] if up else grid
    first, last = ("100%", "0%") if up else ("0%", "100%")
    rows, columns = grid.shape
    size, left, top = 210, LEFT, TOP
    strength = np.ceil(LEVELS * np.sqrt(grid / max(float(grid.max()), 1.0))).astype(int)
    parts = [f'<rect class="ground" x="{left}" y="{top}" width="{size}" height="{size}"/>']
    parts.append(f'<g transform="translate({left} {top}) scale({size / columns:g} {size / rows:g})">')
    for level in range(1, LEVELS + 1):  # one path a shade: a tenth of the bytes of a rectangle a cell
        cells = "".join(f"M{x} {y}h1v1h-1z" for y, x in zip(*np.nonzero(strength == level), strict=True))
        if cells:
            parts.append(f'<path class="heat" fill-opacity="{level / LEVELS:g}" d="{cells}"/>')
    parts.append("</g>")
    bottom = top + size
    parts += [
        _text(left, bottom + 14, "0%", "start"),
        _text(left + size, bottom + 14, "100%", "end"),
        _text(left + size / 2, bottom + 14, x_label, "middle"),
        _text(left - 5, top + 9, first, "end"),
        _text(left - 5, bottom, last, "end"),
        f'<text class="label" text-anchor="middle" transform="translate({left - 10} {top + size / 2}) rotate(-90)">'
        f"{escape(y_label)}</text>",
    ]
    return _svg(parts, f"{x_label}, {y_label}", left + size + RIGHT, bottom + 20, titled=False)


def bars(rows: Sequence[tuple[str, Sequence[int]]], label: str) -> str:
    """Lying bars: (name, a count for each series), as shares of each series' whole, the longest as long as fits."""
    series = len(rows[0][1]) if rows else 0
    totals = [max(sum(counts[i] for _, counts in rows), 1) for i in range(series)]
    most = max((counts[i] / totals[i] for _, counts in rows for i in range(series)), default=1.0)
    thick, gap = 12, 10
    left, plot_w = 90, WIDTH - 90 - 50
    y, parts = TOP, []
    for name, counts in rows:
        parts.append(_text(left - 6, y + (thick * series) / 2 + 4, name, "end"))
        for i, count in enumerate(counts):
            width = plot_w * count / totals[i] / most
            parts.append(f'<rect class="bar s{i}" x="{left}" y="{y}" width="{width:.1f}" height="{thick - 2}"/>')
            parts.append(_text(left + width + 5, y + 9, f"{count:,}", "start"))
            y += thick
        y += gap
    return _svg(parts, label, WIDTH, y + 14)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], label: str, width: float = WIDTH, height: float = HEIGHT, titled: bool = True) -> str:
    title = _text(width / 2, height - 4, label, "middle") if titled else ""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" '
        f'style="max-width:{1.25 * width:g}px">{"".join(parts)}{title}</svg>'
    )
