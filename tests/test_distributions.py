"""data/distributions.py: the values that reach the charts, against those computed by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data import distributions
from data.check import examine
from data.config import load_data_config
from data.findings import Part
from tests.small_data import yolo_set

BOXES = [(0, 0.0, 0.0, 24.0, 6.0), (0, 48.0, 36.0, 80.0, 68.0)]  # 12 px and 32 px; 4:1 and 1:1


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    images = {"train": [BOXES, [], BOXES[:1]], "val": [BOXES[1:]]}
    return examine(load_data_config(yolo_set(tmp_path, images, ["cat"]))).parts


def test_every_chart_gets_its_values(parts: list[Part], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        distributions, "histogram", lambda edges, series, ticks, label, *more: drawn.update({label: series}) or ""
    )
    grids: list[np.ndarray] = []
    monkeypatch.setattr(distributions, "heat_map", lambda grid, *labels, up=False: grids.append(grid) or "")
    rows: list = []
    monkeypatch.setattr(distributions, "bars", lambda given, label: rows.extend(given) or "")
    distributions.distributions(parts)
    counts, sizes, shapes = drawn.values()
    assert [(name, values.tolist()) for name, values in counts] == [("train", [2, 0, 1]), ("val", [1])]
    np.testing.assert_allclose(2 ** sizes[0][1], [12, 32, 12], rtol=1e-4)
    np.testing.assert_allclose(2 ** shapes[0][1], [4, 1, 4], rtol=1e-4)
    where, extent = grids[0], grids[1]
    assert where.sum() == 3 and where[1, 4] == 2 and where[23, 21] == 1, "centres (12, 3) and (64, 52) of 96 x 72"
    assert extent[2, 8] == 2 and extent[14, 10] == 1, "height 6 of 72, width 24 of 96; 32 of 72, 32 of 96"
    assert rows == [("96 x 72", [3, 1])]


def test_many_sizes_are_gathered(parts: list[Part], monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list = []
    monkeypatch.setattr(distributions, "bars", lambda given, label: rows.extend(given) or "")
    sizes = np.array([[100 + i % 10, 50] for i in range(30)] + [[100, 50]] * 5, np.int32)

    class Sized:
        index = type("Index", (), {"sizes": sizes})

    distributions._image_sizes([Sized()])
    assert rows[0] == ("100 x 50", [8]) and rows[-1] == ("4 others", [12]) and len(rows) == 7


@pytest.mark.parametrize("most", [0, 1, 7, 40, 41, 1000])
def test_bins_of_counts_hold_whole_numbers(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        distributions, "histogram", lambda edges, series, ticks, label: given.update(edges=edges, ticks=ticks) or ""
    )

    class Counted:
        name, index = "train", SimpleNamespace(counts=np.array([0, most]))

    distributions._count_chart([Counted()])
    edges = given["edges"]
    assert edges[0] == -0.5 and edges[-1] > most and len(edges) <= 42 and (edges % 1 == 0.5).all()
    assert 1 <= len(given["ticks"]) <= 9


def test_an_empty_split_is_drawn_too(parts: list[Part]) -> None:
    index = parts[0].index
    nothing = {name: getattr(index, name)[:0] for name in ("sizes", "boxes", "classes", "crowd", "areas", "paths")}
    zero = np.zeros(1, np.int64)
    empty = type(index)(index.root, path_offsets=zero.copy(), offsets=zero, **nothing)
    part = Part("val", empty, [], parts[0].looks, {})
    for shown in ([part], [parts[0], part]):
        assert distributions.distributions(shown).count("<svg") == 4 + 2 * len(shown)
