"""How boxes and images are distributed: which charts the page of a data set has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data.charts import bars, heat_map, histogram
from data.findings import Part

CELLS = 32  # of a map, each way
SIZES = 6  # of images, each with a bar of its own


def distributions(parts: Sequence[Part]) -> str:
    """All charts, HTML; the splits in the page's colours `s0`, `s1`, …, in their order."""
    sides = [part.index.boxes[:, 2:] - part.index.boxes[:, :2] for part in parts]
    names = [part.name for part in parts]
    charts = [
        _chart("Objects in an image", _count_chart(parts)),
        _chart("Size of a box", _size_chart(names, sides)),
        _chart("Shape of a box", _shape_chart(names, sides)),
        _chart("Size of an image", _image_sizes(parts)),
    ]
    maps = []
    for i, (part, side) in enumerate(zip(parts, sides, strict=True)):
        sizes = part.index.sizes[part.image_of]
        centres = (part.index.boxes[:, :2] + part.index.boxes[:, 2:]) / 2 / sizes
        where, extent = heat_map(_grid(centres), "centre x", "centre y"), _grid(side / sizes)
        maps.append(_chart(f"{key(i)}{part.name}: where boxes are", where))
        maps.append(_chart(f"{key(i)}{part.name}: how large they are", heat_map(extent, "width", "height", up=True)))
    legend = "".join(f"<span>{key(i)}{part.name}</span> " for i, part in enumerate(parts))
    return (
        f'<p class="legend">{legend}</p><div class="charts">{"".join(charts)}</div>'
        f'<div class="charts">{"".join(maps)}</div>'
    )


def key(i: int) -> str:
    """A patch of the colour of split i."""
    return f'<span class="key s{i}"></span>'


def _chart(title: str, svg: str) -> str:
    return f'<figure class="chart"><figcaption>{title}</figcaption>{svg}</figure>'


def _grid(places: np.ndarray) -> np.ndarray:
    """Counts [rows, columns] of points (x, y) in shares."""
    columns, rows = (places * CELLS).astype(int).clip(0, CELLS - 1).T
    return np.bincount(rows * CELLS + columns, minlength=CELLS * CELLS).reshape(CELLS, CELLS)


def _count_chart(parts: Sequence[Part]) -> str:
    top = max(int(part.index.counts.max(initial=0)) for part in parts)
    step = max(math.ceil((top + 1) / 40), 1)
    bins = math.ceil((top + 1) / step)
    edges = np.arange(bins + 1) * step - 0.5
    each = max(math.ceil(bins / 8), 1) * step
    ticks = [(value + (step - 1) / 2, str(value)) for value in range(0, top + 1, each)]
    return histogram(edges, [(part.name, part.index.counts) for part in parts], ticks, "objects; share of the images")


def _size_chart(names: Sequence[str], sides: Sequence[np.ndarray]) -> str:
    values = [np.log2(np.sqrt(side.prod(1))) for side in sides]
    low = math.floor(min((value.min() for value in values if len(value)), default=4))
    high = math.ceil(max((value.max() for value in values if len(value)), default=8))
    high = max(high, low + 2)
    edges = np.linspace(low, high, 4 * (high - low) + 1)
    step = 2 if high - low > 8 else 1
    ticks = [(exponent, f"{2.0**exponent:g}") for exponent in range(low, high + 1, step)]
    marks = [(math.log2(size), text) for size, text in ((32, "small"), (96, "large")) if low < math.log2(size) < high]
    series = list(zip(names, values, strict=True))
    return histogram(edges, series, ticks, "square root of the area, px; share of the boxes", marks)


def _shape_chart(names: Sequence[str], sides: Sequence[np.ndarray]) -> str:
    values = [np.log2(side[:, 0] / side[:, 1]) for side in sides]
    reach = max((float(np.abs(value).max()) for value in values if len(value)), default=1.0)
    reach = min(max(math.ceil(reach), 2), 6)
    edges = np.linspace(-reach - 0.125, reach + 0.125, 8 * reach + 2)
    ticks = [(k, f"{2**k}:1" if k >= 0 else f"1:{2**-k}") for k in range(-reach, reach + 1, 2 if reach > 4 else 1)]
    return histogram(edges, list(zip(names, values, strict=True)), ticks, "width to height; share of the boxes")


def _image_sizes(parts: Sequence[Part]) -> str:
    """The commonest sizes of images as bars, and all others together."""
    counts = [Counter(map(tuple, part.index.sizes.tolist())) for part in parts]
    total = sum(counts, Counter())
    common = [size for size, _ in total.most_common(SIZES)]
    rows = [(f"{w} x {h}", [count[(w, h)] for count in counts]) for w, h in common]
    rest = [count.total() - sum(count[size] for size in common) for count in counts]
    if sum(rest):
        rows.append((f"{len(total) - SIZES:,} others", rest))
    return bars(rows, "width x height, px; number of images")
