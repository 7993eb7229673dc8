"""data/charts.py: what is drawn, read back out of the SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from data.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, bars, heat_map, histogram

EDGES = np.arange(5.0)
TICKS = [(0.0, "0"), (4.0, "4")]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]


def outline(svg: str, series: int) -> list[tuple[float, float]]:
    area = next(one for one in ET.fromstring(svg).iter("polygon") if one.get("class") == f"area s{series}")
    return [tuple(map(float, point.split(","))) for point in area.get("points", "").split()]


def test_a_histogram_shows_shares() -> None:
    values = np.array([0.5, 0.5, 1.5, 3.9, 3.9, 3.9, 3.9, 99, -7, 2.2])  # what lies beyond counts in the outer bins
    svg = histogram(EDGES, [("train", values), ("val", values[:1])], TICKS, "things")
    top = max(float(text.rstrip("%")) for text in texts(svg) if text.endswith("%")) / 100
    assert top == 1.0, "the scale takes in the highest of all"
    plot = HEIGHT - TOP - BOTTOM
    for series, shares in ((0, (0.3, 0.1, 0.1, 0.5)), (1, (1, 0, 0, 0))):
        points = outline(svg, series)
        heights = [1 - (points[1 + 2 * k][1] - TOP) / plot for k in range(4)]
        assert heights == pytest.approx(shares, abs=0.001)
        assert points[0] == (LEFT, HEIGHT - BOTTOM) and points[-1] == (WIDTH - RIGHT, HEIGHT - BOTTOM)
        assert [point[0] for point in points] == sorted(point[0] for point in points)


@pytest.mark.parametrize("share", [0.001, 0.013, 0.05, 0.13, 0.31, 0.79, 1.0])
def test_a_scale_is_used_and_not_exceeded(share: float) -> None:
    count = round(share * 1000)
    values = np.r_[np.full(count, 0.5), np.linspace(1, 4, 1000 - count, endpoint=False)] if share < 0.3 else (
        np.r_[np.full(count, 0.5), np.full(1000 - count, 1.5)]
    )  # fmt: skip
    y = min(point[1] for point in outline(histogram(EDGES, [("a", values)], TICKS, ""), 0))
    assert TOP <= y <= TOP + 0.67 * (HEIGHT - TOP - BOTTOM)


def test_no_values_are_a_flat_line() -> None:
    svg = histogram(EDGES, [("train", np.zeros(0))], TICKS, "none")
    assert {y for _, y in outline(svg, 0)} == {HEIGHT - BOTTOM}
    ET.fromstring(histogram(EDGES, [], TICKS, "none"))
    ET.fromstring(bars([], "none"))


def test_marks_stand_at_their_place() -> None:
    svg = histogram(EDGES, [("a", np.ones(3))], TICKS, "", [(1.0, "low"), (3.0, "high")])
    lines = [float(line.get("x1", 0)) for line in ET.fromstring(svg).iter("line") if line.get("class") == "mark"]
    width = WIDTH - LEFT - RIGHT
    assert lines == pytest.approx([LEFT + width / 4, LEFT + 3 * width / 4], abs=0.1)
    assert {"low", "high"} <= set(texts(svg))


@pytest.mark.parametrize("up", [False, True])
def test_a_map_has_a_cell_for_every_count(up: bool) -> None:
    grid = np.zeros((8, 8), int)
    grid[1, 2], grid[7, 0], grid[3, 3] = 100, 25, 1
    cells = {}
    for path in ET.fromstring(heat_map(grid, "x", "y", up)).iter("path"):
        for x, y in re.findall(r"M(\d+) (\d+)h1v1h-1z", path.get("d", "")):
            cells[7 - int(y) if up else int(y), int(x)] = float(path.get("fill-opacity", 0))
    assert cells.keys() == {(1, 2), (7, 0), (3, 3)}
    assert cells[1, 2] == 1 and cells[7, 0] == 0.5 and cells[3, 3] == 0.125, "by the square root"


def test_bars_compare_shares_of_each_series() -> None:
    svg = bars([("a", (30, 1)), ("b", (10, 3))], "things")
    widths = [float(bar.get("width", 0)) for bar in ET.fromstring(svg).iter("rect")]
    assert widths[0] == widths[3] == max(widths) and widths[1] == widths[2] == pytest.approx(max(widths) / 3, abs=0.1)
    assert {"a", "b", "30", "10", "1", "3"} <= set(texts(svg))


def test_words_are_escaped_and_stay_inside() -> None:
    word = '<b>&"'
    for svg in (
        histogram(EDGES, [("a", np.ones(3))], [(0.0, word), (4.0, "64:1")], word),
        bars([(word, (1, 2)), ("12,345 others", (123456, 1))], word),
        heat_map(np.eye(3, dtype=int), word, "height"),
    ):
        root = ET.fromstring(svg)
        assert word in texts(svg) and {element.tag for element in root.iter()} <= {
            *("svg", "g", "path", "text", "line", "polygon", "rect"),
        }
        width, height = map(float, root.get("viewBox", "").split()[2:])
        for text in root.iter("text"):
            if text.get("x") is None:
                continue
            x, y, length = float(text.get("x", 0)), float(text.get("y", 0)), 6.2 * len(text.text or "")
            left = x - {"start": 0, "middle": length / 2, "end": length}[text.get("text-anchor", "start")]
            assert left >= -3 and left + length <= width + 3 and 0 < y <= height, text.text
